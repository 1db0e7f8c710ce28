"""The cache of a journal: a SQLite ledger on a local disk, private to one user and rebuilt whenever it does not fit.

Processes of this host find each other here. ``opening.lock`` is held while one opens or closes; ``in-use.lock`` is
shared by all that have the ledger open, so whoever gets it alone is the only one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, String, Table, insert, select, update

from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger import schema
from mlflow_green.ledger.filesystem import local_folders
from mlflow_green.ledger.journal_file import JournalFile, Position

OPENING_TIMEOUT_SECONDS = 60
POLL_SECONDS = 0.01

_metadata = MetaData()
_position = Table(
    "position",
    _metadata,
    Column("journal_id", String, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("checksum", String, nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("boot_id", String, nullable=False),
)
_NAMES = ("journal_id", "sequence", "epoch", "start", "end", "checksum")
_SELECT = select(*(_position.c[name] for name in _NAMES))


def cache_folder(journal: Path, mountinfo_path: Path) -> Path:
    """Where this user's cache of ``journal`` is on this host; makes the folder.

    Raises:
        LedgerUnavailable: there is no local disk, or the folder belongs to somebody else.
    """
    problem = "no local disk is known"
    for folder in cache_folders(journal, mountinfo_path):
        try:
            _make_private(folder.parent)
            folder.mkdir(exist_ok=True)
        except OSError as error:
            problem = str(error)
        else:
            return folder
    raise LedgerUnavailable(
        f"the journal {journal} needs a folder on a local disk beside it, and there is none ({problem});"
        " set MLFLOW_GREEN_RUNTIME_DIR to one"
    )


def cache_folders(journal: Path, mountinfo_path: Path) -> tuple[Path, ...]:
    """Where it may be, best first. Makes nothing."""
    name = hashlib.sha256(os.fsencode(journal.resolve())).hexdigest()[:16]
    bases = local_folders(mountinfo_path)
    return tuple(base / f"mlflow-green-{os.geteuid()}" / f"ledger-{name}" for base in bases)


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise LedgerUnavailable(
            f"{folder} belongs to user {found.st_uid} and not to you; have it removed,"
            " or set MLFLOW_GREEN_RUNTIME_DIR to a folder of yours on a local disk"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)


class Cache:
    """A cache folder and its locks. A forked child only closes it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "ledger.db"
        self._opening = _open_lock(folder / "opening.lock")
        self._in_use = _open_lock(folder / "in-use.lock")

    @contextmanager
    def opening(self) -> Iterator[None]:
        """One process at a time opens or closes.

        Raises:
            LedgerUnavailable: another one has been at it for a minute.
        """
        deadline = time.monotonic() + OPENING_TIMEOUT_SECONDS
        while not _locked(self._opening, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise LedgerUnavailable(
                    f"another process has been opening the ledger in {self.folder} for {OPENING_TIMEOUT_SECONDS} s;"
                    " try again, or end that process"
                )
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            fcntl.flock(self._opening, fcntl.LOCK_UN)

    def is_alone(self) -> bool:
        """Whether no other process has the ledger open. Call it while opening or closing."""
        return _locked(self._in_use, fcntl.LOCK_EX)

    def share(self) -> None:
        """Count as one that has it open, until ``close``."""
        fcntl.flock(self._in_use, fcntl.LOCK_SH)

    def identity(self) -> str:
        """A random text that this folder keeps, so that two folders are never taken for one."""
        path = self.folder / "cache-id"
        if not path.exists() or not path.read_text():
            path.write_text(uuid4().hex)
        return path.read_text()

    def fits(self, journal: JournalFile, boot: str) -> bool:
        """Whether it was made from this journal, since this host was started: nothing in it waits for the disk."""
        try:
            with closing(sqlite3.connect(self.path)) as connection:
                *values, version, cache_boot = connection.execute("SELECT * FROM position").fetchone()
        except (sqlite3.Error, TypeError):  # damaged, or without a position
            return False
        position = Position(**dict(zip(_NAMES, values, strict=True)))
        return version == schema.SCHEMA_VERSION and cache_boot == boot != "unknown" and journal.has(position)

    def discard(self) -> None:
        """Throw it away. Only for a process that is alone."""
        for suffix in ("", "-journal", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        for fd in (self._opening, self._in_use):
            os.close(fd)


def create_position(connection: Connection, position: Position, boot: str) -> None:
    """Make the table of a new cache's position."""
    _metadata.create_all(connection)
    values = {"schema_version": schema.SCHEMA_VERSION, "boot_id": boot}
    connection.execute(insert(_position), asdict(position) | values)


def read_position(connection: Connection) -> Position:
    return Position(**connection.execute(_SELECT).mappings().one())


def write_position(connection: Connection, position: Position) -> None:
    connection.execute(update(_position), asdict(position))


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
