"""What running steps have asked for and did not get yet: room that no new hold may take; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from mlflow_green.records import Balance, Hold, Mode, Term


def pending_under(term: Term, holds: Iterable[Hold]) -> int:
    """What these holds still want under a term, >= 0 in its unit; a budget that is not hard keeps room for nobody."""
    if term.mode is not Mode.HARD:
        return 0
    return sum(hold.wanted.get(term.unit, 0) for hold in holds if any(each.key == term.key for each in hold.terms))


def with_pending(balances: Iterable[Balance], holds: Iterable[Hold]) -> tuple[Balance, ...]:
    """The balances with what these holds want of them; a closed hold wants nothing."""
    wanting = [hold for hold in holds if hold.wanted]
    if not wanting:
        return tuple(balances)
    return tuple(replace(each, pending=pending_under(each.term, wanting)) for each in balances)


def seniority(hold: Hold) -> tuple[datetime, str]:
    """Sorts holds, the oldest first."""
    return (hold.opened_at, hold.hold_id)
