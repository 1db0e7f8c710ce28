"""The books while one batch is worked through: buckets, holds and the journal that changes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from mlflow_green.errors import LedgerError
from mlflow_green.ledger.allowances import Limits, agreement_text, previous_key
from mlflow_green.ledger.forked import forked
from mlflow_green.ledger.holds import BookedHold
from mlflow_green.ledger.messages import Message
from mlflow_green.ledger.pending import pending_under
from mlflow_green.ledger.standing import Standing
from mlflow_green.records import (
    Action,
    Allowance,
    AllowanceKind,
    Balance,
    BucketKey,
    DecisionRow,
    Entry,
    Hold,
    JournalRow,
    Mode,
    Term,
)
from mlflow_green.units import format_amount


@dataclass(slots=True, kw_only=True)
class WorkingBooks:
    """What changes while a batch is worked through, and what of it is to be written.

    ``wanting`` are the open holds that want more. ``guarded`` are the hard limits that buckets must be left within.
    """

    now: datetime
    balances: dict[BucketKey, Balance]
    holds: dict[str, BookedHold]
    id_by_step: dict[str, str]
    entry_ids: set[str]
    last_decisions: dict[str, tuple[Action, str]]
    lost_charges: dict[tuple[str, BucketKey], int]
    lost_reads: dict[str, int]
    limits: Limits
    wanting: dict[str, Hold]
    opened: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    fenced: list[str] = field(default_factory=list)
    guarded: dict[BucketKey, int] = field(default_factory=dict)
    journal: list[JournalRow] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    decisions: list[DecisionRow] = field(default_factory=list)
    stopped: dict[str, Message] = field(default_factory=dict)

    @classmethod
    def of(cls, standing: Standing, now: datetime) -> WorkingBooks:
        return cls(
            now=now,
            balances=dict(standing.balances),
            holds=dict(standing.holds),
            id_by_step={booked.hold.step.key: hold_id for hold_id, booked in standing.holds.items()},
            entry_ids=set(standing.entry_ids),
            last_decisions=dict(standing.last_decisions),
            lost_charges=dict(standing.lost_charges),
            lost_reads=dict(standing.lost_reads),
            limits=Limits.of(standing.extras, standing.approved, (b.term for b in standing.balances.values()), now),
            wanting={hold_id: booked.hold for hold_id, booked in standing.holds.items() if booked.hold.wanted},
        )

    def fork(self) -> WorkingBooks:
        """A copy to try something on, thrown away when it fails."""
        return forked(self)

    def learn(self, terms: Iterable[Term]) -> None:
        """A bucket's limit, mode and alerts are those of the term that was told last; it inherits what it did first."""
        for term in map(self.limits.counted, terms):
            known = self.balances.get(term.key)
            if known is None:
                self.balances[term.key] = Balance(term=term, spent=0, held=0)
                self.limits.follow(term)
            else:
                if term.rollover != known.term.rollover:
                    term = replace(term, rollover=known.term.rollover)  # noqa: PLW2901
                self.balances[term.key] = under(term, known)
            if self.wanting:
                self._sum_pending(term)
            self._inherit(term.key)
            self._pass_on(term.key)

    def move(
        self, term: Term, hold_id: str | None, kind: str, *, delta_held: int = 0, delta_spent: int = 0, reason: str = ""
    ) -> None:
        """One line of the journal, and what it does to its bucket."""
        balance = self.balances[term.key]
        moved = balance.moved(held=delta_held, spent=delta_spent)
        if moved.held < 0 or moved.spent < 0:
            raise LedgerError(f"{kind} of hold {hold_id} would leave budget {term.budget} below zero: {moved!r}")
        self.balances[term.key] = moved
        self._note(term, kind, hold_id=hold_id, delta_held=delta_held, delta_spent=delta_spent, reason=reason)
        if delta_held + delta_spent:
            self._pass_on(term.key)

    def _note(
        self,
        of: Term | Allowance,
        kind: str,
        *,
        hold_id: str | None = None,
        delta_held: int = 0,
        delta_spent: int = 0,
        delta_limit: int = 0,
        reason: str,
    ) -> None:
        """Add a line to the journal of the bucket that this is of."""
        self.journal.append(
            JournalRow(
                journal_id=0,
                at=self.now,
                hold_id=hold_id,
                budget=of.budget,
                account=of.account,
                unit=of.unit,
                period=of.period,
                kind=kind,
                delta_held=delta_held,
                delta_spent=delta_spent,
                delta_limit=delta_limit,
                reason=reason,
            )
        )

    def guard(self, term: Term, *, keeps_free: int = 0) -> None:
        """Raise where a hold was let in that a hard limit has no room for; the store checks the limit once more."""
        if term.mode is not Mode.HARD:
            return
        balance = under(term, self.balances[term.key])
        self.guarded[term.key] = balance.limit
        if balance.committed + keeps_free > balance.limit:
            raise LedgerError(over_limit_text(term, balance.limit))

    # --- holds and entries -----------------------------------------------------------------------

    def change(self, booked: BookedHold) -> None:
        """Put this in the place of a hold that was opened before this batch."""
        hold = booked.hold
        self.holds[hold.hold_id] = booked
        if hold.hold_id not in self.changed:
            self.changed.append(hold.hold_id)
        if hold.wanted or hold.hold_id in self.wanting:
            self.wanting[hold.hold_id] = hold
            for term in hold.terms:
                self._sum_pending(term)

    def post_once(self, entry: Entry) -> None:
        if entry.entry_id not in self.entry_ids:
            self.entry_ids.add(entry.entry_id)
            self.entries.append(entry)

    def tell(self, message: Message | None) -> None:
        """Promise a message about a stopped step, once for what is told together."""
        if message is not None:
            self.stopped.setdefault(message.dedup, message)

    def _sum_pending(self, term: Term) -> None:
        balance = self.balances[term.key]
        self.balances[term.key] = replace(balance, pending=pending_under(balance.term, self.wanting.values()))

    # --- limits ----------------------------------------------------------------------------------

    def allow(self, allowance: Allowance, *, is_new: bool = True) -> None:
        """Count an allowance from now on: a line of the journal, and a bucket with another limit."""
        (self.limits.made if is_new else self.limits.agreed).append(allowance)
        self.limits.add(allowance)
        key = allowance.key
        self.balances[key] = replace(self.balances[key], extra=self.limits.of_bucket(key).total)
        agreement = "" if allowance.kind is AllowanceKind.ROLLOVER else f"{agreement_text(allowance)}: "
        reason = f"{agreement}{allowance.reason}"
        self._note(allowance, allowance.kind.value, delta_limit=allowance.amount, reason=reason)
        self._pass_on(key)

    def _inherit(self, key: BucketKey) -> None:
        """Inherit what is missing, or give back what is too much, while the bucket before this one still changes."""
        previous = previous_key(self.balances[key].term)
        if previous is not None and previous in self.balances:
            rollover = self.limits.rollover(self.balances[key], self.balances[previous])
            if rollover is not None:
                self.allow(rollover)

    def _pass_on(self, key: BucketKey) -> None:
        for follower in self.limits.followers.get(key, ()):
            self._inherit(follower)


def under(term: Term, balance: Balance) -> Balance:
    """The balance with the limit and the mode of this term."""
    return balance if balance.term == term else replace(balance, term=term)


def over_limit_text(term: Term, limit: int) -> str:
    """The message of an impossible state: a hold was accepted that a hard budget has no room for.

    ``limit`` is the one that counts, with what allowances add to it.
    """
    return (
        f"impossible: a hold was admitted that hard budget {term.budget} ({term.account}, {term.period}) has no room"
        f" for; its limit is {format_amount(term.unit, limit)}. Nothing was written; please report it"
    )
