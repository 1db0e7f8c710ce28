"""Hardware that we do not read ourselves, through CodeCarbon's hardware layer: AMD GPUs, Apple silicon, Windows.

CodeCarbon is imported only where one of these is there, for that costs a second or two. Its tracker is never used.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.units import JOULES_PER_KWH, microjoules

if TYPE_CHECKING:
    import tempfile

DRM_ROOT = Path("/sys/class/drm")
_AMD_VENDOR = "0x1002"
_LEARN_MORE = "no comparison of it with an external meter is known to us"
AMD_ERROR = (0.20, f"±20 % for AMD's energy counter or power through CodeCarbon; {_LEARN_MORE}")
# Apple's manual of powermetrics calls its powers estimated, and not fit to compare devices.
APPLE_ERROR = (0.40, "±40 % for what Apple's powermetrics estimates, through CodeCarbon")
# The same counters as powercap's, read by Windows.
WINDOWS_ERROR = (0.10, "±10 % for RAPL's package counter through Windows and CodeCarbon (Khan et al. 2018)")
# CodeCarbon's curve over load, 0.1 + 0.9 x load³, on a rated power that it may have guessed: as our own guess.
LOAD_ERROR = (2.0, "from nothing to three times the value: CodeCarbon's load model, whose rated power may be a guess")
# Where a part states no limit: above the largest boards and packages on sale in 2025.
POWER_WATTS_MAX = {Domain.GPU: 1_500.0, Domain.CPU: 500.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A device and what it used in the last so many seconds, in kWh."""

    device: Device
    energy_kwh: Callable[[float], float]


class CodeCarbonSensor:
    """What each part says it used since its last valid answer, added up.

    CodeCarbon gives 0 for hardware that does not answer, so an energy that is not above 0 is a gap. ``folder`` is what
    its parts write to, removed in the end.
    """

    name = "codecarbon"

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        folder: tempfile.TemporaryDirectory[str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = tuple(parts)
        self._folder = folder
        self._monotonic = monotonic
        self._energy_joules = dict.fromkeys((part.device.name for part in parts), 0.0)
        self._valid_seconds = dict.fromkeys(self._energy_joules, monotonic())

    def devices(self) -> Sequence[Device]:
        return tuple(part.device for part in self._parts)

    def read(self) -> Sequence[Reading]:
        readings = [self._read(part) for part in self._parts]
        if all(reading.energy_microjoules is None for reading in readings):
            raise SensorRetry("CodeCarbon could read none of its devices")
        return readings

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _read(self, part: Part) -> Reading:
        name, now_seconds = part.device.name, self._monotonic()
        try:
            joules = part.energy_kwh(now_seconds - self._valid_seconds[name]) * JOULES_PER_KWH
        except Exception:  # noqa: BLE001 - drivers' bindings of three vendors raise what they like
            joules = 0.0
        if not joules > 0:
            return Reading(device=name, monotonic_seconds=now_seconds, energy_microjoules=None)
        self._energy_joules[name] += joules
        self._valid_seconds[name] = now_seconds
        return Reading(
            device=name, monotonic_seconds=now_seconds, energy_microjoules=microjoules(self._energy_joules[name])
        )


def has_amd_gpu(drm_root: Path = DRM_ROOT) -> bool:
    """Whether the kernel drives a GPU of AMD, which on a desktop may only draw the screen."""
    for vendor in drm_root.glob("card*/device/vendor"):
        try:
            if vendor.read_text().strip() == _AMD_VENDOR:
                return True
        except OSError:
            continue
    return False


def open_amd_gpus() -> CodeCarbonSensor:
    """Every AMD GPU that reports energy or power.

    Raises:
        SensorUnavailable: AMD's library is missing, or no GPU can be read.
    """
    if importlib.util.find_spec("amdsmi") is None:
        raise SensorUnavailable("AMD GPUs are read through AMD's Python package amdsmi, which comes with ROCm")
    _quiet()
    from codecarbon.core import gpu_amd

    if not gpu_amd.AMDSMI_AVAILABLE:
        raise SensorUnavailable("AMD's Python package amdsmi cannot be imported; try 'amd-smi'")
    try:
        gpu_amd.amdsmi.amdsmi_init()
        handles = gpu_amd.amdsmi.amdsmi_get_processor_handles()
        parts = tuple(_amd_parts(gpu_amd.AMDGPUDevice(handle=each, gpu_index=i) for i, each in enumerate(handles)))
    except Exception as error:
        raise SensorUnavailable(f"AMD's library does not answer: {error}; try 'amd-smi'") from error
    if not parts:
        raise SensorUnavailable("AMD's library finds no GPU whose energy or power can be read")
    return CodeCarbonSensor(parts)


def open_cpu() -> CodeCarbonSensor:
    """The CPU, and on Apple silicon the GPU: by powermetrics or Windows' energy meter, else CodeCarbon's load model."""
    _quiet()
    from codecarbon.core import cpu, powermetrics, windows_emi
    from codecarbon.external import hardware

    if sys.platform == "darwin" and powermetrics.is_powermetrics_available():
        import tempfile

        folder = tempfile.TemporaryDirectory(prefix="green-powermetrics-")
        cpu_part, gpu_part = (
            hardware.AppleSiliconChip.from_utils(folder.name, chip_part=chip) for chip in ("CPU", "GPU")
        )
        chips = [
            _part("apple-cpu", Domain.CPU, Method.ESTIMATED, APPLE_ERROR, _hardware(cpu_part)),
            _part("apple-gpu", Domain.GPU, Method.ESTIMATED, APPLE_ERROR, _hardware(gpu_part)),
        ]
        return CodeCarbonSensor(chips, folder=folder)
    if sys.platform == "win32" and windows_emi.is_emi_available():
        part = hardware.CPU.from_utils("", "windows_emi")
        return CodeCarbonSensor([_part("windows-package", Domain.CPU, Method.MEASURED, WINDOWS_ERROR, _hardware(part))])
    rated = cpu.TDP()
    part = hardware.CPU.from_utils("", hardware.MODE_CPU_LOAD, rated.model, rated.tdp)
    power_watts_max = float(rated.tdp or hardware.POWER_CONSTANT)
    model = _part("codecarbon-cpu-load", Domain.CPU, Method.ESTIMATED, LOAD_ERROR, _hardware(part), power_watts_max)
    return CodeCarbonSensor([model])


def _amd_parts(gpus: Iterator[Any]) -> Iterator[Part]:
    from codecarbon.core.units import Time

    def energy_kwh(gpu: Any) -> Callable[[float], float]:
        return lambda seconds: float(gpu.delta(Time.from_seconds(seconds))["delta_energy_consumption"].kWh)

    for gpu in gpus:
        if gpu._reports_zero_power_by_design():  # noqa: SLF001 - the second half of a board that the first half reports
            continue
        details = gpu.get_static_details()
        power_watts_max = float(details["power_limit"] or POWER_WATTS_MAX[Domain.GPU])
        yield _part(str(details["uuid"]), Domain.GPU, Method.MEASURED, AMD_ERROR, energy_kwh(gpu), power_watts_max)


def _hardware(part: Any) -> Callable[[float], float]:
    part.start()
    return lambda seconds: float(part.measure_power_and_energy(seconds)[1].kWh)


def _part(
    name: str,
    domain: Domain,
    method: Method,
    error: tuple[float, str],
    energy_kwh: Callable[[float], float],
    power_watts_max: float | None = None,
) -> Part:
    device = Device(
        name=name,
        domain=domain,
        method=method,
        power_watts_max=power_watts_max or POWER_WATTS_MAX[domain],
        error_ratio=error[0],
        error_source=error[1],
    )
    return Part(device=device, energy_kwh=energy_kwh)


def _quiet() -> None:
    """What CodeCarbon has to say is no business of the user, who has not started it."""
    try:
        from codecarbon.external.logger import set_logger_level
    except ImportError as error:
        raise SensorUnavailable(f"CodeCarbon cannot be imported ({error})") from error
    set_logger_level("critical")
