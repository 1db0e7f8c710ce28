"""The journal on the share: one line of JSON a committed transaction, each with its number, epoch and checksum.

The first line names the format and the journal. A line counts once it is whole; what a crash or a full disk left of
the last one is passed over, and overwritten by the next. Files are named by the epoch that began them, ``7.jsonl``,
and the highest counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.change import Change
from mlflow_green.ledger.share import newest, numbered, publish, scratch_file
from mlflow_green.ledger.sqlite import explained
from mlflow_green.spool import from_json, to_json

FORMAT = 1

_SUFFIX = ".jsonl"
_MARK = b',"checksum":"'
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The last line that was read or written: its number, epoch, first byte and checksum, and the byte after it."""

    journal_id: str
    sequence: int
    epoch: int
    start: int
    end: int
    checksum: str


def open_journal(folder: Path, epoch: int, *, is_takeover: bool) -> JournalFile:
    """Open the newest journal in ``folder``, or begin one.

    After a takeover it goes on in a copy under a name of its own: a write of the old holder that is still under way
    reaches the old file only.

    Raises:
        LedgerUnavailable: it is damaged, or of a newer version.
        OSError: as the file system does.
    """
    path = newest(folder, _SUFFIX)
    if path is None or (is_takeover and int(path.stem) < epoch):
        path = _begin(folder, epoch, path)
    return JournalFile(path)


def _begin(folder: Path, epoch: int, old: Path | None) -> Path:
    path = folder / f"{epoch}{_SUFFIX}"
    with scratch_file(folder) as (scratch, fd):
        if old is None:
            os.pwrite(fd, _sealed({"format": FORMAT, "journal_id": uuid4().hex}), 0)
        else:
            shutil.copyfile(old, scratch)
        publish(scratch, fd, path)
    for older in numbered(folder, _SUFFIX)[:-1]:
        older.unlink(missing_ok=True)
    return path


class JournalFile:
    """One journal, open for reading and writing. Raises ``OSError`` as the file system does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.beginning = self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> Position:
        with self._reading(0) as file:
            data = file.readline()
        header = _unsealed(data)
        if header is None:
            raise LedgerUnavailable(
                f"{self.path} does not begin as a journal of mlflow-green; restore it from a snapshot of the file"
                " server, or move its folder away to begin anew"
            )
        self._journal_id = header["journal_id"]
        beginning = self._position(0, data, sequence=0, epoch=0)
        if header["format"] != FORMAT:
            raise self._newer(beginning)
        return beginning

    def has(self, position: Position) -> bool:
        """Whether the file still has its name, and this line where it was."""
        if os.fstat(self._fd).st_nlink == 0:
            return False
        data = os.pread(self._fd, position.end - position.start, position.start)
        is_there = len(data) == position.end - position.start and _unsealed(data) is not None
        return is_there and self.beginning.journal_id == position.journal_id and _checksum_of(data) == position.checksum

    def after(self, position: Position) -> Iterator[tuple[Change, Position]]:
        """The changes behind ``position``, each with its own; without what a fenced host wrote too late.

        Raises:
            LedgerUnavailable: a line is damaged.
        """
        start = position.end
        with explained(self.path, "read"), self._reading(start) as file:
            for data in file:
                line = _unsealed(data)
                if line is None:
                    if data.endswith(b"\n"):
                        raise self._damaged(position, "its checksum does not fit")
                    return  # not written whole, so never acknowledged
                here = self._position(start, data, sequence=line["sequence"], epoch=line["epoch"])
                start = here.end
                if here.epoch < position.epoch:
                    _log.warning("%s: line %d of epoch %d came too late", self.path, here.sequence, here.epoch)
                    continue
                if here.sequence != position.sequence + 1:
                    raise self._damaged(position, f"it has the number {here.sequence}, not {position.sequence + 1}")
                position = here
                yield self._change_of(line, position), position

    def line(self, last: Position, epoch: int, change: Change) -> tuple[bytes, Position]:
        """The line that comes behind ``last``, and its position."""
        sequence = last.sequence + 1
        data = _sealed({"sequence": sequence, "epoch": epoch, "change": to_json(change)})
        return data, self._position(last.end, data, sequence=sequence, epoch=epoch)

    def append(self, data: bytes, last: Position) -> None:
        """Write a line behind ``last``; when this returns it is on the server's disk.

        Raises:
            LedgerUnavailable: it is not there, e.g. the disk is full.
        """
        with explained(self.path, "write"):
            if self._size() != last.end:  # what is left of a line that was never acknowledged
                os.ftruncate(self._fd, last.end)
            try:
                _write_whole(self._fd, data, last.end)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._fd, last.end)
                raise

    def sync(self) -> None:
        """Leave nothing on its way to the server, not even what a killed process of this host had begun to write."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _position(self, start: int, data: bytes, *, sequence: int, epoch: int) -> Position:
        return Position(
            journal_id=self._journal_id,
            sequence=sequence,
            epoch=epoch,
            start=start,
            end=start + len(data),
            checksum=_checksum_of(data),
        )

    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _reading(self, start: int) -> BufferedReader:
        file = os.fdopen(os.dup(self._fd), "rb")
        file.seek(start)
        return file

    def _change_of(self, line: dict[str, Any], position: Position) -> Change:
        try:
            change: Change = from_json(Change, line["change"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._newer(position) from error
        return change

    def _newer(self, position: Position) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"line {self._line_number(position.start)} of {self.path} was written by a newer mlflow-green;"
            " run 'pip install --upgrade mlflow-green'"
        )

    def _damaged(self, last: Position, problem: str) -> LedgerUnavailable:
        number = self._line_number(last.end)
        return LedgerUnavailable(
            f"the journal {self.path} is damaged at line {number}: {problem}; restore the file from a snapshot of the"
            f" file server, or give up what comes after: keep its first {number - 1} lines (head -n {number - 1})"
        )

    def _line_number(self, start: int) -> int:
        with self._reading(0) as file:
            return 1 + sum(data.endswith(b"\n") for data in file.read(start).splitlines(keepends=True))


def _write_whole(fd: int, data: bytes, start: int) -> None:
    if os.pwrite(fd, data, start) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fdatasync(fd)


def _sealed(line: dict[str, object]) -> bytes:
    body = json.dumps(line, separators=(",", ":")).encode()[:-1]
    return body + _MARK + _digest(body) + b'"}\n'


def _unsealed(data: bytes) -> dict[str, Any] | None:
    """What the line says, ``None`` if it is torn or damaged."""
    body, _, seal = data.rpartition(_MARK)
    if seal != _digest(body) + b'"}\n':
        return None
    line: dict[str, Any] = json.loads(data)
    return line


def _checksum_of(data: bytes) -> str:
    return data.rpartition(_MARK)[2][:-3].decode()


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()
