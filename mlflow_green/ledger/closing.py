"""Who takes a hold over, and how it is closed: charged once, corrected when later evidence turns up."""

from __future__ import annotations

from dataclasses import replace

from mlflow_green.errors import LedgerError
from mlflow_green.ledger.charges import charged_sum, check_entries, entries_of, metered_microjoules, metered_sum
from mlflow_green.ledger.holds import CLOSED_STATE, GIVEN_UP, BookedHold, HoldState, is_fenced
from mlflow_green.ledger.messages import halted_message
from mlflow_green.ledger.working_books import WorkingBooks
from mlflow_green.records import Closing, ClosingKind, Entry, Hold, Outcome, Owner


def adopt(books: WorkingBooks, hold_id: str, owner: Owner | None) -> Hold | None:
    """The open hold, from now on the new owner's; asked again by the same one, it stays as it is."""
    if owner is None:
        raise LedgerError(f"nobody takes over hold {hold_id}: a batch with adoptions names its owner")
    booked = books.holds.get(hold_id)
    if booked is None or booked.state is not HoldState.HELD:
        return None
    hold = booked.hold
    if hold.owner != owner:
        hold = replace(hold, owner=owner, epoch=hold.epoch + 1)
        books.change(BookedHold(hold=hold, state=HoldState.HELD))
    return hold


def close(books: WorkingBooks, closing: Closing) -> None:
    """Release the hold and charge its entry. A settled one stays as it is; a lost or void one learns what was used.

    A closing of an older epoch leaves an open hold to who has it now.
    """
    check_entries(closing)
    booked = books.holds.get(closing.hold_id) if closing.hold_id else None
    if booked is None:
        # A refused step has no hold. A hold that this ledger never saw is a fact all the same.
        for entry in entries_of(closing):
            books.post_once(entry)
    elif booked.state is HoldState.HELD and is_fenced(booked.hold, closing.epoch):
        books.fenced.append(booked.hold.hold_id)
    elif booked.state is HoldState.HELD:
        _close_open(books, booked.hold, closing)
    elif booked.state in GIVEN_UP and closing.entry is not None:
        _correct(books, booked, closing, closing.entry)


def _close_open(books: WorkingBooks, hold: Hold, closing: Closing) -> None:
    if closing.entry is not None and closing.entry.outcome is Outcome.HALTED:
        books.tell(halted_message(hold, closing.entry, [books.balances[term.key] for term in hold.terms]))
    charged = charged_sum(entries_of(closing))
    for term in hold.terms:
        books.move(
            term,
            hold.hold_id,
            closing.kind.value,
            delta_held=-hold.amounts.get(term.unit, 0),
            delta_spent=charged.get(term.unit, 0),
            reason=closing.reason,
        )
    if closing.kind is ClosingKind.LOST:
        books.lost_reads[hold.hold_id] = max(map(metered_microjoules, entries_of(closing)))
        books.lost_charges |= {(hold.hold_id, term.key): charged.get(term.unit, 0) for term in hold.terms}
    books.change(BookedHold(hold=replace(hold, wanted={}), state=CLOSED_STATE[closing.kind]))
    for entry in entries_of(closing):
        if entry.entry_id in books.entry_ids:
            raise LedgerError(f"entry {entry.entry_id} of open hold {hold.hold_id} was posted before")
        books.post_once(entry)


def _correct(books: WorkingBooks, booked: BookedHold, closing: Closing, late: Entry) -> None:
    """A step that was given up has used something else than was thought: charge the difference, once.

    A settled entry is the truth. Another loss is charged in full if the step was thought not to have begun, or was
    read again since the first: then it ran on. Else the first silence counts, and the second only tells how much
    was metered at least: two recoveries that race charge different silences. A void hold has no entry until then.
    """
    hold, entries = booked.hold, entries_of(closing)
    is_loss, was_void = closing.kind is ClosingKind.LOST, booked.state is HoldState.VOID
    if late.total is None and not (is_loss and was_void):
        return
    is_known = is_loss and not was_void and metered_microjoules(late) <= books.lost_reads.get(hold.hold_id, 0)
    dues = metered_sum(entries) if is_known else charged_sum(entries)
    if was_void:
        for entry in entries:
            books.post_once(entry)
    for term in hold.terms:
        key = (hold.hold_id, term.key)
        if term.unit not in late.charged:
            continue
        before = books.lost_charges.get(key, 0)
        due = max(before, dues[term.unit]) if is_loss else dues[term.unit]
        if due != before:
            reason = f"its readings were posted after it was closed as {booked.state.value}"
            books.move(term, hold.hold_id, "adjust", delta_spent=due - before, reason=reason)
            books.lost_charges[key] = due
