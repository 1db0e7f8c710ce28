"""A hold with its state: held, then closed once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mlflow_green.records import ClosingKind, Hold


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


def is_fenced(hold: Hold, epoch: int | None) -> bool:
    """Whether a message comes from an owner that somebody has taken the hold over from."""
    return epoch is not None and epoch < hold.epoch
