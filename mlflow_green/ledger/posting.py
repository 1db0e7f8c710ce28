"""What one batch does to the books: pure rules, shared by every ledger that keeps them.

``post`` takes what the batch touches as it stands (``Standing``) and returns what is to be written
(``Effects``). It reads no clock and writes nothing, so an exception leaves the books as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from mlflow_green.errors import AllowanceRefused, HoldClosed, LedgerError
from mlflow_green.ledger.allowances import (
    Agreed,
    Extras,
    LimitChange,
    LimitKey,
    Limits,
    agreement_text,
    allowance_text,
    applied_limit,
    changes,
    check,
    previous_key,
    told,
)
from mlflow_green.ledger.ledger import Choose
from mlflow_green.ledger.messages import (
    Message,
    applied_message,
    crossing_message,
    halted_message,
    is_reached,
    mlflow_message,
    refused_message,
)
from mlflow_green.ledger.pending import pending_under, seniority
from mlflow_green.records import (
    Action,
    AlertRule,
    Allowance,
    AllowanceKind,
    Answer,
    AppliedLimit,
    ApprovedLimit,
    Balance,
    Batch,
    BucketKey,
    Closing,
    ClosingKind,
    Decision,
    DecisionRow,
    Entry,
    Fact,
    Hold,
    HoldRequest,
    JournalRow,
    Mode,
    NodeWindow,
    Outcome,
    Owner,
    PastUse,
    PolicyVersion,
    Term,
    TopUp,
    Unit,
)
from mlflow_green.units import format_amount

WindowKey = tuple[str, str, int]

HISTORY_LENGTH_MAX = 200
INPUT_BYTES_FACT = "input/bytes"


class HoldState(StrEnum):
    """A hold is held, then closed once."""

    HELD = "held"
    SETTLED = "settled"
    VOID = "void"
    LOST = "lost"


CLOSED_STATE = {
    ClosingKind.SETTLE: HoldState.SETTLED,
    ClosingKind.VOID: HoldState.VOID,
    ClosingKind.LOST: HoldState.LOST,
}


GIVEN_UP = frozenset({HoldState.VOID, HoldState.LOST})
"""Closed perhaps without its owner's word: what turns up later corrects what it was charged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedHold:
    """A hold and its state. Under each of its terms it holds ``amounts[term.unit]``, else 0."""

    hold: Hold
    state: HoldState


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a batch touches, as the books have it: nothing else may be missing, more may be there.

    ``generation`` is the number of the last change of any balance. ``holds`` have every open hold that wants more under
    one of the ``balances``, whose ``pending`` that is. ``entry_ids`` and ``window_keys`` are those of the batch that
    were posted before. ``last_decisions`` maps a step's key to the action and reason that it was answered last.
    ``lost_charges`` is what each hold of the batch's closings that was given up was charged so far, corrections
    included; ``lost_reads`` the microjoules that were metered of it at most in one start. A bucket that inherits from
    one that is here, or that one here inherits from, is here too. ``extras`` are those of the buckets, ``approved`` the
    limits of their budgets.
    """

    generation: int
    balances: Mapping[BucketKey, Balance] = field(default_factory=dict)
    holds: Mapping[str, BookedHold] = field(default_factory=dict)
    entry_ids: frozenset[str] = frozenset()
    window_keys: frozenset[WindowKey] = frozenset()
    last_decisions: Mapping[str, tuple[Action, str]] = field(default_factory=dict)
    lost_charges: Mapping[tuple[str, BucketKey], int] = field(default_factory=dict)
    lost_reads: Mapping[str, int] = field(default_factory=dict)
    extras: Mapping[BucketKey, Extras] = field(default_factory=dict)
    approved: Mapping[LimitKey, ApprovedLimit] = field(default_factory=dict)


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


def post(batch: Batch, standing: Standing, choose: Choose, *, now: datetime, new_hold_id: Callable[[], str]) -> Effects:
    """Adopt, close, post, top up and hold, in this order.

    Raises:
        HoldClosed: a request's key belongs to a closed hold.
        LedgerError: the batch is impossible, e.g. ``choose`` admits over a hard limit.
    """
    posting = _Posting.of(standing, now)
    posting.learn(term for request in batch.requests for term in request.terms)
    adopted = tuple(posting.adopt(hold_id, batch.owner) for hold_id in batch.adoptions)
    for closing in batch.closings:
        posting.close(closing)
    top_ups = posting.top_up_all(batch.top_ups)
    posting, answers = _answer_all(posting, batch.requests, _Opening(choose, batch.owner, new_hold_id))
    return posting.effects(
        standing,
        answers=answers,
        top_ups=top_ups,
        windows=_new_windows(batch.windows, standing.window_keys),
        facts=(*batch.facts, *_sizes(batch.requests, answers)),
        adopted=adopted,
    )


def post_adjustment(
    hold_id: str, amounts: Mapping[Unit, int], reason: str, standing: Standing, now: datetime
) -> Effects:
    """Correct what a closed hold was charged by ``amounts``, which may be negative.

    Raises:
        LedgerError: there is no such hold, it is still open or void, or the refund is above what was spent.
    """
    booked = standing.holds.get(hold_id)
    if booked is None or booked.state not in {HoldState.SETTLED, HoldState.LOST}:
        state = "unknown" if booked is None else booked.state.value
        raise LedgerError(f"hold {hold_id} is {state}: only a settled or lost hold can be corrected; settle it first")
    posting = _Posting.of(standing, now)
    for term in booked.hold.terms:
        if amounts.get(term.unit, 0):
            posting.move(term, hold_id, "adjust", delta_spent=amounts[term.unit], reason=reason)
    return posting.effects(standing)


def post_allowance(
    allowance: Allowance,
    standing: Standing,
    now: datetime,
    *,
    term: Term | None = None,
    max_extra: Decimal | None = None,
    to: Sequence[str] = (),
) -> Effects:
    """Add an allowance to its bucket, which ``term`` opens if there is none; one that nobody approved waits for that.

    ``max_extra`` bounds all overrides together, as a part of the limit; ``to`` are the channels that are told.

    Raises:
        AllowanceRefused: it has expired, or goes too far.
        LedgerError: there is no such bucket.
    """
    posting = _Posting.of(standing, now)
    if term is not None:
        posting.learn([term])
    posting.check(allowance, max_extra)
    if allowance.is_approved:
        posting.allow(allowance)
    else:
        posting.limits.made.append(allowance)
    return posting.effects(standing, messages=(posting.limit_message(allowance, to),))


def post_approval(
    allowance: Allowance,
    approved_by: str,
    standing: Standing,
    now: datetime,
    *,
    max_extra: Decimal | None = None,
    to: Sequence[str] = (),
) -> Effects:
    """Count an allowance that somebody asked for earlier.

    Raises:
        AllowanceRefused: it counts already, has expired, goes too far, or who asked approves it himself.
    """
    if allowance.is_approved:
        raise AllowanceRefused(f"{allowance.allowance_id} counts already, {agreement_text(allowance)}")
    if approved_by == allowance.requested_by:
        raise AllowanceRefused(f"{approved_by} asked for {allowance.allowance_id} and cannot approve it; ask another")
    posting = _Posting.of(standing, now)
    posting.check(allowance, max_extra)
    agreed = replace(allowance, approved_by=approved_by)
    posting.allow(agreed, is_new=False)
    return posting.effects(standing, messages=(posting.limit_message(agreed, to),))


def post_policy(version: PolicyVersion, terms: Iterable[Term], standing: Standing, now: datetime) -> Effects:
    """A policy comes into use: it is kept, and what it says more strictly than before, or first, counts at once."""
    posting = _Posting.of(standing, now)
    for limit in told(terms, standing.approved, sha256=version.sha256, now=now):
        posting.limits.write(limit)
    return posting.effects(standing, policies=(version,))


def post_applied(
    version: PolicyVersion,
    terms: Sequence[Term],
    standing: Standing,
    now: datetime,
    *,
    agreed: Agreed,
    to: Sequence[str] = (),
    drops: Collection[LimitKey] = (),
) -> Effects:
    """What a policy says counts from now on; the buckets of these periods have its limits at once.

    ``drops`` are the limits that it does not have any more.
    """
    posting = _Posting.of(standing, now)
    by, sha256 = agreed.name, version.sha256
    changed = changes(terms, standing.approved, sha256=sha256, now=now, approved_by=by, reason=agreed.reason)
    for change in changed:
        if change.after is not None:
            posting.limits.write(change.after)
    gone = [standing.approved[key] for key in drops if key in standing.approved]
    changed = (*changed, *(LimitChange(before=limit, after=None) for limit in gone))
    for key, balance in standing.balances.items():
        posting.learn(
            replace(term, account=balance.term.account)
            for term in terms
            if (term.budget, term.unit.value, term.period) == (key[0], key[2], key[3])
        )
    moved = {(change.limit.budget, change.limit.unit): change for change in changed if change.moves and change.before}
    messages = tuple(applied_message(change, version, by, to, now) for change in moved.values())
    effects = posting.effects(standing, policies=(version,), messages=messages)
    kept = (applied_limit(change, agreed, at=now, sha256=sha256) for change in changed if change.moves)
    return replace(effects, dropped=tuple(gone), applied=tuple(kept))


@dataclass(frozen=True, slots=True)
class _Opening:
    """What it takes to answer requests."""

    choose: Choose
    owner: Owner | None
    new_hold_id: Callable[[], str]


@dataclass(slots=True, kw_only=True)
class _Posting:
    """The books while one batch is worked through."""

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
    def of(cls, standing: Standing, now: datetime) -> _Posting:
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

    def fork(self) -> _Posting:
        """A copy to try something on, thrown away when it fails."""
        return _Posting(
            now=self.now,
            balances=dict(self.balances),
            holds=dict(self.holds),
            id_by_step=dict(self.id_by_step),
            entry_ids=set(self.entry_ids),
            last_decisions=dict(self.last_decisions),
            lost_charges=dict(self.lost_charges),
            lost_reads=dict(self.lost_reads),
            limits=self.limits.fork(),
            wanting=dict(self.wanting),
            opened=list(self.opened),
            changed=list(self.changed),
            fenced=list(self.fenced),
            guarded=dict(self.guarded),
            journal=list(self.journal),
            entries=list(self.entries),
            decisions=list(self.decisions),
            stopped=dict(self.stopped),
        )

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
                self.balances[term.key] = replace(known, term=term)
            if self.wanting:
                self._sum_pending(term)
            self._inherit(term.key)
            self._pass_on(term.key)

    def move(
        self, term: Term, hold_id: str | None, kind: str, *, delta_held: int = 0, delta_spent: int = 0, reason: str = ""
    ) -> None:
        """One line of the journal, and what it does to its bucket."""
        balance = self.balances[term.key]
        moved = replace(balance, held=balance.held + delta_held, spent=balance.spent + delta_spent)
        if moved.held < 0 or moved.spent < 0:
            raise LedgerError(f"{kind} of hold {hold_id} would leave budget {term.budget} below zero: {moved!r}")
        self.balances[term.key] = moved
        self.journal.append(
            JournalRow(
                journal_id=0,
                at=self.now,
                hold_id=hold_id,
                budget=term.budget,
                account=term.account,
                unit=term.unit,
                period=term.period,
                kind=kind,
                delta_held=delta_held,
                delta_spent=delta_spent,
                reason=reason,
            )
        )
        if delta_held + delta_spent:
            self._pass_on(term.key)

    # --- limits ----------------------------------------------------------------------------------

    def check(self, allowance: Allowance, max_extra: Decimal | None) -> None:
        """Raise ``AllowanceRefused`` if this may not count."""
        balance = self.balances.get(allowance.key)
        if balance is None:
            raise LedgerError(
                f"there is no budget {allowance.budget} ({allowance.account}, {allowance.period}) to raise"
            )
        check(allowance, balance, self.limits.of_bucket(allowance.key), self.now, max_extra)

    def allow(self, allowance: Allowance, *, is_new: bool = True) -> None:
        """Count an allowance from now on: a line of the journal, and a bucket with another limit."""
        (self.limits.made if is_new else self.limits.agreed).append(allowance)
        self.limits.add(allowance)
        key = allowance.key
        self.balances[key] = replace(self.balances[key], extra=self.limits.of_bucket(key).total)
        agreement = "" if allowance.kind is AllowanceKind.ROLLOVER else f"{agreement_text(allowance)}: "
        self.journal.append(
            JournalRow(
                journal_id=0,
                at=self.now,
                hold_id=None,
                budget=allowance.budget,
                account=allowance.account,
                unit=allowance.unit,
                period=allowance.period,
                kind=allowance.kind.value,
                delta_held=0,
                delta_spent=0,
                delta_limit=allowance.amount,
                reason=f"{agreement}{allowance.reason}",
            )
        )
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

    def limit_message(self, allowance: Allowance, to: Sequence[str]) -> Message:
        """Tell the channels of a budget that its limit was raised, or that somebody asks for that."""
        text = allowance_text(allowance)
        return Message(
            kind="alert",
            dedup=f"allowance|{allowance.allowance_id}|{'approved' if allowance.is_approved else 'asked'}",
            payload={
                "budget": allowance.budget,
                "account": allowance.account,
                "unit": allowance.unit.value,
                "period": allowance.period,
                "at_ratio": None,
                "of": allowance.kind.value,
                "amount": allowance.amount,
                "limit": self.balances[allowance.key].limit,
                "to": list(to),
                "text": text,
                "allowance_id": allowance.allowance_id,
            },
        )

    def _sum_pending(self, term: Term) -> None:
        balance = self.balances[term.key]
        self.balances[term.key] = replace(balance, pending=pending_under(balance.term, self.wanting.values()))

    # --- adopting --------------------------------------------------------------------------------

    def adopt(self, hold_id: str, owner: Owner | None) -> Hold | None:
        """The open hold, from now on the new owner's; asked again by the same one, it stays as it is."""
        if owner is None:
            raise LedgerError(f"nobody takes over hold {hold_id}: a batch with adoptions names its owner")
        booked = self.holds.get(hold_id)
        if booked is None or booked.state is not HoldState.HELD:
            return None
        hold = booked.hold
        if hold.owner != owner:
            hold = replace(hold, owner=owner, epoch=hold.epoch + 1)
            self._change(BookedHold(hold=hold, state=HoldState.HELD))
        return hold

    # --- closing ---------------------------------------------------------------------------------

    def close(self, closing: Closing) -> None:
        """Release the hold and charge its entry. A settled one stays as it is; a lost or void one learns what was used.

        A closing of an older epoch leaves an open hold to who has it now.
        """
        _check_entries(closing)
        booked = self.holds.get(closing.hold_id) if closing.hold_id else None
        if booked is None:
            # A refused step has no hold. A hold that this ledger never saw is a fact all the same.
            for entry in entries_of(closing):
                self._post_once(entry)
        elif booked.state is HoldState.HELD and _is_fenced(booked.hold, closing.epoch):
            self.fenced.append(booked.hold.hold_id)
        elif booked.state is HoldState.HELD:
            self._close_open(booked.hold, closing)
        elif booked.state in GIVEN_UP and closing.entry is not None:
            self._correct(booked, closing, closing.entry)

    def _close_open(self, hold: Hold, closing: Closing) -> None:
        if closing.entry is not None and closing.entry.outcome is Outcome.HALTED:
            self._tell(halted_message(hold, closing.entry, [self.balances[term.key] for term in hold.terms]))
        charged = charged_sum(entries_of(closing))
        for term in hold.terms:
            self.move(
                term,
                hold.hold_id,
                closing.kind.value,
                delta_held=-hold.amounts.get(term.unit, 0),
                delta_spent=charged.get(term.unit, 0),
                reason=closing.reason,
            )
        if closing.kind is ClosingKind.LOST:
            self.lost_reads[hold.hold_id] = max(map(metered_microjoules, entries_of(closing)))
            self.lost_charges |= {(hold.hold_id, term.key): charged.get(term.unit, 0) for term in hold.terms}
        self._change(BookedHold(hold=replace(hold, wanted={}), state=CLOSED_STATE[closing.kind]))
        for entry in entries_of(closing):
            if entry.entry_id in self.entry_ids:
                raise LedgerError(f"entry {entry.entry_id} of open hold {hold.hold_id} was posted before")
            self._post_once(entry)

    def _correct(self, booked: BookedHold, closing: Closing, late: Entry) -> None:
        """A step that was given up has used something else than was thought: charge the difference, once.

        A settled entry is the truth. Another loss is charged in full if the step was thought not to have begun, or was
        read again since the first: then it ran on. Else the first silence counts, and the second only tells how much
        was metered at least: two recoveries that race charge different silences. A void hold has no entry until then.
        """
        hold, entries = booked.hold, entries_of(closing)
        is_loss, was_void = closing.kind is ClosingKind.LOST, booked.state is HoldState.VOID
        if late.total is None and not (is_loss and was_void):
            return
        is_known = is_loss and not was_void and metered_microjoules(late) <= self.lost_reads.get(hold.hold_id, 0)
        dues = _metered_sum(entries) if is_known else charged_sum(entries)
        if was_void:
            for entry in entries:
                self._post_once(entry)
        for term in hold.terms:
            key = (hold.hold_id, term.key)
            if term.unit not in late.charged:
                continue
            before = self.lost_charges.get(key, 0)
            due = max(before, dues[term.unit]) if is_loss else dues[term.unit]
            if due != before:
                reason = f"its readings were posted after it was closed as {booked.state.value}"
                self.move(term, hold.hold_id, "adjust", delta_spent=due - before, reason=reason)
                self.lost_charges[key] = due

    def _post_once(self, entry: Entry) -> None:
        if entry.entry_id not in self.entry_ids:
            self.entry_ids.add(entry.entry_id)
            self.entries.append(entry)

    def _change(self, booked: BookedHold) -> None:
        hold = booked.hold
        self.holds[hold.hold_id] = booked
        if hold.hold_id not in self.changed:
            self.changed.append(hold.hold_id)
        if hold.wanted or hold.hold_id in self.wanting:
            self.wanting[hold.hold_id] = hold
            for term in hold.terms:
                self._sum_pending(term)

    # --- topping up ------------------------------------------------------------------------------

    def top_up_all(self, asked: Sequence[TopUp]) -> tuple[Mapping[Unit, int], ...]:
        """What each is granted, in their order; the oldest hold is served first, whatever that is."""
        known = [index for index, one in enumerate(asked) if one.hold_id in self.holds]
        known.sort(key=lambda index: seniority(self.holds[asked[index].hold_id].hold))
        granted = {index: self._top_up(asked[index]) for index in known}
        return tuple(granted.get(index, dict.fromkeys(one.amounts, 0)) for index, one in enumerate(asked))

    def _top_up(self, asked: TopUp) -> Mapping[Unit, int]:
        """Grant what there is, and note what is lacking in place of what the hold wanted before."""
        booked = self.holds[asked.hold_id]
        if booked.state is not HoldState.HELD or _is_fenced(booked.hold, asked.epoch):
            return dict.fromkeys(asked.amounts, 0)
        hold = booked.hold
        granted = self._grant(hold, asked.amounts)
        lacking = {unit: amount - granted[unit] for unit, amount in asked.amounts.items() if amount > granted[unit]}
        wanted = {} if asked.may_finish else lacking
        if any(granted.values()):
            hold = self._raised(hold, granted)
        if hold is not booked.hold or wanted != hold.wanted:
            self._change(BookedHold(hold=replace(hold, wanted=wanted), state=HoldState.HELD))
        return granted

    def _grant(self, hold: Hold, amounts: Mapping[Unit, int]) -> dict[Unit, int]:
        """What there is beside what older holds still want; all units shrink by one factor, so none is for nothing."""
        older = [other for other in self.wanting.values() if seniority(other) < seniority(hold)]
        share = Fraction(1)
        for balance in (self.balances[term.key] for term in hold.terms):
            asked = amounts.get(balance.term.unit, 0)
            if balance.term.mode is Mode.HARD and asked > 0:
                room = balance.limit - balance.committed - pending_under(balance.term, older)
                share = min(share, Fraction(max(0, room), asked))
        return {unit: max(0, amount) * share.numerator // share.denominator for unit, amount in amounts.items()}

    def _raised(self, hold: Hold, granted: Mapping[Unit, int]) -> Hold:
        for term in hold.terms:
            if granted.get(term.unit, 0):
                self.move(term, hold.hold_id, "top_up", delta_held=granted[term.unit])
                self._guard(self.balances[term.key].term)
        amounts = dict(hold.amounts)
        for unit, amount in granted.items():
            amounts[unit] = amounts.get(unit, 0) + amount
        return replace(hold, amounts=amounts)

    # --- holding ---------------------------------------------------------------------------------

    def answer(self, request: HoldRequest, opening: _Opening, mates: Sequence[Answer] = ()) -> Answer:
        """The open hold of this key, or what ``choose`` says.

        ``mates`` are the members of its group that were answered before. To ``choose`` their holds look spent: they
        end together with this step, so nothing is to be hoped from waiting for them.
        """
        repeated = self.repeated(request)
        if repeated is not None:
            return repeated
        balances = self.balances_of(request)
        decision = opening.choose(request, [_as_spent(balance, mates) for balance in balances])
        if not decision.admitted:
            self.record(request, decision, balances, None)
            return Answer(decision=decision, hold=None)
        hold = self._open(request, decision, opening)
        self.record(request, decision, balances, hold.hold_id)
        return Answer(decision=decision, hold=hold)

    def repeated(self, request: HoldRequest) -> Answer | None:
        """The answer to a request whose key has a hold already, ``None`` for a new one."""
        hold_id = self.id_by_step.get(request.step.key)
        if hold_id is None:
            return None
        booked = self.holds[hold_id]
        if booked.state is not HoldState.HELD:
            raise HoldClosed(
                f"hold {hold_id} of {request.step.label} (attempt {request.step.attempt}) is {booked.state.value}"
                " already; ask again with the next attempt number"
            )
        return Answer(decision=_decision_of(booked.hold), hold=booked.hold)

    def balances_of(self, request: HoldRequest) -> tuple[Balance, ...]:
        return tuple(replace(self.balances[term.key], term=term) for term in map(self.limits.counted, request.terms))

    def _open(self, request: HoldRequest, decision: Decision, opening: _Opening) -> Hold:
        if opening.owner is None:
            raise LedgerError(f"nobody owns the hold of {request.step.label}: a batch with requests names its owner")
        hold = replace(
            Hold.of_nothing(request, decision, opening.owner, hold_id=request.hold_id or opening.new_hold_id()),
            amounts=dict(decision.amounts),
            terms=tuple({term.key: self.limits.counted(term) for term in request.terms}.values()),
            opened_at=self.now,
        )
        for term in hold.terms:
            self._hold_under(term, hold, decision)
        self.holds[hold.hold_id] = BookedHold(hold=hold, state=HoldState.HELD)
        self.id_by_step[request.step.key] = hold.hold_id
        self.opened.append(hold.hold_id)
        return hold

    def _hold_under(self, term: Term, hold: Hold, decision: Decision) -> None:
        amount = hold.amounts.get(term.unit, 0)
        if amount < 0:
            raise LedgerError(f"{hold.step.label} cannot hold {amount} {term.unit.value}: an amount is at least 0")
        self.move(term, hold.hold_id, "hold", delta_held=amount, reason=decision.reason)
        if term.unit in hold.amounts:
            self._guard(term, keeps_free=self.balances[term.key].pending)

    def _guard(self, term: Term, *, keeps_free: int = 0) -> None:
        if term.mode is not Mode.HARD:
            return
        balance = replace(self.balances[term.key], term=term)
        self.guarded[term.key] = balance.limit
        if balance.committed + keeps_free > balance.limit:
            raise LedgerError(over_limit_text(term, balance.limit))

    def record(
        self, request: HoldRequest, decision: Decision, balances: tuple[Balance, ...], hold_id: str | None
    ) -> None:
        """Keep the decision with what it saw; the same answer given again is one row."""
        told = (decision.action, decision.reason)
        if hold_id is None and self.last_decisions.get(request.step.key) == told:
            return
        self.last_decisions[request.step.key] = told
        row = DecisionRow(
            at=min(self.now, request.requested_at),
            hold_id=hold_id,
            step=request.step,
            decision=decision,
            balances=balances,
        )
        self.decisions.append(row)
        if decision.action is Action.REFUSE:
            self._tell(refused_message(request, decision, balances))

    def _tell(self, message: Message | None) -> None:
        if message is not None:
            self.stopped.setdefault(message.dedup, message)

    # --- result ----------------------------------------------------------------------------------

    def effects(
        self,
        standing: Standing,
        *,
        answers: tuple[Answer, ...] = (),
        top_ups: tuple[Mapping[Unit, int], ...] = (),
        windows: tuple[NodeWindow, ...] = (),
        facts: tuple[Fact, ...] = (),
        adopted: tuple[Hold | None, ...] = (),
        policies: tuple[PolicyVersion, ...] = (),
        messages: tuple[Message, ...] = (),
    ) -> Effects:
        buckets = tuple(self._bucket_changes(standing))
        return Effects(
            answers=answers,
            top_ups=top_ups,
            buckets=buckets,
            opened=tuple(self.holds[hold_id] for hold_id in self.opened),
            changed=tuple(self.holds[hold_id] for hold_id in self.changed),
            journal=tuple(self.journal),
            entries=tuple(self.entries),
            windows=windows,
            facts=facts,
            decisions=tuple(self.decisions),
            messages=(*map(mlflow_message, self.entries), *self.stopped.values(), *messages),
            alerts=tuple(self._alerts(standing)),
            balances_changed=any(_moves(change, standing) for change in buckets)
            or any(before.pending != self.balances[key].pending for key, before in standing.balances.items())
            or any(allowance.is_approved for allowance in (*self.limits.made, *self.limits.agreed)),
            adopted=adopted,
            fenced=tuple(self.fenced),
            allowances=tuple(self.limits.made),
            approvals=tuple(self.limits.agreed),
            limits=tuple(self.limits.written),
            policies=policies,
        )

    def _alerts(self, standing: Standing) -> Iterator[Message]:
        """Every threshold that lies between a balance as it was and as it is now, reached from below."""
        for key, after in self.balances.items():
            before = standing.balances.get(key) or Balance(term=after.term, spent=0, held=0)
            for rule in after.term.alerts:
                if is_reached(rule, after) and (key not in standing.balances or not is_reached(rule, before)):
                    hold_id = self._crossed_by(rule, before, after)
                    hold = self.holds[hold_id].hold if hold_id else None
                    yield crossing_message(rule, before, after, hold, standing.generation + 1)

    def _crossed_by(self, rule: AlertRule, before: Balance, after: Balance) -> str | None:
        """The hold whose row brought the balance to where it stays; ``None`` where no hold did, but e.g. the limit."""
        found: str | None = None
        balance = replace(after, spent=before.spent, held=before.held)
        for row in self.journal:
            if row.key == after.term.key:
                was_below = not is_reached(rule, balance)
                balance = replace(balance, spent=balance.spent + row.delta_spent, held=balance.held + row.delta_held)
                if was_below and is_reached(rule, balance):
                    found = row.hold_id
        return found

    def _bucket_changes(self, standing: Standing) -> Iterator[BucketChange]:
        for key, after in self.balances.items():
            before = standing.balances.get(key)
            if before is None or _told_apart(before) != _told_apart(after):
                yield BucketChange(
                    term=after.term,
                    is_new=before is None,
                    delta_held=after.held - (before.held if before else 0),
                    delta_spent=after.spent - (before.spent if before else 0),
                    guarded=key in self.guarded,
                    limit_guarded=self.guarded.get(key),
                )


def _told_apart(balance: Balance) -> tuple[object, ...]:
    """All of a balance but what is pending, which is no column of its bucket."""
    return (balance.term, balance.spent, balance.held, balance.extra)


def _moves(change: BucketChange, standing: Standing) -> bool:
    before = standing.balances.get(change.term.key)
    relimited = before is not None and before.term.limit != change.term.limit
    return bool(change.delta_held or change.delta_spent or relimited)


def _is_fenced(hold: Hold, epoch: int | None) -> bool:
    """Whether a message comes from an owner that somebody has taken the hold over from."""
    return epoch is not None and epoch < hold.epoch


def entries_of(closing: Closing) -> tuple[Entry, ...]:
    """Every entry that a closing posts, in the order of the starts."""
    return closing.earlier if closing.entry is None else (*closing.earlier, closing.entry)


def charged_sum(entries: Iterable[Entry]) -> Counter[Unit]:
    """What the budgets of each unit are charged for these entries together."""
    charged: Counter[Unit] = Counter()
    for entry in entries:
        charged.update(entry.charged)
    return charged


def metered_microjoules(entry: Entry) -> int:
    """What was metered of one start, 0 where nothing was."""
    return 0 if entry.total is None else entry.total.microjoules


def _metered_sum(entries: Iterable[Entry]) -> Counter[Unit]:
    """The part of the charges that was metered."""
    metered: Counter[Unit] = Counter()
    for entry in entries:
        microjoules = metered_microjoules(entry)
        for unit, amount in entry.charged.items():
            metered[unit] += amount * microjoules // max(1, entry.energy_charged_microjoules)
    return metered


def _check_entries(closing: Closing) -> None:
    is_void = closing.kind is ClosingKind.VOID
    if (closing.entry is None) != is_void or (is_void and closing.earlier):
        raise LedgerError(f"a void has no entry and every other closing has one: {closing!r}")
    if any(entry.hold_id != closing.hold_id for entry in closing.earlier):
        raise LedgerError(f"an earlier start belongs to another hold than {closing.hold_id}: {closing!r}")


def joined_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(first, last) ranges, both included, sorted and with adjoining ones joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def _new_windows(windows: Iterable[NodeWindow], posted: frozenset[WindowKey]) -> tuple[NodeWindow, ...]:
    fresh = {window_key(window): window for window in windows if window_key(window) not in posted}
    return tuple(fresh.values())


def window_key(window: NodeWindow) -> WindowKey:
    """What makes a window one window: its sampler, domain and first tick."""
    return (window.sampler_id, window.domain.value, window.sequence_first)


def over_limit_text(term: Term, limit: int) -> str:
    """The message of an impossible state: a hold was accepted that a hard budget has no room for.

    ``limit`` is the one that counts, with what allowances add to it.
    """
    return (
        f"impossible: a hold was admitted that hard budget {term.budget} ({term.account}, {term.period}) has no room"
        f" for; its limit is {format_amount(term.unit, limit)}. Nothing was written; please report it"
    )


def _sizes(requests: Sequence[HoldRequest], answers: Sequence[Answer]) -> Iterable[Fact]:
    for request, answer in zip(requests, answers, strict=True):
        if answer.hold is not None and request.input_bytes is not None:
            yield Fact(hold_id=answer.hold.hold_id, name=INPUT_BYTES_FACT, value=request.input_bytes)


def past_use(entry: Entry, input_bytes: int | None = None) -> PastUse | None:
    """What an entry teaches the next estimate; ``None`` when it was neither finished nor halted, or not metered."""
    total = entry.total
    if total is None or entry.outcome not in {Outcome.SUCCEEDED, Outcome.HALTED}:
        return None
    return PastUse(
        step=entry.step,
        wildcards=entry.wildcards,
        tier=entry.tier,
        energy_microjoules=total.microjoules,
        censored=entry.outcome is Outcome.HALTED,
        input_bytes=input_bytes,
    )


# --- groups -----------------------------------------------------------------------------------------


def _answer_all(
    posting: _Posting, requests: Sequence[HoldRequest], opening: _Opening
) -> tuple[_Posting, tuple[Answer, ...]]:
    answers: dict[int, Answer] = {}
    for members in _groups(requests):
        if len(members) == 1:
            index = members[0]
            answers[index] = posting.answer(requests[index], opening)
        else:
            posting, group_answers = _answer_group(posting, [requests[index] for index in members], opening)
            answers.update(zip(members, group_answers, strict=True))
    return posting, tuple(answers[index] for index in range(len(requests)))


def _groups(requests: Sequence[HoldRequest]) -> Iterable[list[int]]:
    """The positions of each group's members; a request without a group is a group of one."""
    groups: dict[object, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(index if request.group is None else request.group, []).append(index)
    return groups.values()


def _answer_group(
    posting: _Posting, members: Sequence[HoldRequest], opening: _Opening
) -> tuple[_Posting, list[Answer]]:
    trial = posting.fork()
    answers: list[Answer] = []
    for member in members:
        answers.append(trial.answer(member, opening, answers))
        if answers[-1].hold is None:
            blocking = answers[-1].decision
            return posting, [_blocked(posting, other, member, blocking) for other in members]
    return trial, answers


def _as_spent(balance: Balance, mates: Sequence[Answer]) -> Balance:
    holds = [mate.hold for mate in mates if mate.hold and balance.term.key in {term.key for term in mate.hold.terms}]
    held = min(balance.held, sum(hold.amounts.get(balance.term.unit, 0) for hold in holds))
    return replace(balance, held=balance.held - held, spent=balance.spent + held) if held else balance


def _blocked(posting: _Posting, request: HoldRequest, blocker: HoldRequest, blocking: Decision) -> Answer:
    repeated = posting.repeated(request)
    if repeated is not None:
        return repeated
    decision = blocking
    if request is not blocker:
        reason = f"starts only together with {blocker.step.label}: {blocking.reason}"
        decision = replace(blocking, reason=reason)
    posting.record(request, decision, posting.balances_of(request), None)
    return Answer(decision=decision, hold=None)


def _decision_of(hold: Hold) -> Decision:
    return Decision(
        action=hold.decision,
        would=hold.would_decision,
        tier=hold.tier,
        amounts=hold.amounts,
        reason="the same request was answered before and its hold is open",
    )
