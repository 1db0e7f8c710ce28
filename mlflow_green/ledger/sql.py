"""The ledger in an SQL database: SQLite on a local disk.

What is decided is decided by the pure rules of ``posting``; here it is read, proved by guarded
updates and written, each batch in one transaction.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, func, inspect, select, update

from mlflow_green.clock import Clock, boot_id
from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger import rows, schema
from mlflow_green.ledger.filesystem import refuse_network_file_system
from mlflow_green.ledger.ledger import Choose
from mlflow_green.ledger.posting import HISTORY_LENGTH_MAX, HoldState, Message, Standing, post, post_adjustment
from mlflow_green.ledger.sqlite import Gate, explained, ledger_path, sqlite_engine
from mlflow_green.ledger.transaction import load, load_buckets, load_holds, promise, write, write_facts
from mlflow_green.records import (
    Balance,
    Batch,
    Committed,
    DecisionRow,
    Domain,
    Entry,
    Fact,
    Hold,
    JournalRow,
    NodeWindow,
    OutboxRow,
    Outcome,
    PastUse,
    Term,
    Unit,
)

_HISTORY = (
    select(
        schema.entries.c.step,
        schema.entries.c.wildcards,
        schema.entries.c.tier,
        schema.entries.c.energy_total_microjoules,
        schema.entries.c.outcome,
    )
    .where(
        schema.entries.c.outcome.in_([Outcome.SUCCEEDED.value, Outcome.HALTED.value]),
        schema.entries.c.energy_total_microjoules.is_not(None),
    )
    .order_by(schema.entries.c.entry_number.desc())
    .limit(HISTORY_LENGTH_MAX)
)
_JOURNAL = (
    select(
        schema.journal.c.journal_id,
        schema.journal.c.at,
        schema.journal.c.hold_id,
        schema.buckets.c.budget,
        schema.buckets.c.account,
        schema.buckets.c.unit,
        schema.buckets.c.period,
        schema.journal.c.kind,
        schema.journal.c.delta_held,
        schema.journal.c.delta_spent,
        schema.journal.c.reason,
    )
    .join_from(schema.journal, schema.buckets)
    .order_by(schema.journal.c.journal_id)
)


def open_ledger(
    url: str,
    *,
    mountinfo_path: Path,
    clock: Clock,
    hostname: str | None = None,
    boot: str | None = None,
) -> SqlLedger:
    """Open the ledger of ``sqlite:///PATH``; make the folder and the file where there is none.

    ``hostname`` and ``boot`` (the kernel's boot id) are those of this machine unless a test says otherwise.

    Raises:
        LedgerUnavailable: the file cannot be used; the message says why and what to do.
    """
    path = ledger_path(url)
    with explained(path, "open"):
        refuse_network_file_system(path, mountinfo_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = SqlLedger(path, clock)
    try:
        ledger.prepare(hostname or socket.gethostname(), boot or boot_id())
    except BaseException:
        ledger.close()
        raise
    return ledger


def forget_host(path: str) -> None:
    """Let the next host that opens the ledger own it; only for a file that no other host uses any more."""
    with explained(Path(path), "write"):
        engine = sqlite_engine(Path(path))
        with engine.execution_options(green_writes=True).begin() as connection:
            connection.execute(update(schema.meta).values(host=None, boot_id=None))
        engine.dispose()


class SqlLedger:
    """``Ledger``, ``LedgerReader`` and ``Outbox`` on one SQLite file.

    Use it from one thread at a time, in any thread; a process that forks opens its own. Any number of
    processes of one host may use the file. Every method raises ``LedgerUnavailable`` when the file cannot
    be read or written; then nothing was written, and the same call may be made again later.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._engine = sqlite_engine(path)
        self._gate = Gate(path.with_name(path.name + ".lock"))
        self._connection = self._engine.connect()

    # --- Ledger ----------------------------------------------------------------------------------

    def commit(self, batch: Batch, choose: Choose) -> Committed:
        with self._writing() as connection:
            loaded = load(connection, batch)
            now = self._clock.now()
            effects = post(batch, loaded.standing, choose, now=now, new_hold_id=lambda: uuid4().hex)
            alerts = write(connection, effects, loaded.bucket_ids, now)
            generation = connection.execute(select(schema.meta.c.generation)).scalar_one()
        return Committed(answers=effects.answers, top_ups=effects.top_ups, alerts=alerts, generation=generation)

    def adjust(self, hold_id: str, amounts: Mapping[Unit, int], reason: str) -> bool:
        """Correct what a closed hold was charged; ``False`` if this reason was given for it before.

        ``amounts`` are added to what was spent and may be negative.
        """
        columns = schema.journal.c
        told = select(columns.journal_id).where(
            columns.hold_id == hold_id, columns.kind == "adjust", columns.reason == reason
        )
        with self._writing() as connection:
            if connection.execute(told).first() is not None:
                return False
            holds = load_holds(connection, [hold_id])
            terms = [term for booked in holds.values() for term in booked.hold.terms]
            balances, bucket_ids = load_buckets(connection, terms)
            now = self._clock.now()
            standing = Standing(balances=balances, holds=holds)
            write(connection, post_adjustment(hold_id, amounts, reason, standing, now), bucket_ids, now)
        return True

    def balances(self, terms: Sequence[Term] = ()) -> tuple[Balance, ...]:
        with self._reading() as connection:
            if not terms:
                found = connection.execute(select(schema.buckets).order_by(schema.buckets.c.bucket_id))
                return tuple(rows.balance_of(row) for row in found.mappings())
            known, _ids = load_buckets(connection, terms)
        none = Balance(term=terms[0], spent=0, held=0)
        return tuple(replace(known.get(term.key, none), term=term) for term in terms)

    def open_holds(self) -> tuple[Hold, ...]:
        query = select(schema.holds).where(schema.holds.c.state == HoldState.HELD.value)
        with self._reading() as connection:
            found = connection.execute(query.order_by(schema.holds.c.hold_number)).mappings()
            return tuple(rows.booked_hold_of(row).hold for row in found)

    def history(self, project: str, step: str) -> tuple[PastUse, ...]:
        query = _HISTORY.where(schema.entries.c.project == project, schema.entries.c.step == step)
        with self._reading() as connection:
            newest_first = connection.execute(query).all()
        return tuple(
            PastUse(
                step=name,
                wildcards=wildcards,
                tier=tier,
                energy_microjoules=energy_microjoules,
                censored=outcome == Outcome.HALTED.value,
            )
            for name, wildcards, tier, energy_microjoules, outcome in reversed(newest_first)
        )

    def last_sequences(self, sampler_id: str) -> dict[Domain, int]:
        columns = schema.node_windows.c
        query = select(columns.domain, func.max(columns.sequence_last)).where(columns.sampler_id == sampler_id)
        with self._reading() as connection:
            return {Domain(domain): last for domain, last in connection.execute(query.group_by(columns.domain))}

    def close(self) -> None:
        """Release the file; may be called again."""
        self._connection.close()
        self._engine.dispose()
        self._gate.close()

    # --- LedgerReader ----------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside belongs together; writers wait meanwhile, so keep it short."""
        with self._reading():
            yield

    def entries(self, *, workflow_run: str | None = None) -> tuple[Entry, ...]:
        query = select(schema.entries).order_by(schema.entries.c.entry_number)
        if workflow_run is not None:
            query = query.where(schema.entries.c.workflow_run == workflow_run)
        with self._reading() as connection:
            return tuple(rows.entry_of(row) for row in connection.execute(query).mappings())

    def facts(self) -> Mapping[str, Mapping[str, float | str]]:
        told: dict[str, dict[str, float | str]] = {}
        with self._reading() as connection:
            for hold_id, name, value in connection.execute(select(schema.facts)):
                told.setdefault(hold_id, {})[name] = value
        return told

    def node_windows(self) -> tuple[NodeWindow, ...]:
        query = select(schema.node_windows).order_by(schema.node_windows.c.window_number)
        with self._reading() as connection:
            return tuple(rows.window_of(row) for row in connection.execute(query).mappings())

    def journal(self) -> tuple[JournalRow, ...]:
        with self._reading() as connection:
            return tuple(rows.journal_row_of(row) for row in connection.execute(_JOURNAL).mappings())

    def decisions(self) -> tuple[DecisionRow, ...]:
        query = select(schema.decisions).order_by(schema.decisions.c.decision_id)
        with self._reading() as connection:
            return tuple(rows.decision_row_of(row) for row in connection.execute(query).mappings())

    # --- Outbox ----------------------------------------------------------------------------------

    def pending(self, kind: str, now: datetime, limit: int = 100) -> tuple[OutboxRow, ...]:
        columns = schema.outbox.c
        query = (
            select(columns.outbox_id, columns.kind, columns.payload, columns.tries)
            .where(columns.state == "pending", columns.kind == kind, columns.next_try <= now)
            .order_by(columns.outbox_id)
            .limit(limit)
        )
        with self._reading() as connection:
            return tuple(OutboxRow(**row) for row in connection.execute(query).mappings())

    def delivered(self, outbox_id: int, facts: Sequence[Fact] = ()) -> None:
        with self._writing() as connection:
            self._change_letter(connection, outbox_id, state="delivered", error=None)
            write_facts(connection, facts)

    def failed(self, outbox_id: int, retry_at: datetime, error: str) -> None:
        with self._writing() as connection:
            tries = schema.outbox.c.tries + 1
            self._change_letter(connection, outbox_id, next_try=retry_at, tries=tries, error=error)

    def put(self, kind: str, dedup: str, payload: Mapping[str, object]) -> None:
        with self._writing() as connection:
            promise(connection, [Message(kind=kind, dedup=dedup, payload=payload)], self._clock.now())

    def count(self, kind: str) -> int:
        query = select(func.count()).where(schema.outbox.c.state == "pending", schema.outbox.c.kind == kind)
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def _change_letter(self, connection: Connection, outbox_id: int, **values: Any) -> None:
        changed = connection.execute(
            update(schema.outbox).where(schema.outbox.c.outbox_id == outbox_id).values(**values)
        )
        if changed.rowcount != 1:
            raise LedgerError(f"there is no message {outbox_id} in the outbox of {self._path}")

    # --- opening ---------------------------------------------------------------------------------

    def prepare(self, hostname: str, boot: str) -> None:
        """Create the tables in an empty file; refuse a file of a newer version, another program or another host."""
        if not self._has_tables():
            self._create(hostname, boot)
        with self._reading() as connection:
            found = connection.execute(select(schema.meta)).mappings().one()
        if found["schema_version"] > schema.SCHEMA_VERSION:
            raise LedgerUnavailable(
                f"the ledger {self._path} was written by a newer mlflow-green (its schema is"
                f" {found['schema_version']}, this one knows {schema.SCHEMA_VERSION});"
                " run 'pip install --upgrade mlflow-green', or set MLFLOW_GREEN_LEDGER to another file"
            )
        self._check_host(found["host"], found["boot_id"], hostname, boot)

    def _has_tables(self) -> bool:
        with self._reading() as connection:
            return self._has_tables_in(connection)

    def _has_tables_in(self, connection: Connection) -> bool:
        names = set(inspect(connection).get_table_names())
        if names and not names >= {schema.meta.name, schema.journal.name}:
            raise LedgerUnavailable(
                f"{self._path} is another program's database (tables {', '.join(sorted(names)[:3])}, ...);"
                " set MLFLOW_GREEN_LEDGER to a file of its own"
            )
        return bool(names)

    def _create(self, hostname: str, boot: str) -> None:
        with self._writing() as connection:
            if self._has_tables_in(connection):  # another process was faster
                return
            schema.metadata.create_all(connection, checkfirst=False)
            connection.execute(
                schema.meta.insert(),
                {
                    "meta_id": 1,
                    "schema_version": schema.SCHEMA_VERSION,
                    "generation": 0,
                    "host": hostname,
                    "boot_id": boot,
                },
            )

    def _check_host(self, known_host: str | None, known_boot: str | None, hostname: str, boot: str) -> None:
        # Containers of one machine have names of their own but one kernel, whose file locks they share.
        is_same_kernel = boot == known_boot and boot != "unknown"
        if known_host is None or (known_host == hostname and not is_same_kernel):
            # A reader without the right to write may read all the same.
            with suppress(LedgerUnavailable), self._writing() as connection:
                connection.execute(update(schema.meta).values(host=hostname, boot_id=boot))
        elif not is_same_kernel:
            raise LedgerUnavailable(
                f"the ledger {self._path} belongs to host {known_host} and this is {hostname}: two hosts on one SQLite"
                " file can corrupt it; work there, or set MLFLOW_GREEN_LEDGER to a local file of this host, e.g."
                " sqlite:////var/tmp/green-ledger.db. If the machine was renamed, or the file has moved here for good,"
                f" run: python -c \"from mlflow_green.ledger.sql import forget_host; forget_host('{self._path}')\""
            )

    # --- transactions ----------------------------------------------------------------------------

    def _writing(self) -> AbstractContextManager[Connection]:
        return self._transaction("write", self._gate.passed())

    def _reading(self) -> AbstractContextManager[Connection]:
        if self._connection.in_transaction():  # inside snapshot()
            return nullcontext(self._connection)
        return self._transaction("read", nullcontext())

    @contextmanager
    def _transaction(self, doing: str, gate: AbstractContextManager[None]) -> Iterator[Connection]:
        connection = self._connection
        with explained(self._path, doing), gate:
            connection.execution_options(green_writes=doing == "write")
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        """After a COMMIT that failed, SQLite is still inside the transaction though SQLAlchemy is not."""
        raw = self._connection.connection.dbapi_connection
        if raw is not None:
            raw.rollback()
