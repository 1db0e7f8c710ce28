"""Law 1: the energy of a window = shares of its consumers + idle + other, in whole microjoules, exactly. Pure.

A share follows CPU time. CPU seconds are not equal energy (an SMT sibling or a low frequency does less work in one),
so this is a rule of allocation, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mlflow_green.records import Energy, Method
from mlflow_green.units import NANOSECONDS_PER_SECOND

# What a cgroup's or the kernel's task clock may lack of the truth (docs/reference/cpu-time.md has the measurements).
EXACT_CLOCK_ERROR_RATIO = 0.03

UseT = TypeVar("UseT")


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


def share_idle_by_memory(
    shares: Shares, energy: Energy, resident_bytes: Mapping[str, int | None], memory_bytes: int
) -> Shares:
    """Charge the idle part of DRAM's energy to those whose memory it keeps; what keeps nobody's stays idle.

    The denominator is the larger of all memory (above 0) and the consumers' sum, for shared pages count once for each
    process. So a share's low end stays as it was, and its high end takes its part of the idle energy's high. ``None``
    is memory that could not be found: it could be all that is nobody's.
    """
    resident = {name: max(0, resident_bytes.get(name, 0) or 0) for name in shares.consumers}
    held_bytes = sum(resident.values())
    denominator = max(memory_bytes, held_bytes)
    idle = shares.idle_microjoules
    high = -(-energy.high_microjoules * idle // energy.microjoules) if energy.microjoules else energy.high_microjoules
    held_at_most = {
        name: denominator - held_bytes if resident_bytes.get(name, 0) is None else held
        for name, held in resident.items()
    }
    *points, idle_point = largest_remainder(idle, [*resident.values(), denominator - held_bytes])
    consumers = {
        name: Energy(
            microjoules=share.microjoules + point,
            low_microjoules=share.low_microjoules,
            high_microjoules=min(
                energy.high_microjoules, share.high_microjoules - (-high * held_at_most[name] // denominator)
            ),
            method=share.method,
        )
        for (name, share), point in zip(shares.consumers.items(), points, strict=True)
    }
    return replace(shares, consumers=consumers, idle_microjoules=idle_point)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWeights:
    """Who used one GPU, in weights >= 0 of one scale.

    ``consumers`` has every consumer. ``other`` are processes of nobody that is known, ``hidden`` those that cannot be
    seen, ``idle`` is the part that nobody used. ``reserved`` says whether a consumer reserved this GPU, or others only;
    ``None`` where it is not known to have reserved any. ``is_measured`` tells utilisation from an equal split.
    """

    consumers: Mapping[str, float]
    reserved: Mapping[str, bool | None]
    other: float
    hidden: float
    idle: float
    is_measured: bool


def share_of_gpu(energy: Energy, gpu: GpuWeights) -> Shares:
    """Share one GPU's energy by its use.

    A GPU that somebody uses is theirs, with what it would draw at rest; one that nobody uses is idle. What hidden
    processes use is split equally among those who reserved the GPU, else among those who may have used it, else it is
    ``other``. A share may reach up to what others used, unless the consumer reserved other GPUs only. Where the weights
    are not measured, it is estimated and may be anything up to the whole, unless the consumer is the only user.
    """
    suspects = [name for name, reserved in gpu.reserved.items() if reserved]
    suspects = suspects or [name for name, reserved in gpu.reserved.items() if reserved is None]
    weights = dict(gpu.consumers)
    for name in suspects:
        weights[name] += gpu.hidden / len(suspects)
    other = gpu.other if suspects else gpu.other + gpu.hidden
    used = sum(weights.values())
    if not _nanoseconds(used + other):
        return share_by_use(energy, energy.microjoules, weights, 0.0)
    _, idle_part = largest_remainder(energy.microjoules, [_nanoseconds(used + other), _nanoseconds(gpu.idle)])
    # Without others the denominator is the consumers' own sum: two roundings would leave a remainder.
    shares = share_by_use(energy, idle_part, weights, used + other if other else 0.0)
    consumers: dict[str, Energy] = {}
    for name, share in shares.consumers.items():
        is_only_user = weights[name] == used and not (other or gpu.hidden or gpu.idle)
        if not weights[name] and (gpu.reserved[name] is False or not other):
            consumers[name] = _none_used(energy)
        elif gpu.is_measured or is_only_user:
            consumers[name] = share
        else:
            consumers[name] = replace(
                share, low_microjoules=0, high_microjoules=energy.high_microjoules, method=Method.ESTIMATED
            )
    return replace(shares, consumers=consumers)


def sum_of_shares(parts: Iterable[Shares]) -> Shares:
    """The shares of several devices together, in all of which the consumers are the same."""
    first, *others = parts
    consumers = dict(first.consumers)
    for part in others:
        consumers = {name: energy + part.consumers[name] for name, energy in consumers.items()}
    return Shares(
        consumers=consumers,
        idle_microjoules=sum(part.idle_microjoules for part in (first, *others)),
        other_microjoules=sum(part.other_microjoules for part in (first, *others)),
    )


def share_of_view(share: Callable[[Mapping[str, UseT]], Shares], own: UseT, rest: UseT) -> Energy:
    """The share of a part of what the consumers did: as if that part were a consumer, and the rest of them another.

    It is in no sum and takes nothing from anybody. ``share`` shares the window out, ``own`` and ``rest`` add up to all
    that the consumers did in it.
    """
    return share({"view": own, "rest": rest}).consumers["view"]


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


def _none_used(energy: Energy) -> Energy:
    return Energy(microjoules=0, low_microjoules=0, high_microjoules=0, method=energy.method)
