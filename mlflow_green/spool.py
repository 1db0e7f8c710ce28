"""Append-only files of JSON lines: what a meter has read so far, readable after kill -9.

A line is written by one ``write`` call on a file opened for appending, so it is there whole or
torn at the very end, never in between. The standard library is all that this needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


class SpoolWriter:
    """One file of one meter. Not thread-safe. Raises ``OSError`` as the file system does (disk full, read-only)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._torn = False

    def append(self, line: Mapping[str, object]) -> None:
        """Add one line; after a line that did not fit whole, the next one starts afresh."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            data = b"\n" + data
        self._torn = True
        written = os.write(self._fd, data)
        self._torn = written < len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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
