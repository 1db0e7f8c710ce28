"""What a test asks of the books in a folder's ``.green`` after processes were killed."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from pathlib import Path

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.sql import SqlLedger, open_ledger
from mlflow_green.ledger.verify import verify
from mlflow_green.metering.supervise import owner_alive, step_processes


def ledger_in(folder: Path) -> SqlLedger:
    return open_ledger(
        f"sqlite:///{folder / '.green/ledger.db'}", mountinfo_path=Path("/proc/self/mountinfo"), clock=SystemClock()
    )


def findings(ledger: SqlLedger) -> tuple[str, ...]:
    return verify(ledger, lambda owner: owner_alive(owner, platform.node()))


def hold_ids(ledger: SqlLedger) -> set[str]:
    return {row.hold_id for row in ledger.journal() if row.hold_id}


def processes_left(ledger: SqlLedger) -> set[int]:
    return {pid for hold_id in hold_ids(ledger) for pid in step_processes(hold_id)}


def spool_lines(folder: Path) -> list[dict]:
    """The whole lines of every spool file there is now, each with the name of its file."""
    lines = []
    for path in (folder / ".green/spool").glob("*.jsonl"):
        for text in path.read_bytes().split(b"\n")[:-1]:
            lines.append({"sampler": path.stem, **json.loads(text)})
    return lines


class SpooledEnergy:
    """The node energy of every tick that was seen in a spool, each tick once."""

    def __init__(self) -> None:
        self._ticks: dict[tuple[str, str, int], int] = {}
        self.power_watts_max: dict[str, float] = {}

    def look(self, folder: Path) -> None:
        for line in spool_lines(folder):
            if line["kind"] == "session":
                self.power_watts_max[line["book"]["sampler_id"]] = line["book"]["power_watts_max"]
            if line["kind"] == "tick":
                for window in line["tick"]["windows"]:
                    key = (window["sampler_id"], window["domain"], window["sequence_last"])
                    self._ticks[key] = window["energy"]["microjoules"]

    def missing_from(self, ledger: SqlLedger) -> dict[str, int]:
        """By sampler, what the spools held and the ledger's windows do not; empty when not a microjoule is lost."""
        spooled: defaultdict[str, int] = defaultdict(int)
        for (sampler_id, _, _), microjoules in self._ticks.items():
            spooled[sampler_id] += microjoules
        for window in ledger.node_windows():
            if window.sampler_id in spooled:
                spooled[window.sampler_id] -= window.energy.microjoules
        return {sampler_id: left for sampler_id, left in spooled.items() if left > 0}
