"""A compute node's side of the books: what was granted is all there is, and what is used goes to the spool only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlflow_green.clock import Clock
from mlflow_green.emissions.operational import hold_amounts
from mlflow_green.policy.leash import leash_pulled
from mlflow_green.recorder.placement import PlacedStep
from mlflow_green.recorder.planner import intervals
from mlflow_green.recorder.recorder import Verdict
from mlflow_green.recorder.spool_only import SpoolOnly
from mlflow_green.recorder.ticket import Book, Ticket
from mlflow_green.records import Balance, Energy, Method, Usage
from mlflow_green.units import microjoules

SILENT_SECONDS_MAX = 10.0  # the longest that a sampler is expected to leave a step without a reading


class Escrow(SpoolOnly):
    """Stands where ``Bookkeeper`` stands in the main process, which posts what the spool says."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def ask(self, _tickets: Sequence[Ticket]) -> None:
        self._wake()


class GrantEnforcer:
    """Ends a step at its grant without asking anybody.

    Where another process meters the node and has fallen silent, the step counts as drawing all that the node can.
    """

    needs_balances = False

    def __init__(self, steps: Sequence[PlacedStep], book: Book, clock: Clock) -> None:
        self._steps: Mapping[str, PlacedStep] = {step.ticket_id: step for step in steps}
        self._book = book
        self._clock = clock

    def judge(self, ticket: Ticket, _balances: Sequence[Balance]) -> Verdict:
        """A halt once an end of the interval that the policy names has passed the grant."""
        step = self._steps.get(ticket.ticket_id)
        if step is None:
            return Verdict()
        ran_seconds = self._clock.monotonic_seconds() - ticket.began_monotonic_seconds
        energy = self._used(ticket.usage, ran_seconds)
        used = intervals(energy, lambda amount: hold_amounts(amount, self._book.site))
        reason = leash_pulled(step.leashes, used, ticket.granted, ticket.step.label, ran_seconds)
        return Verdict(halt_reason=reason, grace_seconds=step.grace_seconds)

    def _used(self, usage: Usage | None, ran_seconds: float) -> Energy:
        nothing = Energy(microjoules=0, low_microjoules=0, high_microjoules=0, method=Method.ESTIMATED)
        read = (usage.total if usage else None) or nothing
        silent_seconds = ran_seconds - (usage.duration_seconds if usage else 0.0)
        if silent_seconds <= SILENT_SECONDS_MAX:
            return read
        most = microjoules(self._book.power_watts_max * silent_seconds)
        return read + Energy(microjoules=most, low_microjoules=most, high_microjoules=most, method=Method.ESTIMATED)
