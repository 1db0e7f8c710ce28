"""What a workflow would be answered now, step by step, and what it would leave of each budget. Writes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median_low
from typing import Protocol

from mlflow_green.emissions.operational import charged_amounts
from mlflow_green.ledger.ledger import AllowanceBook, Ledger, PolicyBook
from mlflow_green.ledger.past_uses import HISTORY_LENGTH_MAX
from mlflow_green.policy.document import Policy
from mlflow_green.policy.forecast import estimate
from mlflow_green.policy.sizes import scaled_to, size_law
from mlflow_green.recorder.durations import Durations
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.recorder import SAMPLING_PERIOD_SECONDS
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
from mlflow_green.recorder.ticket import Book, Ticket, build_entry, entry_of
from mlflow_green.records import (
    Action,
    Balance,
    Decision,
    Entry,
    Estimate,
    HoldRequest,
    Outcome,
    PastUse,
    PlannedStep,
    Step,
    Term,
    Unit,
    Usage,
    Workload,
)
from mlflow_green.units import format_number_of, microjoules

UNKNOWN_DURATION_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a step will use, in microjoules >= 0.

    ``low`` and ``high`` are the least and the most of the runs that ``point`` is the median of, scaled to the size of
    its input as estimates are; ``None`` for a single run, and what was declared or scaled from another tier.
    """

    point: int
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAnswer:
    """What becomes of one step.

    ``first`` and ``decision`` are its first and its last answer, ``None`` for a step that is not reached because
    ``behind``, which it needs, is refused or halted. ``estimate`` is what it holds, ``expected`` what it uses, as the
    tier that was decided; ``None`` where nothing is known. ``is_delayed``: it waits for a budget while the machine has
    room for it. ``refused_at``: only other runs could make room; if they do not, it is refused then.
    ``decided_at``: when, in the plan's own time, it starts or is refused.
    """

    step: Step
    decision: Decision | None = None
    first: Decision | None = None
    estimate: Estimate | None = None
    expected: Expected | None = None
    is_delayed: bool = False
    refused_at: datetime | None = None
    decided_at: datetime | None = None
    halt_reason: str | None = None
    behind: str | None = None

    @property
    def action(self) -> Action | None:
        """How it ends; ``None`` if it is not reached."""
        if self.decision is None:
            return None
        if self.halt_reason is not None:
            return Action.HALT
        return Action.WAIT if self.refused_at is not None else self.decision.action


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBalance:
    """A budget before and after.

    ``low`` and ``high`` bound what is spent then, ``None`` where a step has no interval.
    """

    before: Balance
    after: Balance
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answers in the order of the workload.

    ``overshoot_microjoules`` is the most that steps use together from the moment when one of them passes its grant
    until it has ended: the most that the machine draws, for ``overshoot_seconds``. ``None`` where nothing halts.
    """

    answers: tuple[PlannedAnswer, ...]
    balances: tuple[PlannedBalance, ...]
    policy_sha256: str
    at: datetime
    overshoot_microjoules: int | None = None
    overshoot_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def count(self, action: Action | None) -> int:
        """How many steps end so."""
        return sum(answer.action is action for answer in self.answers)


class RealLedger(Ledger, AllowanceBook, PolicyBook, Protocol):
    """The ledger that a run would ask."""


class PlanLedger(PassingLedger):
    """Starts from the balances and limits of the ``real`` ledger and has its history; what is added is in memory."""

    def __init__(self, clock: VirtualClock, real: RealLedger | None) -> None:
        balances = real.balances() if real else ()
        super().__init__(
            clock,
            # What the steps of other runs still wait for is theirs: nobody else gets it.
            (replace(each, held=each.held + each.pending, pending=0) for each in balances),
            real.allowances() if real else (),
            real.approved_limits() if real else (),
        )
        self._real = real
        self._past: dict[tuple[str, str], tuple[PastUse, ...]] = {}

    def past(self, project: str, step: str) -> tuple[PastUse, ...]:
        """What really ran."""
        if (project, step) not in self._past:
            self._past[project, step] = self._real.history(project, step) if self._real else ()
        return self._past[project, step]

    def history(self, project: str, step: str) -> tuple[PastUse, ...]:
        return (*self.past(project, step), *super().history(project, step))[-HISTORY_LENGTH_MAX:]


def plan(
    workload: Workload,
    policy: Policy,
    book: Book,
    real: RealLedger | None,
    *,
    now: datetime,
    entries: Iterable[Entry] = (),
) -> Plan:
    """Let the steps ask the rules that a run would ask, from the balances and the history of the ``real`` ledger.

    A step is taken to use what it used before, in the median, or what it declares, and to run as long as it did in
    ``entries``. A step of which nothing is known is charged what it holds. Holds of other runs stay as they are.
    """
    clock = VirtualClock(now)
    ledger = PlanLedger(clock, real)
    planner = Planner(policy, book, workload.steps[0].step.workflow_run if workload.steps else "")
    script = _Workflow(planner, ledger, book, entries)
    before = {balance.term.key: balance for balance in (real.balances() if real else ())}
    others = frozenset(key for key, balance in before.items() if balance.held > 0 or balance.pending > 0)
    jobs = jobs_of(workload)
    limits = {"look_ahead": workload.look_ahead, "waiting_max": workload.waiting_max}
    rehearsal = Rehearsal(
        list(dict.fromkeys(jobs.values())), script, planner, ledger, clock, resources=workload.resources, **limits
    )
    rehearsal.run()
    answers = tuple(_answer(part, job, script, others) for part, job in jobs.items())
    terms = {term.key: term for term in planner.terms(now)}
    terms |= {term.key: term for part in jobs if part.ticket.hold for term in part.ticket.hold.terms}
    seconds = _overshoot_seconds(planner, jobs)
    return Plan(
        answers=answers,
        balances=tuple(
            _balance(before.get(key, Balance(term=term, spent=0, held=0)), term, ledger, jobs, script)
            for key, term in terms.items()
        ),
        policy_sha256=policy.sha256,
        at=now,
        overshoot_microjoules=microjoules(book.power_watts_max * seconds) if seconds else None,
        overshoot_seconds=seconds,
        notes=(*workload.notes, *_notes(answers, script, workload)),
    )


# --- the jobs ---------------------------------------------------------------------------------------


def jobs_of(workload: Workload) -> dict[Part, Job]:
    """The steps in the order of the workload, each with the job that it is started with."""
    parts = [Part(ticket=_ticket(planned)) for planned in workload.steps]
    members: defaultdict[object, list[int]] = defaultdict(list)
    for index, planned in enumerate(workload.steps):
        members[index if planned.group is None else planned.group].append(index)
    jobs: dict[int, Job] = {}
    for indexes in members.values():
        first = workload.steps[indexes[0]]
        is_group = len(indexes) > 1
        job = Job(
            parts=tuple(parts[index] for index in indexes),
            rank=(-first.priority, is_group, indexes[0]),
            urgency=(-first.priority, -first.input_bytes, is_group, indexes[0]),
            resources={
                name: min(amount, workload.resources.get(name, amount)) for name, amount in first.resources.items()
            },
        )
        jobs.update(dict.fromkeys(indexes, job))
    for index, planned in enumerate(workload.steps):
        needed = {id(jobs[before]): jobs[before] for before in planned.after if jobs[before] is not jobs[index]}
        jobs[index].after = (*jobs[index].after, *needed.values())
    return {part: jobs[index] for index, part in enumerate(parts)}


def _ticket(planned: PlannedStep) -> Ticket:
    ticket = Ticket(step=planned.step, spec=planned.spec, group=planned.group)
    ticket.can_ask_for_more, ticket.walltime_seconds = planned.can_ask_for_more, planned.walltime_seconds
    ticket.input_paths, ticket.needs_nothing = planned.input_paths, planned.needs_nothing
    return ticket


class _Workflow:
    """The script of a workflow: every step does what it did before, or what it declares."""

    def __init__(self, planner: Planner, ledger: PlanLedger, book: Book, entries: Iterable[Entry]) -> None:
        self._planner = planner
        self._ledger = ledger
        self._book = book
        self.guessed_durations = 0
        self._durations = Durations(entries)

    def request(self, ticket: Ticket, now: datetime) -> HoldRequest:
        return self._planner.request(ticket, self._ledger, now)

    def duration_seconds(self, part: Part) -> float:
        step = part.ticket.step
        known = self._durations.expected_seconds(self._book.project, step.name, step.wildcards, _tier(part))
        if known is not None:
            return max(known, DURATION_SECONDS_MIN)
        if part.ticket.needs_nothing:
            return DURATION_SECONDS_MIN
        self.guessed_durations += 1
        return UNKNOWN_DURATION_SECONDS

    def expected(self, part: Part) -> Expected | None:
        """What it uses as the tier that was decided; ``None`` where nothing is known."""
        if part.ticket.needs_nothing:
            return Expected(point=0, low=0, high=0)
        step, tier = part.ticket.step, _tier(part)
        past = self._ledger.past(self._book.project, step.name)
        size = part.request.input_bytes if part.request else None
        same = [use for use in past if use.tier == tier and not use.censored]
        nearest = [use for use in same if use.wildcards == step.wildcards] or same
        law = size_law(nearest, size)
        if law is not None and size is not None:
            nearest = scaled_to(nearest, law, size)
        uses = [use.energy_microjoules for use in nearest]
        if uses:
            several = len(uses) > 1  # one run says nothing of how far the next may be from it
            return Expected(
                point=median_low(uses), low=min(uses) if several else None, high=max(uses) if several else None
            )
        for each in estimate(past, step.name, step.wildcards, part.ticket.spec, quantile="p50", input_bytes=size):
            if each.tier == tier and each.amounts is not None:
                return Expected(point=each.amounts[Unit.ENERGY])
        return None

    def usage(self, part: Part) -> Usage | None:
        expected = self.expected(part)
        return None if expected is None else usage_of(part, estimated(expected.point))

    def entry(self, part: Part, outcome: Outcome, now: datetime) -> Entry:
        ticket, hold = part.ticket, part.ticket.hold
        if ticket.usage is not None or hold is None:
            return entry_of(ticket, outcome, self._book, now)
        return build_entry(  # of no use to later estimates: what was charged was not metered
            entry_id=hold.hold_id,
            hold_id=hold.hold_id,
            step=ticket.step,
            spec=ticket.spec,
            tier=hold.tier,
            decision=hold.decision,
            would_decision=hold.would_decision,
            reason="",
            outcome=outcome,
            started_at=ticket.began_at or now,
            duration_seconds=ticket.duration_seconds or 0.0,
            usage=None,
            charged_microjoules=hold.amounts.get(Unit.ENERGY, 0),
            book=self._book,
        )

    def charged(self, energy_microjoules: int) -> Mapping[Unit, int]:
        return charged_amounts(energy_microjoules, self._book.site)

    def top_ups(self, part: Part) -> tuple[()]:  # noqa: ARG002 - what is used exactly as expected asks for no more
        return ()


def _tier(part: Part) -> str | None:
    return part.ticket.decision.tier if part.ticket.decision else None


# --- what came of it ----------------------------------------------------------------------------------


def _answer(part: Part, job: Job, script: _Workflow, others: frozenset[object]) -> PlannedAnswer:
    ticket, decision = part.ticket, part.ticket.decision
    if decision is None:
        return PlannedAnswer(step=ticket.step, behind=_behind(job))
    asked = part.request
    assert asked is not None
    hopes = ticket.refused and ticket.waiting_since is not None and any(term.key in others for term in asked.terms)
    return PlannedAnswer(
        step=ticket.step,
        decision=decision,
        first=part.first,
        estimate=next((each for each in asked.estimates if each.tier == decision.tier), None),
        expected=script.expected(part),
        is_delayed=job.delayed_since is not None and job.started_at is not None and job.started_at > job.delayed_since,
        refused_at=job.ended_at if hopes else None,
        decided_at=job.started_at or job.ended_at,
        halt_reason=ticket.halt_reason,
    )


def _behind(job: Job) -> str | None:
    """The step whose refusal or halt keeps the job from being reached."""
    seen, waiting = {id(job)}, [job]
    while waiting:
        for before in waiting.pop().after:
            stopped = next((part for part in before.parts if part.stopped), None)
            if stopped is not None:
                return stopped.ticket.step.label
            if id(before) not in seen:
                seen.add(id(before))
                waiting.append(before)
    return None


def _balance(
    before: Balance, term: Term, ledger: PlanLedger, jobs: dict[Part, Job], script: _Workflow
) -> PlannedBalance:
    (after,) = ledger.balances((term,))
    low = high = before.spent
    for part in jobs:
        hold = part.ticket.hold
        if hold is None or all(each.key != term.key for each in hold.terms):
            continue
        expected = script.expected(part)
        if expected is None or expected.low is None or expected.high is None:
            return PlannedBalance(before=before, after=after)
        low += script.charged(expected.low).get(term.unit, 0)
        high += script.charged(expected.high).get(term.unit, 0)
    return PlannedBalance(before=before, after=after, low=low, high=high)


def _overshoot_seconds(planner: Planner, parts: Iterable[Part]) -> float:
    """From a grant that is passed to the end of the step: a sampling period, and the grace; 0 where nothing halts."""
    holds = [part.ticket.hold for part in parts if part.ticket.hold]
    graces = [planner.grace_seconds(hold) for hold in holds if planner.leashes(hold)]
    return SAMPLING_PERIOD_SECONDS + max(graces) if graces else 0.0


def _notes(answers: Sequence[PlannedAnswer], script: _Workflow, workload: Workload) -> list[str]:
    notes = []
    unknown = sum(
        answer.decision is not None and answer.decision.admitted and answer.expected is None for answer in answers
    )
    if unknown:
        notes.append(
            f"Of {format_number_of(unknown, 'step')} nothing is known, so the totals count what they hold at first; "
            "they may use more or less. Declare an energy, or run them once."
        )
    if script.guessed_durations and len(answers) > 1:
        notes.append(
            f"How long {format_number_of(script.guessed_durations, 'step')} will run is not known (1 s each is "
            "assumed), so the order in which steps ask may differ."
        )
    if any(answer.action in {Action.REFUSE, Action.HALT} for answer in answers) and not workload.keeps_going:
        notes.append("Without --keep-going Snakemake stops at the first step that is refused or halted.")
    return notes
