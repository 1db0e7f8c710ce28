"""How much memory each step's processes keep, from ``/proc``, at little cost."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from mlflow_green.errors import SensorUnavailable
from mlflow_green.sensors.memory_model import read_memory_bytes
from mlflow_green.sensors.proc_stat import PROC_ROOT

LOOK_SECONDS = 2.0
LOOKED_AT_ONCE = 64  # with more processes the looks are rarer: one costs 20 us a process, so 0.1 % of a CPU
_MARK = b"GREEN_HOLD_ID="
_STAT_START, _STAT_RESIDENT_PAGES = 19, 21  # fields of /proc/PID/stat, counted from the state


class ResidentMemory:
    """Resident memory of all processes that carry ``GREEN_HOLD_ID`` in their environment, by its value.

    Memory that several processes share counts once for each. A process that runs as another user, or was started
    without the mark, is never found. ``memory_bytes`` is all that the machine has, ``None`` where that is not known.
    Used by one thread at a time; raises nothing.
    """

    def __init__(self, proc_root: Path = PROC_ROOT) -> None:
        self._proc_root = proc_root
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._next_look_seconds = -math.inf
        self._found: Mapping[str, int] = {}
        self._marked: dict[str, tuple[str, bytes]] = {}  # hold id and start time by pid
        self._unmarked: set[str] = set()
        self._never: set[str] = set()  # twice without a mark: at the first look it may not have called exec yet
        try:
            self.memory_bytes: int | None = read_memory_bytes(proc_root)
        except SensorUnavailable:
            self.memory_bytes = None

    def bytes_by_hold(self, now_seconds: float) -> Mapping[str, int]:
        """Bytes by hold id, as of the last look; ``now_seconds`` is the monotonic time and says when to look again."""
        if now_seconds >= self._next_look_seconds:
            self._scan()
            self._found = self._look()
            self._next_look_seconds = now_seconds + LOOK_SECONDS * (1 + len(self._marked) // LOOKED_AT_ONCE)
        return self._found

    def _look(self) -> Mapping[str, int]:
        found: defaultdict[str, int] = defaultdict(int)
        for pid, (hold_id, started) in list(self._marked.items()):
            fields = self._stat(pid)
            if fields is None or fields[_STAT_START] != started:
                del self._marked[pid]
            else:
                found[hold_id] += int(fields[_STAT_RESIDENT_PAGES]) * self._page_bytes
        return found

    def _scan(self) -> None:
        try:
            pids = {name for name in os.listdir(self._proc_root) if name.isdigit()}  # noqa: PTH208 - names only
        except OSError:
            return
        unmarked: set[str] = set()
        for pid in pids - self._never - self._marked.keys():
            hold_id, fields = self._hold_id(pid), self._stat(pid)
            if hold_id and fields is not None:
                self._marked[pid] = (hold_id, fields[_STAT_START])
            else:
                unmarked.add(pid)
        self._never = (self._never & pids) | (unmarked & self._unmarked)
        self._unmarked = unmarked

    def _hold_id(self, pid: str) -> str:
        """What the process is marked with; empty where it is not, or where it may not be looked at."""
        try:
            environment = (self._proc_root / pid / "environ").read_bytes()
        except OSError:
            return ""
        marks = (each for each in environment.split(b"\0") if each.startswith(_MARK))
        return next(marks, b"").removeprefix(_MARK).decode(errors="replace")

    def _stat(self, pid: str) -> list[bytes] | None:
        try:
            fields = (self._proc_root / pid / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return fields if len(fields) > _STAT_RESIDENT_PAGES else None
