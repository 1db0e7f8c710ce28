"""Who may raise a limit, how far and for how long, and how much of a policy counts before it is applied; pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from mlflow_green.errors import AllowanceRefused, PolicyError, QuantityError
from mlflow_green.ledger.allowances import LimitKey, limit_key, stricter
from mlflow_green.policy.document import Budget, Override, Period, Policy, Verb, parse_policy
from mlflow_green.policy.terms import account_labels, is_over, terms
from mlflow_green.policy.values import limit_of, percent
from mlflow_green.records import Allowance, ApprovedLimit, Balance, PolicyVersion, Term, Unit
from mlflow_green.units import AMOUNT_MAX, SECONDS, format_amount, format_percent, parse_seconds

GRANT_PERCENT = 20

GroupsOf = Callable[[str], Collection[str]]
"""The names of the groups that the system puts a user into."""


class Agreement(NamedTuple):
    """Who agreed: ``approver`` is only named, ``approved_by`` has an identity of his own; neither: it waits."""

    approver: str | None = None
    approved_by: str | None = None


def channels_of(budget: Budget) -> tuple[str, ...]:
    """Whom the budget's notify rules tell."""
    return tuple(dict.fromkeys(name for rule in budget.rules_that(Verb.NOTIFY) for name in rule.to))


def amounts_of(text: str, budget: Budget, found: Sequence[Term]) -> Mapping[Unit, int]:
    """What ``text`` adds, in each unit's integer scale: ``"1 kWh"`` to one limit, ``"20%"`` to each, rounded down.

    Raises:
        QuantityError: it is neither, or the budget has no limit in this unit.
    """
    if text.strip().endswith("%"):
        try:
            ratio = Fraction(percent(text.strip()))
        except ValueError as error:
            raise QuantityError(str(error)) from None
        amounts = {term.unit: int(ratio * term.limit) for term in found}
        if max(amounts.values(), default=0) > AMOUNT_MAX:
            raise QuantityError(f"{text!r} of {budget.name} is too much; ask for less")
        return amounts
    limit = limit_of(text)
    if limit.unit not in {term.unit for term in found} or (limit.currency or budget.currency) != budget.currency:
        known = ", ".join(format_amount(term.unit, term.limit, budget.currency) for term in found)
        raise QuantityError(f"{text!r} is no unit of {budget.name}, whose limit is {known}; write e.g. '20%'")
    return {limit.unit: limit.amount}


def expiry(text: str | None, override: Override, now: datetime, policy: Policy) -> datetime:
    """When an override ends: after ``"72h"``, or at ``"2026-11-24"`` or ``"2026-11-24T18:00"`` in the policy's zone.

    Raises:
        QuantityError: it is none of these.
        AllowanceRefused: that is longer than the policy allows, or past.
    """
    last = now + timedelta(seconds=override.expires_seconds)
    if text is None:
        return last
    try:
        end = now + timedelta(seconds=parse_seconds(text))
    except QuantityError:
        try:
            said = datetime.fromisoformat(text)
            end = (said if said.tzinfo else said.replace(tzinfo=policy.zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise QuantityError(f"{text!r} is no time; write e.g. '72h' or '2026-11-24T18:00'") from None
    if not now < end <= last:
        most = f"{last.astimezone(policy.zone):%Y-%m-%d %H:%M}"
        raise AllowanceRefused(f"an override here ends after now and by {most} (expires: in green.yaml), not at {text}")
    return end


def allowance_state(allowance: Allowance, now: datetime, zone: tzinfo) -> str:
    """``expired``, ``active`` or ``pending``: what was added to a bucket is over with its period."""
    return "expired" if is_over(allowance.period, now, zone) else allowance.state(now)


def way_to_raise(budget: Budget, *, is_known: bool = False, percent_short: int = 0) -> str:
    """What can be done where this budget's limit does not suffice: a command, and whose decision it is.

    ``is_known``: as in ``agreement``. ``percent_short``: what has to be added at least, as ``percent_short_of`` says.
    """
    edit = "raise its limit in green.yaml for the next run, then: mlflow-green policy apply"
    if budget.period is Period.WORKFLOW:
        return edit
    name, rules = shlex.quote(budget.name), budget.override
    if rules is None:
        whose = "approved by another role of the database" if is_known else "recorded as your own decision"
        percents = max(GRANT_PERCENT, percent_short)
        return f"mlflow-green budget grant {name} {percents}% --reason '...'   ({whose})"
    if percent_short > rules.max_extra * 100:
        return (
            f"{edit}; it lacks {percent_short}%, and an override adds {format_percent(float(rules.max_extra))} at most"
        )
    most, until = format_percent(float(rules.max_extra)), _until_text(rules.expires_seconds)
    command = f"mlflow-green budget override {name} {most} --until {until} --reason '...'"
    return f"{command}   (approved by {', '.join(rules.approvers)})"


def percent_short_of(budget: Budget, balance: Balance, needed: int) -> int:
    """What has to be added to a limit so that ``needed`` fits below it and below its rules, in whole percent of it.

    0 where it fits, or where the limit is nothing and no percentage helps.
    """
    if balance.term.limit <= 0:
        return 0
    ceilings = [Fraction(rule.at) for rule in budget.rules if rule.do in {Verb.WAIT, Verb.REFUSE}]
    committed = balance.committed + balance.pending + needed
    missing = committed / min([Fraction(1), *ceilings]) - balance.limit
    return max(0, ceil(missing * 100 / balance.term.limit))


def _until_text(expires_seconds: int) -> str:
    """The largest unit in which it is whole: ``"48h"``, ``"30min"``."""
    unit = next(unit for unit in ("h", "min", "s") if expires_seconds % SECONDS[unit] == 0)
    return f"{expires_seconds // SECONDS[unit]}{unit}"


# --- who agrees -----------------------------------------------------------------------------------


def may_approve(override: Override | None, name: str, groups_of: GroupsOf) -> bool:
    """Whether a budget's approvers include this user; without a list of them everybody may."""
    if override is None:
        return True
    groups = {f"group:{group}" for group in groups_of(name)}
    return f"user:{name}" in override.approvers or bool(groups & set(override.approvers))


def check_approver(budget: str, override: Override | None, requester: str, name: str, groups_of: GroupsOf) -> None:
    """Raise ``AllowanceRefused`` unless ``name`` may agree to what ``requester`` asks for."""
    others = f"; {_listed(override)} may" if override else ""
    if name == requester:
        raise AllowanceRefused(f"{requester} cannot approve what {requester} asks for{others}")
    if not may_approve(override, name, groups_of):
        raise AllowanceRefused(f"{name} is no approver of {budget}{others}")


def agreement(
    budget: str,
    override: Override | None,
    *,
    requester: str,
    approver: str | None,
    groups_of: GroupsOf,
    is_known: bool,
) -> Agreement:
    """Who agrees to a request. ``is_known``: the ledger itself knows who writes, so nobody speaks for another.

    Raises:
        AllowanceRefused: the named approver may not.
    """
    if is_known:
        if approver is not None:
            raise AllowanceRefused(
                f"this ledger knows who writes, so {requester} cannot speak for {approver}: leave --approver out, and"
                f" {approver} runs 'mlflow-green budget approve ID'"
            )
        return Agreement()
    if approver is not None:
        check_approver(budget, override, requester, approver, groups_of)
        return Agreement(approver=approver)
    return Agreement(approved_by=requester) if override is None else Agreement()


def check_reason(override: Override | None, reason: str) -> None:
    if override is not None and override.reason == "required" and not reason.strip():
        raise AllowanceRefused("a reason is required (override: reason: required in green.yaml); add --reason TEXT")


def _listed(override: Override) -> str:
    return " or ".join(override.approvers)


def governing(
    budget: str, current: Policy, approved: Iterable[ApprovedLimit], versions: Iterable[PolicyVersion]
) -> Override | None:
    """The approvers that count for a budget: those of the version that its limit was approved under, if it had any.

    So whoever edits ``green.yaml`` cannot make himself an approver; only a budget that had none gets its first ones at
    once. Of several accounts, what was applied goes before what was only seen, and of that the first.
    """
    known = {version.sha256: version for version in versions}
    own = [limit for limit in approved if limit.budget == budget and limit.policy_sha256 in known]
    for limit in sorted(own, key=lambda limit: (not limit.approved_by, known[limit.policy_sha256].at)):
        try:
            earlier = parse_policy(known[limit.policy_sha256].text.encode())
        except PolicyError:  # of a version of mlflow-green that knew other words
            continue
        found = next((each.override for each in earlier.budgets if each.name == budget), None)
        if found is not None:
            return found
    return next((each.override for each in current.budgets if each.name == budget), None)


def with_governing(policy: Policy, approved: Sequence[ApprovedLimit], versions: Sequence[PolicyVersion]) -> Policy:
    """The policy with the approvers that count for each of its budgets."""
    rules = {budget.name: governing(budget.name, policy, approved, versions) for budget in policy.budgets}
    budgets = tuple(budget.model_copy(update={"override": rules[budget.name]}) for budget in policy.budgets)
    return policy.model_copy(update={"budgets": budgets})


# --- how much of a policy counts ----------------------------------------------------------------------


def terms_of_accounts(
    policy: Policy, approved: Iterable[ApprovedLimit], *, project: str, user: str, now: datetime
) -> tuple[Term, ...]:
    """What the policy says now of one's own budgets, and of every account whose limit is known."""
    accounts = {(limit.budget, limit.account) for limit in approved}
    own = terms(policy, project=project, user=user, org=None, now=now, workflow_run="next")
    found = {term.key: term for term in own}
    for budget, account in sorted(accounts):
        named = account_labels(account)
        theirs = terms(
            policy,
            project=named.get("project", project),
            user=named.get("user", user),
            org=named.get("org"),
            now=now,
            workflow_run="next",
        )
        found |= {term.key: term for term in theirs if (term.budget, term.account) == (budget, account)}
    return tuple(found.values())


def with_stricter_modes(policy: Policy, approved: Mapping[LimitKey, ApprovedLimit], found: Iterable[Term]) -> Policy:
    """The policy with the modes that count: what it says, or what was approved where that is stricter."""
    modes = {budget.name: budget.mode for budget in policy.budgets}
    for term in found:
        limit = approved.get(limit_key(term))
        if limit is not None:
            modes[term.budget] = stricter(modes[term.budget], limit.mode)
    budgets = tuple(budget.model_copy(update={"mode": modes[budget.name]}) for budget in policy.budgets)
    return policy.model_copy(update={"budgets": budgets})


def not_applied(policy: Policy, approved: Mapping[LimitKey, ApprovedLimit], found: Iterable[Term]) -> tuple[str, ...]:
    """One line for each limit and mode that the policy says and that does not count yet; ``found`` are what counts."""
    lines = []
    for term in found:
        limit = approved.get(limit_key(term))
        if limit is None:
            continue
        budget = policy.budget(term.budget)
        said = next(each.amount for each in budget.limit if each.unit is term.unit)
        most = min(term.limit, limit.limit)
        if most < said:
            says, counts = (format_amount(term.unit, amount, budget.currency) for amount in (said, most))
            lines.append(line(term.budget, says, counts))
        mode = stricter(term.mode, limit.mode)
        if mode is not budget.mode:
            lines.append(line(term.budget, f"mode {budget.mode}", f"mode {mode}"))
    return tuple(dict.fromkeys(lines))


def dropped(
    policy: Policy,
    approved: Iterable[ApprovedLimit],
    found: Iterable[Term],
    versions: Callable[[], Iterable[PolicyVersion]],
    *,
    payer: Mapping[str, str] | None = None,
    is_own: bool = False,
) -> tuple[ApprovedLimit, ...]:
    """The approved limits that this policy had in an earlier version, and has no more: removed, renamed, of others.

    A ledger may serve several policies: an earlier version is one that names the same project. Where the version is
    not known, the account has to. In a ledger that ``is_own`` there is no other policy, and every limit is one of this,
    whatever its project is called now. ``found`` are the policy's own terms. With a ``payer``, ``{"project": ...,
    "user": ...}``, only what would count for him.
    """
    known = {limit_key(term) for term in found}
    gone = [limit for limit in approved if limit.key not in known and _is_for(limit.account, payer or {})]
    if is_own:
        return tuple(gone)
    projects = {version.sha256: _project_in(version.text) for version in versions()} if gone else {}
    return tuple(
        limit
        for limit in gone
        if (projects.get(limit.policy_sha256) or account_labels(limit.account).get("project")) == policy.project
    )


def dropped_line(limit: ApprovedLimit) -> str:
    """What is said of a limit that green.yaml does not have any more."""
    amount = format_amount(limit.unit, limit.limit)
    return (
        f"green.yaml has no {limit.budget} ({limit.account}: {amount} {limit.unit}, {limit.mode}) any more, and"
        " 'mlflow-green policy apply' has not removed it yet"
    )


def _is_for(account: str, payer: Mapping[str, str]) -> bool:
    labels = account_labels(account)
    return all(labels.get(level, name) == name for level, name in payer.items())


def _project_in(text: str) -> str | None:
    """The project of an earlier version; ``None`` if it knew other words."""
    try:
        return parse_policy(text.encode()).project
    except PolicyError:
        return None


def line(budget: str, says: str, counts: str) -> str:
    """What is said of something in green.yaml that does not count yet."""
    return f"green.yaml says {says} for {budget}, {counts} counts until 'mlflow-green policy apply'"
