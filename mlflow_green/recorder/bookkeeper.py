"""The one thread that talks to the ledger: whatever has come in goes into one transaction.

Commits wait for the disk, so nobody else may: callers put messages into a queue and read the answer from
their ticket later. One transaction a round, with everything queued meanwhile, keeps the cost a job small.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from mlflow_green.clock import Clock
from mlflow_green.errors import GreenError, LedgerError, LedgerUnavailable
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.records import (
    Action,
    Answer,
    Balance,
    Batch,
    Closing,
    ClosingKind,
    Decision,
    Fact,
    HoldRequest,
    NodeWindow,
    Outcome,
    Owner,
    TopUp,
    Unit,
)
from mlflow_green.recorder.ticket import Book, Ticket, entry_of

_log = logging.getLogger(__name__)
_READY_POLL_SECONDS = 0.1


class Planner(Protocol):
    """Turns a ticket into a request, and decides about it. ``enforces`` says whether any budget is hard."""

    enforces: bool

    def new_round(self) -> None: ...

    def request(self, ticket: Ticket, ledger: Ledger, now: datetime) -> HoldRequest: ...

    def choose(self, request: HoldRequest, balances: Sequence[Balance]) -> Decision: ...


@dataclass(slots=True)
class _Work:
    """What one transaction is to do; messages fill it in the order in which they came."""

    asks: list[Ticket] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)
    windows: list[NodeWindow] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    top_ups: list[tuple[Ticket, TopUp]] = field(default_factory=list)
    settled: list[Ticket] = field(default_factory=list)
    flushed: list[threading.Event] = field(default_factory=list)
    recheck: bool = False
    read_balances: bool = False
    stop: bool = False

    @property
    def writes(self) -> bool:
        return bool(self.asks or self.closings or self.windows or self.facts or self.top_ups)

    def take_over(self, older: _Work) -> None:
        """Put what an earlier transaction could not write before what has come since."""
        self.closings[:0] = older.closings
        self.windows[:0] = older.windows
        self.facts[:0] = older.facts
        self.settled[:0] = older.settled


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
        self._waiting: list[Ticket] = []
        self._said_down = False
        self.balances: tuple[Balance, ...] = ()
        self._thread = threading.Thread(target=self._run, name="green-ledger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def ask(self, tickets: Sequence[Ticket]) -> None:
        asked = list(tickets)
        self._inbox.put(lambda work: work.asks.extend(asked))

    def settle(self, ticket: Ticket, closing: Closing, facts: Sequence[Fact] = ()) -> None:
        def add(work: _Work) -> None:
            work.closings.append(closing)
            work.settled.append(ticket)
            work.facts.extend(facts)

        self._inbox.put(add)

    def void(self, tickets: Sequence[Ticket], reason: str) -> None:
        """Release the holds of steps that never began; tickets without a hold are forgotten."""
        gone = list(tickets)

        def add(work: _Work) -> None:
            work.asks = [ticket for ticket in work.asks if ticket not in gone]
            self._waiting = [ticket for ticket in self._waiting if ticket not in gone]
            work.closings.extend(
                Closing(kind=ClosingKind.VOID, hold_id=ticket.hold.hold_id, entry=None, reason=reason)
                for ticket in gone
                if ticket.hold
            )

        self._inbox.put(add)

    def post(self, windows: Sequence[NodeWindow]) -> None:
        posted = list(windows)
        self._inbox.put(lambda work: work.windows.extend(posted))

    def top_up(self, ticket: Ticket, amounts: dict[Unit, int]) -> None:
        ticket.top_up_pending = True
        asked = TopUp(hold_id=ticket.hold_id, amounts=amounts)
        self._inbox.put(lambda work: work.top_ups.append((ticket, asked)))

    def recheck(self) -> None:
        """Ask again for the steps that wait: time has passed, or another process may have settled."""
        self._inbox.put(lambda work: setattr(work, "recheck", True))

    def read_balances(self) -> None:
        """Refresh ``balances``, soon."""
        self._inbox.put(lambda work: setattr(work, "read_balances", True))

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that was put in so far is committed; False if that took too long or failed."""
        done = threading.Event()
        self._inbox.put(lambda work: work.flushed.append(done))
        return done.wait(timeout_seconds) and not self._unposted.writes

    def stop(self, timeout_seconds: float) -> None:
        self._inbox.put(lambda work: setattr(work, "stop", True))
        self._thread.join(timeout_seconds)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        delayed: list[Ticket] = []
        while True:
            work = self._receive(bool(delayed))
            work.asks[:0] = delayed
            delayed = []
            if work.asks and not self._ready():
                delayed, work.asks = work.asks, []
            if work.closings or work.recheck:
                work.asks[:0] = self._waiting
                self._waiting = []
            try:
                self._do(work)
            except Exception:
                _log.exception("the ledger thread met an unexpected error")
                self._answer_without_ledger(work.asks, "an unexpected error; see the log above")
                self._unposted = work
            for event in work.flushed:
                event.set()
            if work.stop:
                return

    def _receive(self, poll: bool) -> _Work:
        """Wait for one message, then take all that are there."""
        work = _Work()
        try:
            self._inbox.get(timeout=_READY_POLL_SECONDS if poll else None)(work)
            while True:
                self._inbox.get_nowait()(work)
        except queue.Empty:
            return work

    def _do(self, work: _Work) -> None:
        work.take_over(self._unposted)
        self._unposted = _Work()
        if work.writes:
            self._commit(work)
        if work.read_balances:
            try:
                self.balances = self._ledger.balances()
            except LedgerUnavailable:
                _log.debug("balances could not be read", exc_info=True)

    def _commit(self, work: _Work) -> None:
        now = self._clock.now()
        self._planner.new_round()
        try:
            requests = tuple(self._planner.request(ticket, self._ledger, now) for ticket in work.asks)
            committed = self._ledger.commit(
                Batch(
                    closings=tuple(work.closings),
                    windows=tuple(work.windows),
                    facts=tuple(work.facts),
                    top_ups=tuple(top_up for _, top_up in work.top_ups),
                    requests=requests,
                    owner=self._owner,
                ),
                self._planner.choose,
            )
        except GreenError as error:
            self._ledger_failed(work, error)
            return
        self._said_down = False
        for ticket in work.settled:
            ticket.posted = True
        for (ticket, asked), granted in zip(work.top_ups, committed.top_ups, strict=True):
            self._topped_up(ticket, asked, granted)
        for alert in committed.alerts:
            self._say(alert)
        self._answer(work.asks, committed.answers, now)

    def _topped_up(self, ticket: Ticket, asked: TopUp, granted: Mapping[Unit, int]) -> None:
        ticket.granted = {unit: amount + granted.get(unit, 0) for unit, amount in ticket.granted.items()}
        ticket.top_up_refused = any(granted.get(unit, 0) < amount for unit, amount in asked.amounts.items())
        ticket.top_up_pending = False

    def _answer(self, tickets: Sequence[Ticket], answers: Sequence[Answer], now: datetime) -> None:
        refused = []
        for ticket, answer in zip(tickets, answers, strict=True):
            if answer.decision.action is Action.WAIT:
                if ticket.waiting_since is None:
                    ticket.waiting_since = now
                    self._say(f"{ticket.step.label} waits: {answer.decision.reason}")
                self._waiting.append(ticket)
                ticket.decision = answer.decision
                continue
            ticket.hold = answer.hold
            ticket.granted = dict(answer.hold.amounts) if answer.hold else {}
            ticket.decision = answer.decision
            if answer.decision.action is Action.REFUSE:
                refused.append(ticket)
        for ticket in refused:
            entry = entry_of(ticket, Outcome.REFUSED, self._book, now)
            self.settle(ticket, Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=entry))
        if any(ticket.decision and ticket.decision.action is not Action.WAIT for ticket in tickets):
            self._wake()

    def _ledger_failed(self, work: _Work, error: GreenError) -> None:
        """Keep what was spent for the next transaction; answer what was asked: open in observe, else closed."""
        self._unposted.take_over(work)
        for ticket, _ in work.top_ups:
            ticket.top_up_pending = False
        if not self._said_down:
            consequence = "no step may start" if self._planner.enforces else "steps run on, metered to the spool"
            self._say(f"the ledger cannot be written, {consequence}: {error}")
            self._said_down = not isinstance(error, LedgerError) or isinstance(error, LedgerUnavailable)
        self._answer_without_ledger(work.asks, str(error))

    def _answer_without_ledger(self, tickets: Sequence[Ticket], cause: str) -> None:
        action = Action.REFUSE if self._planner.enforces else Action.ADMIT
        for ticket in tickets:
            tiers = ticket.spec.tiers
            ticket.decision = Decision(
                action=action,
                would=action,
                tier=tiers[0].name if tiers else None,
                amounts={},
                reason=f"the ledger cannot be written: {cause}",
            )
        if tickets:
            self._wake()
