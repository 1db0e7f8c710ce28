"""The books of a process that never asks the ledger: all is in its spool, and who opens the ledger posts it."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Balance, Closing, Fact, NodeWindow, Term, Unit


class SpoolOnly:
    """Stands where ``Bookkeeper`` stands beside a ledger. Its tickets come answered, and nothing is posted here."""

    has_waiting = False
    is_busy = False
    balances: tuple[Balance, ...] = ()

    def start(self) -> None:
        """There is no thread to start."""

    def ask(self, tickets: Sequence[Ticket]) -> None:
        """They are answered already."""

    def settle(self, ticket: Ticket, closing: Closing, facts: Sequence[Fact] = ()) -> None:
        """The closing is in the spool already."""

    def void(self, tickets: Sequence[Ticket], reason: str) -> None:
        """Whoever reads the spool finds out that the step never began."""

    def post(self, windows: Sequence[NodeWindow]) -> None:
        """The spool has the windows of every tick."""

    def top_up(self, ticket: Ticket, _amounts: dict[Unit, int], *, may_finish: bool = False) -> None:  # noqa: ARG002
        ticket.top_up_refused = True

    def recheck(self) -> None:
        """Nothing waits here."""

    def read_balances(self, terms: Sequence[Term]) -> None:
        """No rule here looks at a whole budget."""

    def flush(self, _timeout_seconds: float) -> bool:
        return True

    def stop(self, timeout_seconds: float) -> None:
        """There is no thread to stop."""
