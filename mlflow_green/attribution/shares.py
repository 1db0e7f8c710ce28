"""Law 1: the energy of a window = shares of its consumers + idle + other, in whole microjoules, exactly. Pure.

A share follows CPU time. CPU seconds are not equal energy (an SMT sibling or a low frequency does less work in one),
so this is a rule of allocation, not a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from mlflow_green.records import Energy
from mlflow_green.units import NANOSECONDS_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who used a window's energy: the points of consumers, idle and other sum to the whole, the intervals do not.

    ``views`` are parts of what the consumers have: they are not in that sum.
    """

    consumers: Mapping[str, Energy]
    idle_microjoules: int
    other_microjoules: int
    views: Mapping[str, Energy] = field(default_factory=dict)


def share_by_use(
    energy: Energy,
    idle_microjoules: int,
    cpu_seconds: Mapping[str, float],
    host_busy_seconds: float,
    view_cpu_seconds: Mapping[str, float] = MappingProxyType({}),
) -> Shares:
    """Share the energy above idle by the CPU seconds of the window.

    The denominator is the larger of the host's busy seconds and the consumers' sum, for the two clocks differ in grain;
    what it has beyond the consumers is ``other``. When nobody was busy everything is idle. A share's low end takes the
    dynamic energy's low; its high end is high x min(1, (own + other) / denominator), for the unexplained could be its
    own. ``idle_microjoules`` is at most the energy.

    A view has its share by the same rule and takes nothing from anybody: it is in no sum.
    """
    nanoseconds = {name: _nanoseconds(seconds) for name, seconds in cpu_seconds.items()}
    busy = sum(nanoseconds.values())
    denominator = max(_nanoseconds(host_busy_seconds), busy)
    other = denominator - busy
    views = {
        name: _view(energy, idle_microjoules, _nanoseconds(seconds), other, denominator)
        for name, seconds in view_cpu_seconds.items()
    }
    if denominator == 0:
        nobody = {name: _none_used(energy) for name in cpu_seconds}
        return Shares(consumers=nobody, idle_microjoules=energy.microjoules, other_microjoules=0, views=views)
    *points, other_point = largest_remainder(energy.microjoules - idle_microjoules, [*nanoseconds.values(), other])
    consumers = {
        name: _share(energy, idle_microjoules, own_point, own, other, denominator)
        for (name, own), own_point in zip(nanoseconds.items(), points, strict=True)
    }
    return Shares(consumers=consumers, idle_microjoules=idle_microjoules, other_microjoules=other_point, views=views)


def share_of_gpu(
    energy: Energy, cpu_seconds: Mapping[str, float], view_cpu_seconds: Mapping[str, float] = MappingProxyType({})
) -> Shares:
    """Share a GPU's energy among the consumers that are there, by their CPU time; idle when there is none.

    A stand-in until a later version matches GPU processes to consumers: who feeds the GPU is not known, so each
    share's interval goes from 0 to the whole.
    """
    shares = share_by_use(energy, 0, cpu_seconds, 0.0, view_cpu_seconds)
    consumers, views = (
        {
            name: Energy(
                microjoules=share.microjoules,
                low_microjoules=0,
                high_microjoules=energy.high_microjoules,
                method=energy.method,
            )
            for name, share in each.items()
        }
        for each in (shares.consumers, shares.views)
    )
    return Shares(consumers=consumers, idle_microjoules=shares.idle_microjoules, other_microjoules=0, views=views)


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


def _share(energy: Energy, idle_microjoules: int, own_point: int, own: int, other: int, denominator: int) -> Energy:
    """The interval around a share of ``own_point`` for ``own`` of the ``denominator`` nanoseconds, which is not 0."""
    low, _, high = _dynamic(energy, idle_microjoules)
    return Energy(
        microjoules=own_point,
        low_microjoules=min(own_point, low * own // denominator),
        high_microjoules=max(own_point, -(-high * min(denominator, own + other) // denominator)),
        method=energy.method,
    )


def _view(energy: Energy, idle_microjoules: int, own: int, other: int, denominator: int) -> Energy:
    """A view's share; its clock alone may show more than the host and all consumers do, for they differ in grain."""
    denominator = max(denominator, own)
    if denominator == 0:
        return _none_used(energy)
    own_point = (energy.microjoules - idle_microjoules) * own // denominator
    return _share(energy, idle_microjoules, own_point, own, other, denominator)


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
