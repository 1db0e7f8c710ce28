"""Law 1: the energy of a window = shares of its consumers + idle + other, in whole microjoules, exactly. Pure.

A share follows CPU time. CPU seconds are not equal energy (an SMT sibling or a low frequency does less work in one),
so this is a rule of allocation, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlflow_green.records import Energy
from mlflow_green.units import NANOSECONDS_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who used a window's energy: the points sum to the whole, the intervals do not."""

    consumers: Mapping[str, Energy]
    idle_microjoules: int
    other_microjoules: int


def share_by_use(
    energy: Energy, idle_microjoules: int, cpu_seconds: Mapping[str, float], host_busy_seconds: float
) -> Shares:
    """Share the energy above idle by the CPU seconds of the window.

    The denominator is the larger of the host's busy seconds and the consumers' sum, for the two clocks differ in grain;
    what it has beyond the consumers is ``other``. When nobody was busy everything is idle. A share's low end takes the
    dynamic energy's low; its high end is high x min(1, (own + other) / denominator), for the unexplained could be its
    own. ``idle_microjoules`` is at most the energy.
    """
    nanoseconds = {name: _nanoseconds(seconds) for name, seconds in cpu_seconds.items()}
    busy = sum(nanoseconds.values())
    denominator = max(_nanoseconds(host_busy_seconds), busy)
    if denominator == 0:
        nobody = {name: _none_used(energy) for name in cpu_seconds}
        return Shares(consumers=nobody, idle_microjoules=energy.microjoules, other_microjoules=0)
    low, point, high = _dynamic(energy, idle_microjoules)
    other = denominator - busy
    *points, other_point = largest_remainder(point, [*nanoseconds.values(), other])
    consumers = {
        name: Energy(
            microjoules=own_point,
            low_microjoules=min(own_point, low * own // denominator),
            high_microjoules=max(own_point, -(-high * min(denominator, own + other) // denominator)),
            method=energy.method,
        )
        for (name, own), own_point in zip(nanoseconds.items(), points, strict=True)
    }
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


def share_of_view(
    share: Callable[[Mapping[str, float]], Shares], own_cpu_seconds: float, cpu_seconds: Mapping[str, float]
) -> Energy:
    """The share of a part of what the consumers did: as if that part were a consumer, and the rest of them another.

    It is in no sum and takes nothing from anybody. ``share`` shares the window out by CPU seconds.
    """
    rest_seconds = max(0.0, sum(cpu_seconds.values()) - own_cpu_seconds)
    return share({"view": own_cpu_seconds, "rest": rest_seconds}).consumers["view"]


def largest_remainder(whole: int, weights: Sequence[int]) -> list[int]:
    """Split ``whole`` by ``weights`` (at least one above 0) into integers that sum to it exactly.

    Each part is its quota rounded down or up; those with the largest remainders are rounded up, earlier ones first.
    A weight of 0 gets 0.
    """
    total = sum(weights)
    parts = [whole * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: -(whole * weights[index] % total))
    for index in by_remainder[: whole - sum(parts)]:
        parts[index] += 1
    return parts


def _dynamic(energy: Energy, idle_microjoules: int) -> tuple[int, int, int]:
    """Low, point and high of what is above idle; idle is taken to err as the whole does."""
    point = energy.microjoules - idle_microjoules
    if energy.microjoules == 0:
        return 0, 0, energy.high_microjoules
    low = energy.low_microjoules * point // energy.microjoules
    return low, point, -(-energy.high_microjoules * point // energy.microjoules)


def _none_used(energy: Energy) -> Energy:
    return Energy(microjoules=0, low_microjoules=0, high_microjoules=0, method=energy.method)


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * NANOSECONDS_PER_SECOND))
