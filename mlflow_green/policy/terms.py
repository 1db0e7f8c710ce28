"""The budgets that a step falls under, and the names and ends of their periods; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo

from mlflow_green.policy.document import Budget, Period, Policy, Reserve, Verb
from mlflow_green.records import Action, AlertRule, Rollover, Term

_LEVELS = ("org", "project", "user")
_MONTHS = {Period.MONTH: 1, Period.QUARTER: 3, Period.YEAR: 12}
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
        account, alerts = _account(scope, labels), _alerts(budget)
        period = period_key(budget.period, now, policy.zone, workflow_run)
        rollover = _rollover(budget, now, policy.zone)
        found += [
            Term(
                budget=budget.name,
                account=account,
                unit=limit.unit,
                period=period,
                limit=limit.amount,
                mode=budget.mode,
                alerts=alerts,
                rollover=rollover,
            )
            for limit in budget.limit
        ]
    return tuple(found)


def reserve_for(policy: Policy, found: Sequence[Term]) -> Reserve:
    """What to reserve for a step under these terms: the most cautious that its budgets ask for, p95 without any."""
    asked = [policy.budget(term.budget).reserve for term in found]
    return max(asked, key=_CAUTION.index, default=Reserve.P95)


def without_ledger(policy: Policy, found: Sequence[Term], waited: timedelta) -> Action:
    """The answer to a step while the ledger cannot be reached: ADMIT, WAIT or REFUSE, the strictest of its budgets.

    A step that has ``waited`` as long as the most impatient of the budgets that let it wait is refused.
    """
    budgets = [policy.budget(term.budget) for term in found]
    answers = {budget.without_ledger for budget in budgets}
    if "refuse" in answers:
        return Action.REFUSE
    if "wait" not in answers:
        return Action.ADMIT
    patience = min(budget.max_wait_seconds for budget in budgets if budget.without_ledger == "wait")
    return Action.WAIT if waited < timedelta(seconds=patience) else Action.REFUSE


def period_key(period: Period, now: datetime, zone: tzinfo, workflow_run: str) -> str:
    """The name of the current period: ``2026-11-21``, ``2026-W47``, ``2026-11``, ``2026-Q4``, ``2026``, ``total``."""
    if period is Period.WORKFLOW:
        return f"workflow:{workflow_run}"
    return _name_of(period, now.astimezone(zone).date())


def previous_period_key(period: Period, now: datetime, zone: tzinfo) -> str | None:
    """The name of the period before the current one; ``None`` where there is none: ``workflow`` and ``total``."""
    first = _first_day(period, now.astimezone(zone).date())
    return _name_of(period, first - timedelta(days=1)) if first else None


def _name_of(period: Period, day: date) -> str:
    iso = day.isocalendar()
    return {
        Period.DAY: day.isoformat(),
        Period.WEEK: f"{iso.year:04d}-W{iso.week:02d}",
        Period.MONTH: f"{day.year:04d}-{day.month:02d}",
        Period.QUARTER: f"{day.year:04d}-Q{(day.month + 2) // 3}",
        Period.YEAR: f"{day.year:04d}",
        Period.TOTAL: "total",
    }[period]


_FORMS = {
    Period.DAY: re.compile(r"\d{4}-\d\d-\d\d"),
    Period.WEEK: re.compile(r"\d{4}-W\d\d"),
    Period.MONTH: re.compile(r"\d{4}-\d\d"),
    Period.QUARTER: re.compile(r"\d{4}-Q\d"),
    Period.YEAR: re.compile(r"\d{4}"),
}


def is_over(name: str, now: datetime, zone: tzinfo) -> bool:
    """Whether the period of that name ended before ``now``; ``total`` and that of a workflow never do."""
    kind = next((kind for kind, form in _FORMS.items() if form.fullmatch(name)), None)
    return kind is not None and name < period_key(kind, now, zone, "")  # names of a kind are in the order of time


def period_end(period: Period, now: datetime, zone: tzinfo) -> datetime | None:
    """When the current period ends, in UTC: midnight in ``zone``, whatever the clocks do; ``None`` if it never does."""
    first = _first_day(period, now.astimezone(zone).date())
    if first is None:
        return None
    if period in _MONTHS:
        month = first.month + _MONTHS[period]
        end = first.replace(year=first.year + (month > 12), month=(month - 1) % 12 + 1)  # noqa: PLR2004 - December
    else:
        end = first + timedelta(days=1 if period is Period.DAY else 7)
    midnight = datetime(end.year, end.month, end.day, tzinfo=zone)
    earlier, later = (midnight.replace(fold=fold).astimezone(UTC) for fold in (0, 1))  # where clocks show it twice
    return earlier if earlier > now else later


def _first_day(period: Period, day: date) -> date | None:
    """The first day of the period that ``day`` falls in; ``None`` if periods of that kind do not follow each other."""
    if period is Period.DAY:
        return day
    if period is Period.WEEK:
        return day - timedelta(days=day.weekday())
    if period in _MONTHS:
        length = _MONTHS[period]
        return day.replace(month=(day.month - 1) // length * length + 1, day=1)
    return None


def _rollover(budget: Budget, now: datetime, zone: tzinfo) -> Rollover | None:
    if budget.rollover is None:
        return None
    before = previous_period_key(budget.period, now, zone)
    if before is None:
        return None
    return Rollover(
        previous_period=before,
        unused_ratio=float(budget.rollover.unused or 0),
        cap_ratio=float(budget.rollover.cap),
        carries_overspend=budget.rollover.overspend == "carry",
    )


def _scope(budget: Budget, policy: Policy) -> dict[str, str]:
    """Whom the budget is for; without a scope it is for the policy's project."""
    named = {"org": budget.scope.org, "project": budget.scope.project, "user": budget.scope.user}
    return {level: name for level, name in named.items() if name is not None} or {"project": policy.project}


def _matches(scope: dict[str, str], labels: dict[str, str]) -> bool:
    return all(wanted in {"*", labels[level]} for level, wanted in scope.items())


def _account(scope: dict[str, str], labels: dict[str, str]) -> str:
    """``org:lab/project:x``: only the levels that the budget names; a project's budget is one for all its users."""
    return "/".join(f"{level}:{_escaped(labels[level])}" for level in _LEVELS if level in scope)


def _escaped(name: str) -> str:
    """A slash in a name must not look like a level of the path."""
    return name.replace("%", "%25").replace("/", "%2F")


def account_labels(account: str) -> dict[str, str]:
    """The names in an account's path, by their level."""
    labels = dict(part.split(":", 1) for part in account.split("/") if ":" in part)
    return {level: name.replace("%2F", "/").replace("%25", "%") for level, name in labels.items()}


def _alerts(budget: Budget) -> tuple[AlertRule, ...]:
    return tuple(
        AlertRule(at_ratio=float(rule.at), of_committed=rule.base == "committed", to=rule.to)
        for rule in budget.rules_that(Verb.NOTIFY)
        if rule.base != "forecast"
    )
