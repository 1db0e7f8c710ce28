"""Where no counter shows the memory: a constant power for each GiB, all of it drawn whatever runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.sensors.proc_stat import PROC_ROOT, HostCpu
from mlflow_green.units import gibibytes, joules, microjoules

DEVICE_NAME = "memory-model"
# Lannelongue, Grealey & Inouye 2021, "Green Algorithms" (doi 10.1002/advs.202100707, CC BY 4.0). Cloud Carbon Footprint
# has 0.392 (methodology, 2021, Apache-2.0). "GB" of memory are taken as GiB, as memory is sold.
POWER_WATTS_PER_GIB = 0.3725
# 5 W a module (CodeCarbon 3, MIT) of 64 GiB, and what Teads read from RAPL on six hosts: 0.13-0.25 W/GB at rest, up to
# 1.10 W/GB with the memory at work (B. Davy 2021, in Cloud Carbon Footprint's aws-instances.csv, Apache-2.0).
POWER_WATTS_PER_GIB_LOW = 0.078
POWER_WATTS_PER_GIB_HIGH = 1.10
# A stated figure is believed, but it is one number for rest and load: Teads' hosts drew 0.3 to 2.0 times their mean.
STATED_LOW_RATIO = 0.3
STATED_HIGH_RATIO = 2.0
_BYTES_PER_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """Power in watts of all memory together: the value, both ends of its interval, and where they come from."""

    low_watts: float
    watts: float
    high_watts: float
    source: str


class MemoryModelSensor:
    """Modelled DRAM energy as a counter, ``E += P dt``: ``ESTIMATED``, and all of it idle energy.

    ``P`` (W) is the model's constant power and ``dt`` (s) the time since the last read; low and high are counters of
    their own. Who is charged for it is a matter of attribution, by resident memory. Only for hosts where neither a DRAM
    counter nor one of the whole platform is read.
    """

    name = "memory model"

    def __init__(self, memory: MemoryModel, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._monotonic = monotonic
        self._begun_seconds = monotonic()  # the counters were 0 then

    def devices(self) -> Sequence[Device]:
        memory = self._memory
        return (
            Device(
                name=DEVICE_NAME,
                domain=Domain.DRAM,
                method=Method.ESTIMATED,
                power_watts_max=memory.watts,
                error_ratio=max(memory.watts - memory.low_watts, memory.high_watts - memory.watts) / memory.watts,
                error_source=memory.source,
                counter_is_shared=True,
            ),
        )

    def resume(self, last: Reading, _host_cpu: HostCpu | None) -> None:
        """As ``ModelSensor`` says: a constant power needs no more than the time at which the counters were 0."""
        if last.energy_microjoules is not None:
            self._begun_seconds = last.monotonic_seconds - joules(last.energy_microjoules) / self._memory.watts

    def read(self) -> Sequence[Reading]:
        now_seconds = self._monotonic()
        seconds = now_seconds - self._begun_seconds
        energy_microjoules = microjoules(self._memory.watts * seconds)
        return (
            Reading(
                device=DEVICE_NAME,
                monotonic_seconds=now_seconds,
                energy_microjoules=energy_microjoules,
                energy_low_microjoules=microjoules(self._memory.low_watts * seconds),
                energy_high_microjoules=microjoules(self._memory.high_watts * seconds),
                idle_microjoules=energy_microjoules,
            ),
        )

    def close(self) -> None:
        pass


def memory_model(memory_bytes: int, stated_watts_per_gib: float | None = None) -> MemoryModel:
    """The power of so much memory; ``stated_watts_per_gib`` (above 0) is what the user knows of this machine."""
    memory_gib = gibibytes(memory_bytes)
    if stated_watts_per_gib is None:
        each, low, high = POWER_WATTS_PER_GIB, POWER_WATTS_PER_GIB_LOW, POWER_WATTS_PER_GIB_HIGH
        why = (
            f"{each} W/GiB as in Green Algorithms (2021), the interval spans CodeCarbon's 5 W a module and Teads' RAPL"
        )
    else:
        each = stated_watts_per_gib
        low, high = each * STATED_LOW_RATIO, each * STATED_HIGH_RATIO
        why = f"{each:g} W/GiB as stated, the interval is that between rest and load on Teads' hosts (2021)"
    return MemoryModel(
        low_watts=low * memory_gib,
        watts=each * memory_gib,
        high_watts=high * memory_gib,
        source=f"{low * memory_gib:.3g}-{high * memory_gib:.3g} W: {memory_gib:.3g} GiB at {why}",
    )


def read_memory_bytes(proc_root: Path = PROC_ROOT) -> int:
    """The memory that the kernel has, a little less than what is installed; in a virtual machine, the machine's.

    Raises:
        SensorUnavailable: ``/proc/meminfo`` cannot be read or has another form.
    """
    try:
        (line,) = (each for each in (proc_root / "meminfo").read_text().splitlines() if each.startswith("MemTotal:"))
        return int(line.split()[1]) * _BYTES_PER_KIB
    except (OSError, ValueError, IndexError) as error:
        raise SensorUnavailable(f"{proc_root / 'meminfo'} cannot be read: {error}") from error
