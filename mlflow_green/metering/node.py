"""What must be known of the node to close its next windows, and how they are closed and shared. Pure.

``Node`` is all of the memory that a meter has of the node, so whoever has it can go on where another has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from mlflow_green.attribution.idle import QUIET_BUSY_RATIO, baseline_power_watts, idle_microjoules
from mlflow_green.attribution.shares import (
    GpuWeights,
    Shares,
    share_by_use,
    share_idle_by_memory,
    share_of_gpu,
    share_of_view,
    sum_of_shares,
)
from mlflow_green.metering.grain import with_clocks
from mlflow_green.metering.integration import DeviceEnergy, Track, advance
from mlflow_green.records import Device, DeviceUse, Domain, Energy, Method, NodeWindow, Reading, total_energy
from mlflow_green.sensors.proc_stat import HostCpu
from mlflow_green.units import MICROWATTS_PER_WATT

QUIET_WINDOWS_MAX = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The end of a window: monotonic seconds, aware UTC that never goes back, the host's CPU time and its memory."""

    monotonic_seconds: float
    at: datetime
    host_cpu: HostCpu | None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Where the next window of a domain begins: its time and its first tick."""

    at: datetime
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The node as it was at the end of tick ``sequence``.

    ``quiet_power_microwatts`` are those of its last quiet windows: whole numbers, for they are written at each tick.
    """

    sampler_id: str
    host: str
    boot_id: str
    sequence: int
    last: Moment
    tracks: Mapping[str, Track]
    openings: Mapping[Domain, Opening]
    quiet_power_microwatts: Mapping[Domain, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one consumer did in a window: CPU seconds of all its processes, >= 0; at least so many, unless exact.

    A view is a part of what the others did. ``is_own_process``: it is work of the process that joined it, not of one
    that this started. ``resident_bytes`` is the memory that the processes kept. ``gpu_weights`` are their weights in
    the use of each GPU, by device. ``gpus`` are the devices that the consumer reserved, ``None`` where nothing says so.
    """

    cpu_seconds: float
    is_exact: bool = False
    is_view: bool = False
    is_own_process: bool = False
    resident_bytes: int | None = None
    gpu_weights: Mapping[str, float] = field(default_factory=dict)
    gpus: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWindow:
    """A closed window, and each consumer's and each view's share of it."""

    window: NodeWindow
    shares: Mapping[str, Energy]


def begun(node: Node, devices: Iterable[Device], readings: Mapping[str, Reading], now: Moment) -> Node:
    """The node with devices that it did not have: their windows begin now."""
    added = {device.name: Track(device=device) for device in devices if device.name not in node.tracks}
    opening = Opening(at=now.at, sequence=node.sequence + 1)
    tracks, _ = _advance(added, readings, now.monotonic_seconds)
    openings = {track.device.domain: opening for track in added.values()}
    return replace(node, tracks={**node.tracks, **tracks}, openings={**openings, **node.openings})


def taken_over(node: Node, devices: Iterable[Device]) -> Node:
    """The node for another process, which reads ``devices``.

    A counter of the hardware goes on where it was read last, so no energy is lost between the two. One that each
    process keeps for itself has nothing to do with what was read before: the time up to its first reading is a gap.
    What this process does not read is missing from now on: it may read the same energy in another way.
    """
    tracks = {
        device.name: replace(track, device=device, last=track.last if device.counter_is_shared else None)
        for device in devices
        if (track := node.tracks.get(device.name)) is not None
    }
    return without(replace(node, tracks=tracks), ())


def without(node: Node, names: Collection[str]) -> Node:
    """The node without these devices, and without the domains that have no other."""
    tracks = {name: track for name, track in node.tracks.items() if name not in names}
    domains = {track.device.domain for track in tracks.values()}
    quiet = node.quiet_power_microwatts
    return replace(
        node,
        tracks=tracks,
        openings={domain: opening for domain, opening in node.openings.items() if domain in domains},
        quiet_power_microwatts={domain: powers for domain, powers in quiet.items() if domain in domains},
    )


def close_windows(
    node: Node, readings: Mapping[str, Reading], uses: Mapping[str, Use], now: Moment
) -> tuple[Node, tuple[SharedWindow, ...]]:
    """Close one window a domain, and share it by what each consumer did in it.

    A device without a reading is a gap. A domain whose devices moved by no time has no window yet.
    """
    sequence = node.sequence + 1
    consumers = {key: use for key, use in uses.items() if not use.is_view}
    used_seconds = sum(use.cpu_seconds for use in consumers.values())
    tracks, found = _advance(node.tracks, readings, now.monotonic_seconds)
    if now.host_cpu is not None:
        tracks, found = with_clocks(tracks, found, used_seconds, now.host_cpu)
    openings, quiet = dict(node.openings), dict(node.quiet_power_microwatts)
    closed: list[SharedWindow] = []
    for domain, parts in found.items():
        energy = total_energy(part.energy for part in parts)
        assert energy is not None
        power_microwatts = _quiet_power_microwatts(energy, parts, used_seconds, node.last, now)
        if power_microwatts is not None and domain is not Domain.GPU:
            quiet[domain] = (*quiet.get(domain, ()), power_microwatts)[-QUIET_WINDOWS_MAX:]
        share = partial(_share, domain, energy, parts, readings, quiet.get(domain, ()), before=node.last, now=now)
        shares = share(consumers)
        views = {key: share_of_view(share, use, _rest(use, consumers)) for key, use in uses.items() if use.is_view}
        window = NodeWindow(
            sampler_id=node.sampler_id,
            host=node.host,
            boot_id=node.boot_id,
            domain=domain,
            sequence_first=openings[domain].sequence,
            sequence_last=sequence,
            started_at=openings[domain].at,
            ended_at=now.at,
            energy=energy,
            attributed_microjoules=sum(share.microjoules for share in shares.consumers.values()),
            idle_microjoules=shares.idle_microjoules,
            other_microjoules=shares.other_microjoules,
            coverage_ratio=min(1.0, sum(part.covered_seconds for part in parts) / sum(part.seconds for part in parts)),
        )
        openings[domain] = Opening(at=now.at, sequence=sequence + 1)
        closed.append(SharedWindow(window=window, shares={**shares.consumers, **views}))
    after = replace(node, sequence=sequence, last=now, tracks=tracks, openings=openings, quiet_power_microwatts=quiet)
    return after, tuple(closed)


def _advance(
    tracks: Mapping[str, Track], readings: Mapping[str, Reading], now_seconds: float
) -> tuple[Mapping[str, Track], Mapping[Domain, list[DeviceEnergy]]]:
    """What every device used since the last look, by domain."""
    after: dict[str, Track] = {}
    found: defaultdict[Domain, list[DeviceEnergy]] = defaultdict(list)
    for name, track in tracks.items():
        gap = Reading(device=name, monotonic_seconds=now_seconds, energy_microjoules=None)
        reading = replace(readings.get(name, gap), use=None)  # of one window only, and not to be remembered
        after[name], energy = advance(track, reading)
        if energy is not None:
            found[track.device.domain].append(energy)
    return after, found


def _share_gpu(part: DeviceEnergy, reading: Reading | None, uses: Mapping[str, Use]) -> Shares:
    """Share one GPU by who used it; a GPU that could not be read was used by processes that could not be seen."""
    name = part.device.name
    device_use = (reading and reading.use) or DeviceUse(by_pid={}, hidden=1.0, method=Method.ESTIMATED)
    weights = {key: use.gpu_weights.get(name, 0.0) for key, use in uses.items()}
    other = sum(device_use.by_pid.values()) - sum(weights.values())
    gpu = GpuWeights(
        consumers=weights,
        reserved={key: None if use.gpus is None else name in use.gpus for key, use in uses.items()},
        other=max(0.0, round(other, 9)),  # the remainder of a sum of floats is nobody
        hidden=device_use.hidden,
        idle=device_use.idle,
        is_measured=device_use.method is Method.MEASURED,
    )
    return share_of_gpu(part.energy, gpu)


def _rest(view: Use, consumers: Mapping[str, Use]) -> Use:
    """What the consumers did beside the view, which is a part of them."""
    resident_bytes = sum(use.resident_bytes or 0 for use in consumers.values())
    weights: defaultdict[str, float] = defaultdict(float)
    for use in consumers.values():
        for name, weight in use.gpu_weights.items():
            weights[name] += weight
    return Use(
        cpu_seconds=max(0.0, sum(use.cpu_seconds for use in consumers.values()) - view.cpu_seconds),
        is_exact=all(use.is_exact for use in consumers.values()),
        resident_bytes=max(0, resident_bytes - (view.resident_bytes or 0)),
        gpu_weights={name: max(0.0, weight - view.gpu_weights.get(name, 0.0)) for name, weight in weights.items()},
    )


def _share(
    domain: Domain,
    energy: Energy,
    parts: Sequence[DeviceEnergy],
    readings: Mapping[str, Reading],
    quiet_power_microwatts: Sequence[int],
    uses: Mapping[str, Use],
    *,
    before: Moment,
    now: Moment,
) -> Shares:
    """Share a window out by the rule of its domain."""
    if domain is Domain.GPU:
        return sum_of_shares(_share_gpu(part, readings.get(part.device.name), uses) for part in parts)
    shares = _share_by_use(energy, parts, quiet_power_microwatts, uses, before, now)
    if domain is Domain.DRAM and now.memory_bytes:
        resident = {key: use.resident_bytes for key, use in uses.items()}
        shares = share_idle_by_memory(shares, energy, resident, now.memory_bytes)
    return shares


def _share_by_use(
    energy: Energy,
    parts: Sequence[DeviceEnergy],
    quiet_power_microwatts: Sequence[int],
    uses: Mapping[str, Use],
    before: Moment,
    now: Moment,
) -> Shares:
    used = {key: use.cpu_seconds for key, use in uses.items()}
    own = [part.idle_microjoules for part in parts if part.idle_microjoules is not None]
    idle = idle_microjoules(
        energy.microjoules,
        max(part.seconds for part in parts),
        own_microjoules=sum(own) if len(own) == len(parts) else None,
        baseline_power_watts=baseline_power_watts([each / MICROWATTS_PER_WATT for each in quiet_power_microwatts]),
    )
    return share_by_use(
        energy,
        idle,
        used,
        _busy_seconds(before, now) or 0.0,
        exact=[key for key, use in uses.items() if use.is_exact],
        grain_seconds=now.host_cpu.grain_seconds if now.host_cpu else 0.0,
        hidden_microjoules=sum(part.hidden_microjoules for part in parts),
    )


def _quiet_power_microwatts(
    energy: Energy, parts: Sequence[DeviceEnergy], used_seconds: float, before: Moment, now: Moment
) -> int | None:
    """The power of the window if nobody was at work in it; an estimate teaches nothing."""
    busy_seconds, seconds = _busy_seconds(before, now), max(part.seconds for part in parts)
    if busy_seconds is None or now.host_cpu is None or not all(part.is_as_counted for part in parts):
        return None
    busy_ratio = max(busy_seconds, used_seconds) / (now.host_cpu.threads * seconds)
    return round(energy.microjoules / seconds) if busy_ratio < QUIET_BUSY_RATIO else None


def _busy_seconds(before: Moment, now: Moment) -> float | None:
    """Busy CPU seconds of the whole host between two moments."""
    if before.host_cpu is None or now.host_cpu is None:
        return None
    return max(0.0, now.host_cpu.busy_seconds - before.host_cpu.busy_seconds)
