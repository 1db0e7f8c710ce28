"""What ends a step that nobody can be asked about while it runs: its grant, and nothing else; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mlflow_green.records import Unit
from mlflow_green.units import format_amount


class Interval(NamedTuple):
    """An amount with its interval in the unit's integer scale: low <= point <= high."""

    low: int
    point: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leash:
    """One hard budget's hold on a running step: it ends once ``enforce`` (low, point or high) of its use is over."""

    budget: str
    unit: Unit
    enforce: str
    currency: str | None = None

    def over(self, used: Interval, granted: int) -> str | None:
        """In words what was used of what was granted; ``None`` while it is not more."""
        amount = getattr(used, self.enforce)
        if amount <= granted:
            return None
        text, of = (format_amount(self.unit, each, self.currency) for each in (amount, granted))
        return f"used {self.unit} {text} ({self.enforce}) of {of} granted"


def leash_pulled(
    leashes: Iterable[Leash], used: Mapping[Unit, Interval], granted: Mapping[Unit, int], label: str, seconds: float
) -> str | None:
    """Why the step ``label`` must be ended after ``seconds``, in a sentence; ``None`` if it may go on."""
    for leash in leashes:
        if leash.unit in used and leash.unit in granted:
            reason = leash.over(used[leash.unit], granted[leash.unit])
            if reason is not None:
                return halted_text(leash.budget, label, reason, seconds)
    return None


def halted_text(budget: str, label: str, reason: str, seconds: float) -> str:
    """The sentence about a step that a budget ends after so many seconds."""
    return f"{budget}: {label} {reason}, after {seconds:.0f} s; it is halted"
