"""What another policy would have answered to the steps that ran, by the rules that a run asks. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import ceil
from typing import NamedTuple

from mlflow_green.emissions.operational import charged_amounts
from mlflow_green.ledger.ledger import Choose
from mlflow_green.policy.document import Policy
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.rehearsal import (
    DURATION_SECONDS_MIN,
    Job,
    Part,
    PassingLedger,
    Rehearsal,
    VirtualClock,
    estimated,
    usage_of,
)
from mlflow_green.recorder.ticket import Book, Ticket
from mlflow_green.records import (
    Action,
    Allowance,
    AllowanceKind,
    Balance,
    Batch,
    Committed,
    Decision,
    Entry,
    Estimate,
    HoldRequest,
    JournalRow,
    Outcome,
    Step,
    StepSpec,
    Term,
    Tier,
    Unit,
    Usage,
)
from mlflow_green.units import exact

_RAISING = frozenset({AllowanceKind.GRANT, AllowanceKind.OVERRIDE})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedAnswer:
    """A step that ran, and what the policy would have answered. Energies are in microjoules.

    ``saved`` is what it would not have used: all of it where it is refused; for a cheaper tier an estimate, by the
    declared ratio of the tiers.
    """

    entry: Entry
    decision: Decision
    waited_seconds: float
    halt_reason: str | None
    used_microjoules: int
    saved_microjoules: int

    @property
    def action(self) -> Action:
        """How it ends."""
        return Action.HALT if self.halt_reason is not None else self.decision.action


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The answers in the order in which the steps started, and the balances at the end.

    ``unmetered`` steps ran, or were refused, and nobody knows what they use. ``raised`` grants and overrides of then
    count in these budgets too.
    """

    answers: tuple[ReplayedAnswer, ...]
    balances: tuple[Balance, ...]
    policy_sha256: str
    since: datetime
    until: datetime
    unmetered: int
    raised: int = 0

    def count(self, action: Action) -> int:
        """How many steps end so."""
        return sum(answer.action is action for answer in self.answers)

    def saved_microjoules(self, action: Action) -> int:
        """What those that end so would not have used."""
        return sum(answer.saved_microjoules for answer in self.answers if answer.action is action)


class Raise(NamedTuple):
    """A grant or an override, and when it began to count."""

    at: datetime
    allowance: Allowance


def raises_of(allowances: Iterable[Allowance], journal: Iterable[JournalRow]) -> tuple[Raise, ...]:
    """What raised a limit, oldest first: from its line in the journal on, or from when it was asked for without one."""
    rows = [row for row in journal if row.kind in _RAISING]
    found = []
    for each in allowances:
        if each.is_approved and each.kind in _RAISING:
            told = (each.key, each.kind.value, each.amount)
            row = next((r for r in rows if (r.key, r.kind, r.delta_limit) == told and r.at >= each.made_at), None)
            if row is not None:
                rows.remove(row)
            found.append(Raise(row.at if row else each.made_at, each))
    return tuple(sorted(found, key=lambda each: each.at))


def replay(
    entries: Iterable[Entry],
    policy: Policy,
    book: Book,
    *,
    since: datetime,
    until: datetime,
    raises: Iterable[Raise] = (),
) -> Replay:
    """Let the steps that started in ``since`` <= start < ``until`` ask this policy when they started.

    Its limits are its own, whatever was applied then; what raised a budget of its name counts from when it did.
    What a step used is both its estimate and its use; what ran before in the same periods is spent. A step that has to
    wait starts later; the steps that came after it are taken to start when they did.
    """
    ran = sorted((entry for entry in entries if entry.started_at < until), key=lambda entry: entry.started_at)
    asking = [entry for entry in ran if entry.started_at >= since]
    metered = [entry for entry in asking if entry.energy_charged_microjoules > 0]
    clock = VirtualClock(since)
    script = _Journal(policy, book)
    ledger = _RaisedLedger(clock, _spent(script, (entry for entry in ran if entry.started_at < since)), raises)
    jobs = [script.job(index, entry) for index, entry in enumerate(metered)]
    Rehearsal(jobs, script, script.planner(None), ledger, clock, resources={}).run()
    return Replay(
        answers=tuple(script.answer(job) for job in jobs),
        balances=ledger.balances(),
        policy_sha256=policy.sha256,
        since=since,
        until=until,
        unmetered=len(asking) - len(metered),
        raised=ledger.raised,
    )


class _RaisedLedger(PassingLedger):
    """Its limits are raised when they were."""

    def __init__(self, clock: VirtualClock, balances: Iterable[Balance], raises: Iterable[Raise]) -> None:
        super().__init__(clock, balances)
        self._later = list(raises)

    def commit(self, batch: Batch, choose: Choose) -> Committed:
        while self._later and self._later[0].at <= self._clock.now():
            self.include(self._later.pop(0).allowance)
        return super().commit(batch, choose)

    @property
    def raised(self) -> int:
        """How many grants and overrides came to count in a bucket that there is."""
        known = {balance.term.key for balance in self.balances()}
        return sum(each.kind in _RAISING and each.key in known for each in self.allowances())


def _spent(script: _Journal, entries: Iterable[Entry]) -> list[Balance]:
    """What these entries leave in the budgets of the policy, whatever it would have said."""
    terms: dict[tuple[str, ...], Term] = {}
    spent: Counter[tuple[str, ...]] = Counter()
    for entry in entries:
        for term in script.planner(entry).terms(entry.started_at):
            terms[term.key] = term
            spent[term.key] += script.charged(entry).get(term.unit, 0)
    return [Balance(term=term, spent=spent[key], held=0) for key, term in terms.items()]


class _Journal:
    """The script of what ran: every step does again what it did."""

    def __init__(self, policy: Policy, book: Book) -> None:
        self._policy = policy
        self._book = book
        self._planners: dict[tuple[str, str, str], Planner] = {}
        self._entries: dict[str, Entry] = {}

    def planner(self, entry: Entry | None) -> Planner:
        """What asks for a step of that entry's execution, project and user."""
        key = ("", "", "") if entry is None else (entry.workflow_run, entry.project, entry.user)
        if key not in self._planners:
            run, project, user = key
            self._planners[key] = Planner(self._policy, replace(self._book, project=project, user=user), run)
        return self._planners[key]

    def charged(self, entry: Entry) -> Mapping[Unit, int]:
        """What it was charged; in units that were not known then, what it would be charged here and now."""
        return {**charged_amounts(entry.energy_charged_microjoules, self._book.site), **entry.charged}

    def job(self, index: int, entry: Entry) -> Job:
        spec = self._policy.steps.get(entry.step, StepSpec())
        if entry.tier not in {tier.name for tier in spec.tiers}:
            spec = replace(spec, tiers=() if entry.tier is None else (Tier(name=entry.tier, energy_ratio=1.0),))
        # Starts of one job have one key, and are asked for one by one here.
        step = Step(workflow_run=entry.workflow_run, name=entry.step, wildcards=entry.wildcards, attempt=index + 1)
        ticket = Ticket(step=step, spec=spec)
        self._entries[ticket.ticket_id] = entry
        return Job(parts=(Part(ticket=ticket),), rank=(index,), urgency=(index,), arrives_at=entry.started_at)

    def request(self, ticket: Ticket, now: datetime) -> HoldRequest:
        entry = self._entries[ticket.ticket_id]
        names = [tier.name for tier in ticket.spec.tiers]
        start = names.index(entry.tier) if entry.tier is not None else 0
        tiers: Sequence[str | None] = names[start:] or (None,)
        estimates = tuple(
            Estimate(
                tier=tier,
                amounts={unit: self._as_tier(amount, ticket, tier) for unit, amount in self.charged(entry).items()},
                source="what it used" if tier == entry.tier else f"what it used as {entry.tier}, scaled to {tier}",
            )
            for tier in tiers
        )
        bare = self.planner(entry).bare_request(ticket, now)
        return replace(bare, estimates=estimates, waiting_since=ticket.waiting_since)

    def _as_tier(self, amount: int, ticket: Ticket, tier: str | None) -> int:
        ratios = {each.name: exact(each.energy_ratio) for each in ticket.spec.tiers}
        ran = self._entries[ticket.ticket_id].tier
        return amount if tier is None or ran is None else ceil(amount * ratios[tier] / ratios[ran])

    def duration_seconds(self, part: Part) -> float:
        return max(self._entries[part.ticket.ticket_id].duration_seconds, DURATION_SECONDS_MIN)

    def usage(self, part: Part) -> Usage:
        ticket, entry = part.ticket, self._entries[part.ticket.ticket_id]
        tier = ticket.decision.tier if ticket.decision else None
        energy = entry.total
        if energy is None or tier != entry.tier:
            used = self._as_tier(entry.energy_charged_microjoules, ticket, tier)
            energy = estimated(used)
        return usage_of(part, energy)

    def entry(self, part: Part, outcome: Outcome, now: datetime) -> Entry:
        ticket, entry = part.ticket, self._entries[part.ticket.ticket_id]
        tier = ticket.decision.tier if ticket.decision else None
        amounts = {unit: self._as_tier(amount, ticket, tier) for unit, amount in self.charged(entry).items()}
        return replace(
            entry,
            entry_id=ticket.hold_id,
            hold_id=ticket.hold_id,
            outcome=outcome,
            ended_at=now,
            energy_charged_microjoules=amounts[Unit.ENERGY],
            operational_micrograms_co2e=amounts.get(Unit.CARBON),
            cost_micro_units=amounts.get(Unit.MONEY),
        )

    def top_ups(self, part: Part) -> tuple[()]:  # noqa: ARG002 - it holds what it uses
        return ()

    def answer(self, job: Job) -> ReplayedAnswer:
        (part,) = job.parts
        ticket, entry, decision = part.ticket, self._entries[part.ticket.ticket_id], part.ticket.decision
        assert decision is not None
        used = entry.energy_charged_microjoules
        uses = self._as_tier(used, ticket, decision.tier) if decision.admitted else 0
        decided_at = job.started_at or job.ended_at or entry.started_at
        return ReplayedAnswer(
            entry=entry,
            decision=decision,
            waited_seconds=(decided_at - entry.started_at).total_seconds(),
            halt_reason=ticket.halt_reason,
            used_microjoules=used,
            saved_microjoules=used - uses,
        )
