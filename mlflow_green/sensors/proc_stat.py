"""CPU seconds of the whole host, from the kernel's ``/proc/stat``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorRetry

PROC_ROOT = Path("/proc")
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCpu:
    """CPU seconds since boot, summed over ``threads`` hardware threads, in ticks of usually 10 ms.

    ``busy_seconds`` is user + nice + system + irq + softirq; guest time is inside user already, and steal is not in it:
    ``stolen_seconds`` is what a hypervisor gave to others while somebody here wanted to run, neither used here nor
    idle (``None`` where the kernel does not say).
    """

    busy_seconds: float
    threads: int
    stolen_seconds: float | None = None

    def stolen_since(self, before: HostCpu | None) -> float | None:
        """CPU seconds stolen since an earlier look, >= 0; ``None`` where one of the two does not say."""
        if before is None or self.stolen_seconds is None or before.stolen_seconds is None:
            return None
        return max(0.0, self.stolen_seconds - before.stolen_seconds)

    @property
    def grain_seconds(self) -> float:
        """What ``busy_seconds`` may lack at any moment: a tick of each hardware thread."""
        return self.threads * TICK_SECONDS


def read_host_cpu(proc_root: Path = PROC_ROOT) -> HostCpu:
    """The host's CPU seconds now.

    Raises:
        SensorRetry: the file cannot be read or has another form.
    """
    try:
        lines = (proc_root / "stat").read_text().splitlines()
        user, nice, system, _idle, _iowait, irq, softirq, *later = (int(ticks) for ticks in lines[0].split()[1:])
    except (OSError, ValueError, IndexError) as error:
        raise SensorRetry(f"{proc_root / 'stat'} cannot be read: {error}") from error
    return HostCpu(
        busy_seconds=(user + nice + system + irq + softirq) * TICK_SECONDS,
        threads=max(1, sum(line.startswith("cpu") for line in lines) - 1),
        stolen_seconds=later[0] * TICK_SECONDS if later else None,
    )
