"""Earlier uses of a step, scaled to the size of its next input where its history shows that this helps; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import ceil, exp, inf, log
from statistics import fmean, median

from mlflow_green.records import PastUse

RUNS_MIN = 8
RUNS_MAX = 30
SPREAD_MIN = 1.5
REACH = 4
ERROR_RATIO_MAX = 0.9
EXPONENT_MAX = 3.0  # a steeper law is noise

_Point = tuple[int, int]
"""Input size in bytes and energy in microjoules, both > 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeLaw:
    """Energy = base + slope x size ^ exponent, in microjoules and bytes; it grows with the size."""

    name: str
    base: float
    slope: float
    exponent: float

    def energy_microjoules(self, input_bytes: int) -> float:
        return self.base + self.slope * float(input_bytes**self.exponent)

    def ratio(self, to_bytes: int, from_bytes: int) -> float:
        """How many times the energy of one input size another size needs; exactly 1 for the same size."""
        return self.energy_microjoules(to_bytes) / self.energy_microjoules(from_bytes)

    @property
    def text(self) -> str:
        return f"{self.name}, exponent {self.exponent:.2f}"


def size_law(past: Sequence[PastUse], input_bytes: int | None) -> SizeLaw | None:
    """How the energy of a step grows with its input; ``None`` where that is not known, or predicts no better.

    The latest ``RUNS_MAX`` completed runs of known size count. There must be ``RUNS_MIN``, of sizes that differ by at
    least the factor ``SPREAD_MIN``, and the next size must be within ``REACH`` times of what they had. Of a power law
    and a straight line, both by least squares, the one with the smaller leave-one-out error is taken, if that is at
    most ``ERROR_RATIO_MAX`` of the error without sizes. The error is the mean of |log(use / the median of the other
    uses, scaled by the law that they give)|, so that a factor too much counts like a factor too little.
    """
    known = [
        (use.input_bytes, use.energy_microjoules)
        for use in past
        if use.input_bytes and use.energy_microjoules > 0 and not use.censored
    ]
    points = tuple(known[-RUNS_MAX:])
    if not input_bytes or len(points) < RUNS_MIN:
        return None
    smallest, largest = min(points)[0], max(points)[0]
    if largest < SPREAD_MIN * smallest or not smallest / REACH <= input_bytes <= largest * REACH:
        return None
    return _law_of(points)


@lru_cache(maxsize=64)  # hundreds of ready jobs of one rule ask between two settlements, and each has several tiers
def _law_of(points: tuple[_Point, ...]) -> SizeLaw | None:
    plain = _error(points, lambda _points: _ALIKE)
    errors = {fit: _error(points, fit) for fit in (_power_law, _straight_line)}
    best = min(errors, key=errors.__getitem__)
    return best(points) if errors[best] <= ERROR_RATIO_MAX * plain else None


def scaled_to(uses: Iterable[PastUse], law: SizeLaw, input_bytes: int) -> list[PastUse]:
    """The uses as they would have been with an input of this size; completed ones of unknown size are left out.

    A halted use of unknown size stays as it is: it shows what was not enough.
    """
    return [
        replace(use, energy_microjoules=_scaled(use.energy_microjoules, law.ratio(input_bytes, use.input_bytes)))
        if use.input_bytes
        else use
        for use in uses
        if use.input_bytes or use.censored
    ]


def _scaled(energy_microjoules: int, ratio: float) -> int:
    return ceil(Fraction(ratio) * energy_microjoules)


def _error(points: Sequence[_Point], fit: Callable[[Sequence[_Point]], SizeLaw | None]) -> float:
    return fmean(_error_at(points, index, fit) for index in range(len(points)))


def _error_at(points: Sequence[_Point], index: int, fit: Callable[[Sequence[_Point]], SizeLaw | None]) -> float:
    size, energy = points[index]
    others = [point for other, point in enumerate(points) if other != index]
    law = fit(others)
    if law is None:
        return inf
    return abs(log(energy / median(other * law.ratio(size, other_size) for other_size, other in others)))


_ALIKE = SizeLaw(name="alike", base=1.0, slope=0.0, exponent=1.0)


def _power_law(points: Sequence[_Point]) -> SizeLaw | None:
    line = _least_squares([(log(size), log(energy)) for size, energy in points])
    if line is None or not 0 < line[1] <= EXPONENT_MAX:
        return None
    intercept, exponent = line
    return SizeLaw(name="power law", base=0.0, slope=exp(intercept), exponent=exponent)


def _straight_line(points: Sequence[_Point]) -> SizeLaw | None:
    line = _least_squares(points)
    if line is None or line[1] <= 0:
        return None
    intercept, slope = line
    return SizeLaw(name="linear", base=max(0.0, intercept), slope=slope, exponent=1.0)


def _least_squares(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Intercept and slope of y over x; ``None`` where all x are the same."""
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread <= 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return mean_y - slope * mean_x, slope
