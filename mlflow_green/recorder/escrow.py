"""A compute node's side of the books: what was granted is all there is, and what is used goes to the spool only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlflow_green.emissions.operational import hold_amounts
from mlflow_green.policy.leash import leash_pulled
from mlflow_green.recorder.placement import PlacedStep
from mlflow_green.recorder.planner import intervals
from mlflow_green.recorder.recorder import Verdict
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Balance, Closing, Fact, NodeWindow, Site, Term, Unit


class Escrow:
    """Stands where ``Bookkeeper`` stands in the main process. Its tickets come answered, and nothing is posted here."""

    has_waiting = False
    is_busy = False
    balances: tuple[Balance, ...] = ()

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def start(self) -> None:
        """There is no thread to start."""

    def ask(self, _tickets: Sequence[Ticket]) -> None:
        self._wake()

    def settle(self, ticket: Ticket, closing: Closing, facts: Sequence[Fact] = ()) -> None:
        """The closing is in the spool already, and the main process posts it."""

    def void(self, tickets: Sequence[Ticket], reason: str) -> None:
        """The main process finds out that the step never began."""

    def post(self, windows: Sequence[NodeWindow]) -> None:
        """The spool has the windows of every tick."""

    def top_up(self, ticket: Ticket, _amounts: dict[Unit, int]) -> None:
        ticket.top_up_refused = True

    def recheck(self) -> None:
        """Nothing waits here."""

    def read_balances(self, terms: Sequence[Term]) -> None:
        """No rule here looks at a whole budget."""

    def flush(self, _timeout_seconds: float) -> bool:
        return True

    def stop(self, timeout_seconds: float) -> None:
        """There is no thread to stop."""


class GrantEnforcer:
    """Ends a step at its grant without asking anybody."""

    needs_balances = False

    def __init__(self, steps: Sequence[PlacedStep], site: Site) -> None:
        self._steps: Mapping[str, PlacedStep] = {step.ticket_id: step for step in steps}
        self._site = site

    def judge(self, ticket: Ticket, _balances: Sequence[Balance]) -> Verdict:
        """A halt once an end of the interval that the policy names has passed the grant."""
        step, usage = self._steps.get(ticket.ticket_id), ticket.usage
        if step is None or usage is None or usage.total is None:
            return Verdict()
        used = intervals(usage.total, lambda amount: hold_amounts(amount, self._site))
        reason = leash_pulled(step.leashes, used, ticket.granted, ticket.step.label, usage.duration_seconds)
        return Verdict(halt_reason=reason, grace_seconds=step.grace_seconds)
