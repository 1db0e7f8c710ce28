"""The database that keeps a ledger's tables: how a transaction begins, waits, fails and ends in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, RootTransaction, RowMapping, inspect, select

from mlflow_green.clock import Clock
from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger import schema
from mlflow_green.ledger.change import Change


class Store(ABC):
    """One connection to the database of a ledger, used from one thread at a time, in any thread.

    ``place`` names the database in messages; there is no password in it. Every method raises ``LedgerUnavailable``
    when the database cannot be read or written.
    """

    schema_version = schema.SCHEMA_VERSION
    excludes_other_hosts = False
    only_grows = ""  # why nothing may ever be taken out of it

    def __init__(self, place: str, engine: Engine) -> None:
        self.place = place
        self._engine = engine
        self._commits = False
        self._connection = engine.connect()

    def prepare(self) -> None:
        """Create the tables in an empty database; bring those of an older version to this one.

        Raises:
            LedgerUnavailable: as ``version`` does, or it is not for this process to bring them there.
        """
        version = self.version()
        if version is None:
            self._create()
            version = self.version()
        if version is not None and version < self.schema_version:
            self._upgrade(version)

    def version(self) -> int | None:
        """The version of the tables, ``None`` where there are none.

        Raises:
            LedgerUnavailable: they are of a newer version, of another program, or of another host.
        """
        with self.reading() as connection:
            if not self._has_tables_in(connection):
                return None
            found = connection.execute(select(schema.meta)).mappings().one()
        version: int = found["schema_version"]
        if version > self.schema_version:
            raise LedgerUnavailable(
                f"the ledger {self.place} was written by a newer mlflow-green (its schema is {version}, this one knows"
                f" {self.schema_version}); run 'pip install --upgrade mlflow-green'"
            )
        self._check(found)
        return version

    def keep_copy(self, version: int) -> Path | None:  # noqa: ARG002 - a server has backups of its own
        """Keep what there is of ``version`` before it is changed, inside ``writing``; where it is kept, if at all."""
        return None

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction in which everything that is read belongs together; inside another one, that one."""
        if self._connection.in_transaction():
            return nullcontext(self._connection)
        return self._transaction("read", nullcontext())

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that no other writer runs beside; when it is left, it survives a crash."""
        return self._transaction("write", self._gate())

    def record(self, connection: Connection, change: Change) -> None:  # noqa: B027 - most need not be told
        """Told what was written, as the last thing in a transaction."""

    def now(self, connection: Connection, clock: Clock) -> datetime:  # noqa: ARG002 - a database may have its own
        """The time of this write transaction."""
        return clock.now()

    def size_bytes(self) -> int | None:
        """What it takes on the disk; ``None`` where that is not known."""
        return None

    def shrink(self) -> None:  # noqa: B027 - a server reuses the room by itself
        """Give the room of rows that were taken out back to the disk. In no transaction."""

    def identity(self) -> str | None:
        """Who the database says that writes here; ``None`` where it cannot tell."""
        return None

    def unguarded(self) -> str:
        """What a database that knows who writes leaves to its clients all the same; empty where there is nothing."""
        return ""

    def close(self) -> None:
        """Release everything; may be called again."""
        self._connection.close()
        self._engine.dispose()

    # --- what each kind does in its own way --------------------------------------------------------

    @abstractmethod
    def _explained(self, doing: str) -> AbstractContextManager[None]:
        """Turn what the database raises into ``LedgerUnavailable`` or ``LedgerError``: place, cause, next step."""

    @abstractmethod
    def _foreign_text(self, tables: str) -> str:
        """What to say when the database has another program's ``tables``."""

    @abstractmethod
    def _upgrade(self, version: int) -> None:
        """Bring tables of an older ``version`` to this one."""

    @abstractmethod
    def _check(self, meta: RowMapping) -> None:
        """Raise ``LedgerUnavailable`` if this process must not use these tables."""

    def _gate(self) -> AbstractContextManager[None]:
        """Where writers queue before their transaction begins."""
        return nullcontext()

    def _new_meta(self) -> dict[str, object]:
        return {"meta_id": 1, "schema_version": self.schema_version, "generation": 0}

    def _begin(self, connection: Connection) -> RootTransaction:
        return connection.begin()

    # -----------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, doing: str, gate: AbstractContextManager[None]) -> Iterator[Connection]:
        connection = self._connection
        self._commits = False
        with self._explained(doing), gate:
            connection.execution_options(green_writes=doing == "write")
            try:
                with self._begin(connection):
                    yield connection
                    self._commits = True
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        """After a BEGIN or COMMIT that failed, the database is still in the transaction though SQLAlchemy is not."""
        if not self._connection.invalidated:
            raw = self._connection.connection.dbapi_connection
            if raw is not None:
                raw.rollback()

    def _has_tables_in(self, connection: Connection) -> bool:
        names = set(inspect(connection).get_table_names())
        if names and not names >= {schema.meta.name, schema.journal.name}:
            raise LedgerUnavailable(self._foreign_text(", ".join(sorted(names)[:3])))
        return bool(names)

    def _create(self) -> None:
        with self._transaction("write", self._gate()) as connection:
            if not self._has_tables_in(connection):  # else another process was faster
                self._create_in(connection)

    def _create_in(self, connection: Connection) -> None:
        schema.metadata.create_all(connection, checkfirst=False)
        schema.revision.create(connection)
        connection.execute(schema.revision.insert(), {"version_num": schema.revision_of(self.schema_version)})
        connection.execute(schema.meta.insert(), self._new_meta())
