"""What a running step that asks for more is granted, and what it goes on waiting for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from mlflow_green.ledger.holds import BookedHold, HoldState, is_fenced
from mlflow_green.ledger.pending import pending_under, seniority
from mlflow_green.ledger.working_books import WorkingBooks
from mlflow_green.records import Hold, Mode, TopUp, Unit


def top_up_all(books: WorkingBooks, asked: Sequence[TopUp]) -> tuple[Mapping[Unit, int], ...]:
    """What each is granted, in their order; the oldest hold is served first, whatever that is."""
    if not asked:
        return ()
    known = [index for index, one in enumerate(asked) if one.hold_id in books.holds]
    known.sort(key=lambda index: seniority(books.holds[asked[index].hold_id].hold))
    granted = {index: _top_up(books, asked[index]) for index in known}
    return tuple(granted.get(index, dict.fromkeys(one.amounts, 0)) for index, one in enumerate(asked))


def _top_up(books: WorkingBooks, asked: TopUp) -> Mapping[Unit, int]:
    """Grant what there is, and note what is lacking in place of what the hold wanted before."""
    booked = books.holds[asked.hold_id]
    if booked.state is not HoldState.HELD or is_fenced(booked.hold, asked.epoch):
        return dict.fromkeys(asked.amounts, 0)
    hold = booked.hold
    granted = _grant(books, hold, asked.amounts)
    lacking = {unit: amount - granted[unit] for unit, amount in asked.amounts.items() if amount > granted[unit]}
    wanted = {} if asked.may_finish else lacking
    if any(granted.values()):
        hold = _raised(books, hold, granted)
    if hold is not booked.hold or wanted != hold.wanted:
        books.change(BookedHold(hold=replace(hold, wanted=wanted), state=HoldState.HELD))
    return granted


def _grant(books: WorkingBooks, hold: Hold, amounts: Mapping[Unit, int]) -> dict[Unit, int]:
    """What there is beside what older holds still want; all units shrink by one factor, so none is for nothing."""
    older = [other for other in books.wanting.values() if seniority(other) < seniority(hold)]
    share = Fraction(1)
    for balance in (books.balances[term.key] for term in hold.terms):
        asked = amounts.get(balance.term.unit, 0)
        if balance.term.mode is Mode.HARD and asked > 0:
            room = balance.limit - balance.committed - pending_under(balance.term, older)
            share = min(share, Fraction(max(0, room), asked))
    return {unit: max(0, amount) * share.numerator // share.denominator for unit, amount in amounts.items()}


def _raised(books: WorkingBooks, hold: Hold, granted: Mapping[Unit, int]) -> Hold:
    for term in hold.terms:
        if granted.get(term.unit, 0):
            books.move(term, hold.hold_id, "top_up", delta_held=granted[term.unit])
            books.guard(books.balances[term.key].term)
    amounts = dict(hold.amounts)
    for unit, amount in granted.items():
        amounts[unit] = amounts.get(unit, 0) + amount
    return replace(hold, amounts=amounts)
