"""Law 1: the energy of a window = shares of its consumers + idle + other, in whole microjoules, exactly. Pure.

A share follows CPU time. CPU seconds are not equal energy (an SMT sibling or a low frequency does less work in one),
so this is a rule of allocation, not a measurement.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mlflow_green.records import Energy
from mlflow_green.units import NANOSECONDS_PER_SECOND

# What a cgroup's or the kernel's task clock may lack of the truth (docs/reference/cpu-time.md has the measurements).
EXACT_CLOCK_ERROR_RATIO = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who used a window's energy: the points sum to the whole, the intervals do not."""

    consumers: Mapping[str, Energy]
    idle_microjoules: int
    other_microjoules: int


def share_by_use(
    energy: Energy,
    idle_microjoules: int,
    cpu_seconds: Mapping[str, float],
    host_busy_seconds: float,
    *,
    exact: Collection[str] = (),
    grain_seconds: float = 0.0,
    hidden_microjoules: int = 0,
) -> Shares:
    """Share the energy above idle by the CPU seconds of the window.

    The denominator is the larger of the host's busy seconds and the consumers' sum, for the two clocks differ in grain;
    what it has beyond the consumers is ``other``. When nobody was busy everything is idle. A share's low end takes the
    dynamic energy's low; its high end is high x (own + unseen) / denominator, where what a clock has not seen can be
    all of ``other``, and of an ``exact`` one little. ``idle_microjoules`` is at most the energy.

    The host's busy seconds may lack ``grain_seconds``, and the energy what ``hidden_microjoules`` of its high end are
    for; that too could belong to those whose clock is not exact.
    """
    nanoseconds = {name: _nanoseconds(seconds) for name, seconds in cpu_seconds.items()}
    busy, grain = sum(nanoseconds.values()), _nanoseconds(grain_seconds)
    denominator = max(_nanoseconds(host_busy_seconds), busy)
    other = denominator - busy
    low, point, high = _dynamic(energy, idle_microjoules, hidden_microjoules)
    if denominator == 0:
        idle_microjoules, point = energy.microjoules, 0
    *points, other_point = largest_remainder(point, [*nanoseconds.values(), other])
    consumers = {}
    for (name, own), own_point in zip(nanoseconds.items(), points, strict=True):
        if name in exact:
            unseen = min(other, round(EXACT_CLOCK_ERROR_RATIO * own) + grain)
            most = -_part(-high, own + unseen, denominator)
        else:
            most = -_part(-high - hidden_microjoules, own + other + grain, denominator + grain)
        consumers[name] = Energy(
            microjoules=own_point,
            low_microjoules=min(own_point, _part(low, own, denominator)),
            high_microjoules=max(own_point, most),
            method=energy.method,
        )
    return Shares(consumers=consumers, idle_microjoules=idle_microjoules, other_microjoules=other_point)


def share_of_gpu(energy: Energy, cpu_seconds: Mapping[str, float]) -> Shares:
    """Share a GPU's energy among the consumers that are there, by their CPU time; idle when there is none.

    A stand-in until a later version matches GPU processes to consumers: who feeds the GPU is not known, so each
    share's interval goes from 0 to the whole.
    """
    shares = share_by_use(energy, 0, cpu_seconds, 0.0)
    anything = {
        name: Energy(
            microjoules=share.microjoules,
            low_microjoules=0,
            high_microjoules=energy.high_microjoules,
            method=energy.method,
        )
        for name, share in shares.consumers.items()
    }
    return Shares(consumers=anything, idle_microjoules=shares.idle_microjoules, other_microjoules=0)


def largest_remainder(whole: int, weights: Sequence[int]) -> list[int]:
    """Split ``whole`` by ``weights`` into integers that sum to it exactly; where nobody has any weight all are 0.

    Each part is its quota rounded down or up; those with the largest remainders are rounded up, earlier ones first.
    A weight of 0 gets 0.
    """
    if not any(weights):
        return [0] * len(weights)
    total = sum(weights)
    parts = [whole * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: -(whole * weights[index] % total))
    for index in by_remainder[: whole - sum(parts)]:
        parts[index] += 1
    return parts


def _dynamic(energy: Energy, idle_microjoules: int, hidden_microjoules: int) -> tuple[int, int, int]:
    """Low, point and high of what is above idle, without what is hidden; idle is taken to err as the whole does."""
    point, high = energy.microjoules - idle_microjoules, energy.high_microjoules - hidden_microjoules
    if energy.microjoules == 0:
        return 0, 0, high
    return _part(energy.low_microjoules, point, energy.microjoules), point, -_part(-high, point, energy.microjoules)


def _part(energy_microjoules: int, weight: int, weights: int) -> int:
    """Rounded down; none of it where nobody has any weight."""
    return energy_microjoules * weight // weights if weights else 0


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * NANOSECONDS_PER_SECOND))
