"""What the ticks of the host's busy time hide from a load model. Pure.

A load model knows how busy the host was only to a tick (10 ms) a CPU, the consumers' clocks to the microsecond. A job
of a millisecond mostly falls between two ticks, and the model then shows a host at rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mlflow_green.metering.integration import DeviceEnergy, Track
from mlflow_green.records import Domain, Energy, Method
from mlflow_green.sensors.proc_stat import HostCpu
from mlflow_green.units import joules, microjoules


def with_clocks(
    tracks: Mapping[str, Track],
    found: Mapping[Domain, Sequence[DeviceEnergy]],
    used_seconds: float,
    host_cpu: HostCpu,
) -> tuple[dict[str, Track], dict[Domain, list[DeviceEnergy]]]:
    """The windows with every load model of a CPU raised to what the clocks of all consumers show, in CPU seconds.

    What is added is taken off the next windows, where the ticks show up, and is never ahead of the model's counter by
    more than a tick a CPU: over time the model says what its counter counted. A tick a CPU is in the high end.
    """
    after, raised = dict(tracks), {domain: list(parts) for domain, parts in found.items()}
    parts = raised.get(Domain.CPU, [])
    for index, part in enumerate(parts):
        name, watts = part.device.name, _watts_per_busy_cpu(part, host_cpu.threads)
        if watts > 0:
            tick_microjoules = microjoules(watts * host_cpu.grain_seconds)
            lacking = microjoules(watts * used_seconds) - _dynamic_microjoules(part)
            added = max(0, min(lacking, tick_microjoules - after[name].ahead_microjoules))
            after[name] = replace(after[name], ahead_microjoules=after[name].ahead_microjoules + added)
            parts[index] = _raised(part, added, tick_microjoules)
    return after, raised


def _watts_per_busy_cpu(part: DeviceEnergy, threads: int) -> float:
    """What one more busy hardware thread adds to a load model's power, in watts; 0 for any other device.

    A load model alone says which part is idle, and it shows its greatest power when all threads are busy.
    """
    if part.idle_microjoules is None or part.device.method is not Method.ESTIMATED or part.covered_seconds <= 0:
        return 0.0
    return max(0.0, part.device.power_watts_max - joules(part.idle_microjoules) / part.seconds) / threads


def _dynamic_microjoules(part: DeviceEnergy) -> int:
    return part.energy.microjoules - (part.idle_microjoules or 0)


def _raised(part: DeviceEnergy, added: int, tick_microjoules: int) -> DeviceEnergy:
    """The window with more energy, whose interval grows in proportion, and what a tick may hide above that."""
    energy = part.energy
    if energy.microjoules == 0:
        return part
    point = energy.microjoules + added
    high = -(-energy.high_microjoules * point // energy.microjoules)
    hidden = -(-energy.high_microjoules * tick_microjoules // energy.microjoules)
    more = Energy(
        microjoules=point,
        low_microjoules=energy.low_microjoules * point // energy.microjoules,
        high_microjoules=high + hidden,
        method=energy.method,
    )
    return replace(part, energy=more, hidden_microjoules=hidden)
