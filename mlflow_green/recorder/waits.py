"""Which steps wait now, who holds what they need, and what happens next; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlflow_green.ledger.pending import pending_under
from mlflow_green.policy.document import Budget, Policy
from mlflow_green.policy.terms import period_end
from mlflow_green.recorder.durations import Durations
from mlflow_green.records import Action, Balance, DecisionRow, Entry, Hold

HOLDERS_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A running step that holds a part of what another waits for, ``amount``, or is to get some of it before.

    ``wanted`` is what it asked for and did not get yet, ``ends_at`` when its earlier runs would end.
    """

    hold: Hold
    amount: int
    wanted: int
    ends_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A step that waits. ``row`` is its latest answer, ``since`` the first of them.

    ``balance`` is the budget that it names, as it is now. ``holders`` have the most of it, ``holders_more`` others have
    something too. ``period_ends_at`` is when the budget starts afresh, ``refused_by`` the latest moment at which the
    step is refused; ``None`` where the policy no longer has that budget, and so is ``budget``.
    """

    row: DecisionRow
    since: datetime
    balance: Balance | None
    holders: tuple[Holder, ...]
    holders_more: int
    period_ends_at: datetime | None
    refused_by: datetime | None
    budget: Budget | None = None


def waits(
    decisions: Iterable[DecisionRow],
    entries: Sequence[Entry],
    holds: Sequence[Hold],
    balances: Iterable[Balance],
    policy: Policy,
    *,
    now: datetime,
    is_live: Callable[[str], bool],
) -> tuple[Waiting, ...]:
    """The steps whose last answer was to wait, the longest first. ``is_live`` says whether a workflow run goes on."""
    answers: defaultdict[str, list[DecisionRow]] = defaultdict(list)
    for row in sorted(decisions, key=lambda row: row.at):
        rows = answers[row.step.key]
        if row.decision.action is not Action.WAIT:
            rows.clear()  # it counts from the first of the answers that let it wait
        rows.append(row)
    over = {(entry.workflow_run, entry.step, entry.wildcards, entry.attempt) for entry in entries}
    by_key, durations = {balance.term.key: balance for balance in balances}, Durations(entries)
    found = [
        _waiting(rows, durations, holds, by_key, policy, now)
        for rows in answers.values()
        if rows[-1].decision.action is Action.WAIT
        and is_live(rows[-1].step.workflow_run)
        and (rows[-1].step.workflow_run, rows[-1].step.name, rows[-1].step.wildcards, rows[-1].step.attempt) not in over
    ]
    return tuple(sorted(found, key=lambda waiting: waiting.since))


def _waiting(
    rows: Sequence[DecisionRow],
    durations: Durations,
    holds: Sequence[Hold],
    balances: dict[tuple[str, str, str, str], Balance],
    policy: Policy,
    now: datetime,
) -> Waiting:
    row, since, decision = rows[-1], rows[0].at, rows[-1].decision
    seen = next((b for b in row.balances if b.term.budget == decision.budget and b.term.unit is decision.unit), None)
    holders = [] if seen is None else _holders(seen, durations, holds)
    budget = next((each for each in policy.budgets if each.name == decision.budget), None)
    patience = max((budget.max_wait_seconds, *(rule.for_seconds or 0 for rule in budget.rules))) if budget else None
    return Waiting(
        row=row,
        since=since,
        balance=balances.get(seen.term.key, seen) if seen else None,
        holders=tuple(holders[:HOLDERS_MAX]),
        holders_more=max(0, len(holders) - HOLDERS_MAX),
        period_ends_at=period_end(budget.period, now, policy.zone) if budget else None,
        refused_by=None if patience is None else since + timedelta(seconds=patience),
        budget=budget,
    )


def _holders(balance: Balance, durations: Durations, holds: Sequence[Hold]) -> list[Holder]:
    found = [
        Holder(
            hold=hold,
            amount=hold.amounts.get(balance.term.unit, 0),
            wanted=pending_under(balance.term, [hold]),
            ends_at=_expected_end(hold, durations),
        )
        for hold in holds
        if any(term.key == balance.term.key for term in hold.terms)
    ]
    return sorted(
        (holder for holder in found if holder.amount or holder.wanted), key=lambda each: -(each.amount + each.wanted)
    )


def _expected_end(hold: Hold, durations: Durations) -> datetime | None:
    """When it will end if it takes as long as it did before; ``None`` for a step that never ended well."""
    seconds = durations.expected_seconds(hold.project, hold.step.name, hold.step.wildcards, hold.tier)
    return None if seconds is None else hold.opened_at + timedelta(seconds=seconds)
