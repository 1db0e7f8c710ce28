"""What the samplers of one user on one host tell each other: small files beside the lock, replaced atomically.

The one that holds the lock leads and publishes its state; each of the others publishes a report on its consumers. The
kernel frees the lock of a process that dies. Nothing here outlives a boot, so nothing is forced to the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow_green.metering.node import Node, SharedWindow
from mlflow_green.metering.supervise import start_ticks
from mlflow_green.records import CpuClockName, Domain, Energy, NodeWindow, Usage
from mlflow_green.spool import from_json, to_json

_FILE_BYTES_MAX = 16_000_000
_PROCESS = re.compile(r"(\d+)-(\d+)-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a process says of one of its consumers; CPU seconds by its clock, times in CLOCK_MONOTONIC seconds.

    ``resident_bytes`` is the memory that its processes keep, ``None`` where that is not known or of no use.
    """

    cpu_clock: CpuClockName
    joined_seconds: float
    start_cpu_seconds: float
    cpu_seconds: float
    left_seconds: float | None = None
    resident_bytes: int | None = None
    is_view: bool = False
    is_own_process: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start_cpu_seconds <= self.cpu_seconds:
            raise ValueError(f"not 0 <= start <= now in CPU seconds: {self!r}")
        if not 0 <= self.joined_seconds <= (self.joined_seconds if self.left_seconds is None else self.left_seconds):
            raise ValueError(f"it left before it joined: {self!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one consumer has been charged up to the last closed window.

    ``shared_cpu_seconds`` is its clock's value that windows have shared. ``left_seconds`` is set once a window has
    taken in its leaving: then nothing changes any more. Covered and metered seconds are summed over domains.
    """

    joined_seconds: float
    start_cpu_seconds: float
    shared_cpu_seconds: float
    energy: Mapping[Domain, Energy] = field(default_factory=dict)
    covered_seconds: float = 0.0
    metered_seconds: float = 0.0
    left_seconds: float | None = None

    @property
    def coverage_ratio(self) -> float:
        return min(1.0, self.covered_seconds / self.metered_seconds) if self.metered_seconds > 0 else 0.0

    def charged(
        self, key: str, presence: Presence, windows: tuple[SharedWindow, ...], from_seconds: float, until_seconds: float
    ) -> Account:
        """The account after these windows, which lie between two monotonic times, have taken in its CPU time."""
        end_seconds = until_seconds if presence.left_seconds is None else presence.left_seconds
        overlap_seconds = max(0.0, end_seconds - max(self.joined_seconds, from_seconds))
        energy, covered_seconds = dict(self.energy), self.covered_seconds
        for shared in windows:
            domain, share = shared.window.domain, shared.shares[key]
            energy[domain] = energy[domain] + share if domain in energy else share
            covered_seconds += shared.window.coverage_ratio * overlap_seconds
        return replace(
            self,
            shared_cpu_seconds=max(self.shared_cpu_seconds, presence.cpu_seconds),
            energy=energy,
            covered_seconds=covered_seconds,
            metered_seconds=self.metered_seconds + len(windows) * overlap_seconds,
            left_seconds=presence.left_seconds,
        )

    def usage(self, cpu_clock: CpuClockName | None, until_seconds: float) -> Usage:
        """What the consumer has used; ``until_seconds`` ends the duration of one that has not left."""
        end_seconds = until_seconds if self.left_seconds is None else self.left_seconds
        return Usage(
            energy=dict(self.energy),
            duration_seconds=max(0.0, end_seconds - self.joined_seconds),
            cpu_seconds=self.shared_cpu_seconds - self.start_cpu_seconds,
            cpu_clock=cpu_clock,
            coverage_ratio=self.coverage_ratio,
        )


def opened(presence: Presence) -> Account:
    """The account of a consumer that no window has charged yet."""
    return Account(
        joined_seconds=presence.joined_seconds,
        start_cpu_seconds=presence.start_cpu_seconds,
        shared_cpu_seconds=presence.start_cpu_seconds,
    )


def key_of(process: str, number: int, consumer_id: str) -> str:
    """The key of the consumer that joined as the ``number``-th of the process of this name."""
    return f"{process}/{number}-{consumer_id}"


def process_of(key: str) -> str:
    """The name of the process that joined the consumer."""
    return key.partition("/")[0]


def hold_of(key: str) -> str:
    """The name by which the consumer joined, which its processes carry."""
    return key.partition("/")[2].partition("-")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderState:
    """All that another process needs to go on as the leader: the node, all accounts, the last tick's windows.

    ``leader`` is the name of the process that wrote it; ``key_of`` makes the keys of accounts.
    """

    leader: str
    node: Node
    accounts: Mapping[str, Account]
    windows: tuple[NodeWindow, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.node, Node) and all(isinstance(each, Account) for each in self.accounts.values())):
            raise TypeError("a part of the leader's state is missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A follower's consumers. It names the sampler that they belong to, "" while it still looks for one."""

    sampler_id: str
    consumers: Mapping[str, Presence]

    def __post_init__(self) -> None:
        if not all(isinstance(each, Presence) for each in self.consumers.values()):
            raise TypeError("a part of the report is missing")


class SharedFolder:
    """The lock and the files beside it, as one sampler sees them. A forked child changes nothing here.

    ``notes`` gets one line for each file that cannot be read or written. ``report`` and ``withdraw`` must not be called
    by two threads at once; all else belongs to one thread.

    Raises:
        OSError: the folder or the lock cannot be made.
    """

    def __init__(self, lock_path: Path, proc_root: Path, notes: list[str], lock_fd: int | None = None) -> None:
        """``lock_fd`` is a descriptor of the lock that is there already."""
        lock_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if lock_fd is None else lock_fd
        self._pid, self._proc_root = os.getpid(), proc_root
        self.name = f"{self._pid}-{start_ticks(self._pid, proc_root) or 0}-{uuid.uuid4().hex[:8]}"
        self._folder, self._prefix = lock_path.parent, f"{lock_path.name}."
        self._state_path = self._folder / f"{self._prefix}state"
        self._report_path = self._folder / f"{self._prefix}{self.name}"
        self._notes = notes
        self._noted: set[Path] = set()
        self.fallen: set[str] = set()
        """Processes that died without a withdrawal, as far as this one has seen."""

    def take_lock(self) -> bool:
        """Whether this process leads from now on, until ``close``."""
        if self._is_forked:  # a lock is shared with a forked child, so it would get it whenever its parent has it
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            if not self._is_forked:  # a forked child that lives on has the lock too: closing alone would leave it there
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1

    # --- the leader's side -------------------------------------------------------------------------

    def publish(self, state: LeaderState) -> bool:
        """Replace the state; where that fails, remove it: nobody may go on from what is not the last tick."""
        if self._write(self._state_path, state):
            return True
        self.remove_state()
        return False

    def remove_state(self) -> None:
        self._unlink(self._state_path)

    def reports(self, sampler_id: str) -> dict[str, Mapping[str, Presence] | None]:
        """The consumers of every live follower of this sampler by process, ``None`` where a report is unreadable."""
        found: dict[str, Mapping[str, Presence] | None] = {}
        for name in self._live():
            report = self._read(Report, self._folder / f"{self._prefix}{name}")
            if report is None or report.sampler_id == sampler_id:
                found[name] = report and report.consumers
        return found

    def has_followers(self) -> bool:
        return next(self._live(), None) is not None

    def is_alive(self, name: str) -> bool:
        """Whether the process of this name, as ``name`` gives it, still runs."""
        match = _PROCESS.fullmatch(name)
        return match is not None and (start_ticks(int(match[1]), self._proc_root) or 0) == int(match[2])

    def _live(self) -> Iterator[str]:
        """The other live processes that report here; the files of dead ones are removed."""
        try:
            files = os.listdir(self._folder)  # noqa: PTH208 - names only, at each tick
        except OSError:
            return
        for file in files:
            name, _, ending = file.removeprefix(self._prefix).partition(".")
            if not file.startswith(self._prefix) or name == self.name or not _PROCESS.fullmatch(name):
                continue
            if not self.is_alive(name):
                self.fallen.add(name)
                self._unlink(self._folder / file)
            elif not ending:
                yield name

    # --- the followers' side -----------------------------------------------------------------------

    def report(self, sampler_id: str, consumers: Mapping[str, Presence]) -> bool:
        """Replace what this process says of its consumers; ``False`` if it cannot be written."""
        return self._write(self._report_path, Report(sampler_id=sampler_id, consumers=consumers))

    def withdraw(self) -> None:
        self._unlink(self._report_path)

    def state(self) -> LeaderState | None:
        """What the leader published last; ``None`` if there is nothing that can be read."""
        state: LeaderState | None = self._read(LeaderState, self._state_path)
        return state

    # --- files -------------------------------------------------------------------------------------

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    def _write(self, path: Path, record: object) -> bool:
        if self._is_forked:
            return False
        new = path.with_name(f"{path.name}.new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "w") as file:  # noqa: PTH123 - a descriptor
                file.write(json.dumps(to_json(record), separators=(",", ":")))
            new.replace(path)
        except OSError as error:
            self._note(path, f"{path} cannot be written ({error.strerror}); other meters of this host cannot join")
            return False
        return True

    def _read(self, kind: Any, path: Path) -> Any:
        """The record in the file; ``None`` if there is none, or it is broken, or another user's."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    raise ValueError("it belongs to another user")  # noqa: TRY301 - one place says what is wrong
                record = from_json(kind, json.loads(file.read(_FILE_BYTES_MAX)))
            if not isinstance(record, kind):
                raise TypeError("it is no object")  # noqa: TRY301
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._note(path, f"{path} cannot be read and is passed over: {error}")
            return None
        return record

    def _unlink(self, path: Path) -> None:
        if not self._is_forked:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _note(self, path: Path, text: str) -> None:
        if path not in self._noted:
            self._noted.add(path)
            self._notes.append(text)
