"""What is believed of a host's CPUs: their power in watts by how busy they are, with an interval. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlflow_green.sensors.cpu_info import CpuInfo, normalised
from mlflow_green.sensors.cpu_series import CLOUD_CPUS, Rated, series_of

# A curve gives power at these loads; between them it is a straight line.
LOADS = (0.0, 0.1, 0.5, 1.0)

Curve = tuple[float, float, float, float]

# Package power as a part of rated power: B. Davy, Teads, "Building an AWS EC2 Carbon Emissions Dataset" (2021), from
# RAPL on two-socket Xeon hosts.
RATED_CURVE: Curve = (0.12, 0.32, 0.75, 1.02)
# What it can be instead, on a server. The highest full load is Teads' own (Xeon Platinum 8275CL: 1.31). The rest is
# from 493 results of SPECpower_ssj2008 (2017-2026, rated at 100 W or more): 95 % of the wall power x 0.94 - 0.2 W for
# each GB of memory - 15 W a socket (our judgement of power supply, memory, fans and board) lies in 0.62-1.20 at full
# load; at rest, with as little beside the CPU as can be (0.96, 0.08 W, 5 W), in 0.06-0.43.
LOW_CURVE: Curve = (0.04, 0.10, 0.32, 0.60)
HIGH_CURVE: Curve = (0.42, 0.52, 0.98, 1.31)
# Twice that: a vCPU may be a whole core, or alone on its core on a quiet host, where the curve is steepest (0.12 + 1.7
# on a host that is 20 % busy); and a desktop or laptop CPU may draw its turbo power for good (Intel's Core i9-13900K is
# rated at 125 W and goes to 253 W, data sheet 743844).
WIDE_HIGH_CURVE: Curve = (0.84, 1.04, 1.96, 2.62)
# CodeCarbon answers the same for each CPU that is not in its table (DEFAULT_POWER_PER_CORE in codecarbon/core/cpu.py,
# 3.2): a guess, not a datum, so its interval is a third to three times the value.
GUESSED_POWER_WATTS_PER_THREAD = 4.0
GUESS_FACTOR = 3.0
# Server CPUs start here; a small "Xeon E" or "EPYC 4000" is a desktop CPU by another name.
SERVER_RATED_WATTS_MIN = 100.0

_CORES = re.compile(r"\b(\d+)-Core\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuModel:
    """Power of this host's CPUs together at ``LOADS``, in watts: the value and both ends of its interval.

    ``name`` is what the CPU calls itself, ``None`` where it says nothing; ``threads`` are hardware threads of the
    host or vCPUs of the virtual machine. ``source`` says in words where the power comes from and what is assumed.
    """

    name: str | None
    threads: int
    low_watts: Curve
    watts: Curve
    high_watts: Curve
    source: str

    @property
    def power_watts_max(self) -> float:
        """At full load; the highest that the value can be."""
        return self.watts[-1]

    @property
    def error_ratio(self) -> float:
        """The wider side of the interval at full load, as a part of the value."""
        return max(self.watts[-1] - self.low_watts[-1], self.high_watts[-1] - self.watts[-1]) / self.watts[-1]


def power_watts(curve: Curve, load_ratio: float) -> float:
    """The curve's power in watts at a load from 0 to 1; one outside that is taken as the nearer end."""
    load = min(max(load_ratio, 0.0), 1.0)
    after = next(index for index, each in enumerate(LOADS) if index and load <= each)
    ratio = (load - LOADS[after - 1]) / (LOADS[after] - LOADS[after - 1])
    return curve[after - 1] + ratio * (curve[after] - curve[after - 1])


def cpu_model(info: CpuInfo, rated_power_watts: float | None) -> CpuModel:
    """The CPUs' power; ``rated_power_watts`` is that of one CPU of exactly this name, ``None`` if it is in no table.

    The first that applies: a name with its rated power, by sockets, or in a virtual machine by its vCPUs' part of the
    CPU's threads; the series that family and model name, by threads; a guess of 4 W a thread.
    """
    if info.name and rated_power_watts is not None and not info.virtual:
        return _of_name(info, info.name, rated_power_watts)
    rated = _rated_with_threads(info.name or "", rated_power_watts)
    if rated is not None:
        why = f"{info.threads} of the {rated.threads} threads of one {rated.name}, rated at {rated.power_watts:g} W"
        return _by_thread(info, rated, rated, rated, why)
    series = series_of(info)
    if series is None:
        return _guessed(info)
    why = (
        f"{info.threads} threads of a {series.name} CPU, rated at {series.leanest.power_watts_per_thread:.1f} "
        f"({series.leanest.name}) to {series.hungriest.power_watts_per_thread:.1f} W ({series.hungriest.name}) a thread"
    )
    return _by_thread(info, series.leanest, series.typical, series.hungriest, why)


def _rated_with_threads(name: str, rated_power_watts: float | None) -> Rated | None:
    """A CPU of which the whole is known as well as the power, so that vCPUs are a part of it.

    AMD's names say the cores ("EPYC 7763 64-Core Processor"), of two threads each.
    """
    cores = _CORES.search(name)
    if cores and rated_power_watts is not None:
        return Rated(name, rated_power_watts, 2 * int(cores[1]))
    return CLOUD_CPUS.get(normalised(name))


def _of_name(info: CpuInfo, name: str, rated_power_watts: float) -> CpuModel:
    words = normalised(name).split()
    is_server = rated_power_watts >= SERVER_RATED_WATTS_MIN and not {"xeon", "epyc"}.isdisjoint(words)
    together = rated_power_watts * info.sockets
    limit = "" if is_server else "; a desktop CPU may draw twice its rated power"
    return _model(
        info,
        low_watts=_times(LOW_CURVE, together),
        watts=_times(RATED_CURVE, together),
        high_watts=_times(HIGH_CURVE if is_server else WIDE_HIGH_CURVE, together),
        why=f"{name} is rated at {rated_power_watts:g} W (CodeCarbon's table){limit}",
    )


def _by_thread(info: CpuInfo, leanest: Rated, typical: Rated, hungriest: Rated, why: str) -> CpuModel:
    assumed = "; assumed: a vCPU is a thread, at most a core, on a host as busy as this machine" if info.virtual else ""
    return _model(
        info,
        low_watts=_times(LOW_CURVE, leanest.power_watts_per_thread * info.threads),
        watts=_times(RATED_CURVE, typical.power_watts_per_thread * info.threads),
        high_watts=_times(
            WIDE_HIGH_CURVE if info.virtual else HIGH_CURVE, hungriest.power_watts_per_thread * info.threads
        ),
        why=f"{why} (makers' tables){assumed}",
    )


def _guessed(info: CpuInfo) -> CpuModel:
    together = GUESSED_POWER_WATTS_PER_THREAD * info.threads
    watts = _times(RATED_CURVE, together)
    return _model(
        info,
        low_watts=_times(watts, 1 / GUESS_FACTOR),
        watts=watts,
        high_watts=_times(watts, GUESS_FACTOR),
        why=(
            f"{info.name or 'this CPU'} is in no table; {GUESSED_POWER_WATTS_PER_THREAD:g} W for each of "
            f"{info.threads} threads is CodeCarbon's default, a guess"
        ),
    )


def _model(info: CpuInfo, *, low_watts: Curve, watts: Curve, high_watts: Curve, why: str) -> CpuModel:
    band = (
        f"{low_watts[0]:.3g}-{high_watts[0]:.3g} W at rest and {low_watts[-1]:.3g}-{high_watts[-1]:.3g} W at full load"
    )
    return CpuModel(
        name=info.name,
        threads=info.threads,
        low_watts=low_watts,
        watts=watts,
        high_watts=high_watts,
        source=f"{band}: {why}; Teads' curve (2021), interval by SPECpower_ssj2008",
    )


def _times(curve: Curve, watts: float) -> Curve:
    rest, tenth, half, full = curve
    return rest * watts, tenth * watts, half * watts, full * watts
