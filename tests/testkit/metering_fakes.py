"""A hand-turned clock, a hand-set CPU clock and a hand-written /proc/stat."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlflow_green.records import CpuClockName, Device, Domain, Method, Reading

START = datetime(2026, 1, 1, tzinfo=UTC)
TICKS = os.sysconf("SC_CLK_TCK")


class HandClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic_seconds(self) -> float:
        return self.seconds


class HandCpuClock:
    name = CpuClockName.PERF

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.closed = False

    def seconds(self) -> float:
        return self.cpu_seconds

    def close(self) -> None:
        self.closed = True


def write_proc_stat(
    folder: Path, *, busy_seconds: float, idle_seconds: float = 0.0, stolen_seconds: float = 0.07, threads: int = 2
) -> None:
    cpu = f"{round(busy_seconds * TICKS)} 0 0 {round(idle_seconds * TICKS)} 0 0 0 {round(stolen_seconds * TICKS)} 0 0"
    lines = [f"cpu  {cpu}", *(f"cpu{index} {cpu}" for index in range(threads)), "intr 1", "ctxt 2"]
    (folder / "stat").write_text("\n".join(lines))


def write_memory(folder: Path, *, memory_bytes: int) -> None:
    (folder / "meminfo").write_text(f"MemTotal:       {memory_bytes // 1024} kB\nMemFree:        1 kB\n")


def write_process(
    folder: Path, pid: int, *, resident_pages: int, hold_id: str | None = None, started: int = 7, parent: int = 1
) -> None:
    """A process as ``/proc`` shows it, marked with a step's ``GREEN_HOLD_ID`` or not."""
    (folder / str(pid)).mkdir(exist_ok=True)
    fields = f"S {parent} {' 0' * 17} {started} 0 {resident_pages} 0 0"
    (folder / str(pid) / "stat").write_text(f"{pid} (a (b) c) {fields}")
    environment = ["HOME=/", *([] if hold_id is None else [f"GREEN_HOLD_ID={hold_id}"]), ""]
    (folder / str(pid) / "environ").write_bytes("\0".join(environment).encode())


def device(name: str = "package-0", domain: Domain = Domain.CPU, **changes: object) -> Device:
    values = {
        "method": Method.MEASURED,
        "power_watts_max": 100.0,
        "error_ratio": 0.1,
        "error_source": "±10 % in this test",
        **changes,
    }
    return Device(name=name, domain=domain, **values)


def reading(seconds: float, energy_microjoules: int | None, name: str = "package-0", **counters: int) -> Reading:
    return Reading(device=name, monotonic_seconds=seconds, energy_microjoules=energy_microjoules, **counters)


class CounterSensor:
    """Reads counters that the test moves by hand: ``energy_microjoules`` by device name; a name that is not in it fails."""

    name = "counters"

    def __init__(self, clock: HandClock, devices: list[Device], energy_microjoules: dict[str, int]) -> None:
        self._clock, self._devices, self.energy_microjoules = clock, devices, energy_microjoules

    def devices(self) -> list[Device]:
        return self._devices

    def read(self) -> list[Reading]:
        return [
            reading(self._clock.seconds, self.energy_microjoules.get(each.name), each.name) for each in self._devices
        ]

    def close(self) -> None:
        pass
