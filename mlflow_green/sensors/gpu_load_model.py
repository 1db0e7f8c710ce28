"""For a GPU that tells how busy it is, and neither its energy nor its power: rated power by utilisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.sensors.cpu_model import Curve, power_watts
from mlflow_green.units import microjoules

# Maximum power in watts by the name that the driver gives, as NVIDIA's and AMD's data sheets state it (facts from the
# makers' product pages, read up to 2025). A GPU of any other name has no model: the nearest name may be half of it.
RATED_POWER_WATTS = {
    "AMD Instinct MI210": 300.0,
    "AMD Instinct MI250X": 560.0,
    "AMD Instinct MI300X": 750.0,
    "NVIDIA A10": 150.0,
    "NVIDIA A30": 165.0,
    "NVIDIA A40": 300.0,
    "NVIDIA A100-PCIE-40GB": 250.0,
    "NVIDIA A100 80GB PCIe": 300.0,
    "NVIDIA A100-SXM4-40GB": 400.0,
    "NVIDIA A100-SXM4-80GB": 400.0,
    "NVIDIA H100 PCIe": 350.0,
    "NVIDIA H100 80GB HBM3": 700.0,
    "NVIDIA H200": 700.0,
    "NVIDIA L4": 72.0,
    "NVIDIA L40": 300.0,
    "NVIDIA L40S": 350.0,
    "NVIDIA RTX A6000": 300.0,
    "NVIDIA GeForce RTX 3090": 350.0,
    "NVIDIA GeForce RTX 4090": 450.0,
    "Tesla P100-PCIE-16GB": 250.0,
    "Tesla T4": 70.0,
    "Tesla V100-PCIE-16GB": 250.0,
    "Tesla V100-SXM2-16GB": 300.0,
    "Tesla V100-SXM2-32GB": 300.0,
}
# Power as a part of the maximum at 0, 10, 50 and 100 % utilisation. Utilisation is the time with any kernel at work, so
# the same 100 % is a quarter of the maximum for a small kernel and all of it for matrix products: the width is our
# judgement. Measured: 8 H100 draw at most 0.76 of their rated power in training (Newkirk et al. 2025,
# arXiv:2506.14551); at rest a CUDA context adds 26-66 W to the bare idle of H100, A100 and L40S (arXiv:2605.23918).
LOW_CURVE: Curve = (0.05, 0.07, 0.15, 0.25)
RATED_CURVE: Curve = (0.12, 0.18, 0.43, 0.75)
HIGH_CURVE: Curve = (0.30, 0.50, 0.95, 1.05)


class _Counters(NamedTuple):
    """Joules since the sensor was opened, and the monotonic time of the last known utilisation."""

    until_seconds: float
    low: float = 0.0
    value: float = 0.0
    high: float = 0.0
    idle: float = 0.0


class GpuLoadModelSensor:
    """Modelled GPU energy as a counter: ``E += P(u) dt``, ``ESTIMATED``, with an interval of its own.

    ``names`` are the GPUs' product names by device name, e.g. their UUID. ``utilisations`` gives the part of the
    driver's last sample period (NVML: a sixth of a second to a second) in which each was busy, from 0 to 1, taken for
    all the time since the last call; ``None`` where that is not known: a gap, which the next known value bridges. ``P``
    (W) is ``RATED_CURVE`` x rated power, ``dt`` (s) the time since the last known value.

    Raises:
        SensorUnavailable: no GPU of a known name tells how busy it is.
    """

    name = "gpu load model"

    def __init__(
        self,
        names: Mapping[str, str],
        utilisations: Callable[[], Mapping[str, float | None]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._utilisations = utilisations
        self._monotonic = monotonic
        told = {gpu for gpu, ratio in utilisations().items() if ratio is not None}
        self._rated_watts = {
            gpu: RATED_POWER_WATTS[name] for gpu, name in names.items() if gpu in told and name in RATED_POWER_WATTS
        }
        if not self._rated_watts:
            raise SensorUnavailable("no GPU tells how busy it is and has a rated power in the table of known GPUs")
        self._counters = dict.fromkeys(self._rated_watts, _Counters(monotonic()))

    def devices(self) -> Sequence[Device]:
        return tuple(
            Device(
                name=gpu,
                domain=Domain.GPU,
                method=Method.ESTIMATED,
                power_watts_max=watts * RATED_CURVE[-1],
                error_ratio=1 - LOW_CURVE[-1] / RATED_CURVE[-1],
                error_source=f"a quarter of {watts:g} W to all of it at full utilisation: a data sheet, not a meter",
            )
            for gpu, watts in self._rated_watts.items()
        )

    def read(self) -> Sequence[Reading]:
        now_seconds, utilisations = self._monotonic(), self._utilisations()
        readings = [self._read(gpu, utilisations.get(gpu), now_seconds) for gpu in self._rated_watts]
        if all(reading.energy_microjoules is None for reading in readings):
            raise SensorRetry("no GPU tells how busy it is")
        return readings

    def close(self) -> None:
        pass

    def _read(self, gpu: str, busy_ratio: float | None, now_seconds: float) -> Reading:
        if busy_ratio is None:
            return Reading(device=gpu, monotonic_seconds=now_seconds, energy_microjoules=None)
        before = self._counters[gpu]
        full_joules = self._rated_watts[gpu] * max(0.0, now_seconds - before.until_seconds)
        now = self._counters[gpu] = _Counters(
            until_seconds=now_seconds,
            low=before.low + power_watts(LOW_CURVE, busy_ratio) * full_joules,
            value=before.value + power_watts(RATED_CURVE, busy_ratio) * full_joules,
            high=before.high + power_watts(HIGH_CURVE, busy_ratio) * full_joules,
            idle=before.idle + RATED_CURVE[0] * full_joules,
        )
        return Reading(
            device=gpu,
            monotonic_seconds=now_seconds,
            energy_microjoules=microjoules(now.value),
            energy_low_microjoules=microjoules(now.low),
            energy_high_microjoules=microjoules(now.high),
            idle_microjoules=microjoules(now.idle),
        )
