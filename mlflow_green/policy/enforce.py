"""What happens to a step that runs: when it asks for more, when it is ended and how long it has then; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow_green.policy.document import GRACE_SECONDS, Budget, Policy, Verb
from mlflow_green.policy.forecast import ToAmounts, energy_only
from mlflow_green.policy.leash import Interval, Leash, halted_text
from mlflow_green.records import Balance, Hold, Mode, Unit, Usage
from mlflow_green.units import format_amount, format_percent, microjoules

TOP_UP_PERCENT = 80
TOP_UP_PERIODS = 3


def halt_due(
    policy: Policy,
    hold: Hold,
    usage: Usage,
    amounts_used: Mapping[Unit, Interval],
    balances: Sequence[Balance],
    granted: Mapping[Unit, int],
    *,
    amounts_charged: Mapping[Unit, Interval],
) -> str | None:
    """Why a running step must be ended, in a sentence; ``None`` if it may go on.

    Only hard budgets halt. ``amounts_used`` is (low, point, high) of each unit, converted as holds are, to compare with
    ``granted``; ``amounts_charged`` is the same use as it would be charged now, to add to what is spent. The budget's
    ``enforce`` picks the end that counts. ``granted`` is the hold with all its top-ups: call this after a top-up was
    asked for, so that being over it means that more was refused. ``balances`` are those of the hold's terms.
    """
    for balance in balances:
        if balance.term.mode is not Mode.HARD:
            continue
        budget, unit = policy.budget(balance.term.budget), balance.term.unit
        if unit not in amounts_used or unit not in amounts_charged:
            continue
        charged = getattr(amounts_charged[unit], budget.enforce)
        reason = _over_grant(budget, unit, amounts_used[unit], granted) or _over_threshold(budget, balance, charged)
        if reason:
            return halted_text(budget.name, hold.step.label, reason, usage.duration_seconds)
    return None


def leashes(policy: Policy, hold: Hold) -> tuple[Leash, ...]:
    """The grants that end the step: those of its hard budgets, but for ``overrun: finish``."""
    budgets = [(policy.budget(term.budget), term.unit) for term in hold.terms if term.mode is Mode.HARD]
    return tuple(_leash(budget, unit) for budget, unit in budgets if budget.overrun == "halt")


def _leash(budget: Budget, unit: Unit) -> Leash:
    return Leash(budget=budget.name, unit=unit, enforce=budget.enforce, currency=budget.currency)


def _over_grant(budget: Budget, unit: Unit, used: Interval, granted: Mapping[Unit, int]) -> str | None:
    if budget.overrun != "halt" or unit not in granted:
        return None
    return _leash(budget, unit).over(used, granted[unit])


def _over_threshold(budget: Budget, balance: Balance, charged: int) -> str | None:
    unit, limit = balance.term.unit, balance.limit
    total = balance.spent + charged
    for rule in budget.rules_that(Verb.HALT):
        if total >= rule.threshold(limit):
            text = format_amount(unit, total, budget.currency)
            at, of = format_percent(float(rule.at)), format_amount(unit, limit, budget.currency)
            return f"brings {unit} spent to {text}, past {at} of {of}"
    return None


def overrun_text(policy: Policy, hold: Hold, used: Mapping[Unit, int], granted: Mapping[Unit, int]) -> str | None:
    """In a sentence, that a step has passed its grant by the point value and is not halted for it; ``None`` if not.

    An estimate's low end lies far below its point, so with ``enforce: low`` such a step can run on for long.
    """
    for term in hold.terms:
        over = used.get(term.unit, 0) > granted.get(term.unit, used.get(term.unit, 0))
        if term.mode is Mode.HARD and over:
            budget = policy.budget(term.budget)
            text = format_amount(term.unit, used[term.unit], budget.currency)
            of = format_amount(term.unit, granted[term.unit], budget.currency)
            when = "it may finish (overrun: finish)"
            if budget.overrun == "halt":
                when = (
                    f"it is halted once its interval's {budget.enforce} end has passed that (enforce: {budget.enforce})"
                )
            return f"{budget.name}: {hold.step.label} has used {term.unit} {text} of {of} granted; {when}"
    return None


def top_up_need(
    *,
    used: Mapping[Unit, int],
    granted: Mapping[Unit, int],
    expected: Mapping[Unit, int] | None,
    power_watts_max: float,
    period_seconds: float,
    to_amounts: ToAmounts = energy_only,
) -> Mapping[Unit, int]:
    """What a running step asks for more, in every unit of which it has used 80 % of its grant; empty if none.

    max(expected - used, 3 x power_watts_max x period_seconds): what its estimate still lacks, at least three sampling
    periods at the most that it can draw. ``used`` is the point value; ``expected`` the p95 estimate, if any.
    """
    least = to_amounts(microjoules(TOP_UP_PERIODS * power_watts_max * period_seconds))
    return {
        unit: max((expected or {}).get(unit, 0) - used[unit], least.get(unit, 0))
        for unit, grant in granted.items()
        if unit in used and used[unit] * 100 >= grant * TOP_UP_PERCENT
    }


def grace_seconds(policy: Policy, hold: Hold) -> int:
    """How long a halted step has between SIGTERM and SIGKILL: the shortest that its hard budgets say, else 30 s."""
    names = dict.fromkeys(term.budget for term in hold.terms if term.mode is Mode.HARD)
    said = [rule.grace_seconds for name in names for rule in policy.budget(name).rules_that(Verb.HALT)]
    return min(said, default=GRACE_SECONDS)
