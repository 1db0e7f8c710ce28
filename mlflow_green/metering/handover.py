"""A program's side of the keeper: starts it, and tells it of the steps that run. The program never waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.metering.cpu_clock import CgroupClock, PerfClock
from mlflow_green.metering.sampler import Standing
from mlflow_green.spool import to_json

HAND_OVER_SECONDS = 0.2
"""A step shorter than this starts no process for its own sake."""
START_SECONDS_MAX = 0.3
_RESTART_SECONDS = 1.0
_STARTS_MAX = 100
_LOOK_SECONDS = 0.01
_PEER = struct.Struct("3i")  # pid, uid, gid
# By hand, for a module that is run by name costs an import of the packages above it, and one by path a compilation.
_START = "import sys; sys.path.insert(0, sys.argv[1]); import keeper; keeper.main(*sys.argv[2:])"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStep:
    """A step to go on for: who it is, and what was promised of it.

    ``grace_seconds`` is how long it may run on when its owner is dead; ``None``: as long as it likes.
    """

    hold_id: str
    standing: Standing
    sampler_id: str
    spool_path: Path
    grace_seconds: float | None


class Handover:
    """Keeps the keeper informed, and alive. All but the constructor belong to one thread; a forked child does nothing.

    All but ``lock_path`` is what the keeper needs to meter as this program does, from the same sensors.
    """

    def __init__(
        self,
        lock_path: Path,
        *,
        powercap_root: Path,
        host: str,
        period_seconds: float,
        rapl_prefers_psys: bool = False,
        memory_watts_per_gib: float | None = None,
    ) -> None:
        self._lock_path = lock_path.absolute()
        self._pid = os.getpid()
        self._options = {
            "powercap_root": str(powercap_root.absolute()),
            "host": host,
            "period_seconds": period_seconds,
            "rapl_prefers_psys": rapl_prefers_psys,
            "memory_watts_per_gib": memory_watts_per_gib,
        }
        self._connection: socket.socket | None = None
        self._told: set[str] = set()
        self._starts = 0
        self._started_seconds = -_RESTART_SECONDS

    def update(self, steps: Iterable[RunningStep]) -> None:
        """Tell of the steps that are new, and take back those that are not among them any more."""
        running = {step.standing.key: step for step in steps}
        if os.getpid() != self._pid or (self._connection is None and not running):
            return
        try:
            if self._connection is None or self._is_gone(self._connection):
                self._connect()
            for key in self._told - running.keys():
                self._send({"kind": "drop", "key": key})
                self._told.discard(key)
            for key in running.keys() - self._told:
                self._keep(running[key])
                self._told.add(key)
        except BlockingIOError:
            return  # it is busy: the next update tells the rest
        except OSError:
            self._disconnect()

    def knows(self, key: str) -> bool:
        """Whether the keeper has been told of this step."""
        return key in self._told

    def close(self) -> None:
        """Say goodbye: nothing of this program is to be kept."""
        if self._connection is not None and os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self._send({"kind": "goodbye"})
        self._disconnect()

    def _keep(self, step: RunningStep) -> None:
        said: dict[str, object] = {
            "kind": "keep",
            "key": step.standing.key,
            "hold_id": step.hold_id,
            "sampler_id": step.sampler_id,
            "spool": str(step.spool_path.absolute()),
            "grace_seconds": step.grace_seconds,
            "presence": to_json(step.standing.presence),
        }
        clock = step.standing.cpu_clock
        if isinstance(clock, CgroupClock):
            said |= {"account": str(clock.account), "opened_seconds": clock.opened_seconds}
        if not isinstance(clock, PerfClock):
            self._send(said)
            return
        try:
            fd = clock.duplicate()
        except OSError:
            return  # it has ended
        try:
            self._send(said, fd)
        finally:
            os.close(fd)

    def _send(self, message: Mapping[str, object], *fds: int) -> None:
        assert self._connection is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        self._connection.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL)

    @staticmethod
    def _is_gone(connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _connect(self) -> None:
        """Raises ``OSError`` where no keeper can be had now."""
        self._disconnect()
        try:
            self._connection = self._connected()
        except OSError:
            self._connection = self._started()

    def _connected(self) -> socket.socket:
        folder_fd = os.open(self._lock_path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            # The path itself may be longer than a socket's name can be.
            connection.connect(f"/proc/self/fd/{folder_fd}/{self._lock_path.name}.keeper")
            _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if uid != os.geteuid():
                raise PermissionError("it is another user's")
        except OSError:
            connection.close()
            raise
        finally:
            os.close(folder_fd)
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._told.clear()

    def _started(self) -> socket.socket:
        """Start a keeper, and give it a moment to listen.

        A shell starts it and is reaped here at once, so that the program has no child that it does not know.
        """
        now_seconds = time.monotonic()
        if self._starts >= _STARTS_MAX or now_seconds - self._started_seconds < _RESTART_SECONDS:
            raise ConnectionRefusedError("it was started before and does not listen")
        self._starts, self._started_seconds = self._starts + 1, now_seconds
        here = Path(__file__).resolve().parent
        path = [folder for folder in sys.path if os.path.isabs(folder)]  # noqa: PTH117 - text, as it is
        options = json.dumps({**self._options, "path": [*path, str(here.parents[1])]})
        command = [sys.executable, "-I", "-S", "-c", _START, str(here), str(self._lock_path), options]
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: value for name, value in os.environ.items() if not name.startswith("GREEN_")},
            start_new_session=True,
            check=False,
        )
        while time.monotonic() < now_seconds + START_SECONDS_MAX:
            time.sleep(_LOOK_SECONDS)
            with contextlib.suppress(OSError):
                return self._connected()
        raise ConnectionRefusedError("it does not listen yet")
