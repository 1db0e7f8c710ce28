"""The ledger in an SQL database: a SQLite file, the cache of a journal on a network file system, or PostgreSQL.

What is decided is decided by the pure rules of ``posting``; here it is read, proved by guarded
updates and written, each batch in one transaction.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Connection, and_, func, select

from mlflow_green.clock import Clock, boot_id
from mlflow_green.errors import AllowanceRefused, LedgerUnavailable
from mlflow_green.ledger import rows, schema
from mlflow_green.ledger.address import is_postgres, ledger_path, parsed_url
from mlflow_green.ledger.allowances import NOTHING, UNREVIEWED, Agreed, Reviewed, counted, limit_key
from mlflow_green.ledger.cache import cache_folder
from mlflow_green.ledger.change import Change, LetterChange, apply
from mlflow_green.ledger.compaction import Compaction
from mlflow_green.ledger.effects import Effects
from mlflow_green.ledger.filesystem import journal_folder, refuse_network_file_system
from mlflow_green.ledger.holds import BookedHold, HoldState
from mlflow_green.ledger.journaled import JournaledStore, open_shared_journal
from mlflow_green.ledger.ledger import Choose
from mlflow_green.ledger.limit_rows import (
    keys_of_budgets,
    knows_policy,
    load_allowances,
    load_applied,
    load_approved,
    load_extras,
)
from mlflow_green.ledger.messages import Message
from mlflow_green.ledger.past_uses import HISTORY_LENGTH_MAX, INPUT_BYTES_FACT
from mlflow_green.ledger.pending import with_pending
from mlflow_green.ledger.posting import post, post_adjustment, post_allowances, post_applied, post_approval, post_policy
from mlflow_green.ledger.spare_rows import find_spare, remove
from mlflow_green.ledger.sqlite import SqliteStore, explained
from mlflow_green.ledger.standing import Standing
from mlflow_green.ledger.store import Store
from mlflow_green.ledger.transaction import (
    keys_of,
    load,
    load_buckets,
    load_generation,
    load_holds,
    load_limits,
    load_wanting,
)
from mlflow_green.ledger.windows import joined_ranges
from mlflow_green.records import (
    Allowance,
    AppliedLimit,
    ApprovedLimit,
    Balance,
    Batch,
    Committed,
    DecisionRow,
    Domain,
    Entry,
    Fact,
    Hold,
    JournalRow,
    LetterState,
    NodeWindow,
    OutboxRow,
    Outcome,
    PastUse,
    PolicyVersion,
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
        schema.facts.c.value,
    )
    .join_from(
        schema.entries,
        schema.facts,
        and_(schema.facts.c.hold_id == schema.entries.c.hold_id, schema.facts.c.name == INPUT_BYTES_FACT),
        isouter=True,
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
        schema.journal.c.delta_limit,
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
    cache_dir: Path | None = None,
) -> SqlLedger:
    """Open the ledger of ``sqlite:///PATH`` or ``postgresql://...``; make its tables where there are none.

    Where ``PATH`` is on a network file system, or a journal is there already, the ledger is the journal in the folder
    beside it that ends in ``.journal``, and SQLite its cache in a folder of this user on a local disk. ``hostname``,
    ``boot`` (the kernel's boot id) and ``cache_dir`` are those of this machine unless a test says otherwise.

    Raises:
        LedgerUnavailable: it cannot be used, or another host uses the file; the message says why and what to do.
    """
    store = open_store(url, mountinfo_path=mountinfo_path, hostname=hostname, boot=boot, cache_dir=cache_dir)
    try:
        store.prepare()
    except BaseException:
        store.close()
        raise
    return SqlLedger(store, clock)


def open_store(
    url: str,
    *,
    mountinfo_path: Path,
    hostname: str | None = None,
    boot: str | None = None,
    cache_dir: Path | None = None,
) -> Store:
    """What keeps the ledger's tables, without looking at them; the arguments are those of ``open_ledger``."""
    parsed = parsed_url(url)
    if is_postgres(parsed):
        from mlflow_green.ledger.postgres import PostgresStore

        return PostgresStore(parsed)
    path, hostname, boot = ledger_path(url), hostname or socket.gethostname(), boot or boot_id()
    with explained(path, "open"), ExitStack() as undo:
        refuse_network_file_system(path, mountinfo_path)
        folder = journal_folder(path, mountinfo_path)
        if folder is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            return SqliteStore(path, hostname=hostname, boot=boot)
        cache_dir = cache_dir or cache_folder(folder, mountinfo_path)
        journal = open_shared_journal(folder, cache_dir, host=hostname, boot=boot)
        undo.callback(journal.close)
        store = JournaledStore(journal, hostname=hostname, boot=boot)
        undo.pop_all()
        return store


class SqlLedger:
    """``Ledger``, ``LedgerReader`` and ``Outbox`` in the database of a ``store``.

    Use it from one thread at a time, in any thread; a process that forks opens its own. Any number of processes may
    use one database, on a file those of one host. Every method raises ``LedgerUnavailable`` when it cannot be read or
    written; the message says whether anything may have been written, and the same call may be made again in any case.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    # --- Ledger ----------------------------------------------------------------------------------

    def commit(self, batch: Batch, choose: Choose) -> Committed:
        with self._writing() as connection:
            now = self._store.now(connection, self._clock)
            loaded = load(connection, batch, now)
            effects = post(batch, loaded.standing, choose, now=now, new_hold_id=lambda: uuid4().hex)
            change = Change(at=now, effects=effects)
            alerts = apply(connection, change, loaded.bucket_ids)
            self._record(connection, change)
        return Committed(
            answers=effects.answers,
            top_ups=effects.top_ups,
            alerts=alerts,
            generation=loaded.standing.generation + effects.balances_changed,
            adopted=effects.adopted,
            fenced=effects.fenced,
        )

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
            now = self._store.now(connection, self._clock)
            terms = [term for booked in holds.values() for term in booked.hold.terms]
            found = load_limits(connection, keys_of(terms), now)
            standing = Standing(
                generation=load_generation(connection), balances=found.balances, extras=found.extras, holds=holds
            )
            change = Change(at=now, effects=post_adjustment(hold_id, amounts, reason, standing, now))
            apply(connection, change, found.bucket_ids)
            self._record(connection, change)
        return True

    def balances(self, terms: Sequence[Term] = ()) -> tuple[Balance, ...]:
        with self._reading() as connection:
            now = self._store.now(connection, self._clock)
            if not terms:
                found = connection.execute(select(schema.buckets).order_by(schema.buckets.c.bucket_id))
                known = {balance.term.key: balance for balance in map(rows.balance_of, found.mappings())}
            else:
                known, _ids = load_buckets(connection, {term.key for term in terms})
            extras = load_extras(connection, known, now)
            approved = load_approved(connection, {limit_key(term) for term in terms})
            wanting = load_wanting(connection)
        known = {key: replace(balance, extra=extras.get(key, NOTHING).total) for key, balance in known.items()}
        if not terms:
            return with_pending(known.values(), wanting)
        none = Balance(term=terms[0], spent=0, held=0)
        told = (counted(term, approved.get(limit_key(term))) for term in terms)
        return with_pending([replace(known.get(term.key, none), term=term) for term in told], wanting)

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
                input_bytes=input_bytes,
            )
            for name, wildcards, tier, energy_microjoules, outcome, input_bytes in reversed(newest_first)
        )

    def posted_sequences(self, sampler_id: str) -> dict[Domain, tuple[tuple[int, int], ...]]:
        columns = schema.node_windows.c
        query = select(columns.domain, columns.sequence_first, columns.sequence_last)
        ranges: defaultdict[Domain, list[tuple[int, int]]] = defaultdict(list)
        with self._reading() as connection:
            for domain, first, last in connection.execute(query.where(columns.sampler_id == sampler_id)):
                ranges[Domain(domain)].append((first, last))
        return {domain: joined_ranges(of_domain) for domain, of_domain in ranges.items()}

    @property
    def excludes_other_hosts(self) -> bool:
        """True on a network file system: the lease keeps every other host out while this ledger is open."""
        return self._store.excludes_other_hosts

    def identity(self) -> str | None:
        """Who writes here, as the database knows him: the role on PostgreSQL, ``None`` on a file."""
        return self._store.identity()

    def unguarded(self) -> str:
        """What a database that knows who writes leaves to its clients all the same; empty where there is nothing."""
        return self._store.unguarded()

    def close(self) -> None:
        """Release the database; may be called again."""
        self._store.close()

    # --- LedgerReader ----------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside belongs together; writers wait meanwhile, so keep it short."""
        with self._reading():
            yield

    def accounts(self) -> Mapping[str, str | None]:
        with self._reading() as connection:
            return {row.account: row.parent for row in connection.execute(select(schema.accounts))}

    def booked_holds(self) -> tuple[BookedHold, ...]:
        query = select(schema.holds).order_by(schema.holds.c.hold_number)
        with self._reading() as connection:
            return tuple(rows.booked_hold_of(row) for row in connection.execute(query).mappings())

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

    # --- Compactable -----------------------------------------------------------------------------

    def compact(self, keep: timedelta, *, only_look: bool = False) -> Compaction:
        if self._store.only_grows:
            return Compaction(messages={}, decisions=0, windows=0, kept=self._store.only_grows)
        bytes_before, bytes_after, problem = self._store.size_bytes(), None, ""
        with self._reading() as connection:
            spare = find_spare(connection, self._store.now(connection, self._clock) - keep)
        if not only_look:
            if spare.has_any:  # else nobody is kept waiting
                with self._writing() as connection:
                    spare = find_spare(connection, self._store.now(connection, self._clock) - keep)
                    remove(connection, spare)
            try:
                self._store.shrink()
            except LedgerUnavailable as error:
                problem = str(error)
            bytes_after = self._store.size_bytes()
        return Compaction(
            messages=spare.messages,
            decisions=len(spare.decisions),
            windows=spare.windows,
            bytes_before=bytes_before,
            bytes_after=bytes_after,
            problem=problem,
        )

    # --- AllowanceBook ---------------------------------------------------------------------------

    def allow(
        self,
        allowance: Allowance,
        term: Term | None = None,
        *,
        max_extra: Decimal | None = None,
        to: Sequence[str] = (),
    ) -> None:
        self.allow_all([(allowance, term)], max_extra=max_extra, to=to)

    def allow_all(
        self,
        asked: Sequence[tuple[Allowance, Term | None]],
        *,
        max_extra: Decimal | None = None,
        to: Sequence[str] = (),
    ) -> None:
        role = self.identity()
        if role is not None:
            asked = [(_asked_by(role, allowance), term) for allowance, term in asked]
        with self._writing() as connection:
            asked = [each for each in asked if not load_allowances(connection, each[0].allowance_id)]
            if not asked:
                return
            now = self._store.now(connection, self._clock)
            standing = self._limits_around(connection, asked, now)
            self._write(connection, post_allowances(asked, standing, now, max_extra=max_extra, to=to), now)

    def approve(
        self, allowance_id: str, approved_by: str, *, max_extra: Decimal | None = None, to: Sequence[str] = ()
    ) -> Allowance:
        approved_by = self.identity() or approved_by
        with self._writing() as connection:
            asked = load_allowances(connection, allowance_id)
            if not asked:
                raise AllowanceRefused(f"nobody asked for {allowance_id}; 'mlflow-green budget list' shows what was")
            now = self._store.now(connection, self._clock)
            standing = self._limits_around(connection, [(asked[0], None)], now)
            self._write(
                connection, post_approval(asked[0], approved_by, standing, now, max_extra=max_extra, to=to), now
            )
            return load_allowances(connection, allowance_id)[0]

    def allowances(self) -> tuple[Allowance, ...]:
        with self._reading() as connection:
            return load_allowances(connection)

    def _limits_around(
        self, connection: Connection, asked: Sequence[tuple[Allowance, Term | None]], now: datetime
    ) -> Standing:
        """The buckets that these raise, those that inherit from them or they from, with their approved limits."""
        keys = {allowance.key for allowance, _ in asked}
        found = load_limits(connection, keys | keys_of([term for _, term in asked if term]), now)
        approved = load_approved(connection, {key[:3] for key in keys})
        return Standing(
            generation=load_generation(connection), balances=found.balances, extras=found.extras, approved=approved
        )

    # --- PolicyBook ------------------------------------------------------------------------------

    def record_policy(self, version: PolicyVersion, terms: Sequence[Term] = ()) -> tuple[ApprovedLimit, ...]:
        with self._writing() as connection:
            now = self._store.now(connection, self._clock)
            standing = Standing(generation=load_generation(connection), approved=load_approved(connection))
            effects = post_policy(version, terms, standing, now)
            if effects.limits or not knows_policy(connection, version.sha256):
                self._write(connection, effects, now)
            return tuple(load_approved(connection).values())

    def apply_policy(
        self,
        version: PolicyVersion,
        terms: Sequence[Term],
        *,
        approved_by: str | None,
        reason: str = "",
        to: Sequence[str] = (),
        requested_by: str = "",
        approver: str | None = None,
        reviewed: Reviewed = UNREVIEWED,
    ) -> None:
        with self._writing() as connection:
            now = self._store.now(connection, self._clock)
            found = load_limits(connection, keys_of_budgets(connection, terms), now)
            standing = Standing(
                generation=load_generation(connection),
                balances=found.balances,
                extras=found.extras,
                approved=load_approved(connection),
            )
            agreed = Agreed(requested_by, approver, approved_by, reason)
            effects = post_applied(version, terms, standing, now, agreed=agreed, to=to, reviewed=reviewed)
            self._write(connection, effects, now)

    def approved_limits(self) -> tuple[ApprovedLimit, ...]:
        with self._reading() as connection:
            return tuple(load_approved(connection).values())

    def applied_limits(self) -> tuple[AppliedLimit, ...]:
        with self._reading() as connection:
            return load_applied(connection)

    def policies(self) -> tuple[PolicyVersion, ...]:
        query = select(schema.policies).order_by(schema.policies.c.at)
        with self._reading() as connection:
            return tuple(PolicyVersion(**row) for row in connection.execute(query).mappings())

    # --- Outbox ----------------------------------------------------------------------------------

    def pending(self, kind: str, now: datetime, limit: int = 100) -> tuple[OutboxRow, ...]:
        columns = schema.outbox.c
        query = (
            select(schema.outbox)
            .where(columns.state == LetterState.PENDING.value, columns.kind == kind, columns.next_try <= now)
            .order_by(columns.outbox_id)
            .limit(limit)
        )
        with self._reading() as connection:
            return tuple(rows.outbox_row_of(row) for row in connection.execute(query).mappings())

    def delivered(self, outbox_id: int, facts: Sequence[Fact] = ()) -> None:
        self._do(letter=LetterChange(outbox_id=outbox_id), facts=tuple(facts))

    def failed(self, outbox_id: int, retry_at: datetime | None, error: str) -> None:
        self._do(letter=LetterChange(outbox_id=outbox_id, retry_at=retry_at, error=error))

    def put(self, kind: str, dedup: str, payload: Mapping[str, object]) -> None:
        self._do(message=Message(kind=kind, dedup=dedup, payload=payload))

    def count(self, kind: str) -> int:
        columns = schema.outbox.c
        query = select(func.count()).where(columns.state == LetterState.PENDING.value, columns.kind == kind)
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def now(self) -> datetime:
        """By the database's clock, where it has one for all hosts."""
        with self._reading() as connection:
            return self._store.now(connection, self._clock)

    def claim(self, outbox_id: int, now: datetime, until: datetime) -> bool:
        columns = schema.outbox.c
        due = select(columns.outbox_id).where(
            columns.outbox_id == outbox_id, columns.state == LetterState.PENDING.value, columns.next_try <= now
        )
        with self._writing() as connection:  # one writer at a time: nobody comes between the look and the change
            if connection.execute(due).first() is None:
                return False
            change = Change(
                at=self._store.now(connection, self._clock), letter=LetterChange(outbox_id=outbox_id, retry_at=until)
            )
            apply(connection, change)
            self._record(connection, change)
        return True

    def replace(self, outbox_ids: Sequence[int], kind: str, messages: Mapping[str, Mapping[str, object]]) -> bool:
        columns = schema.outbox.c
        pending = select(func.count()).where(
            columns.outbox_id.in_(outbox_ids), columns.state == LetterState.PENDING.value
        )
        known = select(columns.outbox_id).where(columns.dedup.in_(list(messages)))
        promised = tuple(Message(kind=kind, dedup=dedup, payload=payload) for dedup, payload in messages.items())
        with self._writing() as connection:
            is_whole = connection.execute(pending).scalar_one() == len(outbox_ids)
            if not is_whole or connection.execute(known).first() is not None:
                return False
            now = self._store.now(connection, self._clock)
            change = Change(at=now, replaced=tuple(outbox_ids), messages=promised)
            apply(connection, change)
            self._record(connection, change)
        return True

    def rows(self, kind: str, *states: LetterState) -> tuple[OutboxRow, ...]:
        columns = schema.outbox.c
        wanted = columns.state.in_([state.value for state in states])
        query = select(schema.outbox).where(wanted, columns.kind == kind).order_by(columns.outbox_id)
        with self._reading() as connection:
            return tuple(rows.outbox_row_of(row) for row in connection.execute(query).mappings())

    # --- transactions ----------------------------------------------------------------------------

    def _do(
        self, *, letter: LetterChange | None = None, message: Message | None = None, facts: tuple[Fact, ...] = ()
    ) -> None:
        with self._writing() as connection:
            change = Change(at=self._store.now(connection, self._clock), letter=letter, message=message, facts=facts)
            apply(connection, change)
            self._record(connection, change)

    def _write(self, connection: Connection, effects: Effects, now: datetime) -> None:
        change = Change(at=now, effects=effects)
        apply(connection, change)
        self._record(connection, change)

    def _record(self, connection: Connection, change: Change) -> None:
        """The last thing in a transaction."""
        self._store.record(connection, change)

    def _writing(self) -> AbstractContextManager[Connection]:
        return self._store.writing()

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._store.reading()


def _asked_by(role: str, allowance: Allowance) -> Allowance:
    """The request as the database knows who makes it. Raises ``AllowanceRefused`` if it says who agrees."""
    if allowance.is_approved:
        raise AllowanceRefused(
            f"this ledger knows who agrees, so {role} cannot say so for another: ask without an approver, and"
            f" have another role run 'mlflow-green budget approve {allowance.allowance_id}'"
        )
    return replace(allowance, requested_by=role)
