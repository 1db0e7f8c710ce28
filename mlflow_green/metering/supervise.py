"""Finding and ending the processes of a step; recognising a dead owner.

Processes are found by ``GREEN_HOLD_ID`` in their environment, which survives double forks and a new
session, plus all descendants of those. Nothing here ever waits for a process: reaping a child
that ``subprocess`` waits for would turn its failure into a success.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from mlflow_green.clock import boot_id
from mlflow_green.metering.marks import environment_entries, marked
from mlflow_green.records import Owner

PROC = Path("/proc")
KILL_SECONDS_MAX = 5.0
"""A killed process is gone by then, unless it hangs in the kernel; one whose grace is over has as long for SIGTERM."""
_POLL_SECONDS = 0.1
_STAT_PARENT, _STAT_START = 1, 19  # fields of /proc/PID/stat, counted from the state


def start_ticks(pid: int, proc_root: Path = PROC) -> int | None:
    """When the process started, in clock ticks since boot; ``None`` if it is gone or a zombie."""
    fields = _stat(pid, proc_root)
    if fields is None or fields[0] in {"Z", "X"}:
        return None
    return int(fields[_STAT_START])


def parent_pid(pid: int, proc_root: Path = PROC) -> int:
    """The process's parent; 0 if it has none that can be seen, or is gone."""
    fields = _stat(pid, proc_root)
    return int(fields[_STAT_PARENT]) if fields else 0


def this_process(host: str, spool_dir: Path | None = None) -> Owner:
    """This process as an owner of holds, whose readings are in ``spool_dir``."""
    pid = os.getpid()
    return Owner(
        host=host,
        boot_id=boot_id(),
        pid=pid,
        started_ticks=start_ticks(pid) or 0,
        spool_dir=str(spool_dir.resolve()) if spool_dir else None,
    )


def owner_alive(owner: Owner, host: str, proc_root: Path = PROC) -> bool:
    """Whether the owner may still run; what cannot be seen from here counts as alive.

    ============== ============ ==================================================================
    host name      boot id
    ============== ============ ==================================================================
    ours           ours         alive if its pid is there and started when it says
    ours           another      dead: this machine was started again since
    another        ours         alive: another container of this kernel, whose pids are not ours
    another        another      alive: another machine
    ============== ============ ==================================================================

    A dead one that counts as alive keeps its room until somebody closes its hold on its own host; a live one that
    counted as dead would be charged for a loss.
    """
    if owner.host != host:
        return True
    return owner.boot_id == boot_id() and start_ticks(owner.pid, proc_root) == owner.started_ticks


def step_processes(hold_id: str, proc_root: Path = PROC) -> frozenset[int]:
    """Live processes that carry the hold's id, and their descendants; never this process or its ancestors."""
    return processes_of_steps((hold_id,), proc_root)[hold_id]


def processes_of_steps(hold_ids: Collection[str], proc_root: Path = PROC) -> Mapping[str, frozenset[int]]:
    """``step_processes`` of several steps, at one look at every process."""
    markers = {marked(hold_id): hold_id for hold_id in hold_ids}
    children: dict[int, list[int]] = {}
    parents: dict[int, int] = {}
    found: dict[str, list[int]] = {hold_id: [] for hold_id in hold_ids}
    for name in os.listdir(proc_root):  # noqa: PTH208 - names only, no Path for each process
        if not name.isdigit():
            continue
        pid = int(name)
        fields = _stat(pid, proc_root)
        if fields is None or fields[0] in {"Z", "X"}:
            continue
        parents[pid] = int(fields[_STAT_PARENT])
        children.setdefault(parents[pid], []).append(pid)
        for marker in markers.keys() & environment_entries(pid, proc_root):
            found[markers[marker]].append(pid)
    lineage = _lineage(os.getpid(), parents)
    return {hold_id: frozenset(_tree(roots, children) - lineage) for hold_id, roots in found.items()}


def _tree(roots: Sequence[int], children: Mapping[int, Sequence[int]]) -> set[int]:
    pending, tree = list(roots), set[int]()
    while pending:
        pid = pending.pop()
        if pid not in tree:
            tree.add(pid)
            pending.extend(children.get(pid, ()))
    return tree


def send(pids: Iterable[int], signal_number: int) -> None:
    """Send a signal to each process that still exists and belongs to us."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal_number)


class Ending:
    """Ends the processes of one step: SIGTERM now, SIGKILL when ``grace_seconds`` have passed.

    ``advance`` is called again and again by a thread with other work; it returns True once no process
    of the step is left. After ``give_up_seconds`` (monotonic) whoever waits for that goes on without.
    """

    def __init__(
        self, hold_id: str, grace_seconds: float, monotonic_seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self.hold_id = hold_id
        self._now = monotonic_seconds
        self._kill_at = monotonic_seconds() + grace_seconds
        self.give_up_seconds = self._kill_at + KILL_SECONDS_MAX
        self._told: set[int] = set()
        self._grace_is_over = False

    @property
    def kill_seconds(self) -> float:
        """The moment of SIGKILL, monotonic; ``inf`` once it has come."""
        return math.inf if self._grace_is_over else self._kill_at

    def advance(self, alive: frozenset[int] | None = None) -> bool:
        """``alive`` are its live processes, where somebody has just looked."""
        if alive is None:
            alive = step_processes(self.hold_id)
        self._grace_is_over = self._now() >= self._kill_at
        if not alive:
            return True
        if self._grace_is_over:
            send(alive, signal.SIGKILL)
        else:
            send(alive - self._told, signal.SIGTERM)
            self._told |= alive
        return False

    def wait(self) -> None:
        """Block until no process is left, while another thread calls ``advance``; not beyond ``give_up_seconds``."""
        while step_processes(self.hold_id) and self._now() < self.give_up_seconds:
            time.sleep(_POLL_SECONDS)


def end_processes(hold_ids: Collection[str], grace_seconds: float) -> None:
    """End these steps' processes, all at once, and wait until none is left: at most the grace and 5 s."""
    endings = [Ending(hold_id, grace_seconds) for hold_id in hold_ids]
    while endings := [ending for ending in endings if not ending.advance()]:
        if time.monotonic() >= endings[0].give_up_seconds:
            return
        time.sleep(_POLL_SECONDS)


def _stat(pid: int, proc_root: Path) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; the name before them may hold any character."""
    try:
        text = (proc_root / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode("ascii", "replace")
    except OSError:
        return None
    return text.split() or None


def _lineage(pid: int, parents: dict[int, int]) -> set[int]:
    lineage = set()
    while pid and pid not in lineage:
        lineage.add(pid)
        pid = parents.get(pid, 0)
    return lineage
