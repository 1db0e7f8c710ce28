"""A ledger in PostgreSQL, for a team and for jobs on several hosts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, RootTransaction, RowMapping, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool

from mlflow_green.clock import Clock, SystemClock
from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger import schema
from mlflow_green.ledger.address import place, with_password
from mlflow_green.ledger.guards import APPROVERS, WRITERS_LOCK, guard
from mlflow_green.ledger.store import Store

WAIT_SECONDS_MAX = 60

# Parameters of libpq, unless the URL has them.
_CONNECTING = {
    "application_name": "mlflow-green",
    "connect_timeout": 10,  # seconds
    # A server that is gone without a word is noticed within a minute.
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}

# Writers queue at one lock, first come, first served, so the rules decide on balances that nobody else changes. A
# writer that was stopped in the middle loses its session rather than hold up the others.
_BEGIN_WRITE = f"""
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL lock_timeout = '{WAIT_SECONDS_MAX}s';
SET LOCAL statement_timeout = '{WAIT_SECONDS_MAX}s';
SET LOCAL idle_in_transaction_session_timeout = '{WAIT_SECONDS_MAX}s';
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
SELECT pg_advisory_xact_lock({WRITERS_LOCK})
"""
_BEGIN_READ = f"""
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL lock_timeout = '{WAIT_SECONDS_MAX}s';
SET LOCAL statement_timeout = '{WAIT_SECONDS_MAX}s'
"""

# What the server or libpq says, and what to do about it. A reason comes with its SQLSTATE (appendix A of PostgreSQL's
# manual) once there is a session; before, there is only a text.
_STEPS_BY_STATE = {
    "25006": "the server is a read-only standby; name the primary in MLFLOW_GREEN_LEDGER",
    "53100": "the server's disk is full; free some space there",
    "55P03": "another process has been writing for a minute; see pg_stat_activity on the server, then try again",
    "57014": "the server was too slow for it, or somebody cancelled it; see pg_stat_activity there, then try again",
}
_STEPS_BY_SIGN = {
    "password": "set PGPASSWORD, add a line to ~/.pgpass, or write env:NAME as the password in MLFLOW_GREEN_LEDGER",
    "does not exist": "make it with 'createdb' or 'createuser' on the server, or correct MLFLOW_GREEN_LEDGER",
    "connect privilege": "have the database's owner GRANT CONNECT ON DATABASE to this role",
    "pg_hba": "the server takes no connection of this user from here; have its pg_hba.conf changed",
    "too many": "the server has no connection left; raise its max_connections, or use a pooler",
    "remaining connection slots": "the server has no connection left; raise its max_connections, or use a pooler",
}
_CLASSES_OF_CONNECTING = {"08", "28", "3D", "53", "57"}
_ANY_STEP = "see whether the server runs and can be reached from here ('pg_isready'), then try again"


class PostgresStore(Store):
    """One connection to a PostgreSQL database. It is opened anew when the server was restarted."""

    schema_version = schema.SCHEMA_VERSION_POSTGRES

    def __init__(self, url: URL) -> None:
        self._url = with_password(url)
        self._pid = os.getpid()
        self.place = place(url)
        with self._explained("open"):
            super().__init__(self.place, postgres_engine(self._url))

    def now(self, connection: Connection, clock: Clock) -> datetime:
        """By the server's clock, which all hosts have in common; a test's own clock counts instead."""
        if not isinstance(clock, SystemClock):
            return clock.now()
        at: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return at.astimezone(UTC)

    def size_bytes(self) -> int:
        with self.reading() as connection:
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())

    def identity(self) -> str:
        with self.reading() as connection:
            return str(connection.execute(text("SELECT session_user")).scalar_one())

    def unguarded(self) -> str:
        with self.reading() as connection:
            if connection.execute(text(f"SELECT FROM pg_roles WHERE rolname = '{APPROVERS}'")).first() is not None:
                return ""
        return (
            f"{self.place} has no role {APPROVERS}, so who may approve is checked by clients only; to have the database"
            " check it, see docs/howto/postgres.md"
        )

    def close(self) -> None:
        if os.getpid() == self._pid:  # a forked child would end its parent's session
            super().close()

    def _begin(self, connection: Connection) -> RootTransaction:
        try:
            return connection.begin()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return connection.begin()  # the server was restarted since the last transaction

    def _upgrade(self, version: int) -> None:
        raise LedgerUnavailable(
            f"the ledger {self.place} is of an older mlflow-green (schema {version}, this one needs"
            f" {self.schema_version}); have the owner of its tables run 'mlflow-green ledger migrate'"
        )

    def _create_in(self, connection: Connection) -> None:
        super()._create_in(connection)
        guard(connection)

    def _check(self, meta: RowMapping) -> None:
        """There is nothing to check: every host may use it."""

    def _foreign_text(self, tables: str) -> str:
        return (
            f"{self.place} has tables of another program ({tables}, ...) and no ledger; give the ledger a database"
            " of its own: createdb green, then MLFLOW_GREEN_LEDGER=postgresql://USER@HOST/green"
        )

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise LedgerError(
                f"the ledger {self.place} refused a row as impossible: {_cause(error)}; nothing was written"
            ) from error
        except DataError as error:
            raise LedgerError(
                f"the ledger {self.place} cannot keep a value: {_cause(error)}; amounts are at most 2**63 - 1, and"
                " texts have no NUL character; nothing was written"
            ) from error
        except DBAPIError as error:
            raise self._unavailable(doing, error) from error

    def _unavailable(self, doing: str, error: DBAPIError) -> LedgerError:
        cause, state = _cause(error), getattr(error.orig, "sqlstate", None)
        if state == "P0001":  # one of our own triggers
            return LedgerError(f"the ledger {self.place} refused it: {cause}; nothing was written")
        if state == "54000":
            return LedgerError(
                f"the ledger {self.place} cannot keep a name of more than about 2,700 bytes: {cause}; nothing was"
                " written; shorten the step's wildcards"
            )
        if state == "42501":
            return LedgerUnavailable(f"cannot {doing} the ledger {self.place}: {cause}; {self._rights(doing, cause)}")
        written = "nothing was written"
        if self._commits and doing == "write":
            written = "whether it was written is not known; saying it again is safe"
        return LedgerUnavailable(f"cannot {doing} the ledger {self.place}: {cause}; {written}; {_step(cause, state)}")

    def _rights(self, doing: str, cause: str) -> str:
        role = self._url.username or "THIS_ROLE"
        if "must be owner" in cause:
            return "nothing was written; run it as the role that owns the tables"
        if "for schema" in cause:
            grant = f"the owner of the database run: GRANT USAGE, CREATE ON SCHEMA public TO {role}"
        else:
            has = "green_spender" if doing == "write" else "green_reader"
            grant = (
                f"the server's administrator run: GRANT {has} TO {role};"
                f" what {has} may not do either, docs/howto/postgres.md says who may"
            )
        return f"nothing was written; have {grant}"


def _cause(error: DBAPIError) -> str:
    """What the server said, in one line, or else what libpq said."""
    diagnosis = getattr(error.orig, "diag", None)
    return " ".join(str(getattr(diagnosis, "message_primary", None) or error.orig).split())


def _step(cause: str, state: str | None) -> str:
    if state in _STEPS_BY_STATE:
        return _STEPS_BY_STATE[state]
    if state is not None and state[:2] not in _CLASSES_OF_CONNECTING:
        return "the server's log says more"
    return next((step for sign, step in _STEPS_BY_SIGN.items() if sign in cause.lower()), _ANY_STEP)


def postgres_engine(url: URL) -> Engine:
    """An engine that begins transactions itself: the driver would begin them with a round trip of their own.

    Raises:
        LedgerUnavailable: the driver is not installed.
    """
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={name: value for name, value in _CONNECTING.items() if name not in url.query},
        )
    except ImportError as error:
        raise LedgerUnavailable(
            f"the ledger {place(url)} needs PostgreSQL's driver, and it cannot be imported ({error});"
            " run: pip install 'mlflow-green[postgres]'"
        ) from error
    event.listen(engine, "begin", _begin)
    logging.getLogger("psycopg").addFilter(_is_news)
    return engine


def _is_news(record: logging.LogRecord) -> bool:
    """What the driver ignores follows from an error that it also raises, and that is told."""
    return not str(record.msg).startswith("error ignored terminating")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("green_writes", False)
    connection.exec_driver_sql(_BEGIN_WRITE if writes else _BEGIN_READ)
