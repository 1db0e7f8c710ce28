"""CPU seconds of the whole host, from the kernel's ``/proc/stat``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorRetry

PROC_ROOT = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCpu:
    """CPU seconds since boot, summed over ``threads`` hardware threads, in ticks of usually 10 ms.

    ``busy_seconds`` is user + nice + system + irq + softirq; guest time is inside user already, and
    steal is not in it: that is what a hypervisor gave to others, neither used here nor idle.
    """

    busy_seconds: float
    threads: int


def read_host_cpu(proc_root: Path = PROC_ROOT) -> HostCpu:
    """The host's CPU seconds now.

    Raises:
        SensorRetry: the file cannot be read or has another form.
    """
    try:
        lines = (proc_root / "stat").read_text().splitlines()
        user, nice, system, _idle, _iowait, irq, softirq = (int(ticks) for ticks in lines[0].split()[1:8])
    except (OSError, ValueError, IndexError) as error:
        raise SensorRetry(f"{proc_root / 'stat'} cannot be read: {error}") from error
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    return HostCpu(
        busy_seconds=(user + nice + system + irq + softirq) / ticks_per_second,
        threads=max(1, sum(line.startswith("cpu") for line in lines) - 1),
    )
