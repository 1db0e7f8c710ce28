"""The thresholds that a batch crosses, and the hold that crossed each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlflow_green.ledger.messages import Message, crossing_message, is_reached
from mlflow_green.ledger.standing import Standing
from mlflow_green.ledger.working_books import WorkingBooks
from mlflow_green.records import AlertRule, Balance


def crossings(books: WorkingBooks, standing: Standing) -> Iterator[Message]:
    """Every threshold that lies between a balance as it was and as it is now, reached from below."""
    for key, after in books.balances.items():
        known = standing.balances.get(key)
        if known is not None and not differ(known, after):
            continue
        before = known or Balance(term=after.term, spent=0, held=0)
        for rule in after.term.alerts:
            if is_reached(rule, after) and (known is None or not is_reached(rule, before)):
                hold_id = _crossed_by(books, rule, before, after)
                hold = books.holds[hold_id].hold if hold_id else None
                yield crossing_message(rule, before, after, hold, standing.generation + 1)


def _crossed_by(books: WorkingBooks, rule: AlertRule, before: Balance, after: Balance) -> str | None:
    """The hold whose row brought the balance to where it stays; ``None`` where no hold did, but e.g. the limit."""
    found: str | None = None
    balance = replace(after, spent=before.spent, held=before.held)
    is_past = is_reached(rule, balance)
    for row in books.journal:
        if row.key == after.term.key:
            balance = balance.moved(held=row.delta_held, spent=row.delta_spent)
            was_past, is_past = is_past, is_reached(rule, balance)
            if is_past and not was_past:
                found = row.hold_id
    return found


def differ(one: Balance, other: Balance) -> bool:
    """Whether one row of a bucket differs from the other: what is pending is no column of it."""
    if one is other:
        return False
    return (one.term, one.spent, one.held, one.extra) != (other.term, other.spent, other.held, other.extra)
