"""Append-only files of JSON lines: what a meter has read so far, readable after kill -9.

A line is written by one ``write`` call on a file opened for appending, so it is there whole or
torn at the very end, never in between. The standard library is all that this needs.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


class SpoolWriter:
    """One file of one meter. Not thread-safe. Raises ``OSError`` as the file system does (disk full, read-only).

    The file gets its name with its first line, so a named file is never without the line that says whose it is.

    ``goes_on`` with the file of a process that died: nobody else can have it until ``close``. ``BlockingIOError`` says
    that somebody has it.
    """

    def __init__(self, path: Path, *, goes_on: bool = False) -> None:
        self.path = path
        self._unnamed: Path | None = None
        self._torn = False
        if goes_on:
            self._fd = _locked(path)
            size = os.fstat(self._fd).st_size
            self._torn = os.pread(self._fd, 1, max(0, size - 1)) != b"\n"  # its owner died in the middle of a line
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._unnamed = path.with_suffix(".new")
        self._fd = os.open(self._unnamed, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def append(self, line: Mapping[str, object]) -> None:
        """Add one line; when it raises, the line is not there, and the next one starts afresh."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            data = b"\n" + data
        self._torn = True
        if os.write(self._fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False
        if self._unnamed is not None:
            self._unnamed.rename(self.path)
            self._unnamed = None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._unnamed is not None:
            self._unnamed.unlink(missing_ok=True)


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "it was posted meanwhile", str(path))
    except OSError:
        os.close(fd)
        raise
    return fd


@contextmanager
def nobody_goes_on(path: Path) -> Iterator[bool]:
    """Whether nobody goes on with the file of a dead process, which then stays so inside the block.

    Where the file system knows no such locks, nobody can have gone on with it.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def read_spool(path: Path) -> Iterator[dict[str, object]]:
    """The whole lines of a spool file; torn ones are passed over."""
    with path.open("rb") as file:
        for data in file:
            if not data.endswith(b"\n"):
                return
            try:
                line = json.loads(data)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def to_json(value: object) -> object:
    """A record of ``records.py`` as plain JSON values; ``from_json`` turns it back."""
    if value is None or type(value) in {str, int, float, bool}:  # most of a record, and this is on every job's path
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple | frozenset):
        return [to_json(item) for item in value]
    return value


def from_json(kind: Any, value: Any) -> Any:  # noqa: PLR0911 - one return a kind of value
    """The record of type ``kind`` that ``to_json`` wrote. Raises ``TypeError``, ``KeyError`` or ``ValueError``."""
    if value is None:
        return None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        plain = [part for part in arguments if part is not NoneType]
        return from_json(plain[0], value) if len(plain) == 1 else value
    if origin in {tuple, frozenset}:
        return origin(from_json(arguments[0], item) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        key, item = arguments
        return {from_json(key, name): from_json(item, part) for name, part in value.items()}
    if dataclasses.is_dataclass(kind):
        record: Any = kind
        hints = _hints(record)
        return record(**{name: from_json(hints[name], part) for name, part in value.items()})
    if kind is datetime:
        return datetime.fromisoformat(value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    return value


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.init)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
