"""The Pareto front of energy and quality: the points that no other point beats on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Goal = Literal["min", "max"]


def pareto_front(points: Sequence[tuple[float, float]], goal: Goal = "min") -> tuple[int, ...]:
    """The indices of the points (energy, metric) on the front, by rising energy.

    Less energy is better; ``goal`` says which way the metric is better. A point is on the front unless
    another one is at least as good in both and better in one; of equal points all are on it.
    """
    sign = 1 if goal == "min" else -1
    order = sorted(range(len(points)), key=lambda index: (points[index][0], sign * points[index][1]))
    front: list[int] = []
    for index in order:
        energy, metric = points[index]
        best = points[front[-1]] if front else None
        if best is None or sign * metric < sign * best[1] or (energy, metric) == best:
            front.append(index)
    return tuple(front)
