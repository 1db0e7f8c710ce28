"""What a batch does to the books: what the rules say and a store writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_green.ledger.holds import BookedHold
from mlflow_green.ledger.messages import Message
from mlflow_green.records import (
    Allowance,
    Answer,
    AppliedLimit,
    ApprovedLimit,
    DecisionRow,
    Entry,
    Fact,
    Hold,
    JournalRow,
    NodeWindow,
    PolicyVersion,
    Term,
    Unit,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketChange:
    """How one bucket changes. ``guarded``: a hold was accepted that must leave it within a hard limit.

    ``limit_guarded`` is that limit, with what allowances add to it; ``None`` where it is the term's.
    """

    term: Term
    is_new: bool
    delta_held: int
    delta_spent: int
    guarded: bool
    limit_guarded: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """Everything that one transaction writes. Rows of the journal have no number yet (0).

    ``alerts`` have crossed their threshold now. The store leaves out those whose ``dedup`` it has: older versions
    wrote one at every crossing, and numbered none.
    """

    answers: tuple[Answer, ...]
    top_ups: tuple[Mapping[Unit, int], ...]
    buckets: tuple[BucketChange, ...]
    opened: tuple[BookedHold, ...]
    changed: tuple[BookedHold, ...]
    journal: tuple[JournalRow, ...]
    entries: tuple[Entry, ...]
    windows: tuple[NodeWindow, ...]
    facts: tuple[Fact, ...]
    decisions: tuple[DecisionRow, ...]
    messages: tuple[Message, ...]
    alerts: tuple[Message, ...]
    balances_changed: bool
    allowances: tuple[Allowance, ...] = ()
    approvals: tuple[Allowance, ...] = ()
    limits: tuple[ApprovedLimit, ...] = ()
    policies: tuple[PolicyVersion, ...] = ()
    adopted: tuple[Hold | None, ...] = ()
    fenced: tuple[str, ...] = ()
    dropped: tuple[ApprovedLimit, ...] = ()
    applied: tuple[AppliedLimit, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether any row is written."""
        rows = (self.buckets, self.opened, self.changed, self.journal, self.entries, self.windows, self.facts)
        limits = (self.allowances, self.approvals, self.limits, self.policies, self.dropped, self.applied)
        return any((*rows, *limits, self.decisions, self.messages, self.alerts))
