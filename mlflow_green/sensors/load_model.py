"""Where no counter can be read: CPU energy modelled from its rated power and how busy it is.

Memory is not modelled: a figure per gigabyte would say nothing about which job used it, so DRAM stays missing.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.sensors.proc_stat import PROC_ROOT, HostCpu, read_host_cpu
from mlflow_green.units import microjoules

DEVICE_NAME = "cpu-load-model"
# A CPU at rest, as a part of its rated power: 0.12 x TDP in the load curve of Teads (B. Davy, "Building an AWS EC2
# Carbon Emissions Dataset", 2021). The curve between rest and full load is taken as a straight line.
IDLE_RATIO = 0.12
# Models on rated power erred by 27-37 % (Newkirk et al. 2025, arXiv:2506.14551), CodeCarbon by up to 40 %
# (Fischer 2025, arXiv:2509.22092).
KNOWN_CPU_ERROR_RATIO = 0.40
# What CodeCarbon answers for a CPU that is not in its table (DEFAULT_POWER_PER_CORE in codecarbon/core/cpu.py, 3.2): a
# guess, not a datum, so its interval is a third to three times the value.
GUESSED_POWER_WATTS_PER_THREAD = 4.0
GUESS_FACTOR = 3.0

_NOISE = re.compile(
    r"\((?:r|tm|c)\)|@.*$|\bwith .*$|\b(?:cpu|processor|\d+-core|(?:two|three|four|six|eight|twelve|sixteen)-core"
    r"|\d+(?:st|nd|rd|th) gen)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuModel:
    """What is believed of this host's CPUs together: power at full load in watts, with its interval.

    ``name`` is what the CPU calls itself, ``None`` where it says nothing; ``threads`` are hardware threads of the
    host or vCPUs of the virtual machine. ``source`` says in words where the power comes from.
    """

    name: str | None
    threads: int
    power_watts_max: float
    power_watts_max_low: float
    power_watts_max_high: float
    source: str

    @property
    def error_ratio(self) -> float:
        """The wider side of the interval, as a part of the value."""
        below = self.power_watts_max - self.power_watts_max_low
        return max(below, self.power_watts_max_high - self.power_watts_max) / self.power_watts_max


class LoadModelSensor:
    """Modelled CPU energy as a counter: ``E += P_idle dt + (P_max - P_idle) x busy / threads``.

    ``P_max`` (W) is the CPU's rated power, ``P_idle = IDLE_RATIO x P_max`` (W), ``dt`` (s) the time since the last
    read, ``busy`` (CPU s) the host's busy time in it, never more than ``threads x dt``. Low and high scale with the
    interval of ``P_max``; the idle part is a counter of its own. Everything is ``ESTIMATED``.

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
        self._energy_joules = 0.0
        self._idle_joules = 0.0
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
            ),
        )

    def read(self) -> Sequence[Reading]:
        now = (self._monotonic(), read_host_cpu(self._proc_root))
        self._add(*self._last, *now)
        self._last = now
        low_ratio = self._cpu.power_watts_max_low / self._cpu.power_watts_max
        high_ratio = self._cpu.power_watts_max_high / self._cpu.power_watts_max
        return (
            Reading(
                device=DEVICE_NAME,
                monotonic_seconds=now[0],
                energy_microjoules=microjoules(self._energy_joules),
                energy_low_microjoules=microjoules(self._energy_joules * low_ratio),
                energy_high_microjoules=microjoules(self._energy_joules * high_ratio),
                idle_microjoules=microjoules(self._idle_joules),
            ),
        )

    def close(self) -> None:
        pass

    def _add(self, before_seconds: float, before: HostCpu, now_seconds: float, now: HostCpu) -> None:
        elapsed_seconds = max(0.0, now_seconds - before_seconds)
        busy_seconds = min(max(0.0, now.busy_seconds - before.busy_seconds), elapsed_seconds * now.threads)
        idle_joules = IDLE_RATIO * self._cpu.power_watts_max * elapsed_seconds
        self._idle_joules += idle_joules
        self._energy_joules += idle_joules + (1 - IDLE_RATIO) * self._cpu.power_watts_max * busy_seconds / now.threads


def cpu_model_from(proc_root: Path = PROC_ROOT) -> CpuModel:
    """This host's CPU by ``/proc/cpuinfo`` and CodeCarbon's table of rated powers (read as a file, not imported)."""
    try:
        text = (proc_root / "cpuinfo").read_text()
    except OSError:
        text = ""
    fields = [line.partition(":") for line in text.splitlines()]
    pairs = [(key.strip(), value.strip()) for key, _, value in fields]
    name = next((value for key, value in pairs if key == "model name"), None)
    return cpu_model(
        name=name,
        threads=max(1, sum(key == "processor" for key, _ in pairs)),
        sockets=max(1, len({value for key, value in pairs if key == "physical id"})),
        virtual=any("hypervisor" in value.split() for key, value in pairs if key == "flags"),
        rated_power_watts=rated_power_watts(name) if name else None,
    )


def cpu_model(
    *,
    name: str | None,
    threads: int,
    sockets: int,
    virtual: bool,
    rated_power_watts: float | None,
) -> CpuModel:
    """Power at full load of ``sockets`` CPUs called ``name``, each rated at ``rated_power_watts``.

    A CPU of the table has its rated power. In a virtual machine, whose share of that is unknown, and for a CPU outside
    the table, 4 W a thread is a guess and its interval says so.
    """
    if rated_power_watts is None:
        return _guessed(name, threads, "not in the table of rated powers")
    if virtual:
        return _guessed(name, threads, "its share of the host CPU is unknown")
    return _known(name, threads, rated_power_watts * sockets, f"{name} is rated at {rated_power_watts:g} W")


def _known(name: str | None, threads: int, power_watts: float, why: str) -> CpuModel:
    return CpuModel(
        name=name,
        threads=threads,
        power_watts_max=power_watts,
        power_watts_max_low=power_watts * (1 - KNOWN_CPU_ERROR_RATIO),
        power_watts_max_high=power_watts * (1 + KNOWN_CPU_ERROR_RATIO),
        source=f"±{KNOWN_CPU_ERROR_RATIO:.0%} for a load model: {why} (CodeCarbon's table; Newkirk et al. 2025)",
    )


def _guessed(name: str | None, threads: int, why: str) -> CpuModel:
    power_watts = GUESSED_POWER_WATTS_PER_THREAD * threads
    return CpuModel(
        name=name,
        threads=threads,
        power_watts_max=power_watts,
        power_watts_max_low=power_watts / GUESS_FACTOR,
        power_watts_max_high=power_watts * GUESS_FACTOR,
        source=(
            f"a third to three times the value: {name or 'this CPU'}: {why}; "
            f"{GUESSED_POWER_WATTS_PER_THREAD:g} W for each of {threads} threads is CodeCarbon's default, a guess"
        ),
    )


def normalised(name: str) -> str:
    """A CPU's name without marks, frequency, core count and graphics, for exact comparison."""
    return " ".join(_NOISE.sub(" ", name).lower().split())


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
