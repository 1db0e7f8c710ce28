"""The one thread that talks to the ledger: whatever has come in goes into one transaction.

Commits wait for the disk, so nobody else may: callers put messages into a queue and read the answer from
their ticket later. One transaction a round, with everything queued meanwhile, keeps the cost a job small.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from mlflow_green.clock import Clock
from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.recorder.late_hold import admit_without_need, hold_late
from mlflow_green.recorder.ticket import Book, Ticket, entry_of
from mlflow_green.recorder.windows import unposted_windows
from mlflow_green.records import (
    Action,
    Answer,
    Balance,
    Batch,
    Closing,
    ClosingKind,
    Decision,
    Fact,
    Hold,
    HoldRequest,
    NodeWindow,
    Outcome,
    Owner,
    Term,
    TopUp,
    Unit,
)

_log = logging.getLogger(__name__)
_READY_POLL_SECONDS = 0.1
_CONSEQUENCES = {
    Action.ADMIT: "steps run on, metered to the spool",
    Action.WAIT: "steps wait until it can",
    Action.REFUSE: "no step may start",
}


class Planner(Protocol):
    """Turns a ticket into a request, and decides about it.

    ``limits`` says whether there is any budget, ``enforces`` whether any is hard.
    """

    limits: bool
    enforces: bool

    def settled(self, steps: Iterable[str]) -> None: ...

    def request(self, ticket: Ticket, ledger: Ledger, now: datetime) -> HoldRequest: ...

    def bare_request(self, ticket: Ticket, now: datetime) -> HoldRequest: ...

    def choose(self, request: HoldRequest, balances: Sequence[Balance]) -> Decision: ...

    def without_ledger(self, waiting_since: datetime | None, now: datetime) -> Action: ...


@dataclass(slots=True)
class _Work:
    """What one transaction is to do; messages fill it in the order in which they came."""

    asks: list[Ticket] = field(default_factory=list)
    late: list[HoldRequest] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)
    windows: list[NodeWindow] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    top_ups: list[tuple[Ticket, TopUp]] = field(default_factory=list)
    flushed: list[threading.Event] = field(default_factory=list)
    recheck: bool = False
    terms: dict[tuple[str, str, str, str], Term] = field(default_factory=dict)
    stop: bool = False

    @property
    def writes(self) -> bool:
        return bool(self.asks or self.late or self.closings or self.windows or self.facts or self.top_ups)

    def take_over(self, older: _Work) -> None:
        """Put what an earlier transaction could not write before what has come since."""
        self.late[:0] = older.late
        self.closings[:0] = older.closings
        self.windows[:0] = older.windows
        self.facts[:0] = older.facts

    def parts(self) -> list[_Work]:
        """The same work in the smallest pieces that make sense alone, in the same order.

        A charge stays with the hold that it needs: posted before it, no budget would ever pay.
        """
        groups: dict[object, list[Ticket]] = {}
        for ticket in self.asks:
            groups.setdefault(ticket.group or ticket.ticket_id, []).append(ticket)
        promised = {request.hold_id for request in self.late}
        return [
            *(
                _Work(late=[request], closings=[c for c in self.closings if c.hold_id == request.hold_id])
                for request in self.late
            ),
            *(_Work(closings=[closing]) for closing in self.closings if closing.hold_id not in promised),
            *(_Work(windows=[window]) for window in self.windows),
            *(_Work(facts=[fact]) for fact in self.facts),
            *(_Work(top_ups=[top_up]) for top_up in self.top_ups),
            *(_Work(asks=members) for members in groups.values()),
        ]


class Bookkeeper:
    """Owns the ledger thread. All public methods return at once, except ``flush`` and ``stop``."""

    def __init__(
        self,
        ledger: Ledger,
        planner: Planner,
        book: Book,
        owner: Owner,
        clock: Clock,
        *,
        wake: Callable[[], None],
        say: Callable[[str], None],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._ledger = ledger
        self._planner = planner
        self._book = book
        self._owner = owner
        self._clock = clock
        self._wake = wake
        self._say = say
        self._ready = ready
        self._inbox: queue.SimpleQueue[Callable[[_Work], None]] = queue.SimpleQueue()
        self._unposted = _Work()
        self._delayed: list[Ticket] = []  # asked before MLflow's store was ready
        self._waiting: list[Ticket] = []
        self._is_down = False
        self._unsure: set[str] = set()  # keys of steps that were refused without an answer of the ledger
        self._is_all_posted = True
        self._said: set[str] = set()
        self._balances: dict[tuple[str, str, str, str], Balance] = {}
        self._thread = threading.Thread(target=self._run, name="green-ledger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """After ``stop``: whether the ledger thread is still inside a transaction, so that nobody else may use it."""
        return self._thread.is_alive()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def balances(self) -> tuple[Balance, ...]:
        """What was read last of the terms that somebody asked for."""
        return tuple(self._balances.values())

    def ask(self, tickets: Sequence[Ticket]) -> None:
        asked = list(tickets)
        if not self._planner.limits and self._ready():
            self._admit_freely(asked)  # whatever the ledger is busy with
            return
        self._admit_without_need([ticket for ticket in asked if ticket.asks_nobody])
        others = [ticket for ticket in asked if not ticket.asks_nobody]
        if others:
            self._inbox.put(lambda work: work.asks.extend(others))

    def settle(self, ticket: Ticket, closing: Closing, facts: Sequence[Fact] = ()) -> None:
        """Post what a step used; one that ran without a hold gets its hold first."""
        late = ticket.late_request

        def add(work: _Work) -> None:
            if late is not None:
                work.late.append(late)
            work.closings.append(dataclasses.replace(closing, epoch=_epoch(ticket)))
            work.facts.extend(facts)

        self._inbox.put(add)

    def void(self, tickets: Sequence[Ticket], reason: str) -> None:
        """Release the holds of steps that never began; tickets without a hold are forgotten."""
        gone = list(tickets)

        def add(work: _Work) -> None:
            for pending in (work.asks, self._delayed, self._waiting):
                pending[:] = [ticket for ticket in pending if ticket not in gone]
            work.closings.extend(
                Closing(
                    kind=ClosingKind.VOID, hold_id=ticket.hold.hold_id, entry=None, reason=reason, epoch=_epoch(ticket)
                )
                for ticket in gone
                if ticket.hold
            )

        self._inbox.put(add)

    def post(self, windows: Sequence[NodeWindow]) -> None:
        """Post windows of single ticks, but for those that are posted already."""
        posted = list(windows)
        self._inbox.put(lambda work: work.windows.extend(posted))

    def top_up(self, ticket: Ticket, amounts: dict[Unit, int], *, may_finish: bool = False) -> None:
        """Ask for more. ``may_finish``: the step goes on without it, so no room is kept for it."""
        ticket.top_up_asked_seconds = self._clock.monotonic_seconds()
        ticket.top_up_pending = True
        asked = TopUp(hold_id=ticket.hold_id, amounts=amounts, epoch=_epoch(ticket), may_finish=may_finish)
        self._inbox.put(lambda work: work.top_ups.append((ticket, asked)))

    def recheck(self) -> None:
        """Ask again for the steps that wait: time has passed, or another process may have settled."""
        self._inbox.put(lambda work: setattr(work, "recheck", True))

    def read_balances(self, terms: Sequence[Term]) -> None:
        """Refresh the ``balances`` of these terms, soon."""
        self._inbox.put(lambda work: work.terms.update({term.key: term for term in terms}))

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that was put in so far is committed; False if that took too long or anything failed."""
        done = threading.Event()
        self._inbox.put(lambda work: work.flushed.append(done))
        return done.wait(timeout_seconds) and self._is_all_posted and not self._unposted.writes

    def stop(self, timeout_seconds: float) -> None:
        self._inbox.put(lambda work: setattr(work, "stop", True))
        self._thread.join(timeout_seconds)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            work = self._receive()
            try:
                self._do(work)
            except Exception:  # noqa: BLE001 - a thread of the host program's process: it must not die unseen
                _log.exception("mlflow-green: the ledger thread met an unexpected error")
                self._unposted.take_over(work)
                self._do_without_ledger(work, "an unexpected error; the log has its traceback")
            for event in work.flushed:
                event.set()
            if work.stop:
                return

    def _receive(self) -> _Work:
        """Wait for one message, then take all that are there."""
        work = _Work()
        try:
            self._inbox.get(timeout=_READY_POLL_SECONDS if self._delayed else None)(work)
            while True:
                self._inbox.get_nowait()(work)
        except queue.Empty:
            return work

    def _do(self, work: _Work) -> None:
        if work.closings or work.recheck:
            work.asks[:0] = self._waiting
            self._waiting = []
        work.asks[:0] = self._delayed
        self._delayed = []
        if work.asks and not self._ready():
            self._delayed, work.asks = work.asks, []
        if not self._planner.limits:
            self._admit_freely(work.asks)
            work.asks = []
        if self._is_down and self._goes_on_without():  # nobody waits again for a ledger that did not answer
            self._answer_without_ledger(work.asks, "it did not answer before", is_down=True)
            work.asks = []
        work.take_over(self._unposted)
        self._unposted = _Work()
        if work.writes:
            self._commit(work)
        if self._unsure:
            self._release_unsure()
        if work.terms:
            try:
                read = self._ledger.balances(tuple(work.terms.values()))
                self._balances.update({balance.term.key: balance for balance in read})
            except LedgerUnavailable:
                _log.debug("balances could not be read", exc_info=True)

    def _commit(self, work: _Work) -> None:
        """Commit the work; one impossible piece of it is told and left out, and the rest is committed."""
        try:
            self._post(work)
        except LedgerUnavailable as error:
            self._ledger_failed(work, error)
        except Exception as error:  # noqa: BLE001 - logged below; whatever it is, the rest must be posted
            parts = work.parts()
            if len(parts) > 1:
                for part in parts:
                    self._commit(part)
            else:
                _log.exception("mlflow-green: one piece of work for the ledger failed")
                self._reject(work, error)

    def _post(self, work: _Work) -> None:
        now = self._clock.now()
        requests = tuple(self._planner.request(ticket, self._ledger, now) for ticket in work.asks)
        hold_late(self._ledger, work.late, self._owner)
        committed = self._ledger.commit(
            Batch(
                closings=tuple(work.closings),
                windows=unposted_windows(self._ledger, work.windows),
                facts=tuple(work.facts),
                top_ups=tuple(top_up for _, top_up in work.top_ups),
                requests=requests,
                owner=self._owner,
            ),
            self._planner.choose,
        )
        self._is_down = False
        self._planner.settled(closing.entry.step for closing in work.closings if closing.entry)
        for (ticket, asked), granted in zip(work.top_ups, committed.top_ups, strict=True):
            self._topped_up(ticket, asked, granted)
        refusals = self._answer(work.asks, committed.answers, now)
        self._keep_fenced(work.closings, committed.fenced)
        for alert in committed.alerts:
            # Holds and settlements may cross a threshold to and fro all the time: what comes before its amounts.
            self._say_once(alert.partition(": ")[0], alert)
        if refusals:
            self._commit(_Work(closings=refusals))

    def _keep_fenced(self, closings: Sequence[Closing], fenced: Sequence[str]) -> None:
        """Whoever has taken a hold over closes it; what was metered here is posted again then, as later evidence."""
        for closing in closings:
            if closing.hold_id in fenced and closing.entry is not None:
                self._unposted.closings.append(closing)
                taken = f"hold {closing.hold_id} of {closing.entry.step} was taken over by another process"
                self._say_once(
                    taken, f"{taken}, which took this one for dead; what was metered here corrects its charge"
                )

    def _say_once(self, fact: str, text: str) -> None:
        if fact not in self._said:
            self._said.add(fact)
            self._say(text)

    def _topped_up(self, ticket: Ticket, asked: TopUp, granted: Mapping[Unit, int]) -> None:
        ticket.granted = {unit: amount + granted.get(unit, 0) for unit, amount in ticket.granted.items()}
        ticket.top_up_refused = any(granted.get(unit, 0) < amount for unit, amount in asked.amounts.items())
        ticket.top_up_pending = False

    def _answer(self, tickets: Sequence[Ticket], answers: Sequence[Answer], now: datetime) -> list[Closing]:
        """Write the answers into the tickets; the entries of those that were refused are to be posted."""
        refusals = []
        for ticket, answer in zip(tickets, answers, strict=True):
            if answer.decision.action is Action.WAIT:
                self._keep_waiting(ticket, answer.decision, now)
                continue
            ticket.hold = answer.hold
            ticket.granted = dict(answer.hold.amounts) if answer.hold else {}
            if answer.decision.admitted and answer.hold is None:
                self._promise_hold(ticket, now)
            ticket.decision = answer.decision  # last: whoever sees it, sees the rest
            if ticket.refused:
                entry = entry_of(ticket, Outcome.REFUSED, self._book, now)
                refusals.append(Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=entry))
        if any(ticket.decision and ticket.decision.action is not Action.WAIT for ticket in tickets):
            self._wake()
        return refusals

    def _admit_freely(self, tickets: Sequence[Ticket]) -> None:
        """Where no budget applies nothing is reserved: the ledger hears of a step when it is settled."""
        now = self._clock.now()
        for ticket in tickets:
            request = self._planner.bare_request(ticket, now)
            decision = self._planner.choose(request, ())
            ticket.hold = Hold.of_nothing(request, decision, self._owner, hold_id=ticket.ticket_id)
            ticket.decision = decision
        if tickets:
            self._wake()

    def _admit_without_need(self, tickets: Sequence[Ticket]) -> None:
        """Whatever the budgets say, and the ledger: what such a step used is charged when it is settled."""
        for ticket in tickets:
            self._promise_hold(ticket, self._clock.now())
            assert ticket.late_request is not None
            ticket.decision = admit_without_need(ticket.late_request)
        if tickets:
            self._wake()

    def _keep_waiting(self, ticket: Ticket, decision: Decision, now: datetime) -> None:
        if ticket.waiting_since is None:
            ticket.waiting_since = now
            self._say(f"{ticket.step.label} waits: {decision.reason}")
        ticket.decision = decision
        self._waiting.append(ticket)

    def _promise_hold(self, ticket: Ticket, now: datetime) -> None:
        ticket.late_request = self._planner.bare_request(ticket, now)

    def _ledger_failed(self, work: _Work, error: LedgerUnavailable) -> None:
        """Keep what was spent for the next transaction; answer what was asked."""
        self._unposted.take_over(work)
        if not self._is_down:
            consequence = _CONSEQUENCES[self._planner.without_ledger(None, self._clock.now())]
            self._say(f"the ledger cannot be written, {consequence}: {error}")
            self._is_down = True
        self._do_without_ledger(work, str(error), is_down=True)

    def _goes_on_without(self) -> bool:
        """Whether the policy lets steps run while the ledger cannot be reached."""
        return self._planner.without_ledger(None, self._clock.now()) is Action.ADMIT

    def _reject(self, work: _Work, error: Exception) -> None:
        """Give up one piece of work that the ledger says is impossible. Its spool file stays."""
        self._say(f"the ledger did not take a record: {error}")
        self._is_all_posted = self._is_all_posted and bool(work.asks or work.top_ups)
        self._do_without_ledger(work, str(error))

    def _do_without_ledger(self, work: _Work, cause: str, *, is_down: bool = False) -> None:
        # Without the ledger there is nothing beyond the grant, but where the policy lets steps go on.
        refused = not (is_down and self._goes_on_without())
        for ticket, _ in work.top_ups:
            ticket.top_up_refused = refused
            ticket.top_up_pending = False
        self._answer_without_ledger(work.asks, cause, is_down=is_down)

    def _release_unsure(self) -> None:
        """A commit whose answer was lost may have been written: of a step that was refused nothing stays held."""
        try:
            found = [hold for hold in self._ledger.open_holds() if hold.step.key in self._unsure]
            reason = "the ledger did not answer, so its step was refused"
            closings = [
                Closing(kind=ClosingKind.VOID, hold_id=hold.hold_id, entry=None, reason=reason, epoch=hold.epoch)
                for hold in found
                if hold.owner == self._owner
            ]
            if closings:
                self._ledger.commit(Batch(closings=tuple(closings), owner=self._owner), self._planner.choose)
        except LedgerUnavailable:
            _log.debug("the ledger still does not answer", exc_info=True)
        else:
            self._unsure.clear()

    def _answer_without_ledger(self, tickets: Sequence[Ticket], cause: str, *, is_down: bool = False) -> None:
        """While the ledger ``is_down`` as the policy says; after any other error open where nothing is enforced."""
        otherwise = Action.REFUSE if self._planner.enforces else Action.ADMIT
        now = self._clock.now()
        for ticket in tickets:
            action = self._planner.without_ledger(ticket.waiting_since, now) if is_down else otherwise
            tiers = ticket.spec.tiers
            decision = Decision(
                action=action,
                would=action,
                tier=tiers[0].name if tiers else None,
                amounts={},
                reason=f"the ledger cannot be written: {cause}",
            )
            if action is Action.WAIT:
                self._keep_waiting(ticket, decision, now)
                continue
            if action is Action.ADMIT:
                self._promise_hold(ticket, now)
            else:
                self._unsure.add(ticket.step.key)
            ticket.decision = decision
        if any(ticket.decision and ticket.decision.action is not Action.WAIT for ticket in tickets):
            self._wake()


def _epoch(ticket: Ticket) -> int | None:
    """The epoch under which this process has the ticket's hold, if it has one."""
    return None if ticket.hold is None else ticket.hold.epoch
