"""What the entries of a closing charge, and how much of that was metered; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mlflow_green.errors import LedgerError
from mlflow_green.records import Closing, ClosingKind, Entry, Unit


def check_entries(closing: Closing) -> None:
    """Raise ``LedgerError`` for a closing that no kind of closing can be."""
    is_void = closing.kind is ClosingKind.VOID
    if (closing.entry is None) != is_void or (is_void and closing.earlier):
        raise LedgerError(f"a void has no entry and every other closing has one: {closing!r}")
    if any(entry.hold_id != closing.hold_id for entry in closing.earlier):
        raise LedgerError(f"an earlier start belongs to another hold than {closing.hold_id}: {closing!r}")


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


def metered_sum(entries: Iterable[Entry]) -> Counter[Unit]:
    """The part of the charges that was metered."""
    metered: Counter[Unit] = Counter()
    for entry in entries:
        microjoules = metered_microjoules(entry)
        for unit, amount in entry.charged.items():
            metered[unit] += amount * microjoules // max(1, entry.energy_charged_microjoules)
    return metered
