"""Law 4 with real processes: kill -9 of whoever writes, at any moment, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlflow_green.ledger.sqlite import wal_is_safe
from mlflow_green.records import Batch
from tests.testkit.ledger_samples import OWNER, admit_what_fits, request
from tests.testkit.ledger_workers import (
    AMPLE,
    Crew,
    Place,
    Told,
    findings,
    folder_in_memory,
    is_stopped,
    kill_storm,
    lost_words,
    sqlite_in,
    tell_all,
    told_in,
    wait_for_more,
)
from tests.testkit.postgres import postgres_server
from tests.testkit.waiting import comes_true

KILLS_A_STORE, WORKERS = 34, 4
COPIES, HOT_COPIES, LOOKS_MAX = 6, 3, 1000
CRASHES = 5
HAS_WAL = wal_is_safe(sqlite3.sqlite_version_info[:3])


@pytest.fixture
def folder():
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "journal", "postgres"])
def place(request, folder) -> Place:
    if request.param == "sqlite":
        return sqlite_in(folder)
    url = None if request.param == "journal" else request.getfixturevalue("postgres").new_database()
    return Place(folder=folder, url=url)


def test_what_was_acknowledged_survives_a_storm_of_kill_nine(place):
    check(place, kill_storm(place, KILLS_A_STORE, WORKERS), at_least=KILLS_A_STORE / 2)


def check(place: Place, told: list[Told], at_least: float) -> None:
    with place.opened() as ledger:
        verbs = Counter(each.verb for each in told)
        assert min(verbs["held"], verbs["topped"], verbs["settled"]) >= at_least, verbs
        assert lost_words(ledger, told) == []
        assert findings(ledger) == ()
        after = Batch(requests=(request("after", 1, *AMPLE),), owner=OWNER)
        assert ledger.commit(after, admit_what_fits).answers[0].hold


def test_what_was_acknowledged_survives_crashes_of_postgresql_and_the_workers_go_on(folder):
    told = [folder / f"told-{number}" for number in range(WORKERS)]
    with postgres_server(durable=True) as server, Crew() as crew:
        place = Place(folder=folder, url=server.new_database())
        place.open().close()
        for number in range(WORKERS):
            crew.start(tell_all, place, f"w{number}", told[number], True)
        for _ in range(CRASHES):
            wait_for_more(told, 40)
            server.crash()
            server.start()
            assert not crew.failed
        before = [len(told_in(path)) for path in told]
        assert comes_true(lambda: all(len(told_in(path)) > n for path, n in zip(told, before, strict=True)), 60)
        for number in range(WORKERS):
            crew.members[number].kill()
        check(place, [each for path in told for each in told_in(path)], at_least=4 * CRASHES)


def test_a_copy_of_the_files_at_any_moment_opens_with_all_that_was_acknowledged(tmp_path):
    """What is left when every process dies at once. It is no power cut: all that was written is there, and in order."""
    place, told = sqlite_in(tmp_path / "live"), [tmp_path / "live" / f"told-{number}" for number in range(WORKERS)]
    place.open().close()
    dice, copies, hot_copies = random.Random(4), 0, 0
    with Crew() as crew:
        for number in range(WORKERS):
            crew.start(tell_all, place, f"w{number}", told[number])
        for _ in range(LOOKS_MAX):
            time.sleep(dice.uniform(0.005, 0.02))
            with stopped(crew):
                hot = is_hot(place.folder / "ledger.db-journal")
                if copies >= COPIES and not hot:
                    continue
                copy = sqlite_in(tmp_path / f"copy-{copies}")
                shutil.copytree(place.folder, copy.folder)
            copies, hot_copies = copies + 1, hot_copies + hot
            check(copy, [each for path in told for each in told_in(copy.folder / path.name)], at_least=0)
            (integrity,) = sqlite3.connect(copy.folder / "ledger.db").execute("PRAGMA integrity_check").fetchone()
            assert integrity == "ok"
            if copies >= COPIES and (hot_copies >= HOT_COPIES or HAS_WAL):
                break
        assert not crew.failed
    assert hot_copies or HAS_WAL, "no copy had a transaction to roll back"


@contextmanager
def stopped(crew: Crew) -> Iterator[None]:
    for member in crew.members:
        os.kill(member.pid, signal.SIGSTOP)
    for member in crew.members:
        assert comes_true(lambda pid=member.pid: is_stopped(pid), 10, 0.0001)
    yield
    for member in crew.members:
        os.kill(member.pid, signal.SIGCONT)


def is_hot(journal: Path) -> bool:
    """Whether a rollback journal has a transaction in it: its first byte is not 0."""
    return journal.exists() and journal.read_bytes()[:1] not in {b"", b"\0"}
