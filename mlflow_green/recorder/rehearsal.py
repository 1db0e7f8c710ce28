"""Steps ask the real rules in virtual time, without anything being run: what plans and replays are made of.

The rules are those of a run: ``planner`` estimates and decides, ``posting.post`` keeps the books, here in memory. What
is imitated is the host program: which job it asks for next, and which it starts.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Protocol

from mlflow_green.ledger.holds import HoldState
from mlflow_green.ledger.ledger import Choose
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.past_uses import HISTORY_LENGTH_MAX, past_use
from mlflow_green.recorder.late_hold import admit_without_need
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import (
    Action,
    Allowance,
    Answer,
    ApprovedLimit,
    Balance,
    Batch,
    Closing,
    ClosingKind,
    Committed,
    Decision,
    Domain,
    Energy,
    Entry,
    HoldRequest,
    Method,
    Outcome,
    Owner,
    PastUse,
    TopUp,
    Unit,
    Usage,
)

DURATION_SECONDS_MIN = 0.001
_NOBODY = Owner(host="rehearsal", boot_id="", pid=0, started_ticks=0)


class VirtualClock:
    """Stands still until it is moved on."""

    def __init__(self, start: datetime) -> None:
        self._start = self._moment = start

    def now(self) -> datetime:
        return self._moment

    def monotonic_seconds(self) -> float:
        return (self._moment - self._start).total_seconds()

    def move_to(self, moment: datetime) -> None:
        self._moment = max(self._moment, moment)


class PassingLedger(MemoryLedger):
    """Forgets what is over, so that its books stay as small as what runs at once. What steps used is remembered."""

    def __init__(
        self,
        clock: VirtualClock,
        balances: Iterable[Balance] = (),
        allowances: Iterable[Allowance] = (),
        approved: Iterable[ApprovedLimit] = (),
    ) -> None:
        super().__init__(clock, balances, allowances, approved)
        self._uses: defaultdict[tuple[str, str], list[PastUse]] = defaultdict(list)

    def commit(self, batch: Batch, choose: Choose) -> Committed:
        committed = super().commit(batch, choose)
        for entry in self._entries.values():
            use = past_use(entry, self._input_bytes(entry.hold_id))
            if use is not None:
                self._uses[entry.project, entry.step].append(use)
        self._holds = {key: booked for key, booked in self._holds.items() if booked.state is HoldState.HELD}
        self._facts = {key: told for key, told in self._facts.items() if key in self._holds}
        self._charges = Counter({key: spent for key, spent in self._charges.items() if key[0] in self._holds})
        self._reads = {hold_id: metered for hold_id, metered in self._reads.items() if hold_id in self._holds}
        for done in (self._entries, self._journal, self._decisions, self._last_decisions, self._letters):
            done.clear()
        return committed

    def history(self, project: str, step: str) -> tuple[PastUse, ...]:
        return tuple(self._uses[project, step][-HISTORY_LENGTH_MAX:])


@dataclass(eq=False, slots=True, kw_only=True)
class Part:
    """One step of a job, and what has become of it.

    ``first`` is its first answer, its ticket has the last one. ``request`` is what it asked last.
    """

    ticket: Ticket
    first: Decision | None = None
    request: HoldRequest | None = None
    top_ups: list[Mapping[Unit, int]] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """Whether nothing that needs its outputs can run: it was refused or halted."""
        return self.ticket.refused or self.ticket.outcome is Outcome.HALTED


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """What the host program starts as one: a step, or a group of them.

    ``after`` are the jobs that must have succeeded. ``rank`` is the order in which jobs are asked for, ``urgency`` the
    order in which the host program starts what fits, lowest first. ``delayed_since``: when it could have started, had
    it not been waiting. ``arrives_at``: it is not ready before that.
    """

    parts: tuple[Part, ...]
    rank: tuple[int, ...]
    urgency: tuple[int, ...]
    after: tuple[Job, ...] = ()
    resources: Mapping[str, int] = field(default_factory=dict)
    arrives_at: datetime | None = None
    delayed_since: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def succeeded(self) -> bool:
        return self.ended_at is not None and not any(part.stopped for part in self.parts)


class Script(Protocol):
    """Says what the steps are: what they ask for, how long they run, what they use."""

    def request(self, ticket: Ticket, now: datetime) -> HoldRequest: ...

    def duration_seconds(self, part: Part) -> float:
        """How long an admitted step runs, > 0."""
        ...

    def usage(self, part: Part) -> Usage | None:
        """What it has used at its end; ``None`` where nothing can be said."""
        ...

    def entry(self, part: Part, outcome: Outcome, now: datetime) -> Entry: ...

    def top_ups(self, part: Part) -> Iterable[tuple[float, Mapping[Unit, int]]]:
        """What a running step asks for besides its hold: after so many seconds, so much."""
        ...


def estimated(energy_microjoules: int) -> Energy:
    """An energy that is taken for granted: without an interval of its own."""
    point = energy_microjoules
    return Energy(microjoules=point, low_microjoules=point, high_microjoules=point, method=Method.ESTIMATED)


def usage_of(part: Part, energy: Energy) -> Usage:
    """That a part used this energy, and nothing else is known of it."""
    return Usage(
        energy={Domain.CPU: energy},
        duration_seconds=part.ticket.duration_seconds or 0.0,
        cpu_seconds=0.0,
        cpu_clock=None,
        coverage_ratio=1.0,
    )


class Rehearsal:
    """One execution of all the jobs. ``resources`` is what there is of each at once; the others are not limited."""

    def __init__(
        self,
        jobs: Sequence[Job],
        script: Script,
        planner: Planner,
        ledger: MemoryLedger,
        clock: VirtualClock,
        *,
        resources: Mapping[str, int],
        look_ahead: int = 0,
        waiting_max: int | None = None,
    ) -> None:
        self._script = script
        self._planner = planner
        self._ledger = ledger
        self._clock = clock
        self._free = dict(resources)
        self._look_ahead = look_ahead
        self._waiting_max = waiting_max
        self._unready = list(jobs)
        self._unasked: list[Job] = []
        self._admitted: list[Job] = []
        self._waiting: list[Job] = []
        self._order = count()
        self._events: list[tuple[datetime, int, Callable[[], None]]] = []

    def run(self) -> None:
        """Until nothing can happen any more: a step that still waits then would wait for ever."""
        while True:
            self._get_ready()
            while self._select() or self._looks_again():
                pass
            moment = self._next_moment()
            if moment is None:
                return
            self._clock.move_to(moment)
            if not self._events or self._events[0][0] > moment:
                self._commit((), self._take_waiting())
            while self._events and self._events[0][0] <= moment:
                heapq.heappop(self._events)[2]()

    def _looks_again(self) -> bool:
        """As a run does every few seconds, for others were admitted and needs are known better; whether it helped."""
        before = len(self._waiting)
        if before:
            self._commit((), self._take_waiting())
        return len(self._waiting) != before

    def _next_moment(self) -> datetime | None:
        now = self._clock.now()
        moments = [self._events[0][0]] if self._events else []
        moments += [job.arrives_at for job in self._unready if job.arrives_at is not None and job.arrives_at > now]
        for job in self._waiting:
            since = (part.ticket.waiting_since for part in job.parts)
            looks = [self._planner.next_look(moment, now) for moment in since if moment is not None]
            moments += [look for look in looks if look is not None]
        return min(moments, default=None)

    # --- the host program: which jobs it asks for, and which it starts --------------------------------

    def _get_ready(self) -> None:
        now = self._clock.now()
        ready = [
            job
            for job in self._unready
            if (job.arrives_at is None or job.arrives_at <= now) and all(before.succeeded for before in job.after)
        ]
        if ready:
            known = set(map(id, ready))
            self._unready = [job for job in self._unready if id(job) not in known]
            self._unasked = sorted(self._unasked + ready, key=lambda job: job.rank)

    def _select(self) -> bool:
        """Start what may start, and ask for what could; whether anything was asked."""
        ahead = len(self._admitted)
        for job in self._fitting(self._admitted):
            self._admitted.remove(job)
            self._start(job)
            ahead -= 1
        self._note_delays()
        room_ahead = 0 if self._planner.tight or ahead > self._look_ahead // 2 else self._look_ahead - ahead
        startable = self._fitting(self._unasked)
        asked = sorted(startable, key=lambda job: job.rank)
        if room_ahead > len(asked):
            others = [job for job in self._unasked if job not in startable]
            asked += others[: room_ahead - len(asked)]
        if self._waiting_max is not None:
            asked = asked[: max(0, self._waiting_max - len(self._waiting))]
        for job in asked:
            self._unasked.remove(job)
        if asked:
            self._commit((), asked)
        return bool(asked)

    def _fitting(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that can start together now, most urgent first."""
        free, fitting = dict(self._free), []
        for job in sorted(jobs, key=lambda job: job.urgency):
            if all(amount <= free.get(name, amount) for name, amount in job.resources.items()):
                fitting.append(job)
                for name in free:
                    free[name] -= job.resources.get(name, 0)
        return fitting

    def _note_delays(self) -> None:
        for job in self._fitting(self._waiting):
            if job.delayed_since is None:
                job.delayed_since = self._clock.now()

    def _start(self, job: Job) -> None:
        now = self._clock.now()
        job.started_at = now
        for name in self._free:
            self._free[name] -= job.resources.get(name, 0)
        for part in job.parts:
            part.ticket.began_at = now
            for seconds, amounts in self._script.top_ups(part):
                self._at(now + timedelta(seconds=seconds), partial(self._top_up, part, amounts))
        seconds = max(self._script.duration_seconds(part) for part in job.parts)
        self._at(now + timedelta(seconds=seconds), partial(self._end, job))

    def _at(self, moment: datetime, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event))

    # --- the ledger ---------------------------------------------------------------------------------

    def _top_up(self, part: Part, amounts: Mapping[Unit, int]) -> None:
        if part.ticket.hold is not None and part.ticket.outcome is None:
            asked = TopUp(hold_id=part.ticket.hold_id, amounts=amounts)
            batch = Batch(top_ups=(asked,), owner=_NOBODY)
            part.top_ups += self._ledger.commit(batch, self._planner.choose).top_ups

    def _end(self, job: Job) -> None:
        now = self._clock.now()
        job.ended_at = now
        for name in self._free:
            self._free[name] += job.resources.get(name, 0)
        closings = [self._closing(part, now) for part in job.parts]
        self._commit(closings, self._take_waiting())

    def _closing(self, part: Part, now: datetime) -> Closing:
        ticket, hold = part.ticket, part.ticket.hold
        assert hold is not None
        assert ticket.began_at is not None
        ticket.duration_seconds = (now - ticket.began_at).total_seconds()
        ticket.usage = self._script.usage(part)
        if self._planner.enforces and not ticket.asks_nobody:
            ticket.halt_reason = self._planner.judge(ticket, self._ledger.balances(hold.terms)).halt_reason
        ticket.outcome = Outcome.HALTED if ticket.halt_reason else Outcome.SUCCEEDED
        entry = self._script.entry(part, ticket.outcome, now)
        return Closing(kind=ClosingKind.SETTLE, hold_id=hold.hold_id, entry=entry)

    def _take_waiting(self) -> list[Job]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _commit(self, closings: Sequence[Closing], asking: Sequence[Job]) -> None:
        """As the ledger's thread does it: what is closed makes room for what waits, in one transaction."""
        now = self._clock.now()
        every = [part for job in asking for part in job.parts]
        self._admit_without_need([part for part in every if part.ticket.asks_nobody])
        parts = [part for part in every if not part.ticket.asks_nobody]
        for part in parts:
            part.request = self._script.request(part.ticket, now)
        requests = tuple(part.request for part in parts if part.request)
        batch = Batch(closings=tuple(closings), requests=requests, owner=_NOBODY)
        answers = self._ledger.commit(batch, self._planner.choose).answers
        self._planner.settled(closing.entry.step for closing in closings if closing.entry)
        for part, answer in zip(parts, answers, strict=True):
            _tell(part, answer, now)
        for job in asking:
            if any(part.ticket.refused for part in job.parts):
                job.ended_at = now
            elif all(part.ticket.admitted for part in job.parts):
                self._admitted.append(job)
            else:
                self._waiting.append(job)

    def _admit_without_need(self, parts: Sequence[Part]) -> None:
        now = self._clock.now()
        for part in parts:
            part.request = self._planner.bare_request(part.ticket, now)
            batch = Batch(requests=(part.request,), owner=_NOBODY)
            _tell(part, self._ledger.commit(batch, admit_without_need).answers[0], now)


def _tell(part: Part, answer: Answer, now: datetime) -> None:
    ticket = part.ticket
    ticket.decision = answer.decision
    part.first = part.first or answer.decision
    if answer.decision.action is Action.WAIT:
        ticket.waiting_since = ticket.waiting_since or now
    ticket.hold = answer.hold
    ticket.granted = dict(answer.hold.amounts) if answer.hold else {}
