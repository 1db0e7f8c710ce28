"""A world in virtual time around the real rules: clients, their steps, a ledger and a network that fails.

Nothing here decides: requests, decisions, halts and estimates come from the real planner and policy, losses from the
real recovery, and every balance from ``MemoryLedger``. The world only knows the truth about each step (power x time,
in exact integers: milliwatts x milliseconds = microjoules) and never tells it to the rules but through a meter.

    python -m tests.simulation.world SEED [MUTANT]     prints the history of a seed
"""

from __future__ import annotations

import hashlib
import heapq
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from mlflow_green.errors import HoldClosed
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.recorder import recovery
from mlflow_green.recorder.late_hold import admit_at_nothing, hold_late
from mlflow_green.recorder.loss import SILENCE
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.spool_session import Begun, SpoolSession
from mlflow_green.recorder.ticket import Book, Ticket, entry_of
from mlflow_green.records import (
    Action,
    Allowance,
    AllowanceKind,
    Answer,
    Batch,
    Closing,
    ClosingKind,
    Committed,
    Domain,
    Energy,
    Method,
    Outcome,
    Owner,
    Step,
    TopUp,
    Unit,
    Usage,
)
from tests.simulation.laws import Broken, Laws
from tests.simulation.scenario import Need, Scenario, need_of, scenario_of

EVENTS_MAX = 5000
SILENCE_MS = round(SILENCE.total_seconds() * 1000)


class VirtualClock:
    """Stands still between two events."""

    def __init__(self, starts_at: datetime) -> None:
        self._starts_at = starts_at
        self._now = starts_at
        self.ms = 0

    def move_to(self, ms: int) -> None:
        self.ms = ms
        self._now = self._starts_at + timedelta(milliseconds=ms)

    def now(self) -> datetime:
        return self._now

    def monotonic_seconds(self) -> float:
        return self.ms / 1000


@dataclass(eq=False, slots=True)
class Job:
    """The truth about one step. ``ends_ms`` is when its last process ends, ``None`` while it has not begun."""

    ticket: Ticket
    need: Need
    began_ms: int | None = None
    ends_ms: int | None = None
    is_over: bool = False
    closing: Closing | None = None  # its client's own word
    settled: bool = False  # the ledger has got that
    reading_error: float = 0.0  # of its meter, as a part of the reading

    @property
    def name(self) -> str:
        return f"{self.ticket.step.name}/{self.ticket.step.attempt}"

    def used_microjoules(self, now_ms: int) -> int:
        """What it has really used until now."""
        if self.began_ms is None or self.ends_ms is None:
            return 0
        return self.need.power_milliwatts * (min(now_ms, self.ends_ms) - self.began_ms)


@dataclass(eq=False, slots=True)
class Item:
    """Something that a client wants the ledger to know, until it is answered."""

    kind: str  # ask, close, top_up
    job: Job
    closing: Closing | None = None
    amounts: dict[Unit, int] = field(default_factory=dict)
    may_finish: bool = False


@dataclass(eq=False, slots=True)
class Message:
    """One transaction on its way. ``is_settled``: the client has its answer, or has given up on it."""

    items: list[Item]
    batch: Batch
    is_settled: bool = False


class World:
    """One seed. ``run`` raises ``Broken`` where a law is."""

    def __init__(self, seed: int, scenario: Scenario | None = None) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.scenario = scenario or scenario_of(self.dice)
        self.clock = VirtualClock(self.scenario.starts_at)
        self.ledger = MemoryLedger(self.clock)
        self.history: list[tuple] = []
        self.jobs: dict[str, Job] = {}  # by hold id
        self.laws = Laws(self)
        self.is_calm = False
        self._recoveries = 0
        self._agenda: list[tuple[int, int, Callable, tuple]] = []
        self._count = 0
        self.clients = [Client(self, number) for number in range(self.scenario.clients)]
        for number in range(3):
            if self.chance(self.scenario.raises):
                self.after(self.dice.randrange(1000, 8000), self.raise_a_limit, number)

    def tell(self, *words: object) -> None:
        self.history.append((self.clock.ms, *words))

    def after(self, ms: int, what: Callable, *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (self.clock.ms + ms, self._count, what, arguments))

    def chance(self, chance: float) -> bool:
        return chance > 0 and not self.is_calm and self.dice.random() < chance

    def run(self) -> World:
        try:
            self._run_until_quiet()
            self.is_calm = True  # no more accidents: every client ends, and what the dead ones left is recovered
            for client in self.clients:
                client.leave()
            self._run_until_quiet()
            for client in self.clients:
                client.recover()
            self._run_until_quiet()
            self.laws.at_the_end()
            self.clients.clear()  # with nothing left that points back at it, a world goes without the garbage collector
            del self.laws
        except Exception as error:
            raise Broken(self.story(error)) from error
        return self

    def _run_until_quiet(self) -> None:
        while self._agenda:
            ms, _, what, arguments = heapq.heappop(self._agenda)
            self.clock.move_to(ms)
            what(*arguments)
            if len(self.history) > EVENTS_MAX:
                raise AssertionError(f"the world is still not quiet after {EVENTS_MAX} events")

    def another_owner(self) -> Owner:
        """A process that recovers, and was never seen before."""
        self._recoveries += 1
        return Owner(host="node1", boot_id="boot1", pid=9000 + self._recoveries, started_ticks=self._recoveries)

    # --- the ledger's door -----------------------------------------------------------------------

    def commit(self, batch: Batch, choose: Callable) -> Committed:
        """One transaction, and every law after it."""
        self.laws.before(batch)
        try:
            committed = self.ledger.commit(batch, choose)
        except HoldClosed:
            self.laws.nothing_happened(batch)
            raise
        self.laws.after(batch, committed, choose)
        return committed

    def raise_a_limit(self, number: int) -> None:
        """Somebody grants more, until the period ends or for some seconds."""
        terms = sorted(self.ledger._balances)
        if not terms:
            return
        budget, account, unit, period = self.dice.choice(terms)
        lasts = timedelta(seconds=self.dice.randrange(1, 6)) if self.dice.random() < 0.7 else None
        allowance = Allowance(
            allowance_id=f"allowance{number}",
            kind=AllowanceKind.OVERRIDE if lasts else AllowanceKind.GRANT,
            budget=budget,
            account=account,
            unit=Unit(unit),
            period=period,
            amount=self.dice.randrange(1, self.laws.terms[budget, account, unit, period].limit),
            made_at=self.clock.now(),
            requested_by="ana",
            approver="lea",
            reason="a deadline",
            expires_at=self.clock.now() + lasts if lasts else None,
        )
        self.ledger.allow(allowance)
        self.laws.after_raising(allowance)
        self.tell(allowance.kind.value, allowance.amount, "for", budget, account, unit, period, "until", lasts)

    # --- to see what happened ----------------------------------------------------------------------

    def digest(self) -> str:
        """The same for the same history, in any process."""
        rows = [
            (row.hold_id, row.budget, row.kind, row.delta_held, row.delta_spent, row.at)
            for row in self.ledger.journal()
        ]
        return hashlib.sha256(repr((self.history, rows)).encode()).hexdigest()

    def story(self, error: BaseException) -> str:
        """What broke, how to see it again, and the history with the last events first."""
        lines = [f"{ms / 1000:9.3f} s  {' '.join(map(str, words))}" for ms, *words in reversed(self.history)]
        return "\n".join(
            (
                f"{type(error).__name__} in seed {self.seed}: {error}",
                f"again: python -m tests.simulation.world {self.seed}",
                *lines,
            )
        )


class Client:
    """A process that runs steps. What the recorder's threads do to a ticket is done here, in the same order."""

    def __init__(self, world: World, number: int) -> None:
        scenario = world.scenario
        self.world = world
        self.name = f"client{number}"
        self.owner = Owner(host="node1", boot_id="boot1", pid=1000 + number, started_ticks=number)
        self.book = Book(
            project="demo",
            user="ana" if number % 2 else "ben",
            host="node1",
            site=scenario.site,
            sampler_id=None,
            power_watts_max=scenario.power_milliwatts_max / 1000,
        )
        self.planner = Planner(scenario.policy, self.book, self.name, org="lab")
        self.session = SpoolSession(path=Path(self.name), owner=self.owner, book=self.book)
        self.is_alive = True
        self.was_thought_dead = False
        self.mine: set[str] = set()  # every hold that it may have asked for
        self.items: list[Item] = []
        self.waiting: list[Item] = []
        self.running: dict[str, Job] = {}
        self.message: Message | None = None
        self.flush_is_due = False
        self.tick_is_due = False
        self.recheck_ms = 500
        world.after(world.dice.randrange(2000), self.ask_for_steps)
        if world.chance(scenario.kills):
            world.after(world.dice.randrange(500, 9000), self.die)
        if world.chance(scenario.is_thought_dead):
            world.after(world.dice.randrange(500, 9000), self.recover)

    # --- steps -----------------------------------------------------------------------------------

    def ask_for_steps(self) -> None:
        if not self.is_alive:
            return
        world, dice = self.world, self.world.dice
        group = "pipe" if world.chance(world.scenario.groups) else None
        for number in range(dice.randrange(1, world.scenario.steps_max + 1)):
            step, need = Step(workflow_run=self.name, name=f"{self.name}.s{number}"), need_of(dice, world.scenario)
            if group and number < 2:
                self._ask(step, need, group)
            else:
                world.after(dice.randrange(4000), self._ask, step, need)

    def _ask(self, step: Step, need: Need, group: str | None = None) -> None:
        if not self.is_alive:
            return
        ticket_id = f"{step.name}/{step.attempt}"
        job = Job(
            Ticket(step=step, spec=need.spec, group=group and f"{group} of {self.name}", ticket_id=ticket_id), need
        )
        error = self.world.scenario.reading_error
        job.reading_error = self.world.dice.uniform(-error, error) if error else 0.0
        self.world.jobs[ticket_id] = job
        self.mine.add(ticket_id)
        self._put(Item("ask", job))

    def _again(self, job: Job) -> None:
        """A retry is a new attempt, with a key of its own."""
        step = job.ticket.step
        if step.attempt < 2 and self.world.chance(0.5):
            self._ask(replace(step, attempt=step.attempt + 1), job.need)

    def begin(self, job: Job) -> None:
        if not self.is_alive:
            return
        world, ticket = self.world, job.ticket
        now = world.clock.ms
        if world.chance(world.scenario.voids):
            world.tell(job.name, "is not needed any more")
            if ticket.hold:
                void = Closing(kind=ClosingKind.VOID, hold_id=ticket.hold.hold_id, entry=None, reason="not needed")
                self._put(Item("close", job, closing=void))
            return
        tiers = {tier.name: tier.energy_ratio for tier in ticket.spec.tiers}
        assert ticket.decision is not None
        duration_ms = max(1, int(job.need.duration_ms * tiers.get(ticket.decision.tier, 1.0)))
        job.began_ms, job.ends_ms = now, now + duration_ms
        ticket.began_monotonic_seconds, ticket.began_at = world.clock.monotonic_seconds(), world.clock.now()
        self.session.begun[ticket.hold_id] = Begun(ticket.began_at, ticket.hold, ticket.late_request)
        self.running[ticket.hold_id] = job
        world.tell(
            job.name, "begins", ticket.decision.tier, "for", duration_ms, "ms at", job.need.power_milliwatts, "mW"
        )
        world.after(duration_ms, self.end, job)
        self._tick_later()

    def _tick_later(self) -> None:
        if not self.tick_is_due:
            self.tick_is_due = True
            self.world.after(self.world.scenario.period_ms, self.tick)

    def tick(self) -> None:
        """The sampler reads, the spool keeps it, and the enforcer judges."""
        self.tick_is_due = False
        if not self.is_alive or not self.running:
            return
        self._read_all()
        for job in self.running.values():
            self._enforce(job)
        self._tick_later()

    def _read_all(self) -> None:
        for job in self.running.values():
            self._read(job)
        self.session.last_read_at = self.world.clock.now()

    def _read(self, job: Job) -> None:
        true = job.used_microjoules(self.world.clock.ms)
        error = self.world.scenario.reading_error
        point = int(true * (1 + job.reading_error)) if error else true
        assert job.began_ms is not None
        usage = Usage(
            energy={
                Domain.CPU: Energy(
                    microjoules=point,
                    low_microjoules=min(true, point) if error else true,
                    high_microjoules=max(true, point) if error else true,
                    method=Method.ESTIMATED,
                )
            },
            duration_seconds=(self.world.clock.ms - job.began_ms) / 1000,
            cpu_seconds=1.0,
            cpu_clock=None,
            coverage_ratio=1.0,
        )
        job.ticket.usage = self.session.usages[job.ticket.hold_id] = usage

    def _enforce(self, job: Job) -> None:
        world, ticket = self.world, job.ticket
        if ticket.hold is None or ticket.halt_reason:
            return
        balances = world.ledger.balances(ticket.hold.terms) if self.planner.needs_balances else ()
        verdict = self.planner.judge(ticket, balances)
        if verdict.halt_reason:
            ticket.halt_reason = verdict.halt_reason
            assert job.ends_ms is not None
            gone_ms = world.clock.ms + world.dice.randrange(1 + round(verdict.grace_seconds * 1000))
            world.tell(job.name, "is halted:", verdict.halt_reason)
            if gone_ms < job.ends_ms:
                job.ends_ms = gone_ms
                world.after(gone_ms - world.clock.ms, self.end, job)
        elif verdict.top_up and not ticket.top_up_pending:
            ticket.top_up_pending = True
            self._put(Item("top_up", job, amounts=verdict.top_up, may_finish=verdict.may_finish))

    def end(self, job: Job) -> None:
        """The last process of the step is gone; its meter, if there still is one, reads it once more."""
        if job.is_over or job.ends_ms != self.world.clock.ms:
            return
        job.is_over = True
        self.world.tell(job.name, "ends; it has used", job.used_microjoules(self.world.clock.ms), "uJ")
        if not self.is_alive:
            return
        ticket = job.ticket
        ticket.is_leaving = True
        ticket.duration_seconds = self.world.clock.monotonic_seconds() - ticket.began_monotonic_seconds
        ticket.ended_at = self.world.clock.now()
        self._read_all()
        self.session.final.add(ticket.hold_id)
        del self.running[ticket.hold_id]
        self.world.after(self.world.dice.randrange(300), self.settle, job)

    def settle(self, job: Job) -> None:
        if not self.is_alive:
            return
        outcome = Outcome.HALTED if job.ticket.halt_reason else Outcome.SUCCEEDED
        entry = entry_of(job.ticket, outcome, self.book, self.world.clock.now())
        closing = Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry)
        job.closing = self.session.closings[job.ticket.hold_id] = closing
        self._put(Item("close", job, closing=closing))
        if job.ticket.halt_reason:
            self._again(job)

    # --- talking to the ledger -----------------------------------------------------------------------

    def _put(self, item: Item) -> None:
        self.items.append(item)
        self._flush_later()

    def _flush_later(self) -> None:
        if not self.flush_is_due and self.is_alive:
            self.flush_is_due = True
            self.world.after(self.world.dice.randrange(100), self.flush)

    def flush(self) -> None:
        """Everything that has come in goes into one transaction, one at a time."""
        self.flush_is_due = False
        if not self.is_alive or self.message is not None:
            return
        if any(item.closing for item in self.items):
            self._ask_again()
        if not self.items:
            return
        world, scenario = self.world, self.world.scenario
        items = list(self.items)
        self.message = message = Message(items, self._batch(items))
        latency_ms = world.dice.randrange(1, scenario.latency_ms + 1)
        if not world.chance(scenario.loses):
            answers = not world.chance(scenario.loses)
            world.after(latency_ms, self.arrive, message, answers)
        if world.chance(scenario.doubles):
            world.after(latency_ms + world.dice.randrange(1, 4 * scenario.timeout_ms), self.arrive, message, True)
        world.after(scenario.timeout_ms, self.give_up, message)

    def _batch(self, items: Sequence[Item]) -> Batch:
        now = self.world.clock.now()
        return Batch(
            closings=tuple(replace(item.closing, epoch=_epoch(item.job.ticket)) for item in items if item.closing),
            top_ups=tuple(
                TopUp(
                    hold_id=item.job.ticket.hold_id,
                    amounts=item.amounts,
                    epoch=_epoch(item.job.ticket),
                    may_finish=item.may_finish,
                )
                for item in items
                if item.kind == "top_up"
            ),
            requests=tuple(
                self.planner.request(item.job.ticket, self.world.ledger, now) for item in items if item.kind == "ask"
            ),
            owner=self.owner,
        )

    def arrive(self, message: Message, answers: bool) -> None:
        """The ledger does it; the client may have died meanwhile, or never hear of it."""
        self._hold_late(message.items)
        try:
            committed = [(message.items, self.world.commit(message.batch, self.planner.choose))]
        except HoldClosed:
            committed = [(part, self._part(part)) for part in _parts(message.items)]
        fenced = {hold_id for _, result in committed if result for hold_id in result.fenced}
        for item in message.items:
            settles = item.closing is not None and item.closing.kind is ClosingKind.SETTLE
            item.job.settled |= settles and item.closing.hold_id not in fenced
        self.world.tell(self.name, "commits", _brief(message.items), "" if answers else "(and the answer is lost)")
        if answers:
            self.world.after(self.world.dice.randrange(1, 20), self.answered, message, committed)

    def _hold_late(self, items: Sequence[Item]) -> None:
        late = [item.job.ticket.late_request for item in items if item.closing and item.job.ticket.late_request]
        hold_late(self.world, [request for request in late if request], self.owner)

    def _part(self, items: list[Item]) -> Committed | None:
        try:
            return self.world.commit(self._batch(items), self.planner.choose)
        except HoldClosed:
            return None

    def answered(self, message: Message, committed: Sequence[tuple[list[Item], Committed | None]]) -> None:
        if not self.is_alive or message.is_settled:
            return
        message.is_settled, self.message = True, None
        fenced = {hold_id for _, result in committed if result for hold_id in result.fenced}
        kept = [
            item for item in message.items if item.closing and item.closing.entry and item.closing.hold_id in fenced
        ]
        self.items = [item for item in self.items if item not in message.items]
        for items, result in committed:
            self._answer(items, result)
        if kept:  # whoever has taken the hold over closes it; what was metered here is later evidence
            self.world.after(1000, self.put_again, kept)
        if self.items:
            self._flush_later()

    def put_again(self, items: list[Item]) -> None:
        for item in items:
            self._put(item)

    def _answer(self, items: Sequence[Item], result: Committed | None) -> None:
        asks = [item for item in items if item.kind == "ask"]
        top_ups = [item for item in items if item.kind == "top_up"]
        if result is None:
            self.world.tell(self.name, "asked for a step that is over")
            return
        for item, granted in zip(top_ups, result.top_ups, strict=True):
            ticket = item.job.ticket
            ticket.granted = {unit: amount + granted.get(unit, 0) for unit, amount in ticket.granted.items()}
            ticket.top_up_refused = any(granted.get(unit, 0) < amount for unit, amount in item.amounts.items())
            ticket.top_up_pending = False
        for item, answer in zip(asks, result.answers, strict=True):
            self._answer_ask(item, answer)

    def _answer_ask(self, item: Item, answer: Answer) -> None:
        ticket, action = item.job.ticket, answer.decision.action
        self.world.tell(item.job.name, "gets", action.value, dict(answer.decision.amounts), answer.decision.reason)
        if action is Action.WAIT:
            ticket.waiting_since = ticket.waiting_since or self.world.clock.now()
            self.waiting.append(item)
            self.world.after(self.recheck_ms, self.recheck)
            self.recheck_ms = min(2 * self.recheck_ms, 10_000)
            return
        ticket.hold, ticket.decision = answer.hold, answer.decision
        ticket.granted = dict(answer.hold.amounts) if answer.hold else {}
        if action is Action.REFUSE:
            entry = entry_of(ticket, Outcome.REFUSED, self.book, self.world.clock.now())
            self._put(Item("close", item.job, closing=Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=entry)))
            self._again(item.job)
        else:
            self.world.after(self.world.dice.randrange(400), self.begin, item.job)

    def recheck(self) -> None:
        if self.is_alive and self.waiting:
            self._ask_again()
            self._flush_later()

    def _ask_again(self) -> None:
        self.items += self.waiting
        self.waiting = []

    def give_up(self, message: Message) -> None:
        """No answer came: a top-up is not had, a step of an open policy runs without a hold, all else is said again."""
        if not self.is_alive or message.is_settled:
            return
        message.is_settled, self.message = True, None
        self.world.tell(self.name, "gets no answer to", _brief(message.items))
        for item in message.items:
            if item.kind == "top_up":
                item.job.ticket.top_up_refused = True
                item.job.ticket.top_up_pending = False
                self.items.remove(item)
            elif item.kind == "ask" and not self.planner.enforces and not item.job.ticket.group:
                self.items.remove(item)
                self._run_unheld(item.job)
        self._flush_later()

    def _run_unheld(self, job: Job) -> None:
        now = self.world.clock.now()
        job.ticket.late_request = self.planner.bare_request(job.ticket, now)
        job.ticket.decision = admit_at_nothing(job.ticket.late_request)
        self.world.tell(job.name, "runs without the ledger's word")
        self.world.after(1, self.begin, job)

    # --- death -----------------------------------------------------------------------------------

    def die(self) -> None:
        """kill -9: the meter is gone; its steps go with it, or live on for as long as the lease rule lets them."""
        if not self.is_alive:
            return
        world, now = self.world, self.world.clock.ms
        if self.was_thought_dead:  # nothing else would tell that its steps ran on
            self._read_all()
        self.is_alive = False
        world.tell(self.name, "is killed")
        for hold_id, job in self.running.items():
            assert job.began_ms is not None
            assert job.ends_ms is not None
            heard_ms = job.began_ms
            if hold_id in self.session.usages and self.session.last_read_at is not None:
                heard_ms = max(heard_ms, _ms(self.session.last_read_at - world.scenario.starts_at))
            lives_on = world.dice.random() < 0.5
            gone_ms = min(job.ends_ms, heard_ms + SILENCE_MS, now + (world.dice.randrange(60_000) if lives_on else 0))
            job.ends_ms = max(now, gone_ms)
            world.after(job.ends_ms - now, self.end, job)
        for _ in range(world.dice.choice((1, 1, 2))):
            world.after(world.dice.randrange(100, 40_000), self.recover)

    def leave(self) -> None:
        """The client has done all that it wanted."""
        if self.is_alive:
            self.is_alive = False
            self.world.tell(self.name, "leaves")

    def recover(self) -> None:
        """Another process looks after this one: rightly, or because it thinks so.

        In the order of the real one, whose parts it uses: take over, end what still runs, charge and close.
        """
        world, now = self.world, self.world.clock.ms
        self.was_thought_dead |= self.is_alive
        hold_late(world, list(self.session.promised), self.owner)
        running = {hold_id for hold_id, job in self.running.items() if not self.is_alive and not job.is_over}
        holds = [hold for hold in world.ledger.open_holds() if hold.hold_id in self.mine]
        left = [hold for hold in holds if hold.hold_id in {*self.session.unfinished, *running}]
        taken = recovery._take_over(world, left, running, world.another_owner())
        world.tell(
            "recovery of",
            self.name,
            "takes over",
            *taken.epochs.items(),
            "of",
            len(holds),
            "still run",
            *sorted(running),
        )
        for hold_id in running:
            self.running[hold_id].ends_ms = now
            self.end(self.running[hold_id])
        if world.chance(world.scenario.loses):
            world.tell("recovery is killed")
            world.after(5000, self.recover)
            return
        closings = taken.stamped(recovery._closings(self.session, holds, taken.ran_on, world.clock.now()))
        if closings:
            world.after(world.dice.randrange(1, 2000), self.post_recovery, closings)

    def post_recovery(self, closings: tuple[Closing, ...]) -> None:
        fenced = self.world.commit(Batch(closings=closings), admit_at_nothing).fenced
        for closing in closings:
            if closing.kind is ClosingKind.SETTLE and closing.hold_id in self.world.jobs:
                self.world.jobs[closing.hold_id].settled |= closing.hold_id not in fenced
        told = (f"{each.hold_id} ({each.kind.value})" for each in closings if each.hold_id not in fenced)
        self.world.tell("recovery of", self.name, "closes", *told, "and is fenced from", *fenced)


def _epoch(ticket: Ticket) -> int | None:
    """The epoch under which the client has the step's hold, if it has one."""
    return None if ticket.hold is None else ticket.hold.epoch


def _parts(items: Sequence[Item]) -> list[list[Item]]:
    """The smallest pieces that make sense alone: as the bookkeeper splits a batch that was not taken."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.kind == "ask":
            groups.setdefault(item.job.ticket.group or item.job.name, []).append(item)
    return [*([item] for item in items if item.kind != "ask"), *groups.values()]


def _brief(items: Sequence[Item]) -> str:
    return ", ".join(
        f"{item.closing.kind.value if item.closing else item.kind} {item.job.name}"
        + (f" {[*item.amounts.values()]}" if item.amounts else "")
        for item in items
    )


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


if __name__ == "__main__":
    from contextlib import nullcontext

    from tests.simulation.mutants import MUTANTS

    with MUTANTS[sys.argv[2]]() if len(sys.argv) > 2 else nullcontext():
        print(World(int(sys.argv[1])).run().story(AssertionError("no law is broken")))
