"""What a sample of earlier uses says about the next one, where some were halted before their end; pure.

A halted use is censored: it would have gone on to at least what it had used.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

LEVEL = Fraction(90, 100)


class PredictionInterval(NamedTuple):
    """The next use lies in [low, high] in ``level`` of all cases; ``high`` is ``None`` where no end is known."""

    low: int
    high: int | None
    level: Fraction


def quantile_of(completed: Sequence[int], halted: Sequence[int], ratio: Fraction) -> int:
    """The smallest use that at least ``ratio``, in (0, 1], of all uses do not pass, by the product-limit estimator.

    F(t) = 1 - product over the completed uses x <= t of (1 - 1 / number of uses, halted ones too, that are >= x):
    E. L. Kaplan and P. Meier, Nonparametric estimation from incomplete observations, JASA 53 (1958). Without halted
    uses it is the use of rank ceil(ratio x n). Where F does not reach ``ratio``, it is the largest use of all.
    """
    ordered = sorted([*((use, False) for use in completed), *((use, True) for use in halted)])
    survival = Fraction(1)
    for index, (use, is_halted) in enumerate(ordered):
        if is_halted:
            continue
        at_risk = len(ordered) - index
        survival *= Fraction(at_risk - 1, at_risk)
        if 1 - survival >= ratio:
            return use
    return ordered[-1][0]


def prediction_interval(completed: Sequence[int], halted: Sequence[int]) -> PredictionInterval | None:
    """Where the next use lies, whatever the distribution; ``None`` for fewer than two uses.

    Of n + 1 uses in random order the last lies between the j-th and the k-th smallest of the others with probability
    (k - j) / (n + 1): G. J. Hahn and W. Q. Meeker, Statistical Intervals (1991), chapter 5. From 19 uses on the
    narrowest interval with at least ``LEVEL``, before that the whole range, which has less: the level says how much. A
    halted use counts with what it used for the low end, and as endless for the high end.
    """
    count = len(completed) + len(halted)
    if count < 2:  # noqa: PLR2004 - one use has no range
        return None
    rank = max(1, int((1 - LEVEL) / 2 * (count + 1)))
    ends = [*sorted(completed), *(None for _ in halted)]
    return PredictionInterval(
        low=sorted([*completed, *halted])[rank - 1],
        high=ends[count - rank],
        level=Fraction(count + 1 - 2 * rank, count + 1),
    )
