"""Whether what concurrent clients saw of one budget is what some serial order of their operations gives.

A budget is a counter with an upper bound. Every operation has the times when it was called and when it returned; the
journal gives the order of those that changed the counter. Such a history is linearisable where that order keeps real
time (what returned before another was called comes first) and every answer, refusals too, is right at a place in the
order that its own two times allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """``delta`` is what it added to the counter, ``None`` for a hold that was refused; times are of one monotonic clock.

    ``row`` is its place in the journal, ``None`` where it wrote nothing. ``asked`` is what a hold asked for and
    ``available`` what a refusal said was left; both are ``None`` for a settlement.
    """

    client: str
    called_ns: int
    returned_ns: int
    delta: int | None
    row: int | None
    asked: int | None = None
    available: int | None = None


def anomalies(operations: Sequence[Operation], limit: int) -> Iterator[str]:
    """What no serial order explains, one sentence each."""
    changes = sorted((each for each in operations if each.row is not None), key=lambda each: each.row or 0)
    states = [0]
    for change in changes:
        states.append(states[-1] + (change.delta or 0))
        if change.asked is not None and states[-1] > limit:
            yield f"{change} was admitted and brings the counter to {states[-1]} of {limit}"
    latest_call_ns = 0
    for change in changes:
        if change.returned_ns < latest_call_ns:
            yield f"{change} had returned before an earlier row was asked for"
        latest_call_ns = max(latest_call_ns, change.called_ns)
    for refusal in (each for each in operations if each.row is None):
        if not any(_explains(states[place], refusal, limit) for place in _places(refusal, changes)):
            yield f"{refusal} was right at no time between its call and its return"


def _explains(committed: int, refusal: Operation, limit: int) -> bool:
    return limit - committed == refusal.available and committed + (refusal.asked or 0) > limit


def _places(refusal: Operation, changes: Sequence[Operation]) -> range:
    """How many changes may have come before it: all that had returned, none that was called later."""
    before = [place for place, change in enumerate(changes, 1) if change.returned_ns < refusal.called_ns]
    after = [place for place, change in enumerate(changes) if change.called_ns > refusal.returned_ns]
    return range(max(before, default=0), min(after, default=len(changes)) + 1)
