"""A recorder without a host program: a planner that needs no policy, and ledgers that fail when they are told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import datetime

from mlflow_green.clock import SystemClock
from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.recorder.bookkeeper import Bookkeeper
from mlflow_green.recorder.ticket import Book, Ticket
from mlflow_green.records import Action, HoldRequest, Mode, Site, Step, StepSpec
from tests.testkit.ledger_samples import OWNER, admit_what_fits, request, term

BOOK = Book(project="demo", user="ana", host="node1", site=Site(), sampler_id=None, power_watts_max=10.0)


class SimplePlanner:
    """Every step needs ``amount`` of one budget."""

    def __init__(self, *, enforces: bool, amount: int = 10, limit: int = 100) -> None:
        self.limits = True
        self.enforces = enforces
        self.amount = amount
        self.term = term(limit=limit, mode=Mode.HARD if enforces else Mode.OBSERVE)

    def settled(self, steps: Iterable[str]) -> None:
        self.last_settled = tuple(steps)

    def request(self, ticket: Ticket, ledger, now) -> HoldRequest:
        return request(ticket.step.name, self.amount, self.term, group=ticket.group, hold_id=ticket.ticket_id)

    def bare_request(self, ticket: Ticket, now) -> HoldRequest:
        return request(ticket.step.name, 0, self.term, hold_id=ticket.ticket_id)

    choose = staticmethod(admit_what_fits)

    def without_ledger(self, waiting_since: datetime | None, now: datetime) -> Action:
        return Action.REFUSE if self.enforces else Action.ADMIT


class FailingLedger(MemoryLedger):
    """Raises ``problem`` at every commit while there is one; commits wait while ``is_free`` is not set."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.problem: Exception | None = None
        self.is_free = threading.Event()
        self.is_free.set()

    def commit(self, batch, choose):
        self.is_free.wait()
        if self.problem is not None:
            raise self.problem
        return super().commit(batch, choose)


def down() -> LedgerUnavailable:
    return LedgerUnavailable("cannot write the ledger: disk full; free some space")


def ticket(name: str, **more) -> Ticket:
    return Ticket(step=Step(workflow_run="run1", name=name), spec=StepSpec(), **more)


def bookkeeper(
    ledger: MemoryLedger, planner: SimplePlanner, said: list[str], ready: Callable[[], bool] = lambda: True
) -> Bookkeeper:
    keeper = Bookkeeper(ledger, planner, BOOK, OWNER, SystemClock(), wake=lambda: None, say=said.append, ready=ready)
    keeper.start()
    return keeper
