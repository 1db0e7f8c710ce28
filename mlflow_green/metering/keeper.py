"""The keeper: a process that stands by while programs meter themselves, and goes on for those that die.

Programs tell it of their steps over a socket in the folder of the lock. Standing by it needs the standard library only
and few parts of that: nothing of ours is imported here before an owner dies, for this is started beside short jobs.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False  # of our own: ``typing`` alone would be a third of what this costs
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from mlflow_green.metering.keeping import Keeping

FIRST_CLIENT_SECONDS_MAX = 5.0
LINGER_SECONDS = 1.0
LOOK_SECONDS = 0.5
"""At owners where the kernel has no pidfd, and at those that went without a word and still live."""
CLIENTS_MAX, STEPS_MAX, MESSAGE_BYTES_MAX = 256, 4_096, 16_384
_FD = struct.Struct("i")
_PEER = struct.Struct("3i")  # pid, uid, gid
_START_FIELD = 19  # of /proc/PID/stat, counted from the state


class Client:
    """A program: its connection and its process, and the steps of it that run, by key.

    ``pidfd`` is -1 where the kernel has none. A step is what was said of it, and a descriptor of its clock or -1.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.steps: dict[str, tuple[dict[str, Any], int]] = {}
        self.parted_seconds: float | None = None  # monotonic; when it closed the connection
        try:
            self.pidfd = os.pidfd_open(pid)
        except (OSError, AttributeError):
            self.pidfd = -1
        self._started_ticks = started_ticks(pid)

    @property
    def is_dead(self) -> bool:
        if self.pidfd >= 0:
            poll = select.poll()  # not ``select``, whose descriptors end at 1,024
            poll.register(self.pidfd, select.POLLIN)
            return bool(poll.poll(0))
        return self._started_ticks is None or started_ticks(self.pid) != self._started_ticks

    def messages(self) -> Iterator[tuple[dict[str, Any], int]]:
        """What it has said and a descriptor or -1; notes where it has closed the connection."""
        while self.parted_seconds is None:
            try:
                # Not ``recv_fds``, which forgets its flags in Python 3.11.
                data, sent, flags, _ = self.connection.recvmsg(
                    MESSAGE_BYTES_MAX, socket.CMSG_LEN(_FD.size), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, sent, flags = b"", [], 0
            if not data:
                self.parted_seconds = time.monotonic()
                return
            try:
                message = None if flags & socket.MSG_TRUNC else json.loads(data)
            except (ValueError, RecursionError):
                message = None
            fds = [
                _FD.unpack(part)[0]
                for level, kind, part in sent
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(part) == _FD.size
            ]
            fd = fds[0] if fds else -1
            if isinstance(message, dict):
                yield message, fd
            elif fd >= 0:
                os.close(fd)

    def drop(self, key: str) -> None:
        _, fd = self.steps.pop(key, (None, -1))
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        for key in list(self.steps):
            self.drop(key)
        self.connection.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)


class Keeper:
    """One event loop: programs that come, tell and die, and the steps of the dead. ``stop`` is for a signal handler.

    An error that nobody expects ends the process: that frees its locks, and programs that live start another.
    """

    def __init__(self, lock_path: str, options: dict[str, Any], listener: socket.socket) -> None:
        self._lock_path, self._options, self._listener = lock_path, options, listener
        self._clients: dict[int, Client] = {}  # by connection and by pidfd
        self._keeping: Keeping | None = None
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._idle_since_seconds = time.monotonic() + FIRST_CLIENT_SECONDS_MAX - LINGER_SECONDS
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._woken, select.POLLIN)
        self._is_stopped = False

    def stop(self, *_: object) -> None:
        self._is_stopped = True
        os.write(self._wake, b"!")

    def run(self) -> None:
        while not self._is_stopped and self._is_needed():
            for fd, _ in self._poll.poll(self._wait_seconds() * 1_000):
                if fd == self._listener.fileno():
                    self._accept()
                elif client := self._clients.get(fd):
                    self._listen_to(client)
            for client in set(self._clients.values()):
                if client.pidfd < 0 or client.parted_seconds is not None:
                    self._look_at(client)
            if self._keeping is not None and not self._keeping.advance():
                self._keeping = None
        if self._keeping is not None:
            self._keeping.close()

    def _is_needed(self) -> bool:
        now_seconds = time.monotonic()
        if self._clients or self._keeping is not None:
            self._idle_since_seconds = now_seconds
        return now_seconds - self._idle_since_seconds < LINGER_SECONDS

    def _wait_seconds(self) -> float:
        if self._keeping is not None:
            return self._keeping.wait_seconds
        sees_all = all(client.pidfd >= 0 and client.parted_seconds is None for client in self._clients.values())
        return 3_600.0 if self._clients and sees_all else LOOK_SECONDS

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        # A pid of 0 is one of another container, whose processes cannot be seen from here.
        if uid != os.geteuid() or pid <= 0 or len(self._clients) >= 2 * CLIENTS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection, pid)
        for fd in (connection.fileno(), client.pidfd):
            if fd >= 0:
                self._clients[fd] = client
                self._poll.register(fd, select.POLLIN)
        self._listen_to(client)

    def _listen_to(self, client: Client) -> None:
        """Take in what it has said, up to its death."""
        is_dead = client.is_dead  # before the last word is read
        for message, fd in client.messages():
            key = message.get("key")
            if message.get("kind") == "keep" and isinstance(key, str) and len(client.steps) < STEPS_MAX:
                client.drop(key)
                client.steps[key] = (message, fd)
                continue
            if fd >= 0:
                os.close(fd)
            if message.get("kind") == "drop" and isinstance(key, str):
                client.drop(key)
            elif message.get("kind") == "goodbye":
                self._forget(client)
                return
        if client.parted_seconds is not None and client.connection.fileno() in self._clients:
            self._poll.unregister(client.connection)
            del self._clients[client.connection.fileno()]
            self._clients.setdefault(client.pidfd if client.pidfd >= 0 else -client.pid, client)
        if is_dead:
            self._go_on_for(client)

    def _look_at(self, client: Client) -> None:
        """One without a pidfd, or one that closed its connection without a word: it dies now, or has no steps."""
        if client.is_dead:
            self._listen_to(client)
        elif client.parted_seconds is not None and time.monotonic() - client.parted_seconds > LOOK_SECONDS:
            self._forget(client)

    def _forget(self, client: Client) -> None:
        for fd in [fd for fd, each in self._clients.items() if each is client]:
            del self._clients[fd]
            if fd >= 0:
                self._poll.unregister(fd)
        client.close()

    def _go_on_for(self, client: Client) -> None:
        """Meter what it left, at once: the lock first, before anybody begins afresh."""
        steps, client.steps = client.steps, {}
        self._forget(client)
        if not steps:
            return
        if self._keeping is None:
            self._keeping = self._load()
        self._keeping.take(steps.values())

    def _load(self) -> Keeping:
        lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:  # noqa: SIM105 - contextlib is not loaded here
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # somebody leads
        sys.path[:] = self._options["path"]
        from mlflow_green.metering.keeping import Keeping

        return Keeping(self._lock_path, lock_fd, self._options)


def started_ticks(pid: int) -> int | None:
    """As ``supervise.start_ticks``, without its imports."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib here
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[_START_FIELD])


def main(lock_path: str, options: str) -> None:
    """Stand by in the folder of the lock until nobody needs it; end at once where another keeper does."""
    os.setsid()
    os.umask(0o077)
    folder, _, name = lock_path.rpartition("/")
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    owned = os.fstat(folder_fd)
    if owned.st_uid != os.geteuid() or owned.st_mode & 0o077:
        return
    try:
        fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))  # a descriptor a step
    path = f"/proc/self/fd/{folder_fd}/{name}.keeper"  # the path itself may be longer than a socket's name can be
    remove(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(CLIENTS_MAX)
        listener.setblocking(False)
        keeper = Keeper(lock_path, json.loads(options), listener)
        signal.signal(signal.SIGTERM, keeper.stop)
        try:
            keeper.run()
        finally:
            remove(path)


def remove(path: str) -> None:
    try:  # noqa: SIM105
        os.unlink(path)  # noqa: PTH108
    except OSError:
        pass
