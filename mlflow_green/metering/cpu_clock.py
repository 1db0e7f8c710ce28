"""CPU time of a job and of everything that it starts, readable while it runs.

Three ways without root: the account of a cgroup that holds this job and nothing else (exact, also for what left the
process tree), the kernel's task clock, inherited by every child (exact, also for daemons and fork storms), and watching
the process tree in ``/proc`` with the exit report of ``os.wait4`` (a lower bound: what nobody reaps and no look caught
is not seen).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import platform
import re
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from resource import struct_rusage
from typing import Any, Protocol

from mlflow_green.metering.marks import MARK, environment_entries, marked
from mlflow_green.records import CpuClockName
from mlflow_green.sensors.proc_stat import PROC_ROOT
from mlflow_green.units import NANOSECONDS_PER_SECOND

_log = logging.getLogger(__name__)


class CpuClock(Protocol):
    """CPU seconds of one job since the clock was opened. Thread-safe; never decreases; stands still after ``close``."""

    @property
    def name(self) -> CpuClockName: ...

    def seconds(self) -> float: ...

    def close(self) -> None: ...


def open_clock(
    *, own_cgroup: bool = False, runs_one: bool = False, proc_root: Path = PROC_ROOT, root: Path = Path("/")
) -> CgroupClock | PerfClock | ProcessTreeClock:
    """The best clock for what the calling thread is about to start.

    ``own_cgroup`` says that the Slurm step which this process is in runs one job only; then the step's cgroup is its
    clock, where Slurm made one. ``runs_one`` says that this process runs one job only, so that a cgroup which holds
    nothing but this process is the job's: a container's or a systemd scope's. A ``ProcessTreeClock`` must be told its
    processes: ``start_process`` does.
    """
    if own_cgroup:
        with contextlib.suppress(OSError):
            return CgroupClock.open_own(proc_root, root)
    if runs_one:
        with contextlib.suppress(OSError):
            return CgroupClock.open_alone(proc_root, root)
    try:
        return PerfClock.open_on_current_thread()
    except OSError:
        return ProcessTreeClock(proc_root)


def start_process(clock: CpuClock, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
    """``subprocess.Popen``, counted by the clock until it is reaped. Raises as ``Popen`` does."""
    if not isinstance(clock, ProcessTreeClock):
        return subprocess.Popen(*args, **kwargs)
    metered = metered_popen(lambda pid, used: clock.add_finished(pid, used.ru_utime + used.ru_stime))
    clock.marked_by((kwargs.get("env") or {}).get(MARK))
    process = metered(*args, **kwargs)
    clock.add_root(process.pid)
    return process


# --- the account of a cgroup ------------------------------------------------------------------------

# .../slurm_node1/uid_1000/job_7/step_0/task_0 (version 1), .../slurmstepd.scope/job_7/step_0/user/task_0 (version 2)
_STEP_PATH = re.compile(r"/[^/]*slurm[^/]*/(uid_\d+/)?job_\d+/step_[^/]+(/|$)")
_MICROSECONDS_PER_SECOND = 1_000_000


class CgroupClock:
    """The CPU time of a cgroup and of all below it, since the clock was opened; a failed read is the last value."""

    name = CpuClockName.CGROUP

    def __init__(self, account: Path, opened_seconds: float | None = None) -> None:
        """``account`` is the group's ``cpu.stat`` (version 2) or ``cpuacct.usage``; raises as ``open_own`` does.

        ``opened_seconds`` is what the account said when a clock was opened that this one goes on with.
        """
        self.account = account
        self._lock = threading.Lock()
        self.opened_seconds = _account_seconds(account) if opened_seconds is None else opened_seconds
        self._seconds = 0.0
        self._closed = False

    @classmethod
    def open_own(cls, proc_root: Path = PROC_ROOT, root: Path = Path("/")) -> CgroupClock:
        """The clock of the Slurm step that this process is in; mount points are looked up below ``root``.

        Raises:
            OSError: it is in none (no Slurm, a Slurm without cgroups, a container that hides them), or the group's
                account cannot be read.
        """
        for path, account in _own_accounts(proc_root, root):
            if _STEP_PATH.search(path):
                with contextlib.suppress(OSError):
                    return cls(account)
        raise OSError(errno.ENOENT, "this process is in no cgroup of a Slurm step whose CPU time can be read")

    @classmethod
    def open_alone(cls, proc_root: Path = PROC_ROOT, root: Path = Path("/")) -> CgroupClock:
        """The clock of a cgroup in which, with all below it, there is nobody but this process and what it started.

        Nobody else starts anything there: a child is born in its parent's cgroup, and only a deliberate move such as
        ``docker exec`` enters it later.

        Raises:
            OSError: this process shares its cgroups, or their accounts cannot be read.
        """
        for _, account in _own_accounts(proc_root, root):
            with contextlib.suppress(OSError, ValueError):
                if _holds_only_us(account.parent, proc_root):
                    return cls(account)
        raise OSError(errno.ENOENT, "this process is in no cgroup of its own whose CPU time can be read")

    def seconds(self) -> float:
        with self._lock:
            if not self._closed:
                with contextlib.suppress(OSError):
                    self._seconds = max(self._seconds, _account_seconds(self.account) - self.opened_seconds)
            return self._seconds

    def close(self) -> None:
        self.seconds()
        with self._lock:
            self._closed = True


def _own_accounts(proc_root: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """This process's cgroups, of version 2 and version 1, and where the account of each should be."""
    for line in (proc_root / "self/cgroup").read_text(errors="surrogateescape").splitlines():
        _, controllers, text = line.split(":", 2)
        path, is_version_2 = PurePosixPath(text), not controllers
        has_account = is_version_2 or "cpuacct" in controllers.split(",")
        if has_account and ".." not in path.parts:
            for shown, mount_point in _cgroup_mounts(proc_root, "" if is_version_2 else "cpuacct"):
                if path.is_relative_to(shown):
                    folder = root / mount_point.lstrip("/") / path.relative_to(shown)
                    yield text, folder / ("cpu.stat" if is_version_2 else "cpuacct.usage")


def _holds_only_us(group: Path, proc_root: Path) -> bool:
    """Whether every process of the cgroup and of those below it is this one or descends from it.

    A process of another container, whose number cannot be seen from here, is listed as 0.

    Raises:
        OSError, ValueError: the list of a group cannot be read.
    """
    found = False
    for folder, _, _ in os.walk(group):  # the group itself first, which is as far as a shared one is read
        for pid in map(int, Path(folder, "cgroup.procs").read_text().split()):
            if not _descends_from_us(pid, proc_root):
                return False
            found = True
    return found


def _descends_from_us(pid: int, proc_root: Path) -> bool:
    while pid > 0 and pid != os.getpid():
        process = _read_process(proc_root, pid)
        pid = process.parent if process else 0
    return pid > 0


def _cgroup_mounts(proc_root: Path, controller: str) -> Iterator[tuple[str, str]]:
    """Path in the hierarchy and mount point of each mount of version 1's ``controller``; of version 2 for ``""``."""
    for line in (proc_root / "self/mountinfo").read_text(errors="surrogateescape").splitlines():
        place, _, what = line.partition(" - ")
        kind, *_, options = what.split()
        if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options.split(",")):
            shown, mount_point = place.split()[3:5]
            yield _unescape(shown), _unescape(mount_point)


def _unescape(text: str) -> str:
    """A path as ``mountinfo`` writes it: a space is a backslash and its code, 040."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _account_seconds(account: Path) -> float:
    """CPU seconds of ``cpu.stat`` (microseconds) or ``cpuacct.usage`` (nanoseconds) since the group was made.

    Raises:
        OSError: the file cannot be read or has another form.
    """
    text = account.read_text()
    try:
        if account.name == "cpu.stat":
            counts = dict(line.split() for line in text.splitlines())
            return int(counts["usage_usec"]) / _MICROSECONDS_PER_SECOND
        return int(text) / NANOSECONDS_PER_SECOND
    except (ValueError, KeyError) as error:
        raise OSError(errno.EIO, f"{account} has no CPU time: {text[:80]!r}") from error


# --- the kernel's task clock ----------------------------------------------------------------------

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_TYPE_SOFTWARE = 1
_PERF_COUNT_SW_TASK_CLOCK = 1
_INHERIT = 1 << 1
_EXCLUDE_KERNEL = 1 << 5  # allowed to everyone at perf_event_paranoid 2; a task clock counts all the same
_EXCLUDE_HV = 1 << 6
_PERF_FLAG_FD_CLOEXEC = 8
_ATTRIBUTES_BYTES = 112  # perf_event_attr, version 5
_FLAGS_OFFSET = 40


class PerfClock:
    """``perf_event_open(task-clock, inherit)``: the thread that opened it and all that it starts from then on."""

    name = CpuClockName.PERF

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seconds = 0.0
        self._lock = threading.Lock()

    @classmethod
    def open_on_current_thread(cls) -> PerfClock:
        """Start counting the calling thread. Raises as ``open_on`` does."""
        return cls.open_on(0)

    @classmethod
    def open_on(cls, thread_id: int) -> PerfClock:
        """Start counting a thread, of this process or another of the same user; 0 is the calling one.

        Raises:
            ProcessLookupError: it has ended.
            OSError: not allowed or not known here (``perf_event_paranoid`` above 2, seccomp, another machine type).
        """
        number = _SYS_PERF_EVENT_OPEN.get(platform.machine())
        if number is None or os.uname().sysname != "Linux":
            raise OSError(errno.ENOSYS, f"perf_event_open is not known on {platform.machine()}")
        attributes = bytearray(_ATTRIBUTES_BYTES)
        struct.pack_into("IIQ", attributes, 0, _PERF_TYPE_SOFTWARE, _ATTRIBUTES_BYTES, _PERF_COUNT_SW_TASK_CLOCK)
        struct.pack_into("Q", attributes, _FLAGS_OFFSET, _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HV)
        buffer = (ctypes.c_char * _ATTRIBUTES_BYTES).from_buffer(attributes)
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        syscall.restype = ctypes.c_long
        thread, any_cpu, no_group = ctypes.c_int(thread_id), ctypes.c_int(-1), ctypes.c_int(-1)
        flags = ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC)
        fd = syscall(ctypes.c_long(number), buffer, thread, any_cpu, no_group, flags)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"perf_event_open: {os.strerror(code)}")
        return cls(int(fd))

    def seconds(self) -> float:
        with self._lock:
            if self._fd >= 0:
                (nanoseconds,) = struct.unpack("Q", os.read(self._fd, 8))
                self._seconds = max(self._seconds, nanoseconds / NANOSECONDS_PER_SECOND)
            return self._seconds

    def duplicate(self) -> int:
        """Another descriptor of the same count, for another process. Raises ``OSError`` when the clock is closed."""
        with self._lock:
            return os.dup(self._fd)

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def abandon(self) -> None:
        """``close`` in a forked child, where somebody may hold the lock for ever; the parent's count goes on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


# --- watching the process tree --------------------------------------------------------------------

_SCAN_CPU_RATIO = 0.001  # of a CPU, at most, to look for orphans


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    started_ticks: int
    cpu_seconds: float  # its own and that of the children that it has reaped


class ProcessTreeClock:
    """The live trees under the added roots, by ``/proc``, plus what ``os.wait4`` said of the roots that ended.

    A process once seen is watched until it ends, also when its parent ends first. The CPU time of one that ended is
    in its parent's account if the parent lives; else the last look at it is kept, until ``add_finished`` reports the
    root that it belonged to. So nothing counts twice, and what no look caught is missing. An orphan that carries the
    mark of ``marked_by`` is found wherever it went.

    Nothing arrives late: a live process's time is read at each look, so what its end adds to its parent's account or
    to a report is what it ran since the last one.
    """

    def __init__(self, proc_root: Path = PROC_ROOT) -> None:
        self._proc_root = proc_root
        self._lock = threading.Lock()
        self._roots: set[int] = set()
        self._watched: dict[int, _Process] = {}
        self._kept_seconds: dict[int, float] = {}  # by the process that nobody we watch will account for
        self._finished_seconds = 0.0
        self._seconds = 0.0
        self._finished_since_look: set[int] = set()
        self._has_finished = False
        self._closed = False
        self._mark: bytes | None = None
        self._listed: set[int] = set()
        self._unmarked: set[int] = set()
        self._next_scan_seconds = 0.0

    @property
    def name(self) -> CpuClockName:
        return CpuClockName.WAIT4 if self._has_finished else CpuClockName.POLLING

    def marked_by(self, hold_id: str | None) -> None:
        """Watch also every process that has ``GREEN_HOLD_ID=hold_id`` in its environment from its start."""
        with self._lock:
            self._mark = marked(hold_id) if hold_id else None

    def add_root(self, pid: int) -> None:
        """Watch ``pid`` and its descendants; its CPU time since its own start counts."""
        with self._lock:
            self._roots.add(pid)
            self._kept_seconds.pop(pid, None)

    def add_finished(self, pid: int, cpu_seconds: float) -> None:
        """The root ``pid`` was reaped; ``cpu_seconds`` (user + system) are its own and those of all that it reaped."""
        with self._lock:
            self._has_finished = True
            self._finished_since_look.add(pid)
            self._roots.discard(pid)
            self._watched.pop(pid, None)
            self._kept_seconds.pop(pid, None)
            self._finished_seconds += cpu_seconds

    def seconds(self) -> float:
        with self._lock:
            if not self._closed:
                live_seconds = self._look()
                total_seconds = self._finished_seconds + live_seconds + sum(self._kept_seconds.values())
                self._seconds = max(self._seconds, total_seconds)
            return self._seconds

    def close(self) -> None:
        self.seconds()
        with self._lock:
            self._closed = True

    def _look(self) -> float:
        """Look at every process of the trees once; the CPU seconds of those that live."""
        live: dict[int, _Process] = {}
        for pid in (*self._roots, *self._watched, *self._newly_marked()):
            self._walk(pid, live)
        for pid, process in self._watched.items():
            if pid not in live:
                heir = self._heir(process, live)
                if heir is not None:
                    self._kept_seconds[heir] = self._kept_seconds.get(heir, 0.0) + process.cpu_seconds
        self._roots &= live.keys() | (self._roots - self._watched.keys())
        self._watched = live
        self._finished_since_look.clear()
        return sum(process.cpu_seconds for process in live.values())

    def _newly_marked(self) -> Iterator[int]:
        """Processes with the mark that are not watched yet; the environment of each on the host is read twice at most.

        The first time it may not have executed its program, and so shows the environment of who started it. However
        many processes there are, it costs at most a thousandth of a CPU.
        """
        if self._mark is None or time.monotonic() < self._next_scan_seconds:
            return
        began_seconds = time.thread_time()
        listed = {int(name) for name in os.listdir(self._proc_root) if name.isdigit()}  # noqa: PTH208 - names only
        for pid in listed - self._unmarked - self._watched.keys() - {os.getpid()}:
            if self._mark in environment_entries(pid, self._proc_root):
                yield pid
        self._unmarked = listed & (self._unmarked | self._listed)
        self._listed = listed
        self._next_scan_seconds = time.monotonic() + (time.thread_time() - began_seconds) / _SCAN_CPU_RATIO

    def _walk(self, pid: int, live: dict[int, _Process]) -> None:
        pending = [pid]
        while pending:
            pid = pending.pop()
            if pid in live:
                continue
            process = _read_process(self._proc_root, pid)
            before = self._watched.get(pid)
            if process is None or (before is not None and before.started_ticks != process.started_ticks):
                continue  # gone, or its number is another process's now
            live[pid] = process
            pending += _children(self._proc_root, pid)

    def _heir(self, process: _Process, live: dict[int, _Process]) -> int | None:
        """The topmost ended process above this one, ``None`` if a live or a reported one has its time."""
        top = process
        while top.parent in self._watched:
            if top.parent in live:
                return None
            top = self._watched[top.parent]
        return None if top.parent in self._finished_since_look else top.pid


class ContinuedClock:
    """A process tree of which another process has seen the beginning: its last value, and what comes to it."""

    def __init__(self, cpu_clock: ProcessTreeClock, last_seconds: float) -> None:
        self._cpu_clock = cpu_clock
        self._before_seconds = last_seconds - cpu_clock.seconds()

    @property
    def name(self) -> CpuClockName:
        return self._cpu_clock.name

    def seconds(self) -> float:
        return self._before_seconds + self._cpu_clock.seconds()

    def close(self) -> None:
        self._cpu_clock.close()


def _read_process(proc_root: Path, pid: int) -> _Process | None:
    try:
        fields = (proc_root / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        ticks = sum(int(field) for field in fields[11:15])  # utime stime cutime cstime
        return _Process(pid, int(fields[1]), int(fields[19]), ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return None


def _children(proc_root: Path, pid: int) -> list[int]:
    """Live children of all of the process's threads; by a look at every process where the kernel keeps no list."""
    found: list[int] = []
    try:
        for task in os.listdir(proc_root / str(pid) / "task"):  # noqa: PTH208 - names only, many times a second
            found += map(int, (proc_root / str(pid) / "task" / task / "children").read_bytes().split())
    except FileNotFoundError:
        if not (proc_root / "self/task" / str(os.getpid()) / "children").exists():
            return list(_children_by_scan(proc_root, pid))
    except OSError:
        return found
    return found


def _children_by_scan(proc_root: Path, pid: int) -> Iterator[int]:
    for name in os.listdir(proc_root):  # noqa: PTH208 - names only, no Path for each process
        if name.isdigit():
            process = _read_process(proc_root, int(name))
            if process is not None and process.parent == pid:
                yield process.pid


# --- reaping by wait4 -----------------------------------------------------------------------------


def metered_popen(on_rusage: Callable[[int, struct_rusage], None]) -> type[subprocess.Popen[Any]]:
    """A ``subprocess.Popen`` that reaps by ``os.wait4`` and tells ``on_rusage(pid, rusage)``, once for each process.

    It is told on whatever thread reaps. What it raises is logged: measuring never breaks the program. A process that
    the kernel reaped by itself (SIGCHLD ignored) has no report.
    """

    class MeteredPopen(subprocess.Popen[Any]):
        _waitpid_lock: threading.Lock
        _handle_exitstatus: Callable[[int], None]

        def _try_wait(self, wait_flags: int) -> tuple[int, int]:
            """What ``wait`` and ``communicate`` reap by, called under ``_waitpid_lock``."""
            try:
                pid, status, rusage = os.wait4(self.pid, wait_flags)
            except ChildProcessError:
                return self.pid, 0  # as subprocess itself answers
            if pid == self.pid:
                self._tell(rusage)
            return pid, status

        def _internal_poll(self, _deadstate: int | None = None, *_args: object, **_kwargs: object) -> int | None:
            """What ``poll`` reaps by; the standard one calls ``waitpid`` directly."""
            if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
                try:
                    if self.returncode is None:
                        pid, status = self._try_wait(os.WNOHANG)
                        if pid == self.pid:
                            self._handle_exitstatus(status)
                finally:
                    self._waitpid_lock.release()
            return self.returncode

        def _tell(self, rusage: struct_rusage) -> None:
            try:
                on_rusage(self.pid, rusage)
            except Exception:  # noqa: BLE001 - the host program's boundary
                _log.exception("the CPU time of process %d was not recorded", self.pid)

    return MeteredPopen


# --- a process that runs already --------------------------------------------------------------------

_THREADS_MAX = 512  # each takes a file descriptor of the user's process


def open_process_clock(proc_root: Path = PROC_ROOT) -> ThreadsClock | ProcessTreeClock:
    """The best clock for this process with all its threads and children, and for what they start from now on."""
    try:
        return ThreadsClock.open_on_tree(os.getpid(), proc_root)
    except OSError:
        clock = ProcessTreeClock(proc_root)
        clock.add_root(os.getpid())
        return clock


class ThreadsClock:
    """The kernel's task clocks of several threads, and of all that they start from then on, as one."""

    name = CpuClockName.PERF

    def __init__(self, clocks: Sequence[PerfClock]) -> None:
        self._clocks = clocks

    @classmethod
    def open_on_tree(cls, pid: int, proc_root: Path = PROC_ROOT) -> ThreadsClock:
        """Count every thread of the process and of its live descendants.

        One look finds them all: what a thread starts after that is counted with it, and would count twice if it were
        found too. What a thread starts between the look and the opening of its clock is missed.

        Raises:
            OSError: the kernel does not allow it (see ``PerfClock.open_on``), or there are too many threads.
        """
        threads = [int(task) for each in _tree(proc_root, pid) for task in _tasks(proc_root, each)]
        if len(threads) > _THREADS_MAX:
            raise OSError(errno.EMFILE, f"{len(threads)} threads are too many to count one by one")
        clocks: list[PerfClock] = []
        try:
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):  # it has ended since the look
                    clocks.append(PerfClock.open_on(thread))
        except OSError:
            cls(clocks).close()
            raise
        return cls(clocks)

    def seconds(self) -> float:
        return sum(clock.seconds() for clock in self._clocks)

    def close(self) -> None:
        for clock in self._clocks:
            clock.close()

    def abandon(self) -> None:
        """``close`` in a forked child."""
        for clock in self._clocks:
            clock.abandon()


def _tree(proc_root: Path, pid: int) -> list[int]:
    """The process and its live descendants."""
    tree = [pid]
    for each in tree:  # grows while it is walked
        tree += _children(proc_root, each)
    return tree


def _tasks(proc_root: Path, pid: int) -> list[str]:
    try:
        return os.listdir(proc_root / str(pid) / "task")  # noqa: PTH208 - names only
    except OSError:
        return []
