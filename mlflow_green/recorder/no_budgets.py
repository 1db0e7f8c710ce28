"""The planner of a project that has no policy file, and so no budget: it is asked nothing that the policy decides.

Reading a policy takes longer than starting a command, so a process without one does not load what reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime

from mlflow_green.ledger.ledger import Ledger
from mlflow_green.recorder.ticket import Book, Ticket, bare_request
from mlflow_green.records import Action, Balance, Decision, HoldRequest


class NoBudgets:
    """Admits every step at its dearest tier: the answer of the policy that holds without a file."""

    limits = enforces = acts = False

    def __init__(self, book: Book) -> None:
        self._book = book

    def settled(self, steps: Iterable[str]) -> None:
        """There is no history to read again."""

    def request(self, ticket: Ticket, _ledger: Ledger, now: datetime) -> HoldRequest:
        return self.bare_request(ticket, now)

    def bare_request(self, ticket: Ticket, now: datetime) -> HoldRequest:
        return bare_request(ticket, self._book, (), now)

    def choose(self, request: HoldRequest, _balances: Sequence[Balance]) -> Decision:
        (asked,) = request.estimates
        return Decision(
            action=Action.ADMIT,
            would=Action.ADMIT,
            tier=asked.tier,
            amounts={},
            reason=f"{request.step.label} falls under no budget",
            estimate_source=asked.source,
            policy_sha256=hashlib.sha256(b"").hexdigest(),
        )
