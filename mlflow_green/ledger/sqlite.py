"""One SQLite file, opened so that an acknowledged transaction survives kill -9 and a power cut."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, RowMapping, create_engine, event, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import StaticPool

from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger import schema
from mlflow_green.ledger.gate import Gate
from mlflow_green.ledger.store import Store
from mlflow_green.settings import STATE_NAME

BUSY_TIMEOUT_SECONDS = 60
UPGRADE_TIMEOUT_SECONDS = 600
SHRINK_WAIT_SECONDS = 5  # for readers, who keep it from its file; it keeps new ones out meanwhile

Version = tuple[int, int, int]

_ELSEWHERE = ", or set MLFLOW_GREEN_LEDGER to another file"
_OF_ITS_OWN = "; if it is another program's, set MLFLOW_GREEN_LEDGER to a file of its own"
_RESTORE = (
    "nothing starts under a hard budget until a backup of it is back in its place; 'mlflow-green ledger verify' looks"
    " whether it is whole"
)
_NEXT_STEPS = {
    "locked": "another process holds it; end that process, or try again when it is done",
    "busy": "another process holds it; end that process, or try again when it is done",
    "readonly": "make the file and its folder writable for you" + _ELSEWHERE,
    "unable to open": "make the folder writable for you" + _ELSEWHERE,
    "read-only": "make the file and its folder writable for you" + _ELSEWHERE,
    "full": "free some space" + _ELSEWHERE,
    "no space": "free some space" + _ELSEWHERE,
    "quota": "free some space" + _ELSEWHERE,
    "disk i/o": "look at the free space and the health of the disk, then try again",
    "not a database": f"it is damaged, or never was a ledger; {_RESTORE}{_OF_ITS_OWN}",
    "malformed": f"it is damaged; {_RESTORE}",
}
_ANY_STEP = f"make it readable and writable for you{_ELSEWHERE}"


def wal_is_safe(version: Version) -> bool:
    """Whether this SQLite has the fix of the WAL-reset bug, which could corrupt a file that two processes write.

    Fixed in 3.51.3, and in 3.50.7 and 3.44.6 (https://sqlite.org/wal.html, "WAL-reset bug").
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)


class SqliteStore(Store):
    """One SQLite file, used by the processes of one host: ``hostname`` and ``boot``, the kernel's boot id."""

    def __init__(self, path: Path, *, hostname: str, boot: str, is_cache: bool = False) -> None:
        super().__init__(str(path), sqlite_engine(path, is_cache=is_cache))
        self.path = path
        self._hostname = hostname
        self._boot = boot
        self._lock = Gate(path.with_name(path.name + ".lock"))

    def close(self) -> None:
        super().close()
        self._lock.close()

    def keep_copy(self, version: int) -> Path:
        copy = self.path.with_name(f"{self.path.name}.v{version}")
        scratch = copy.with_name(copy.name + ".tmp")
        scratch.unlink(missing_ok=True)
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(scratch)) as target:
            source.backup(target)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        shutil.copymode(self.path, scratch)
        scratch.replace(copy)
        return copy

    def size_bytes(self) -> int:
        paths = (self.path, *(self.path.with_name(f"{self.path.name}-{more}") for more in ("wal", "journal")))
        return sum(path.stat().st_size for path in paths if path.exists())

    def shrink(self) -> None:
        with self._explained("shrink"), self._gate():
            connection = self._connection.connection.dbapi_connection
            assert connection is not None
            try:
                connection.execute(f"PRAGMA busy_timeout = {SHRINK_WAIT_SECONDS * 1000}")
                # Else a rollback journal keeps the size of the whole file, which VACUUM copies into it.
                connection.execute("PRAGMA journal_size_limit = 0")
                (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
                if free_pages:
                    connection.execute("VACUUM")
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.execute("PRAGMA journal_size_limit = -1")
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")

    def _upgrade(self, version: int) -> None:
        """In a process of its own: this one may be Snakemake's, which never imports Alembic."""
        try:
            child = subprocess.run(
                [sys.executable, "-P", "-m", "mlflow_green.ledger.migrations"],
                env={**os.environ, "MLFLOW_GREEN_LEDGER": f"sqlite:///{self.path.absolute()}"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=UPGRADE_TIMEOUT_SECONDS,
                check=False,
            )
            problem = (child.stderr.strip().splitlines() or ["it was killed"])[-1] if child.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"it took more than {UPGRADE_TIMEOUT_SECONDS} s"
        if problem:
            raise LedgerUnavailable(
                f"the ledger {self.path} is of an older mlflow-green (schema {version}), and it could not be brought to"
                f" schema {schema.SCHEMA_VERSION}: {problem}. The file is as it was; with the right to write it, run"
                " 'mlflow-green ledger migrate'"
            )

    def _explained(self, doing: str) -> AbstractContextManager[None]:
        return explained(self.path, doing)

    def _foreign_text(self, tables: str) -> str:
        step = f"move it away and put a backup of the ledger in its place{_OF_ITS_OWN}"
        return f"{self.path} is another program's database (tables {tables}, ...); {_advised(self.path, step)}"

    def _gate(self) -> AbstractContextManager[None]:
        return self._lock.passed()

    def _check(self, meta: RowMapping) -> None:
        """Refuse a file of another host."""
        # Containers of one machine have names of their own but one kernel, whose file locks they share.
        known_host, is_same_kernel = meta["host"], self._boot == meta["boot_id"] and self._boot != "unknown"
        if known_host is None or (known_host == self._hostname and not is_same_kernel):
            # A reader without the right to write may read all the same.
            with suppress(LedgerUnavailable), self.writing() as connection:
                connection.execute(update(schema.meta).values(host=self._hostname, boot_id=self._boot))
        elif not is_same_kernel:
            raise LedgerUnavailable(
                f"the ledger {self.path} belongs to host {known_host} and this is {self._hostname}: two hosts on one"
                " SQLite file can corrupt it; work there, or set MLFLOW_GREEN_LEDGER to a local file of this host, e.g."
                " sqlite:////var/tmp/green-ledger.db. If the machine was renamed, or the file has moved here for good,"
                f" run: python -c \"from mlflow_green.ledger.sqlite import forget_host; forget_host('{self.path}')\""
            )

    def _new_meta(self) -> dict[str, object]:
        return super()._new_meta() | {"host": self._hostname, "boot_id": self._boot}


def forget_host(path: str) -> None:
    """Let the next host that opens the ledger own it; only for a file that no other host uses any more."""
    with explained(Path(path), "write"):
        engine = sqlite_engine(Path(path))
        with engine.execution_options(green_writes=True).begin() as connection:
            connection.execute(update(schema.meta).values(host=None, boot_id=None))
        engine.dispose()


def _create_as_umask_says(path: Path) -> None:
    """SQLite creates a file that only its owner may write, whatever the umask; its other files are as that one.

    Never opens a file that is there: closing it again would drop the locks of this process.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def sqlite_engine(path: Path, *, is_cache: bool = False) -> Engine:
    """An engine with one connection, usable from any thread, from one at a time.

    A cache need not survive a power cut, so it does not wait for the disk. pysqlite is in manual mode: it would begin
    by itself, deferred, and a transaction that reads first and writes later fails at once when another one wrote in
    between.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False, "isolation_level": None},
    )
    event.listen(engine, "do_connect", lambda *_: _create_as_umask_says(path))
    event.listen(engine, "connect", _set_pragmas)
    if is_cache:
        event.listen(engine, "connect", _let_the_disk_take_its_time)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # A rollback journal that keeps its size costs less than one that is cut: 5 waits for the disk, not 6 (measured).
    wanted = "wal" if wal_is_safe(sqlite3.sqlite_version_info[:3]) else "persist"
    # SQLite does not wait when another process is in the way; a rollback journal instead of WAL is as safe.
    with suppress(sqlite3.OperationalError):
        connection.execute(f"PRAGMA journal_mode = {wanted}")
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if wanted == "persist" and mode == "wal":
        raise LedgerUnavailable(
            f"the ledger is open in WAL mode, which SQLite {sqlite3.sqlite_version} of this Python can corrupt;"
            " end the other process first, and use one Python for all"
        )


def _let_the_disk_take_its_time(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("green_writes", False)
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn what the system and the database raise into ``LedgerUnavailable``: path, cause and next step."""
    try:
        yield
    except (IntegrityError, sqlite3.IntegrityError) as error:
        cause = getattr(error, "orig", error)
        raise LedgerError(f"the ledger {path} refused a row as impossible: {cause}; nothing was written") from error
    except OverflowError as error:
        raise LedgerError(f"an amount is above what the ledger {path} can keep, 2**63 - 1: {error}") from error
    except DBAPIError as error:
        raise LedgerUnavailable(_unavailable_text(path, doing, str(error.orig))) from error
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailable(_unavailable_text(path, doing, str(error))) from error


def _unavailable_text(path: Path, doing: str, cause: str) -> str:
    step = next((step for sign, step in _NEXT_STEPS.items() if sign in cause.lower()), _ANY_STEP)
    return f"cannot {doing} the ledger {path}: {cause}; nothing was written; {_advised(path, step)}"


def _advised(path: Path, step: str) -> str:
    """What to do next: where a project's own ledger is kept, another one would only lift its budgets."""
    is_own = path.parent.name == STATE_NAME and path.exists()
    return step.removesuffix(_ELSEWHERE).removesuffix(_OF_ITS_OWN) if is_own else step
