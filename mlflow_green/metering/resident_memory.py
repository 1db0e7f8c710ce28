"""How much memory each step's processes keep, from ``/proc``, at little cost."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mlflow_green.errors import SensorUnavailable
from mlflow_green.metering.marks import environment_entries, marked
from mlflow_green.sensors.memory_model import read_memory_bytes
from mlflow_green.sensors.proc_stat import PROC_ROOT

LOOK_SECONDS = 2.0
LOOKED_AT_ONCE = 64  # with more processes the looks are rarer: one costs 20 us a process, so 0.1 % of a CPU
_STAT_PARENT, _STAT_START, _STAT_RESIDENT_PAGES = 1, 19, 21  # fields of /proc/PID/stat, counted from the state
_GENERATIONS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Resident bytes of all marked processes by their mark; ``here``: of this process and its descendants, "" unmarked.

    Memory that several processes share counts once for each.
    """

    by_hold: Mapping[str, int] = field(default_factory=dict)
    here: Mapping[str, int] = field(default_factory=dict)


class _Process(NamedTuple):
    hold_id: str
    started: bytes
    is_here: bool


class ResidentMemory:
    """Resident memory of all processes that carry ``GREEN_HOLD_ID`` in their environment, and of this one's tree.

    A process that runs as another user, or was started without the mark by another process, is never found.
    ``memory_bytes`` is all that the machine has, ``None`` where that is not known. Used by one thread at a time; raises
    nothing.
    """

    def __init__(self, proc_root: Path = PROC_ROOT) -> None:
        self._proc_root = proc_root
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._next_look_seconds = -math.inf
        self._asked: AbstractSet[str] = frozenset()
        self._found = Resident()
        self._kept: dict[str, _Process] = {}  # by pid: those that are marked, or here
        self._unmarked: set[str] = set()
        self._never: set[str] = set()  # twice without a mark: at the first look it may not have called exec yet
        try:
            self.memory_bytes: int | None = read_memory_bytes(proc_root)
        except SensorUnavailable:
            self.memory_bytes = None

    def look(self, now_seconds: float, hold_ids: AbstractSet[str] = frozenset()) -> Resident:
        """As of the last look; the monotonic time says when to look again, and so does an id that is new."""
        is_due = now_seconds >= self._next_look_seconds
        if is_due or not hold_ids <= self._asked:
            self._scan(is_due=is_due)
            self._found = self._weigh()
        if is_due:
            self._next_look_seconds = now_seconds + LOOK_SECONDS * (1 + len(self._kept) // LOOKED_AT_ONCE)
        self._asked = hold_ids
        return self._found

    def _weigh(self) -> Resident:
        by_hold: defaultdict[str, int] = defaultdict(int)
        here: defaultdict[str, int] = defaultdict(int)
        for pid, process in list(self._kept.items()):
            fields = self._stat(pid)
            if fields is None or fields[_STAT_START] != process.started:
                del self._kept[pid]
                continue
            held_bytes = int(fields[_STAT_RESIDENT_PAGES]) * self._page_bytes
            if process.hold_id:
                by_hold[process.hold_id] += held_bytes
            if process.is_here:
                here[process.hold_id] += held_bytes
        return Resident(by_hold=by_hold, here=here)

    def _scan(self, *, is_due: bool) -> None:
        try:
            pids = {name for name in os.listdir(self._proc_root) if name.isdigit()}  # noqa: PTH208 - names only
        except OSError:
            return
        new = pids - self._never - {pid for pid, process in self._kept.items() if process.hold_id}
        hold_ids = {pid: self._hold_id(pid) for pid in new}
        stats = {pid: fields for pid in new if (fields := self._stat(pid)) is not None}
        kept = {
            pid: _Process(hold_ids[pid], fields[_STAT_START], self._is_here(pid, stats))
            for pid, fields in stats.items()
        }
        self._kept.update({pid: process for pid, process in kept.items() if process.hold_id or process.is_here})
        if is_due:
            unmarked = {pid for pid in new if not (hold_ids[pid] and pid in stats)}
            self._never = (self._never & pids) | (unmarked & self._unmarked)
            self._unmarked = unmarked

    def _is_here(self, pid: str, stats: Mapping[str, Sequence[bytes]]) -> bool:
        """Whether it is this process, or descends from it; an ancestor that is not new is known or elsewhere."""
        for _ in range(_GENERATIONS_MAX):
            known = self._kept.get(pid)
            if pid == str(os.getpid()) or (known is not None and known.is_here):
                return True
            if pid not in stats:
                break
            pid = stats[pid][_STAT_PARENT].decode()
        return False

    def _hold_id(self, pid: str) -> str:
        """What the process is marked with; empty where it is not, or where it may not be looked at."""
        any_mark = marked("")
        marks = (each for each in environment_entries(pid, self._proc_root) if each.startswith(any_mark))
        return next(marks, b"").removeprefix(any_mark).decode(errors="replace")

    def _stat(self, pid: str) -> list[bytes] | None:
        try:
            fields = (self._proc_root / pid / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return fields if len(fields) > _STAT_RESIDENT_PAGES else None
