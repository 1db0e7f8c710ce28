"""Energy of NVIDIA GPUs through NVML; the only module that imports ``pynvml``, and only when a driver is there."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.units import MICROJOULES_PER_MILLIJOULE, MILLIWATTS_PER_WATT, microjoules

LIBRARY = "libnvidia-ml.so.1"
# Above every board on sale in 2025 (1,200 W); used where the driver states no limit.
POWER_WATTS_MAX = 1_200.0
COUNTER_ERROR = (0.10, "±10 % for NVML's energy counter (NVIDIA states ±5 % for power; Yang et al. 2024)")
# Yang et al. 2024: A100 and H100 sample a quarter of the time, with errors up to 65 % in bad practice.
SAMPLED_ERROR = (0.40, "±40 % for power sampled through NVML, this GPU has no energy counter (Yang et al. 2024)")


class NvmlSensor:
    """Every GPU's total energy counter (mJ since the driver was loaded, so it may restart at 0).

    A GPU without the counter, or one whose counter stands at 0 (vGPU), has its power integrated here by the trapezoid
    rule between reads. GPUs that answer neither are left out: missing, not 0.

    Raises:
        SensorUnavailable: no library, no driver, or no GPU that can be read.
    """

    name = "nvml"

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._nvml = _load()
        self._gpus = [gpu for index in range(self._count()) if (gpu := self._open(index)) is not None]
        if not self._gpus:
            self.close()
            raise SensorUnavailable("NVML finds no GPU whose energy or power can be read")

    def devices(self) -> Sequence[Device]:
        return tuple(gpu.device for gpu in self._gpus)

    def read(self) -> Sequence[Reading]:
        readings = [
            Reading(device=gpu.device.name, monotonic_seconds=self._monotonic(), energy_microjoules=self._energy(gpu))
            for gpu in self._gpus
        ]
        if all(reading.energy_microjoules is None for reading in readings):
            raise SensorRetry("no GPU could be read through NVML")
        return readings

    def close(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            return  # the driver is gone already

    def _count(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            raise SensorUnavailable(f"NVML cannot list the GPUs: {error}") from error

    def _open(self, index: int) -> _Gpu | None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
        except nvml.NVMLError:
            return None
        has_counter = bool(self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle))
        if not has_counter and self._ask(nvml.nvmlDeviceGetPowerUsage, handle) is None:
            return None
        limit = self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        error_ratio, error_source = COUNTER_ERROR if has_counter else SAMPLED_ERROR
        device = Device(
            name=uuid,
            domain=Domain.GPU,
            method=Method.MEASURED,
            power_watts_max=limit / MILLIWATTS_PER_WATT if limit else POWER_WATTS_MAX,
            error_ratio=error_ratio,
            error_source=error_source,
            counter_is_shared=has_counter,
        )
        return _Gpu(device, handle, has_counter=has_counter)

    def _energy(self, gpu: _Gpu) -> int | None:
        if gpu.has_counter:
            millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption, gpu.handle)
            return None if millijoules is None else millijoules * MICROJOULES_PER_MILLIJOULE
        milliwatts = self._ask(self._nvml.nvmlDeviceGetPowerUsage, gpu.handle)
        return None if milliwatts is None else gpu.integrate(milliwatts / MILLIWATTS_PER_WATT, self._monotonic())

    def _ask(self, function: Callable[[Any], int], handle: Any) -> int | None:
        """NVML's answer, ``None`` when it has none: unsupported, lost GPU, no permission."""
        try:
            return int(function(handle))
        except self._nvml.NVMLError:
            return None


class _Gpu:
    def __init__(self, device: Device, handle: Any, *, has_counter: bool) -> None:
        self.device = device
        self.handle = handle
        self.has_counter = has_counter
        self._sample: tuple[float, float] | None = None
        self._energy_joules = 0.0

    def integrate(self, power_watts: float, now_seconds: float) -> int:
        if self._sample is not None:
            power_watts_before, before_seconds = self._sample
            self._energy_joules += (power_watts_before + power_watts) / 2 * (now_seconds - before_seconds)
        self._sample = (power_watts, now_seconds)
        return microjoules(self._energy_joules)


def _load() -> Any:
    try:
        # Without a driver this costs microseconds, importing pynvml 0.07 CPU seconds.
        ctypes.CDLL(LIBRARY)
        import pynvml
    except (OSError, ImportError) as error:
        raise SensorUnavailable(f"no NVIDIA driver here ({error})") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SensorUnavailable(f"the NVIDIA driver does not answer: {error}; try 'nvidia-smi'") from error
    return pynvml
