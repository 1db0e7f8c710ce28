"""Where the writers of one SQLite file queue: first come, first served."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GATE_TIMEOUT_SECONDS = 10
GATE_DRAW_SECONDS_MAX = 0.05  # drawing a number takes microseconds
GATE_POLL_SECONDS = 0.0003

_NUMBERS = struct.Struct("qq")  # the file's content: the next number to draw, and the one whose turn it is
_NUMBER_MAX = 2**62
_LOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2)


class Gate:
    """A queue in a lock file, because SQLite's own waiting, like any polling, starves some writers for seconds.

    A writer draws the next number and locks the byte of that number. Its turn has come when the byte before is free:
    its predecessor is done, or dead.

    It is only for fairness. SQLite's locks keep the file safe, so after ``GATE_TIMEOUT_SECONDS`` a writer goes on
    without: one that was stopped in its turn, or whose child inherited the lock, delays those behind it, once. Whoever
    locks the file as a whole delays each writer by ``GATE_DRAW_SECONDS_MAX``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    @contextmanager
    def passed(self) -> Iterator[None]:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        number = self._draw()
        try:
            if number is not None:
                self._wait_for_turn(number)
            yield
        finally:
            if number is not None:
                self._lock(number, fcntl.F_UNLCK)

    def _draw(self) -> int | None:
        """The next number, with its byte locked; ``None`` if somebody sits on the file."""
        deadline = time.monotonic() + GATE_DRAW_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(GATE_POLL_SECONDS)
                continue
            try:
                number, turn = self._numbers()
                os.pwrite(self._fd, _NUMBERS.pack(number + 1, turn), 0)
                self._lock(number, fcntl.F_WRLCK)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            return number
        return None

    def _wait_for_turn(self, number: int) -> None:
        deadline = time.monotonic() + GATE_TIMEOUT_SECONDS
        while not self._is_free(number - 1) and time.monotonic() < deadline:
            _, turn = self._numbers()
            time.sleep(GATE_POLL_SECONDS * min(max(1, number - turn), 50))
        os.pwrite(self._fd, _NUMBERS.pack(0, number)[8:], 8)

    def _numbers(self) -> tuple[int, int]:
        content = os.pread(self._fd, _NUMBERS.size, 0)
        number, turn = _NUMBERS.unpack(content) if len(content) == _NUMBERS.size else (1, 0)
        return (number, turn) if 0 < number < _NUMBER_MAX else (1, 0)

    def _is_free(self, number: int) -> bool:
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
        kind, *_ = _LOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))
        return bool(kind == fcntl.F_UNLCK)

    def _lock(self, number: int, kind: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, number, 1, 0))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
