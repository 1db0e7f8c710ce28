"""kill -9 of whoever writes the ledger, a thousand times: what was acknowledged is all there, and the books close.

    python tests/benchmarks/kill_storm.py [--kills 1000] [--workers 4]

The kills are spread over SQLite, the journal of a network file system and PostgreSQL. Exits with 1 if anything is lost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.testkit.ledger_workers import Place, findings, folder_in_memory, kill_storm, lost_words, sqlite_in
from tests.testkit.postgres import postgres_server


def storm(name: str, place: Place, kills: int, workers: int) -> bool:
    """One store; whether nothing was lost."""
    began = time.monotonic()
    told = kill_storm(place, kills, workers)
    verbs = Counter(each.verb for each in told)
    with place.opened() as ledger:
        lost, found = lost_words(ledger, told), findings(ledger)
    print(
        f"{name:12}{kills:6} kills{verbs['held']:8} holds, {verbs['topped']} top-ups and {verbs['settled']} settlements"
        f" acknowledged, {len(lost)} lost; verify: {len(found)} findings; {time.monotonic() - began:.0f} s",
        flush=True,
    )
    for text in (*lost, *found):
        print(f"  {text}")
    return not lost and not found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    kills = -(-options.kills // 3)
    with folder_in_memory() as folder, postgres_server(durable=True) as server:
        places = {
            "SQLite": sqlite_in(made(folder / "sqlite")),
            "journal": Place(folder=made(folder / "journal")),
            "PostgreSQL": Place(folder=made(folder / "postgres"), url=server.new_database()),
        }
        whole = [storm(name, place, kills, options.workers) for name, place in places.items()]
    sys.exit(not all(whole))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
