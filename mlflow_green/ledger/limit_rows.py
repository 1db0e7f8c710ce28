"""Allowances, approved limits and policy versions in SQL: read and written inside one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, delete, func, insert, or_, select, update

from mlflow_green.errors import LedgerError
from mlflow_green.ledger import rows, schema
from mlflow_green.ledger.allowances import Extras, LimitKey
from mlflow_green.ledger.effects import Effects
from mlflow_green.ledger.statement import Query
from mlflow_green.records import Allowance, AllowanceKind, AppliedLimit, ApprovedLimit, BucketKey, PolicyVersion, Term

_ALLOWANCES, _APPROVED = schema.allowances.c, schema.approved_limits.c


def _sum_of(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((and_(*conditions), _ALLOWANCES.amount), else_=0))


_SELECT_EXTRAS = Query(
    select(
        _ALLOWANCES.budget,
        _ALLOWANCES.account,
        _ALLOWANCES.unit,
        _ALLOWANCES.period,
        _sum_of(_ALLOWANCES.kind == AllowanceKind.GRANT.value),
        _sum_of(_ALLOWANCES.kind == AllowanceKind.ROLLOVER.value),
        _sum_of(_ALLOWANCES.kind == AllowanceKind.OVERRIDE.value),
        _sum_of(_ALLOWANCES.kind == AllowanceKind.OVERRIDE.value, _ALLOWANCES.expires_at > bindparam("now")),
        func.sum(case((_ALLOWANCES.kind == AllowanceKind.ROLLOVER.value, 1), else_=0)),
    )
    .where(
        or_(
            _ALLOWANCES.kind == AllowanceKind.ROLLOVER.value,
            _ALLOWANCES.approver.is_not(None),
            _ALLOWANCES.approved_by.is_not(None),
        ),
        _ALLOWANCES.budget.in_(bindparam("budgets", expanding=True)),
        _ALLOWANCES.account.in_(bindparam("accounts", expanding=True)),
        _ALLOWANCES.unit.in_(bindparam("units", expanding=True)),
        _ALLOWANCES.period.in_(bindparam("periods", expanding=True)),
    )
    .group_by(_ALLOWANCES.budget, _ALLOWANCES.account, _ALLOWANCES.unit, _ALLOWANCES.period)
)
_SELECT_ALL_APPROVED = Query(select(schema.approved_limits))
_SELECT_APPROVED = Query(
    select(schema.approved_limits).where(
        _APPROVED.budget.in_(bindparam("budgets", expanding=True)),
        _APPROVED.account.in_(bindparam("accounts", expanding=True)),
        _APPROVED.unit.in_(bindparam("units", expanding=True)),
    )
)
_APPROVE = (
    update(schema.allowances)
    .where(_ALLOWANCES.allowance_id == bindparam("key"), _ALLOWANCES.approved_by.is_(None))
    .values(approved_by=bindparam("by"))
)
_IS_APPROVED = and_(
    _APPROVED.budget == bindparam("of_budget"),
    _APPROVED.account == bindparam("of_account"),
    _APPROVED.unit == bindparam("of_unit"),
)
_UPDATE_APPROVED = update(schema.approved_limits).where(_IS_APPROVED)
_DELETE_APPROVED = delete(schema.approved_limits).where(_IS_APPROVED)
_SELECT_SHA256 = Query(select(schema.policies.c.sha256).where(schema.policies.c.sha256 == bindparam("key")))


def columns_of(keys: Collection[BucketKey]) -> dict[str, list[str]]:
    """The parameters that find these buckets by the index, and a few too many."""
    names = ("budgets", "accounts", "units", "periods")
    return {name: sorted(set(column)) for name, column in zip(names, zip(*keys, strict=True), strict=True)}


def load_extras(connection: Connection, keys: Collection[BucketKey], now: datetime) -> dict[BucketKey, Extras]:
    """What is added to the limits of these buckets at ``now``."""
    if not keys:
        return {}
    found = _SELECT_EXTRAS.rows(connection, {**columns_of(keys), "now": now})
    return {
        (budget, account, unit, period): Extras(
            granted=int(granted),
            inherited=int(inherited),
            overridden=int(overridden),
            active=int(active),
            rollovers=int(rollovers),
        )
        for budget, account, unit, period, granted, inherited, overridden, active, rollovers in found
    }


def load_approved(connection: Connection, keys: Collection[LimitKey] | None = None) -> dict[LimitKey, ApprovedLimit]:
    """The approved limits of these budgets and accounts, or all that there are."""
    if keys is None:
        found = _SELECT_ALL_APPROVED.mappings(connection, {})
    elif keys:
        names = ("budgets", "accounts", "units")
        values = {name: sorted(set(column)) for name, column in zip(names, zip(*keys, strict=True), strict=True)}
        found = _SELECT_APPROVED.mappings(connection, values)
    else:
        return {}
    limits = (rows.approved_limit_of(row) for row in found)
    return {limit.key: limit for limit in limits}


def load_allowances(connection: Connection, allowance_id: str | None = None) -> tuple[Allowance, ...]:
    """The allowance of that id, none if there is none; without one all, oldest first."""
    query = select(schema.allowances).order_by(_ALLOWANCES.made_at, _ALLOWANCES.allowance_id)
    if allowance_id is not None:
        query = query.where(_ALLOWANCES.allowance_id == allowance_id)
    return tuple(rows.allowance_of(row) for row in connection.execute(query).mappings())


def knows_policy(connection: Connection, sha256: str) -> bool:
    return bool(_SELECT_SHA256.rows(connection, {"key": sha256}))


def keys_of_budgets(connection: Connection, terms: Iterable[Term]) -> set[BucketKey]:
    """The buckets of these budgets, units and periods, of every account."""
    columns = schema.buckets.c
    wanted = {(term.budget, term.unit.value, term.period) for term in terms}
    query = select(columns.budget, columns.account, columns.unit, columns.period).where(
        columns.budget.in_(sorted({budget for budget, _, _ in wanted})),
        columns.period.in_(sorted({period for _, _, period in wanted})),
    )
    return {(b, a, u, p) for b, a, u, p in connection.execute(query) if (b, u, p) in wanted}


def write_limits(connection: Connection, effects: Effects) -> None:
    """The allowances, approvals, limits and policies of one transaction."""
    made = [rows.allowance_row(allowance) for allowance in effects.allowances]
    if made:
        connection.execute(insert(schema.allowances), made)
    for allowance in effects.approvals:
        agreed = connection.execute(_APPROVE, {"key": allowance.allowance_id, "by": allowance.approved_by})
        if agreed.rowcount != 1:
            raise LedgerError(f"allowance {allowance.allowance_id} was approved by somebody else; nothing was written")
    _write_approved(connection, effects.limits, effects.dropped)
    if effects.applied:
        connection.execute(insert(schema.limit_changes), [rows.applied_limit_row(each) for each in effects.applied])
    _write_policies(connection, effects.policies)


def load_applied(connection: Connection) -> tuple[AppliedLimit, ...]:
    """What was ever applied, oldest first."""
    found = connection.execute(select(schema.limit_changes).order_by(schema.limit_changes.c.change_number))
    return tuple(rows.applied_limit_of(row) for row in found.mappings())


def _write_approved(
    connection: Connection, limits: Collection[ApprovedLimit], dropped: Collection[ApprovedLimit]
) -> None:
    for limit in {limit.key: limit for limit in limits}.values():
        row = rows.approved_limit_row(limit)
        says = {name: value for name, value in row.items() if name not in _KEY}
        if connection.execute(_UPDATE_APPROVED.values(says), _key(limit)).rowcount == 0:
            connection.execute(insert(schema.approved_limits), row)
    for limit in dropped:
        connection.execute(_DELETE_APPROVED, _key(limit))


_KEY = ("budget", "account", "unit")


def _key(limit: ApprovedLimit) -> dict[str, str]:
    return {f"of_{name}": value for name, value in zip(_KEY, limit.key, strict=True)}


def _write_policies(connection: Connection, policies: Collection[PolicyVersion]) -> None:
    for version in policies:
        if not knows_policy(connection, version.sha256):
            connection.execute(insert(schema.policies), asdict(version))
