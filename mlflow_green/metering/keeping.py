"""What the keeper does for the steps of dead programs: meters them into their spool files, and ends them in time."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow_green.clock import SystemClock, boot_id
from mlflow_green.metering.cpu_clock import CgroupClock, ContinuedClock, CpuClock, PerfClock, ProcessTreeClock
from mlflow_green.metering.sampler import Sampler
from mlflow_green.metering.shared_state import Presence
from mlflow_green.metering.supervise import KILL_SECONDS_MAX, Ending, processes_of_steps, step_processes
from mlflow_green.records import Tick
from mlflow_green.sensors.detect import detect_sensors
from mlflow_green.spool import SpoolWriter, from_json, read_spool, to_json

_LINES_MAX = 1_000


@dataclass(slots=True, kw_only=True, eq=False)
class _Spool:
    """The file of a dead owner, and the lines that could not be written yet.

    ``ended`` are the steps, by hold id, that its owner metered to their end, and had no time to take back.
    """

    writer: SpoolWriter
    ended: frozenset[str]
    lines: deque[Mapping[str, object]] = field(default_factory=lambda: deque(maxlen=_LINES_MAX))

    def write(self, line: Mapping[str, object]) -> None:
        self.lines.append(line)
        with contextlib.suppress(OSError):
            while self.lines:
                self.writer.append(self.lines[0])
                self.lines.popleft()


@dataclass(slots=True, kw_only=True, eq=False)
class _Kept:
    """A step whose owner is dead.

    ``end_seconds`` is when it is ended, monotonic; ``None`` in observe. ``spool`` is ``None`` for one that cannot be
    metered, and is only ended. ``tree`` is its clock where that must be told of its processes.
    """

    key: str
    hold_id: str
    end_seconds: float | None
    spool: _Spool | None = None
    tree: ProcessTreeClock | None = None
    ending: Ending | None = None


class Keeping:
    """Goes on for dead owners until none of their steps has a process left.

    ``lock_fd`` is a descriptor of the sampler's lock, perhaps with it, and belongs to this from now on. For one thread.
    """

    def __init__(self, lock_path: str, lock_fd: int, options: Mapping[str, Any]) -> None:
        self._period_seconds = float(options["period_seconds"])
        self._sampler = Sampler(
            detect_sensors(
                Path(options["powercap_root"]),
                prefers_psys=bool(options["rapl_prefers_psys"]),
                memory_watts_per_gib=options["memory_watts_per_gib"],
            ).sensors,
            clock=SystemClock(),
            host=options["host"],
            boot_id=boot_id(),
            lock_path=Path(lock_path),
            lock_fd=lock_fd,
        )
        self._kept: dict[str, _Kept] = {}
        self._spools: dict[str, _Spool] = {}
        self._ticked_seconds = time.monotonic()

    @property
    def wait_seconds(self) -> float:
        """Until ``advance`` has something to do."""
        return max(0.0, self._ticked_seconds + self._period_seconds - time.monotonic())

    def take(self, steps: Iterable[tuple[Mapping[str, Any], int]]) -> None:
        """Go on for these steps of an owner that is dead; each with a descriptor of its perf clock, or -1."""
        for said, fd in steps:
            try:
                grace = said["grace_seconds"]
                end_seconds = None if grace is None else time.monotonic() + float(grace)
                kept = _Kept(key=str(said["key"]), hold_id=str(said["hold_id"]), end_seconds=end_seconds)
            except (KeyError, TypeError, ValueError):
                if fd >= 0:
                    os.close(fd)
                continue
            try:
                self._meter(kept, said, fd)
            except (OSError, KeyError, TypeError, ValueError, AttributeError):
                # Recovery has its file, or it makes no sense: it is charged as without a keeper.
                if fd >= 0:
                    os.close(fd)
            if kept.spool is not None or kept.end_seconds is not None:
                self._kept[kept.key] = kept
        if self._kept:
            self._sample()

    def _meter(self, kept: _Kept, said: Mapping[str, Any], fd: int) -> None:
        if said["sampler_id"] != self._sampler.sampler_id:
            raise ValueError("its account is another sampler's, and an entry belongs to one")
        presence: Presence = from_json(Presence, said["presence"])
        spool = self._spool(str(said["spool"]))
        if kept.hold_id in spool.ended:
            kept.end_seconds = None  # what it left running is not a step any more
            raise ValueError("its account is closed, and opened anew it would be charged twice")
        clock, kept.tree = self._clock(said, fd, kept, presence)
        self._sampler.adopt(kept.key, clock, presence)
        kept.spool = spool

    def _spool(self, path: str) -> _Spool:
        if path not in self._spools:
            self._spools[path] = _Spool(writer=SpoolWriter(Path(path), goes_on=True), ended=_ended(Path(path)))
        return self._spools[path]

    def _clock(
        self, said: Mapping[str, Any], fd: int, kept: _Kept, presence: Presence
    ) -> tuple[CpuClock, ProcessTreeClock | None]:
        """What it was metered by; else its processes, from the last value known."""
        if fd >= 0:
            return PerfClock(fd), None
        if said.get("account"):
            return CgroupClock(Path(said["account"]), float(said["opened_seconds"])), None
        tree, account = ProcessTreeClock(), self._sampler.account(kept.key)
        for pid in step_processes(kept.hold_id):
            tree.add_root(pid)
        last_seconds = max(presence.cpu_seconds, account.shared_cpu_seconds if account else 0.0)
        return ContinuedClock(tree, last_seconds), tree

    def advance(self) -> bool:
        """Sample, and end what is due; ``False`` when nothing is left to do, and this is closed."""
        if not self._kept:
            self.close()
            return False
        if self.wait_seconds > 0:
            return True
        self._sample()
        return True

    def _sample(self) -> None:
        alive = processes_of_steps([kept.hold_id for kept in self._kept.values()])
        for kept in list(self._kept.values()):
            if kept.tree is not None:
                for pid in alive[kept.hold_id]:
                    kept.tree.add_root(pid)
            if alive[kept.hold_id]:
                self._end_in_time(kept)
            elif kept.spool is not None:
                self._sampler.leave(kept.key)
            else:
                del self._kept[kept.key]
        if self._spools:  # else nobody would know of the windows
            tick = self._sampler.tick()
            self._write(tick)
            for key in tick.final:
                self._kept.pop(key, None)
        self._ticked_seconds = time.monotonic()
        in_use = [kept.spool for kept in self._kept.values()]
        for path, spool in list(self._spools.items()):
            if spool not in in_use:
                self._spools.pop(path).writer.close()

    @staticmethod
    def _end_in_time(kept: _Kept) -> None:
        if kept.end_seconds is not None and time.monotonic() >= kept.end_seconds:
            kept.ending = kept.ending or Ending(kept.hold_id, KILL_SECONDS_MAX)
            kept.ending.advance()

    def _write(self, tick: Tick) -> None:
        """To each owner's file the usage of its steps, and the node's windows to one of them."""
        windows = tick.windows
        for spool in self._spools.values():
            names = {kept.key: kept.hold_id for kept in self._kept.values() if kept.spool is spool}
            part = replace(
                tick,
                windows=windows,
                usages={names[key]: usage for key, usage in tick.usages.items() if key in names},
                final=frozenset(names[key] for key in tick.final if key in names),
            )
            spool.write({"kind": "tick", "tick": to_json(part)})
            windows = ()

    def close(self) -> None:
        """Write a last line of what is kept still, and let others lead."""
        if self._kept:
            self._sample()
        for spool in self._spools.values():
            spool.writer.close()
        self._sampler.close()


def _ended(path: Path) -> frozenset[str]:
    ended: set[str] = set()
    for line in read_spool(path):
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            if line["kind"] == "tick":
                ended |= from_json(Tick, line["tick"]).final
    return frozenset(ended)
