"""How the budgets of alerts stand, read from the books when a letter is written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cached_property
from typing import Protocol

from mlflow_green.alerts.message import Consumer, Standing
from mlflow_green.ledger.ledger import Ledger, LedgerReader, PolicyBook, SharedOutbox
from mlflow_green.ledger.messages import HALTED, REFUSED
from mlflow_green.policy.document import Budget, Period, Policy
from mlflow_green.policy.exhaustion import Exhaustion, daily_spends, exhaustion
from mlflow_green.policy.terms import period_end, period_key
from mlflow_green.records import Action, Balance, BucketKey, Entry, JournalRow, Outcome, Term, total_energy

CONSUMERS_SHOWN = 3


class AlertBooks(Ledger, LedgerReader, PolicyBook, SharedOutbox, Protocol):
    """A ledger as the sender of alerts sees it."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Everything read inside belongs together."""
        ...

    def identity(self) -> str | None:
        """Who the store itself knows to be writing, if it does."""
        ...


class Standings:
    """The books at one moment, each page read once, and the entries only when a letter is written."""

    def __init__(self, books: AlertBooks, policy: Policy, now: datetime) -> None:
        self._books = books
        self._policy = policy
        self._now = now
        with books.snapshot():
            self._balances = {balance.term.key: balance for balance in books.balances()}
            self._journal = books.journal()

    @cached_property
    def _entries(self) -> Mapping[str | None, list[Entry]]:
        """By hold; one that the batch system began again has several."""
        found: defaultdict[str | None, list[Entry]] = defaultdict(list)
        for entry in self._books.entries():
            found[entry.hold_id].append(entry)
        return dict(found)

    def current(self, budget: Budget) -> tuple[Balance, ...]:
        """The buckets of a budget in its current period; none for a budget of each workflow, which has no forecast."""
        period = period_key(budget.period, self._now, self._policy.zone, "")
        if budget.period is Period.WORKFLOW:
            return ()
        found = self._balances.values()
        return tuple(each for each in found if (each.term.budget, each.term.period) == (budget.name, period))

    def of(self, key: tuple[str, ...], *, counts_stopped: bool = False) -> Standing | None:
        """How the bucket stands; ``None`` where the books or the policy do not have it."""
        balance = next((found for known, found in self._balances.items() if known == key), None)
        if balance is None:
            return None
        try:
            budget = self._policy.budget(balance.term.budget)
        except KeyError:
            return None
        rows = [row for row in self._journal if row.key == key and row.delta_spent]
        entries = {row.hold_id: self._entries[row.hold_id] for row in rows if row.hold_id in self._entries}
        totals = [entry.total for group in entries.values() for entry in group if entry.total is not None]
        return Standing(
            balance=balance,
            budget=budget,
            consumers=_consumers(rows, entries),
            forecast=self.forecast(balance, budget),
            metered=total_energy(totals),
            last_use_at=max((row.at for row in rows), default=None),
            period_end=self._end(balance, budget),
            stopped=self._stopped(balance.term) if counts_stopped else {},
            is_known=self._books.identity() is not None,
        )

    def _stopped(self, term: Term) -> Mapping[tuple[str, str], int]:
        """How many steps each workflow run was refused by this bucket, and how many it halted."""
        refused = {
            (row.step.label, row.step.workflow_run)
            for row in self._books.decisions()
            if row.decision.action is Action.REFUSE
            and (row.decision.budget, row.decision.unit) == (term.budget, term.unit)
            and any(balance.term.key == term.key for balance in row.balances)
        }
        halted = {
            (entry.step, entry.wildcards, entry.workflow_run)
            for group in self._entries.values()
            for entry in group
            if entry.outcome is Outcome.HALTED and self._halting(entry) == term.key
        }
        return Counter([*((REFUSED, run) for *_, run in refused), *((HALTED, run) for *_, run in halted)])

    def _halting(self, entry: Entry) -> BucketKey | None:
        """The bucket that halted a step; the reason names its budget and unit."""
        keys = [key for key in self._buckets.get(entry.hold_id, ()) if entry.reason.startswith(f"{key[0]}: ")]
        return next((key for key in keys if f" {key[2]} " in entry.reason), keys[0] if keys else None)

    @cached_property
    def _buckets(self) -> Mapping[str | None, Collection[BucketKey]]:
        """Those that each hold was held in."""
        found: defaultdict[str | None, dict[BucketKey, None]] = defaultdict(dict)
        for row in self._journal:
            found[row.hold_id][row.key] = None
        return found

    def forecast(self, balance: Balance, budget: Budget) -> Exhaustion | None:
        """Where the bucket is heading; ``None`` with too few days, or when its period is over."""
        if balance not in self.current(budget):
            return None
        key = (balance.term.budget, balance.term.account, balance.term.unit.value)
        spends = [(row.at, row.delta_spent) for row in self._journal if row.delta_spent and row.key[:3] == key]
        return exhaustion(
            daily_spends(spends, now=self._now, zone=self._policy.zone),
            spent=balance.spent,
            limit=balance.limit,
            now=self._now,
            end=self._end(balance, budget),
        )

    def _end(self, balance: Balance, budget: Budget) -> datetime | None:
        is_current = balance in self.current(budget)
        return period_end(budget.period, self._now, self._policy.zone) if is_current else None


def _consumers(rows: Sequence[JournalRow], entries: Mapping[str | None, list[Entry]]) -> tuple[Consumer, ...]:
    """The users and steps that used most, the first first."""
    amounts: Counter[str] = Counter()
    for row in rows:
        group = entries.get(row.hold_id)
        amounts[f"{group[0].step} ({group[0].user})" if group else "without an entry"] += row.delta_spent
    return tuple(Consumer(name=name, amount=amount) for name, amount in amounts.most_common(CONSUMERS_SHOWN))
