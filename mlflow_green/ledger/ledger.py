"""What every ledger does, whatever keeps it: the Protocols that the contract suite runs against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from mlflow_green.ledger.allowances import UNREVIEWED, Reviewed
from mlflow_green.ledger.compaction import Compaction
from mlflow_green.records import (
    Allowance,
    AppliedLimit,
    ApprovedLimit,
    Balance,
    Batch,
    Committed,
    Decision,
    DecisionRow,
    Domain,
    Entry,
    Fact,
    Hold,
    HoldRequest,
    JournalRow,
    LetterState,
    NodeWindow,
    OutboxRow,
    PastUse,
    PolicyVersion,
    Term,
)

Choose = Callable[[HoldRequest, Sequence[Balance]], Decision]
"""Pure: decides about one request from the balances of its terms, in the order of the terms."""


class Ledger(Protocol):
    """The books of all budgets. One process may use it from one thread at a time.

    Raises ``LedgerUnavailable`` when the store cannot be read or written; then nothing happened.
    """

    def commit(self, batch: Batch, choose: Choose) -> Committed:
        """Do the whole batch in one transaction; when it returns, it survives kill -9.

        Idempotent: a hold that is already closed is not closed again, a window that was posted is not
        posted again, and a request whose key has an open hold gets that hold. A hold that was closed as lost
        and whose readings turn up later is charged the difference by an ``adjust`` row, once. A request whose key
        belongs to a closed hold raises ``HoldClosed`` before anything is written. Every entry that
        is posted also puts one ``mlflow`` row (payload ``{"entry_id": ...}``) into the outbox.
        """
        ...

    def balances(self, terms: Sequence[Term] = ()) -> tuple[Balance, ...]:
        """The balances of these terms, or of every bucket there is, with the limits that count now."""
        ...

    def open_holds(self) -> tuple[Hold, ...]: ...

    def history(self, project: str, step: str) -> tuple[PastUse, ...]:
        """Metered energy of earlier successful and halted executions of a step, oldest first, at most 200."""
        ...

    def posted_sequences(self, sampler_id: str) -> dict[Domain, tuple[tuple[int, int], ...]]:
        """The (first, last) ticks that were posted of a sampler, by domain: sorted, with adjoining ones joined."""
        ...

    @property
    def excludes_other_hosts(self) -> bool:
        """Whether no process of another host can write while this ledger is open: what other hosts began is over."""
        ...

    def close(self) -> None: ...


class LedgerReader(Protocol):
    """Read-only views for reports, exports and checks."""

    def entries(self, *, workflow_run: str | None = None) -> tuple[Entry, ...]: ...

    def facts(self) -> Mapping[str, Mapping[str, float | str]]:
        """What was learnt about each hold: hold id to fact name to value (the last one told)."""
        ...

    def node_windows(self) -> tuple[NodeWindow, ...]: ...

    def journal(self) -> tuple[JournalRow, ...]: ...

    def decisions(self) -> tuple[DecisionRow, ...]: ...


class Compactable(Protocol):
    """A ledger that can be made small without changing what it says."""

    def compact(self, keep: timedelta, *, only_look: bool = False) -> Compaction:
        """Take out what was over for longer than ``keep``, >= 0, and is not needed any more, in one transaction.

        ``only_look``: say what would go, and change nothing.
        """
        ...


class AllowanceBook(Protocol):
    """What raises a limit for a while. Each change is one transaction and puts one ``alert`` row into the outbox.

    ``max_extra`` is the part of the limit that all active overrides of a bucket may add together, ``None`` for any;
    ``to`` are the channels to tell.
    """

    def allow(
        self,
        allowance: Allowance,
        term: Term | None = None,
        *,
        max_extra: Decimal | None = None,
        to: Sequence[str] = (),
    ) -> None:
        """Add an allowance, once; one that nobody approved counts from ``approve`` on. ``term`` opens a new bucket.

        Raises:
            AllowanceRefused: it has expired or goes too far.
            LedgerError: there is no such bucket, and no ``term``.
        """
        ...

    def allow_all(
        self,
        asked: Sequence[tuple[Allowance, Term | None]],
        *,
        max_extra: Decimal | None = None,
        to: Sequence[str] = (),
    ) -> None:
        """As ``allow``, several in one transaction: all of them, or none."""
        ...

    def approve(
        self, allowance_id: str, approved_by: str, *, max_extra: Decimal | None = None, to: Sequence[str] = ()
    ) -> Allowance:
        """Count an allowance that somebody else asked for.

        Raises:
            AllowanceRefused: there is none, it counts already, has expired, goes too far, or ``approved_by`` asked.
        """
        ...

    def allowances(self) -> tuple[Allowance, ...]:
        """All that were ever asked for or inherited, oldest first."""
        ...

    def identity(self) -> str | None:
        """Who the store itself knows to be writing; ``None`` where anybody who can write may be anyone."""
        ...


class PolicyBook(Protocol):
    """The versions of ``green.yaml``, and how far their limits count."""

    def record_policy(self, version: PolicyVersion, terms: Sequence[Term] = ()) -> tuple[ApprovedLimit, ...]:
        """A policy comes into use: keep it, once, and count what it says first or more strictly; what counts then."""
        ...

    def apply_policy(
        self,
        version: PolicyVersion,
        terms: Sequence[Term],
        *,
        approved_by: str | None,
        reason: str = "",
        to: Sequence[str] = (),
        requested_by: str = "",
        approver: str | None = None,
        reviewed: Reviewed = UNREVIEWED,
    ) -> None:
        """Count what the policy says from now on, for every account of the budgets of these terms.

        ``approver`` is only named, ``approved_by`` has an identity of his own; one of them is given.

        Raises:
            AllowanceRefused: the approved limits are not those that were ``reviewed``.
        """
        ...

    def applied_limits(self) -> tuple[AppliedLimit, ...]:
        """What was ever applied, oldest first."""
        ...

    def approved_limits(self) -> tuple[ApprovedLimit, ...]: ...

    def policies(self) -> tuple[PolicyVersion, ...]:
        """All versions that were ever in use, oldest first."""
        ...


class Outbox(Protocol):
    """Messages that were promised in a transaction and are delivered at least once, by another process."""

    def pending(self, kind: str, now: datetime, limit: int = 100) -> tuple[OutboxRow, ...]:
        """Rows that are due, oldest first."""
        ...

    def delivered(self, outbox_id: int, facts: Sequence[Fact] = ()) -> None:
        """Mark as done and post what was learnt on the way, in one transaction."""
        ...

    def failed(self, outbox_id: int, retry_at: datetime | None, error: str) -> None:
        """Try it again at ``retry_at``, never again where that is ``None``; what was delivered stays so."""
        ...

    def put(self, kind: str, dedup: str, payload: Mapping[str, object]) -> None:
        """Promise a message; a second one with the same ``dedup`` changes nothing."""
        ...

    def count(self, kind: str) -> int:
        """How many rows are not delivered yet."""
        ...


class SharedOutbox(Outbox, Protocol):
    """An outbox that several processes deliver: none sends what another is sending or has sent.

    Every time that is given to it is meant by its own clock, ``now``.
    """

    def now(self) -> datetime:
        """The time by which rows are dated and become due, aware UTC."""
        ...

    def claim(self, outbox_id: int, now: datetime, until: datetime) -> bool:
        """Take a row that is due: nobody else gets it before ``until``. ``False`` if it is not to be had."""
        ...

    def replace(self, outbox_ids: Sequence[int], kind: str, messages: Mapping[str, Mapping[str, object]]) -> bool:
        """Promise ``messages`` (payloads by ``dedup``) in place of these rows, all in one transaction.

        ``False``, and nothing is changed, if a row is not pending any more or a ``dedup`` is known: somebody was
        faster.
        """
        ...

    def rows(self, kind: str, *states: LetterState) -> tuple[OutboxRow, ...]:
        """Every row of the kind that is in one of these states, oldest first."""
        ...
