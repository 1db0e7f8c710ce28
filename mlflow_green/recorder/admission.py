"""How a step that asks alone gets its answer: a block of a Python program, or a command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from mlflow_green.clock import Clock
from mlflow_green.errors import BudgetExceeded
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Action, HoldRequest

_LOOK_SECONDS = 1.0


class Admission(Protocol):
    """Answers steps. ``promise`` is for one that runs already: what it uses is posted as a fact."""

    def admit(self, ticket: Ticket) -> None:
        """Answer a step that wants to start; may wait. Raises ``BudgetExceeded``."""

    def promise(self, ticket: Ticket) -> None: ...


class Freely:
    """Where no budget is hard nobody is asked; the budgets are charged when the step is settled."""

    def __init__(self, request: Callable[[Ticket, datetime], HoldRequest], clock: Clock) -> None:
        self._request = request
        self._clock = clock

    def admit(self, ticket: Ticket) -> None:
        self.promise(ticket)

    def promise(self, ticket: Ticket) -> None:
        ticket.late_request = self._request(ticket, self._clock.now())
        ticket.decision = admit_at_nothing(ticket.late_request)


class UnderBudget(Freely):
    """Where a budget is hard a step starts only once the ledger holds what it needs."""

    def __init__(
        self,
        request: Callable[[Ticket, datetime], HoldRequest],
        clock: Clock,
        recorder: Recorder,
        answered: threading.Event,
    ) -> None:
        """``answered`` is set whenever the ledger has answered."""
        super().__init__(request, clock)
        self._recorder = recorder
        self._answered = answered

    def admit(self, ticket: Ticket) -> None:
        try:
            self._recorder.ask([ticket])
            while ticket.decision is None or ticket.decision.action is Action.WAIT:
                self._answered.wait(_LOOK_SECONDS)
                self._answered.clear()
        except BaseException:  # Ctrl-C while it waits
            self._recorder.void([ticket], "interrupted before it started")
            raise
        if ticket.refused:
            raise BudgetExceeded(f"{ticket.step.label} was not started: {ticket.decision.reason}")
