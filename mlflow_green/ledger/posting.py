"""What one batch does to the books: pure rules, shared by every ledger that keeps them.

``post`` takes what the batch touches as it stands (``Standing``) and returns what is to be written
(``Effects``). It reads no clock and writes nothing, so an exception leaves the books as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from mlflow_green.errors import AllowanceRefused, LedgerError
from mlflow_green.ledger.allowances import (
    UNREVIEWED,
    Agreed,
    LimitChange,
    Reviewed,
    applied_limit,
    are_of_one_budget,
    changes,
    check,
    check_open,
    told,
)
from mlflow_green.ledger.closing import adopt, close
from mlflow_green.ledger.crossings import crossings, differ
from mlflow_green.ledger.effects import BucketChange, Effects
from mlflow_green.ledger.holding import Opening, answer_all
from mlflow_green.ledger.holds import HoldState
from mlflow_green.ledger.ledger import Choose
from mlflow_green.ledger.messages import Message, allowance_message, applied_message, mlflow_message
from mlflow_green.ledger.past_uses import input_sizes
from mlflow_green.ledger.standing import Standing
from mlflow_green.ledger.topping_up import top_up_all
from mlflow_green.ledger.windows import new_windows
from mlflow_green.ledger.working_books import WorkingBooks
from mlflow_green.records import Allowance, Answer, Batch, Fact, Hold, NodeWindow, PolicyVersion, Term, Unit


def post(batch: Batch, standing: Standing, choose: Choose, *, now: datetime, new_hold_id: Callable[[], str]) -> Effects:
    """Adopt, close, post, top up and hold, in this order.

    Raises:
        HoldClosed: a request's key belongs to a closed hold.
        LedgerError: the batch is impossible, e.g. ``choose`` admits over a hard limit.
    """
    books = WorkingBooks.of(standing, now)
    books.learn(term for request in batch.requests for term in request.terms)
    adopted = tuple(adopt(books, hold_id, batch.owner) for hold_id in batch.adoptions)
    for closing in batch.closings:
        close(books, closing)
    top_ups = top_up_all(books, batch.top_ups)
    books, answers = answer_all(books, batch.requests, Opening(choose, batch.owner, new_hold_id))
    return _effects(
        books,
        standing,
        answers=answers,
        top_ups=top_ups,
        windows=new_windows(batch.windows, standing.window_keys),
        facts=(*batch.facts, *input_sizes(batch.requests, answers)),
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
    books = WorkingBooks.of(standing, now)
    for term in booked.hold.terms:
        if amounts.get(term.unit, 0):
            books.move(term, hold_id, "adjust", delta_spent=amounts[term.unit], reason=reason)
    return _effects(books, standing)


def post_allowances(
    asked: Sequence[tuple[Allowance, Term | None]],
    standing: Standing,
    now: datetime,
    *,
    max_extra: Decimal | None = None,
    to: Sequence[str] = (),
) -> Effects:
    """Add each allowance to its bucket, which its term opens if there is none; unapproved ones wait for that.

    ``max_extra`` bounds all overrides together, as a part of the limit; ``to`` are the channels that are told.

    Raises:
        AllowanceRefused: one of them has expired, or goes too far.
        LedgerError: there is no such bucket.
    """
    books = WorkingBooks.of(standing, now)
    books.learn(term for _, term in asked if term is not None)
    for allowance, _ in asked:
        _check(books, allowance, max_extra)
        if allowance.is_approved:
            books.allow(allowance)
        else:
            books.limits.made.append(allowance)
    return _effects(books, standing, messages=tuple(_allowance_message(books, each, to) for each, _ in asked))


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
    check_open(allowance)
    if approved_by == allowance.requested_by:
        raise AllowanceRefused(f"{approved_by} asked for {allowance.allowance_id} and cannot approve it; ask another")
    books = WorkingBooks.of(standing, now)
    _check(books, allowance, max_extra)
    agreed = replace(allowance, approved_by=approved_by)
    books.allow(agreed, is_new=False)
    return _effects(books, standing, messages=(_allowance_message(books, agreed, to),))


def post_policy(version: PolicyVersion, terms: Iterable[Term], standing: Standing, now: datetime) -> Effects:
    """A policy comes into use: it is kept, and what it says more strictly than before, or first, counts at once."""
    books = WorkingBooks.of(standing, now)
    for limit in told(terms, standing.approved, sha256=version.sha256, now=now):
        books.limits.write(limit)
    return _effects(books, standing, policies=(version,))


def post_applied(
    version: PolicyVersion,
    terms: Sequence[Term],
    standing: Standing,
    now: datetime,
    *,
    agreed: Agreed,
    to: Sequence[str] = (),
    reviewed: Reviewed = UNREVIEWED,
) -> Effects:
    """What a policy says counts from now on; the buckets of these periods have its limits at once.

    Raises:
        AllowanceRefused: the approved limits are not those that were ``reviewed``.
    """
    if reviewed.seen is not None and set(reviewed.seen) != set(standing.approved.values()):
        raise AllowanceRefused(
            "somebody else changed what counts at this moment; look at 'mlflow-green policy apply --dry-run' again,"
            " nothing was applied"
        )
    books = WorkingBooks.of(standing, now)
    by, sha256 = agreed.name, version.sha256
    changed = changes(
        terms,
        standing.approved,
        sha256=sha256,
        now=now,
        approved_by=by,
        reason=agreed.reason,
        reshaped=reviewed.reshaped,
    )
    for change in changed:
        if change.after is not None:
            books.limits.write(change.after)
    gone = [standing.approved[key] for key in reviewed.drops if key in standing.approved]
    changed = (*changed, *(LimitChange(before=limit, after=None) for limit in gone))
    for key, balance in standing.balances.items():
        books.learn(
            replace(term, account=balance.term.account)
            for term in terms
            if (term.budget, term.unit.value, term.period) == (key[0], key[2], key[3])
            and are_of_one_budget(term.account, balance.term.account)
        )
    moved = {(change.limit.budget, change.limit.unit): change for change in changed if change.moves and change.before}
    messages = tuple(applied_message(change, version, by, to, now) for change in moved.values())
    effects = _effects(books, standing, policies=(version,), messages=messages)
    kept = (applied_limit(change, agreed, at=now, sha256=sha256) for change in changed if change.moves)
    return replace(effects, dropped=tuple(gone), applied=tuple(kept))


def _check(books: WorkingBooks, allowance: Allowance, max_extra: Decimal | None) -> None:
    """Raise ``AllowanceRefused`` if this may not count."""
    balance = books.balances.get(allowance.key)
    if balance is None:
        raise LedgerError(f"there is no budget {allowance.budget} ({allowance.account}, {allowance.period}) to raise")
    check(allowance, balance, books.limits.of_bucket(allowance.key), books.now, max_extra)


def _allowance_message(books: WorkingBooks, allowance: Allowance, to: Sequence[str]) -> Message:
    return allowance_message(allowance, books.balances[allowance.key].limit, to)


# --- what is written --------------------------------------------------------------------------------


def _effects(  # noqa: PLR0913 - what the books do not tell is named
    books: WorkingBooks,
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
    buckets = tuple(_bucket_changes(books, standing))
    return Effects(
        answers=answers,
        top_ups=top_ups,
        buckets=buckets,
        opened=tuple(books.holds[hold_id] for hold_id in books.opened),
        changed=tuple(books.holds[hold_id] for hold_id in books.changed),
        journal=tuple(books.journal),
        entries=tuple(books.entries),
        windows=windows,
        facts=facts,
        decisions=tuple(books.decisions),
        messages=(*map(mlflow_message, books.entries), *books.stopped.values(), *messages),
        alerts=tuple(crossings(books, standing)),
        balances_changed=any(_moves(change, standing) for change in buckets)
        or any(before.pending != books.balances[key].pending for key, before in standing.balances.items())
        or any(allowance.is_approved for allowance in (*books.limits.made, *books.limits.agreed)),
        adopted=adopted,
        fenced=tuple(books.fenced),
        allowances=tuple(books.limits.made),
        approvals=tuple(books.limits.agreed),
        limits=tuple(books.limits.written),
        policies=policies,
    )


def _bucket_changes(books: WorkingBooks, standing: Standing) -> Iterator[BucketChange]:
    for key, after in books.balances.items():
        before = standing.balances.get(key)
        if before is None or differ(before, after):
            yield BucketChange(
                term=after.term,
                is_new=before is None,
                delta_held=after.held - (before.held if before else 0),
                delta_spent=after.spent - (before.spent if before else 0),
                guarded=key in books.guarded,
                limit_guarded=books.guarded.get(key),
            )


def _moves(change: BucketChange, standing: Standing) -> bool:
    before = standing.balances.get(change.term.key)
    relimited = before is not None and before.term.limit != change.term.limit
    return bool(change.delta_held or change.delta_spent or relimited)
