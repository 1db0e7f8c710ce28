"""How often steps stayed within what was held for them, beside what the estimate promised; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from mlflow_green.records import DecisionRow, Entry, Outcome, Unit

WILSON_Z = 1.959964  # the 97.5 % point of the normal distribution, for an interval of 95 %
_PROMISES = {"p50": 0.5, "p95": 0.95}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Of ``steps``, > 0, that were held by one kind of estimate, ``kept`` used no more than was held.

    ``low_ratio`` and ``high_ratio`` are the 95 % interval of the true part; ``promised_ratio`` is what a quantile
    promises, ``None`` for an estimate that promises nothing.
    """

    basis: str
    promised_ratio: float | None
    steps: int
    kept: int
    low_ratio: float
    high_ratio: float

    @property
    def kept_ratio(self) -> float:
        return self.kept / self.steps


def reliabilities(decisions: Iterable[DecisionRow], entries: Iterable[Entry]) -> tuple[Reliability, ...]:
    """One for each kind of estimate, the most frequent first.

    Steps that succeeded count, and halted ones that had used more than was held for them when they started. What a step
    that failed, was lost, or was halted below its hold would have used is not known, so it does not count.
    """
    ended = {entry.hold_id: entry for entry in sorted(entries, key=lambda entry: entry.ended_at)}
    outcomes: dict[str, list[bool]] = {}
    for row in decisions:
        decision, entry = row.decision, ended.get(row.hold_id) if row.hold_id else None
        total, held = entry.total if entry else None, decision.amounts.get(Unit.ENERGY)
        if not decision.admitted or not decision.estimate_basis or entry is None or total is None or held is None:
            continue
        kept = total.microjoules <= held
        if entry.outcome is Outcome.SUCCEEDED or (entry.outcome is Outcome.HALTED and not kept):
            outcomes.setdefault(decision.estimate_basis, []).append(kept)
    found = [_reliability(basis, each) for basis, each in outcomes.items()]
    return tuple(sorted(found, key=lambda each: -each.steps))


def _reliability(basis: str, outcomes: list[bool]) -> Reliability:
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    promised = _PROMISES.get(basis.partition(",")[0])
    return Reliability(
        basis=basis, promised_ratio=promised, steps=len(outcomes), kept=sum(outcomes), low_ratio=low, high_ratio=high
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a part, in [0, 1], from ``trials`` > 0.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n): E. B. Wilson, Probable inference, the law of succession,
    and statistical inference, JASA 22 (1927).
    """
    part, weight = successes / trials, WILSON_Z**2 / trials
    middle = part + weight / 2
    spread = sqrt(weight * (part * (1 - part) + weight / 4))
    return max(0.0, (middle - spread) / (1 + weight)), min(1.0, (middle + spread) / (1 + weight))
