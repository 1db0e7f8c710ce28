"""The budgets that a step falls under, and the names and ends of their periods; pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo

from mlflow_green.policy.document import Budget, Period, Policy, Reserve, Scope, Verb
from mlflow_green.records import AlertRule, Term

_LEVELS = ("org", "project", "user")
_CAUTION = (Reserve.DECLARED, Reserve.P50, Reserve.P95, Reserve.MAX)


def terms(
    policy: Policy, *, project: str, user: str, org: str | None, now: datetime, workflow_run: str
) -> tuple[Term, ...]:
    """One term for each matching budget and unit, in the order of the file.

    Where ``org`` is not known, the organisation that a budget names is taken to be the user's own.
    ``now`` is aware; the period is the one that it falls in, in the policy's time zone.
    """
    found: list[Term] = []
    for budget in policy.budgets:
        scope = _scope(budget, policy)
        labels = {"org": org or scope.get("org", ""), "project": project, "user": user}
        if not _matches(scope, labels):
            continue
        period = period_key(budget.period, now, policy.zone, workflow_run)
        found += [
            Term(
                budget=budget.name,
                account=_account(scope, labels),
                unit=limit.unit,
                period=period,
                limit=limit.amount,
                mode=budget.mode,
                alerts=_alerts(budget),
            )
            for limit in budget.limit
        ]
    return tuple(found)


def reserve_for(policy: Policy, found: Sequence[Term]) -> Reserve:
    """What to reserve for a step under these terms: the most cautious that its budgets ask for, p95 without any."""
    asked = [policy.budget(term.budget).reserve for term in found]
    return max(asked, key=_CAUTION.index, default=Reserve.P95)


def period_key(period: Period, now: datetime, zone: tzinfo, workflow_run: str) -> str:
    """The name of the current period: ``2026-11-21``, ``2026-W47``, ``2026-11``, ``2026-Q4``, ``2026``, ``total``."""
    day = now.astimezone(zone).date()
    iso = day.isocalendar()
    return {
        Period.WORKFLOW: f"workflow:{workflow_run}",
        Period.DAY: day.isoformat(),
        Period.WEEK: f"{iso.year:04d}-W{iso.week:02d}",
        Period.MONTH: f"{day.year:04d}-{day.month:02d}",
        Period.QUARTER: f"{day.year:04d}-Q{(day.month + 2) // 3}",
        Period.YEAR: f"{day.year:04d}",
        Period.TOTAL: "total",
    }[period]


def period_end(period: Period, now: datetime, zone: tzinfo) -> datetime | None:
    """When the current period ends, in UTC: midnight in ``zone``, whatever the clocks do; ``None`` if it never does."""
    day = now.astimezone(zone).date()
    months = {Period.MONTH: 1, Period.QUARTER: 3, Period.YEAR: 12}
    if period is Period.DAY:
        end = day + timedelta(days=1)
    elif period is Period.WEEK:
        end = day + timedelta(days=8 - day.isoweekday())
    elif period in months:
        length = months[period]
        count = day.year * 12 + (day.month - 1) // length * length + length
        end = day.replace(year=count // 12, month=count % 12 + 1, day=1)
    else:
        return None
    midnight = datetime(end.year, end.month, end.day, tzinfo=zone)
    first, second = (midnight.replace(fold=fold).astimezone(UTC) for fold in (0, 1))  # where clocks show it twice
    return first if first > now else second


def _scope(budget: Budget, policy: Policy) -> dict[str, str]:
    """Whom the budget is for; without a scope it is for the policy's project."""
    scope = budget.scope if budget.scope != Scope() else Scope(project=policy.project)
    named = {"org": scope.org, "project": scope.project, "user": scope.user}
    return {level: name for level, name in named.items() if name is not None}


def _matches(scope: dict[str, str], labels: dict[str, str]) -> bool:
    return all(wanted in {"*", labels[level]} for level, wanted in scope.items())


def _account(scope: dict[str, str], labels: dict[str, str]) -> str:
    """``org:lab/project:x``: only the levels that the budget names; a project's budget is one for all its users."""
    return "/".join(f"{level}:{_escaped(labels[level])}" for level in _LEVELS if level in scope)


def _escaped(name: str) -> str:
    """A slash in a name must not look like a level of the path."""
    return name.replace("%", "%25").replace("/", "%2F")


def _alerts(budget: Budget) -> tuple[AlertRule, ...]:
    return tuple(
        AlertRule(at_ratio=float(rule.at), of_committed=rule.base == "committed", to=rule.to)
        for rule in budget.rules_that(Verb.NOTIFY)
        if rule.base != "forecast"
    )
