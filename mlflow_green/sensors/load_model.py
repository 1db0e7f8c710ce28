"""Where no counter can be read: CPU energy modelled from its rated power and how busy it is."""

from __future__ import annotations

import csv
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.sensors.cpu_info import normalised, read_cpu_info
from mlflow_green.sensors.cpu_model import CpuModel, cpu_model, power_watts
from mlflow_green.sensors.proc_stat import PROC_ROOT, HostCpu, read_host_cpu
from mlflow_green.units import joules, microjoules

DEVICE_NAME = "cpu-load-model"


class LoadModelSensor:
    """Modelled CPU energy as a counter: ``E += P(busy / (threads x dt)) dt``.

    ``P`` (W) is the model's curve over the load, ``dt`` (s) the time since the last read, ``busy`` (CPU s) the host's
    busy time in it, never more than ``threads x dt``. Low and high are counters of their own, by the ends of the
    model's interval; so is the idle part, ``P(0) dt``. Everything is ``ESTIMATED``.

    Raises:
        SensorUnavailable: ``/proc/stat`` cannot be read.
    """

    name = "load model"

    def __init__(
        self, cpu: CpuModel, proc_root: Path = PROC_ROOT, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._cpu = cpu
        self._proc_root = proc_root
        self._monotonic = monotonic
        self._low_joules = self._energy_joules = self._high_joules = self._idle_joules = 0.0
        try:
            self._last = (monotonic(), read_host_cpu(proc_root))
        except SensorRetry as error:
            raise SensorUnavailable(f"CPU energy cannot be modelled: {error}") from error

    def devices(self) -> Sequence[Device]:
        return (
            Device(
                name=DEVICE_NAME,
                domain=Domain.CPU,
                method=Method.ESTIMATED,
                power_watts_max=self._cpu.power_watts_max,  # the most that the counter can show
                error_ratio=self._cpu.error_ratio,
                error_source=self._cpu.source,
                counter_is_shared=True,
            ),
        )

    def resume(self, last: Reading, host_cpu: HostCpu | None) -> None:
        """As ``ModelSensor`` says. Without the CPU time of then the counter begins anew, as its value shows."""
        if last.energy_microjoules is None or host_cpu is None:
            return
        self._energy_joules = joules(last.energy_microjoules)
        self._low_joules = joules(last.energy_low_microjoules or 0)
        self._high_joules = joules(last.energy_high_microjoules or 0)
        self._idle_joules = joules(last.idle_microjoules or 0)
        self._last = (last.monotonic_seconds, host_cpu)

    def read(self) -> Sequence[Reading]:
        now = (self._monotonic(), read_host_cpu(self._proc_root))
        self._add(*self._last, *now)
        self._last = now
        return (
            Reading(
                device=DEVICE_NAME,
                monotonic_seconds=now[0],
                energy_microjoules=microjoules(self._energy_joules),
                energy_low_microjoules=microjoules(self._low_joules),
                energy_high_microjoules=microjoules(self._high_joules),
                idle_microjoules=microjoules(self._idle_joules),
            ),
        )

    def close(self) -> None:
        pass

    def _add(self, before_seconds: float, before: HostCpu, now_seconds: float, now: HostCpu) -> None:
        elapsed_seconds = max(0.0, now_seconds - before_seconds)
        busy_seconds = max(0.0, now.busy_seconds - before.busy_seconds)
        load_ratio = busy_seconds / (elapsed_seconds * now.threads) if elapsed_seconds > 0 else 0.0
        self._low_joules += power_watts(self._cpu.low_watts, load_ratio) * elapsed_seconds
        self._energy_joules += power_watts(self._cpu.watts, load_ratio) * elapsed_seconds
        self._high_joules += power_watts(self._cpu.high_watts, load_ratio) * elapsed_seconds
        self._idle_joules += power_watts(self._cpu.watts, 0.0) * elapsed_seconds


def cpu_model_from(proc_root: Path = PROC_ROOT) -> CpuModel:
    """This host's CPU by ``/proc/cpuinfo`` and CodeCarbon's table of rated powers (read as a file, not imported)."""
    info = read_cpu_info(proc_root)
    return cpu_model(info, rated_power_watts(info.name) if info.name else None)


def rated_power_watts(name: str) -> float | None:
    """CodeCarbon's rated power in watts of the CPU of exactly this name, marks and frequency aside."""
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or not spec.submodule_search_locations:
        return None
    table = Path(spec.submodule_search_locations[0], "data", "hardware", "cpu_power.csv")
    try:
        text = table.read_text(encoding="utf-8")
    except OSError:
        return None
    wanted = normalised(name)
    telling = max(wanted.split(), key=len, default="")  # read at every start: only rows with this word are looked at
    rows = csv.reader(line for line in text.splitlines()[1:] if telling in line.lower())
    return next((watts for row in rows if normalised(row[0]) == wanted and (watts := _positive(row[1]))), None)


def _positive(text: str) -> float | None:
    try:
        power_watts = float(text)
    except ValueError:
        return None  # the table has a few misprints such as "27.29.5"
    return power_watts if power_watts > 0 else None
