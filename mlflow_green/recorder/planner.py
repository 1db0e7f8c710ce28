"""Joins the policy's pure functions with one workflow execution: requests, decisions, verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta

from mlflow_green.emissions.intensity_series import site_during
from mlflow_green.emissions.operational import charged_amounts, hold_amounts
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.policy.decide import decide
from mlflow_green.policy.document import Policy, Verb
from mlflow_green.policy.enforce import grace_seconds, halt_due, leashes, overrun_text, top_up_need
from mlflow_green.policy.forecast import ToAmounts, estimate
from mlflow_green.policy.leash import Interval, Leash
from mlflow_green.policy.terms import period_end, reserve_for, terms, without_ledger
from mlflow_green.recorder.input_size import input_bytes
from mlflow_green.recorder.recorder import SAMPLING_PERIOD_SECONDS, Verdict
from mlflow_green.recorder.ticket import Book, Ticket, bare_request
from mlflow_green.records import (
    Action,
    Balance,
    Decision,
    Energy,
    Hold,
    HoldRequest,
    Mode,
    PastUse,
    Site,
    Term,
    Unit,
    Usage,
)

LOOK_AHEAD = 16
"""The most steps for which the host program asks before they can start."""


class Planner:
    """Used by the ledger thread (``request``, ``choose``) and the ticker (``judge``), which share no state.

    ``tight`` is written by the ledger thread and read by the host program.
    """

    def __init__(self, policy: Policy, book: Book, workflow_run: str, *, org: str | None = None) -> None:
        self._policy = policy
        self._book = book
        self._workflow_run = workflow_run
        self._org = org
        modes = {budget.mode for budget in policy.budgets}
        self.enforces = Mode.HARD in modes
        self.acts = bool(modes - {Mode.OBSERVE})
        self.limits = bool(policy.budgets)
        self.needs_balances = any(budget.rules_that(Verb.HALT) for budget in policy.budgets)
        self.tight = self.acts  # until the first decision has seen the balances
        self._first_threshold = min(
            (float(rule.at) for budget in policy.budgets if budget.mode is not Mode.OBSERVE for rule in budget.rules),
            default=1.0,
        )
        self._history: dict[str, tuple[PastUse, ...]] = {}
        self._terms: tuple[date, tuple[Term, ...]] | None = None

    @property
    def site(self) -> Site:
        return self._book.site

    @property
    def user(self) -> str:
        return self._book.user

    def terms(self, now: datetime) -> tuple[Term, ...]:
        """The buckets that every step of this execution falls under now: the same all day in the policy's zone."""
        day = now.astimezone(self._policy.zone).date()
        if self._terms is None or self._terms[0] != day:
            found = terms(
                self._policy,
                project=self._book.project,
                user=self._book.user,
                org=self._org,
                now=now,
                workflow_run=self._workflow_run,
            )
            self._terms = (day, found)
        return self._terms[1]

    def settled(self, steps: Iterable[str]) -> None:
        """New entries of these steps were posted: their history is read again before the next estimate."""
        for name in set(steps):
            self._history.pop(name, None)

    def request(self, ticket: Ticket, ledger: Ledger, now: datetime) -> HoldRequest:
        """The question about a step that wants to start."""
        step, bare = ticket.step, self.bare_request(ticket, now)
        if ticket.needs_nothing:
            (unknown,) = bare.estimates
            nothing = dataclasses.replace(unknown, amounts=self._amounts(0), source="it runs no program")
            return dataclasses.replace(
                bare, estimates=(nothing,), waiting_since=ticket.waiting_since, group=ticket.group
            )
        size = input_bytes(ticket.input_paths) if bare.terms else None
        estimates = estimate(
            self._past(step.name, ledger) if bare.terms else (),  # without a budget nobody asks what it needs
            step.name,
            step.wildcards,
            ticket.spec,
            quantile=reserve_for(self._policy, bare.terms).value,
            to_amounts=self._amounts,
            input_bytes=size,
        )
        return dataclasses.replace(
            bare, estimates=estimates, waiting_since=ticket.waiting_since, group=ticket.group, input_bytes=size
        )

    def bare_request(self, ticket: Ticket, now: datetime) -> HoldRequest:
        return bare_request(ticket, self._book, self.terms(now), now)

    def _past(self, step: str, ledger: Ledger) -> tuple[PastUse, ...]:
        if step not in self._history:
            self._history[step] = ledger.history(self._book.project, step)
        return self._history[step]

    def choose(self, request: HoldRequest, balances: Sequence[Balance]) -> Decision:
        decision = self._decide(request, balances)
        if request.group is None:  # a group may be tried and not admitted: what its members saw is not how it stands
            self.tight = self._is_tight(decision, balances)
        return decision

    def _is_tight(self, decision: Decision, balances: Sequence[Balance]) -> bool:
        """Whether a first threshold is reached, or would be once the host program has asked for more such steps."""
        return any(
            balance.committed + (1 + LOOK_AHEAD) * decision.amounts.get(balance.term.unit, 0)
            >= self._first_threshold * balance.limit
            for balance in balances
            if balance.term.mode is not Mode.OBSERVE
        )

    def _decide(self, request: HoldRequest, balances: Sequence[Balance]) -> Decision:
        tier = request.estimates[0].tier if request.estimates else None  # the only one that may be unknown and admitted
        return decide(
            self._policy,
            request,
            balances,
            now=request.requested_at,
            power_watts_max=self._policy.power_watts_max(tier, self._book.power_watts_max),
            to_amounts=self._amounts,
        )

    def next_look(self, waiting_since: datetime, now: datetime) -> datetime | None:
        """When the answer to a step that waits may change next although nothing is settled; ``None`` if it cannot."""
        patiences = {budget.max_wait_seconds for budget in self._policy.budgets}
        patiences |= {
            rule.for_seconds for b in self._policy.budgets for rule in b.rules if rule.for_seconds is not None
        }
        moments = [waiting_since + timedelta(seconds=patience) for patience in patiences]
        if now >= max(moments, default=now):
            return None  # nobody is that patient
        ends = (period_end(budget.period, now, self._policy.zone) for budget in self._policy.budgets)
        return min(moment for moment in (*moments, *ends) if moment is not None and moment > now)

    def without_ledger(self, waiting_since: datetime | None, now: datetime) -> Action:
        """The answer to a step, waiting since then, while the ledger cannot be reached: ADMIT, WAIT or REFUSE."""
        waited = now - waiting_since if waiting_since else timedelta()
        return without_ledger(self._policy, self.terms(now), waited)

    def leashes(self, hold: Hold) -> tuple[Leash, ...]:
        """What ends this step where nobody can be asked for more."""
        return leashes(self._policy, hold)

    def grace_seconds(self, hold: Hold) -> int:
        return grace_seconds(self._policy, hold)

    def judge(self, ticket: Ticket, balances: Sequence[Balance]) -> Verdict:
        """What is to happen to a running step after a sample."""
        usage, hold = ticket.usage, ticket.hold
        if usage is None or hold is None or usage.total is None:
            return Verdict()
        used = intervals(usage.total, self._amounts)
        site = self._site_so_far(ticket, usage)
        charged = intervals(usage.total, lambda amount: charged_amounts(amount, site))
        # A bucket that is newer than the last look at the balances still has its grant to watch.
        known = {balance.term.key: balance for balance in balances}
        own = [known.get(term.key) or Balance(term=term, spent=0, held=0) for term in hold.terms]
        # Being over the grant halts only once more was asked for and refused; silence of the ledger as the policy says.
        goes_on = ticket.top_up_pending and without_ledger(self._policy, hold.terms, timedelta()) is Action.ADMIT
        grant = ticket.granted if ticket.top_up_refused and not goes_on else {}
        reason = halt_due(self._policy, hold, usage, used, own, grant, amounts_charged=charged)
        if reason is not None:
            return Verdict(halt_reason=reason, grace_seconds=grace_seconds(self._policy, hold))
        need = top_up_need(
            used={unit: interval.point for unit, interval in used.items()},
            granted=ticket.granted,
            expected=hold.amounts,
            power_watts_max=self._book.power_watts_max,
            period_seconds=SAMPLING_PERIOD_SECONDS,
            to_amounts=self._amounts,
        )
        points = {unit: interval.point for unit, interval in used.items()}
        overrun = overrun_text(self._policy, hold, points, grant)
        return Verdict(top_up=dict(need) if need else None, may_finish=not self.leashes(hold), overrun=overrun)

    def _site_so_far(self, ticket: Ticket, usage: Usage) -> Site:
        """What the step would be charged by if it ended now."""
        if ticket.began_at is None:
            return self.site
        return site_during(self.site, ticket.began_at, ticket.began_at + timedelta(seconds=usage.duration_seconds))

    def _amounts(self, energy_microjoules: int) -> Mapping[Unit, int]:
        return hold_amounts(energy_microjoules, self.site)


def intervals(energy: Energy, to_amounts: ToAmounts) -> Mapping[Unit, Interval]:
    """An energy with its interval, in every unit that ``to_amounts`` knows."""
    low, point, high = map(to_amounts, (energy.low_microjoules, energy.microjoules, energy.high_microjoules))
    return {unit: Interval(low[unit], point[unit], high[unit]) for unit in point}
