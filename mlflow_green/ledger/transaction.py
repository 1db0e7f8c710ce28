"""Inside one SQL transaction: read what a batch touches, write what it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import (
    Connection,
    String,
    Table,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)

from mlflow_green.errors import LedgerError
from mlflow_green.ledger import rows, schema
from mlflow_green.ledger.accounts import ancestry
from mlflow_green.ledger.allowances import Extras, limit_key, previous_key
from mlflow_green.ledger.charges import entries_of
from mlflow_green.ledger.effects import BucketChange, Effects
from mlflow_green.ledger.holds import GIVEN_UP, BookedHold, HoldState
from mlflow_green.ledger.limit_rows import columns_of, load_approved, load_extras, write_limits
from mlflow_green.ledger.messages import Message
from mlflow_green.ledger.pending import with_pending
from mlflow_green.ledger.standing import Standing
from mlflow_green.ledger.statement import Command, Query
from mlflow_green.ledger.windows import WindowKey, window_key
from mlflow_green.ledger.working_books import over_limit_text
from mlflow_green.records import Action, Balance, Batch, BucketKey, Entry, Fact, Hold, NodeWindow, Term

_BUCKETS, _HOLDS = schema.buckets.c, schema.holds.c

# Statements are built once: building one costs as much as running it.
_IS_WANTING = and_(_HOLDS.state == HoldState.HELD.value, cast(_HOLDS.wanted, String) != "{}")
_SELECT_HOLDS = Query(
    select(schema.holds).where(
        or_(
            _HOLDS.hold_id.in_(bindparam("hold_ids", expanding=True)),
            _HOLDS.step_key.in_(bindparam("step_keys", expanding=True)),
            _IS_WANTING,
        )
    )
)
_SELECT_WANTING = Query(select(schema.holds).where(_IS_WANTING))
# SQLite scans the whole table for (a, b, c, d) IN (...); this finds a few too many, by the index.
_SELECT_BUCKETS = Query(
    select(schema.buckets).where(
        _BUCKETS.budget.in_(bindparam("budgets", expanding=True)),
        _BUCKETS.account.in_(bindparam("accounts", expanding=True)),
        _BUCKETS.unit.in_(bindparam("units", expanding=True)),
        _BUCKETS.period.in_(bindparam("periods", expanding=True)),
    )
)
_SELECT_FOLLOWERS = Query(
    select(schema.buckets).where(
        _BUCKETS.previous_period.in_(bindparam("periods", expanding=True)),
        _BUCKETS.budget.in_(bindparam("budgets", expanding=True)),
    )
)
_SELECT_ENTRY_IDS = Query(
    select(schema.entries.c.entry_id).where(schema.entries.c.entry_id.in_(bindparam("entry_ids", expanding=True)))
)
_WINDOWS = schema.node_windows.c
_WINDOW_RANGE = (_WINDOWS.sampler_id, _WINDOWS.domain, _WINDOWS.sequence_first, _WINDOWS.sequence_last)
_IS_OF_SAMPLERS = _WINDOWS.sampler_id.in_(bindparam("sampler_ids", expanding=True))
_LAST_BEFORE = (
    select(_WINDOWS.sampler_id, _WINDOWS.domain, func.max(_WINDOWS.sequence_first).label("sequence_first"))
    .where(_IS_OF_SAMPLERS, _WINDOWS.sequence_first < bindparam("sequence_first"))
    .group_by(_WINDOWS.sampler_id, _WINDOWS.domain)
    .subquery()
)
# The index has no sequence_last, so what may reach into the ticks from sequence_first on is looked up by its own first.
_SELECT_WINDOW_RANGES = Query(
    union_all(
        select(*_WINDOW_RANGE).where(_IS_OF_SAMPLERS, _WINDOWS.sequence_first >= bindparam("sequence_first")),
        select(*_WINDOW_RANGE).join(
            _LAST_BEFORE,
            and_(*(_WINDOWS[name] == _LAST_BEFORE.c[name] for name in ("sampler_id", "domain", "sequence_first"))),
        ),
    )
)
_SELECT_LAST_DECISIONS = Query(
    select(schema.decisions.c.step_key, schema.decisions.c.action, schema.decisions.c.reason).where(
        schema.decisions.c.decision_id.in_(
            select(func.max(schema.decisions.c.decision_id))
            .where(schema.decisions.c.step_key.in_(bindparam("step_keys", expanding=True)))
            .group_by(schema.decisions.c.step_key)
        )
    )
)
_SELECT_CHARGES = Query(
    select(
        schema.journal.c.hold_id,
        _BUCKETS.budget,
        _BUCKETS.account,
        _BUCKETS.unit,
        _BUCKETS.period,
        func.sum(schema.journal.c.delta_spent),
    )
    .join_from(schema.journal, schema.buckets)
    .where(schema.journal.c.hold_id.in_(bindparam("hold_ids", expanding=True)))
    .group_by(schema.journal.c.hold_id, _BUCKETS.bucket_id)
)
_SELECT_ACCOUNTS = Query(
    select(schema.accounts.c.account).where(schema.accounts.c.account.in_(bindparam("accounts", expanding=True)))
)
_SELECT_GENERATION = Query(select(schema.meta.c.generation))
_SELECT_READS = Query(
    select(schema.entries.c.hold_id, func.max(schema.entries.c.energy_total_microjoules))
    .where(
        schema.entries.c.hold_id.in_(bindparam("hold_ids", expanding=True)),
        schema.entries.c.energy_total_microjoules.is_not(None),
    )
    .group_by(schema.entries.c.hold_id)
)
_SELECT_DEDUPS = Query(
    select(schema.outbox.c.dedup).where(schema.outbox.c.dedup.in_(bindparam("dedups", expanding=True)))
)
# The guard is a plain UPDATE whose row count is checked: after WITH ... UPDATE pysqlite reports -1.
_UPDATE_BUCKET = Command(
    update(schema.buckets)
    .where(
        _BUCKETS.bucket_id == bindparam("key"),
        or_(
            bindparam("guarded") == 0,
            _BUCKETS.spent + _BUCKETS.held + bindparam("delta") <= bindparam("limit_guarded"),
        ),
    )
    .values(
        spent=_BUCKETS.spent + bindparam("delta_spent"),
        held=_BUCKETS.held + bindparam("delta_held"),
        limit_amount=bindparam("new_limit"),
        mode=bindparam("new_mode"),
        alerts=bindparam("new_alerts", type_=schema.buckets.c.alerts.type),
    )
)
_UPDATE_HOLD = Command(
    update(schema.holds)
    .where(_HOLDS.hold_id == bindparam("key"), _HOLDS.state == HoldState.HELD.value)
    .values(
        state=bindparam("new_state"),
        amounts=bindparam("new_amounts", type_=_HOLDS.amounts.type),
        owner=bindparam("new_owner", type_=_HOLDS.owner.type),
        epoch=bindparam("new_epoch"),
        wanted=bindparam("new_wanted", type_=_HOLDS.wanted.type),
    )
)
_UPDATE_GENERATION = Command(update(schema.meta).values(generation=schema.meta.c.generation + 1))
_DELETE_FACT = Command(
    delete(schema.facts).where(
        schema.facts.c.hold_id == bindparam("key"), schema.facts.c.name == bindparam("fact_name")
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a batch touches, and the row numbers of its buckets."""

    standing: Standing
    bucket_ids: dict[BucketKey, int]


def load(connection: Connection, batch: Batch, now: datetime) -> Loaded:
    """Everything that ``post`` needs to know about this batch."""
    step_keys = [request.step.key for request in batch.requests]
    closed = [closing.hold_id for closing in batch.closings if closing.hold_id]
    named = {*closed, *(asked.hold_id for asked in batch.top_ups), *batch.adoptions}
    holds = load_holds(connection, named, step_keys)
    asked = [term for request in batch.requests for term in request.terms]
    terms = [*asked, *(term for booked in holds.values() for term in booked.hold.terms)]
    found = load_limits(connection, keys_of(terms), now)
    lost = [hold_id for hold_id in closed if hold_id in holds and holds[hold_id].state in GIVEN_UP]
    pending = with_pending(found.balances.values(), (booked.hold for booked in holds.values()))
    standing = Standing(
        generation=load_generation(connection),
        balances={balance.term.key: balance for balance in pending},
        extras=found.extras,
        approved=load_approved(connection, {limit_key(term) for term in asked}),
        holds=holds,
        entry_ids=_posted_entries(connection, [e for c in batch.closings for e in entries_of(c)]),
        window_keys=_posted_windows(connection, batch.windows),
        last_decisions=_last_decisions(connection, step_keys),
        lost_charges=_lost_charges(connection, lost),
        lost_reads=_lost_reads(connection, lost),
    )
    return Loaded(standing=standing, bucket_ids=found.bucket_ids)


def load_holds(
    connection: Connection, hold_ids: Collection[str], step_keys: Collection[str] = ()
) -> dict[str, BookedHold]:
    """These holds, and every open one that waits for more."""
    if not hold_ids and not step_keys:
        return {}
    found = _SELECT_HOLDS.mappings(connection, {"hold_ids": list(hold_ids), "step_keys": list(step_keys)})
    return {row["hold_id"]: rows.booked_hold_of(row) for row in found}


def load_wanting(connection: Connection) -> tuple[Hold, ...]:
    """Every open hold that waits for more."""
    return tuple(rows.booked_hold_of(row).hold for row in _SELECT_WANTING.mappings(connection, {}))


def load_generation(connection: Connection) -> int:
    ((generation,),) = _SELECT_GENERATION.rows(connection, {})
    return int(generation)


def load_buckets(
    connection: Connection, keys: Collection[BucketKey]
) -> tuple[dict[BucketKey, Balance], dict[BucketKey, int]]:
    """The balances of these buckets and the numbers of their rows."""
    if not keys:
        return {}, {}
    balances: dict[BucketKey, Balance] = {}
    bucket_ids: dict[BucketKey, int] = {}
    for row in _SELECT_BUCKETS.mappings(connection, columns_of(keys)):
        balance = rows.balance_of(row)
        if balance.term.key in keys:
            balances[balance.term.key] = balance
            bucket_ids[balance.term.key] = row["bucket_id"]
    return balances, bucket_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Buckets with what their limits depend on: their allowances, and the buckets that they inherit from."""

    balances: dict[BucketKey, Balance]
    bucket_ids: dict[BucketKey, int]
    extras: dict[BucketKey, Extras]


def keys_of(terms: Iterable[Term]) -> set[BucketKey]:
    """The buckets of these terms, and those that they inherit from."""
    keys = {term.key for term in terms}
    return keys | {key for key in map(previous_key, terms) if key is not None}


def load_limits(connection: Connection, keys: Collection[BucketKey], now: datetime) -> Buckets:
    """These buckets, those that inherit from them in a chain, and those that all of them inherit from."""
    balances, bucket_ids = load_buckets(connection, keys)
    _load_followers(connection, keys, balances, bucket_ids)
    named = {key for balance in balances.values() if (key := previous_key(balance.term)) is not None}
    more_balances, more_ids = load_buckets(connection, named - set(balances) - set(keys))
    balances |= more_balances
    bucket_ids |= more_ids
    extras = load_extras(connection, balances, now)
    balances |= {key: replace(balances[key], extra=extra.total) for key, extra in extras.items() if key in balances}
    return Buckets(balances=balances, bucket_ids=bucket_ids, extras=extras)


def _load_followers(
    connection: Connection,
    keys: Collection[BucketKey],
    balances: dict[BucketKey, Balance],
    bucket_ids: dict[BucketKey, int],
) -> None:
    changed = set(keys)
    while changed:
        values = {"periods": sorted({key[3] for key in changed}), "budgets": sorted({key[0] for key in changed})}
        found = _SELECT_FOLLOWERS.mappings(connection, values)
        followers = {row["bucket_id"]: rows.balance_of(row) for row in found}
        last, changed = changed, set()
        for bucket_id, balance in followers.items():
            key = balance.term.key
            if previous_key(balance.term) in last and key not in keys:
                balances[key], bucket_ids[key] = balance, bucket_id
                changed.add(key)


def _posted_entries(connection: Connection, entries: Sequence[Entry]) -> frozenset[str]:
    if not entries:
        return frozenset()
    found = _SELECT_ENTRY_IDS.rows(connection, {"entry_ids": [entry.entry_id for entry in entries]})
    return frozenset(entry_id for (entry_id,) in found)


def _posted_windows(connection: Connection, windows: Sequence[NodeWindow]) -> frozenset[WindowKey]:
    """Those that were posted before, as they are or, since the ledger was compacted, as a part of another."""
    if not windows:
        return frozenset()
    values = {
        "sampler_ids": sorted({window.sampler_id for window in windows}),
        "sequence_first": min(window.sequence_first for window in windows),
    }
    posted: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for sampler_id, domain, first, last in _SELECT_WINDOW_RANGES.rows(connection, values):
        posted[sampler_id, domain].append((first, last))
    return frozenset(
        window_key(window)
        for window in windows
        for first, last in posted[window.sampler_id, window.domain.value]
        if first == window.sequence_first or first < window.sequence_first <= window.sequence_last <= last
    )


def _last_decisions(connection: Connection, step_keys: Sequence[str]) -> dict[str, tuple[Action, str]]:
    if not step_keys:
        return {}
    found = _SELECT_LAST_DECISIONS.rows(connection, {"step_keys": list(step_keys)})
    return {key: (Action(action), reason) for key, action, reason in found}


def _lost_charges(connection: Connection, hold_ids: Sequence[str]) -> dict[tuple[str, BucketKey], int]:
    if not hold_ids:
        return {}
    found = _SELECT_CHARGES.rows(connection, {"hold_ids": list(hold_ids)})
    return {
        (hold_id, (budget, account, unit, period)): int(spent)  # PostgreSQL sums to a Decimal
        for hold_id, budget, account, unit, period, spent in found
    }


def _lost_reads(connection: Connection, hold_ids: Sequence[str]) -> dict[str, int]:
    if not hold_ids:
        return {}
    return {hold_id: int(read) for hold_id, read in _SELECT_READS.rows(connection, {"hold_ids": list(hold_ids)})}


def write(
    connection: Connection, effects: Effects, bucket_ids: Mapping[BucketKey, int], now: datetime
) -> tuple[str, ...]:
    """Write the effects; returns the texts of the alerts that were not told before."""
    ids = dict(bucket_ids)
    _write_buckets(connection, effects.buckets, ids, now)
    _insert(connection, schema.holds, [rows.hold_row(booked) for booked in effects.opened])
    _update_holds(connection, effects.changed)
    _insert(connection, schema.journal, [rows.journal_row(row, ids[row.key]) for row in effects.journal])
    _insert(connection, schema.entries, [rows.entry_row(entry) for entry in effects.entries])
    _insert(connection, schema.node_windows, [rows.window_row(window) for window in effects.windows])
    write_facts(connection, effects.facts)
    _insert(connection, schema.decisions, [rows.decision_row(row) for row in effects.decisions])
    write_limits(connection, effects)
    told = promise(connection, (*effects.messages, *effects.alerts), now)
    if effects.balances_changed:
        _UPDATE_GENERATION.run(connection, {})
    return tuple(message.text for message in told if message.text)


def write_facts(connection: Connection, facts: Sequence[Fact]) -> None:
    """The last fact told of a name counts."""
    latest = {(fact.hold_id, fact.name): fact.value for fact in facts}
    if not latest:
        return
    _DELETE_FACT.run(connection, *({"key": hold_id, "fact_name": name} for hold_id, name in latest))
    values = [{"hold_id": hold_id, "name": name, "value": value} for (hold_id, name), value in latest.items()]
    _insert(connection, schema.facts, values)


def promise(connection: Connection, messages: Sequence[Message], now: datetime) -> tuple[Message, ...]:
    """Put messages into the outbox; returns those that were not there yet."""
    if not messages:
        return ()
    known = {dedup for (dedup,) in _SELECT_DEDUPS.rows(connection, {"dedups": [m.dedup for m in messages]})}
    fresh = tuple(message for message in messages if message.dedup not in known)
    state = {"state": "pending", "next_try": now, "tries": 0}
    values = [{"dedup": m.dedup, "kind": m.kind, "payload": dict(m.payload), **state} for m in fresh]
    _insert(connection, schema.outbox, values)
    return fresh


def _insert(connection: Connection, table: Table, values: list[rows.Row]) -> None:
    if values:
        _INSERTS[table.name].run(connection, *values)


_INSERTS = {table.name: Command(insert(table)) for table in schema.metadata.sorted_tables}


def _write_buckets(
    connection: Connection, changes: Iterable[BucketChange], ids: dict[BucketKey, int], now: datetime
) -> None:
    # Sorted, so that two writers of a database with row locks meet in the same order.
    for change in sorted(changes, key=lambda change: change.term.key):
        if change.is_new:
            ids[change.term.key] = _insert_bucket(connection, change.term, now)
        _update_bucket(connection, change, ids[change.term.key])


def _insert_bucket(connection: Connection, term: Term, now: datetime) -> int:
    _insert_account(connection, term.account, now)
    result = connection.execute(insert(schema.buckets), {**rows.bucket_row(term), "spent": 0, "held": 0})
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


def _insert_account(connection: Connection, account: str, now: datetime) -> None:
    """The account and those above it, as far as they are not there yet."""
    lineage = ancestry(account)
    known = {name for (name,) in _SELECT_ACCOUNTS.rows(connection, {"accounts": list(lineage)})}
    values = [{"account": name, "parent": above, "opened_at": now} for name, above in lineage.items()]
    _insert(connection, schema.accounts, [row for row in values if row["account"] not in known])


def _update_bucket(connection: Connection, change: BucketChange, bucket_id: int) -> None:
    row = rows.bucket_row(change.term)
    delta = change.delta_held + change.delta_spent
    limit = change.term.limit if change.limit_guarded is None else change.limit_guarded
    updated = _UPDATE_BUCKET.run(
        connection,
        {
            "key": bucket_id,
            "guarded": int(change.guarded),
            "delta": delta,
            "delta_spent": change.delta_spent,
            "delta_held": change.delta_held,
            "limit_guarded": limit,
            "new_limit": row["limit_amount"],
            "new_mode": row["mode"],
            "new_alerts": row["alerts"],
        },
    )
    if updated != 1:
        raise LedgerError(over_limit_text(change.term, limit))


def _update_holds(connection: Connection, changed: Sequence[BookedHold]) -> None:
    if not changed:
        return
    values = [
        {
            "key": booked.hold.hold_id,
            "new_state": booked.state.value,
            "new_amounts": rows.amounts_json(booked.hold.amounts),
            "new_owner": rows.owner_json(booked.hold.owner),
            "new_epoch": booked.hold.epoch,
            "new_wanted": rows.amounts_json(booked.hold.wanted),
        }
        for booked in changed
    ]
    updated = _UPDATE_HOLD.run(connection, *values)
    if updated != len(values):
        raise LedgerError(f"{len(values) - updated} holds were closed by somebody else; nothing was written")
