"""Energy of NVIDIA GPUs through NVML; the only module that imports ``pynvml``, and only when a driver is there."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, DeviceUse, Domain, Method, Reading
from mlflow_green.sensors.gpu_load_model import GpuLoadModelSensor
from mlflow_green.sensors.gpu_processes import GpuProcesses, ask, mig_handles, shows_all_pids
from mlflow_green.sensors.power_trace import PowerTrace
from mlflow_green.sensors.proc_stat import PROC_ROOT
from mlflow_green.units import MICROJOULES_PER_MILLIJOULE, MILLIWATTS_PER_WATT, PERCENT_PER_UNIT, microjoules

LIBRARY = "libnvidia-ml.so.1"
# Above every board on sale in 2025 (1,200 W); used where the driver states no limit.
POWER_WATTS_MAX = 1_200.0
COUNTER_ERROR = (0.10, "±10 % for NVML's energy counter (NVIDIA states ±5 % for power; Yang et al. 2024)")
# NVML's reference of nvmlDeviceGetPowerUsage: ±5 % of the power drawn, on Fermi and Kepler; nothing later states more.
SAMPLED_ERROR = (0.10, "±10 % and what lies between the samples, for power sampled through NVML (NVIDIA states ±5 %)")
# Yang et al. 2024, arXiv:2312.02741: A100 and H100 look at a quarter of the time only, with errors of up to 65 %.
QUARTER_SAMPLED_ERROR = (0.40, "±40 % for power that NVML samples for a quarter of the time (Yang et al. 2024)")
_AMPERE = 7  # NVML_DEVICE_ARCH_AMPERE
# A counter that stands still for so long, while power is drawn, is none: it is renewed every 20 to 100 ms.
STILL_SECONDS_MAX = 1.0


class NvmlSensor:
    """Every GPU's total energy counter (mJ since the driver was loaded, so it may restart at 0), and who uses the GPU.

    A GPU without the counter, or with one that stands still while power is drawn (vGPU), has its power polled by a
    thread and integrated here (``PowerTrace``), from the last value of the counter on; without ``polls_itself``
    whoever has the sensor calls ``poll``. Of those that answer neither (vGPU, some older boards) the energy is modelled
    by how busy they are; what tells too little for that is left out, missing and not 0, and said in ``unmetered``. In
    MIG mode the device is the whole GPU, for an instance has no power of its own. A GPU that was lost is looked for at
    each read; while none answers all are gaps. ``all_pids`` says whether NVML names every process here, rather than
    some or none as in a container.

    Raises:
        SensorUnavailable: no library, no driver, or no GPU that can be read or modelled.
    """

    name = "nvml"

    def __init__(
        self,
        proc_root: Path = PROC_ROOT,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        polls_itself: bool = True,
    ) -> None:
        self._monotonic = monotonic
        self._nvml = _load()
        self.all_pids = shows_all_pids(proc_root)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._poller: threading.Thread | None = None
        self._polls_itself = polls_itself
        self._gpus: list[_Gpu] = []
        self._silent: dict[str, _SilentGpu] = {}
        self._model: GpuLoadModelSensor | None = None
        try:
            self._open_all()
        except SensorUnavailable:
            self.close()  # NVML counts who has initialised it: it must not stay so for one that gave up
            raise
        self._poll_in_background()

    def devices(self) -> Sequence[Device]:
        modelled = self._model.devices() if self._model else ()
        return (
            *(gpu.device for gpu in self._gpus),
            *(replace(device, aliases=self._silent[device.name].aliases) for device in modelled),
        )

    @property
    def unmetered(self) -> Sequence[str]:
        """One sentence for each GPU that is neither measured nor modelled."""
        known = {device.name for device in self.devices()}
        return tuple(
            f"{uuid} ({gpu.product}): not metered; it tells neither energy nor power, and it tells no utilisation or "
            "no data sheet of this name is known"
            for uuid, gpu in self._silent.items()
            if uuid not in known
        )

    def read(self) -> Sequence[Reading]:
        with self._lock:
            readings = [*map(self._read, self._gpus), *self._read_model()]
            if all(reading.energy_microjoules is None for reading in readings):
                self._start_again()
        self._poll_in_background()
        users = {gpu.device.name: gpu.users for gpu in self._gpus} | {
            uuid: gpu.users for uuid, gpu in self._silent.items()
        }
        return [replace(reading, use=users[reading.device].look(reading)) for reading in readings]

    def poll(self) -> float:
        """Take in the power of every GPU without a counter; after how many seconds to do that again."""
        with self._lock:
            for gpu in self._gpus:
                self._poll(gpu)
            return min((gpu.trace.poll_seconds for gpu in self._gpus if gpu.trace is not None), default=1.0)

    def close(self) -> None:
        self._closed.set()
        if self._poller is not None:
            self._poller.join(timeout=1.0)
        ask(self._nvml, self._nvml.nvmlShutdown)

    # --- opening -----------------------------------------------------------------------------------

    def _count(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            raise SensorUnavailable(f"NVML cannot list the GPUs: {error}") from error

    def _open_all(self) -> None:
        nvml = self._nvml
        for index in range(self._count()):
            handle = ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
            uuid = None if handle is None else ask(nvml, nvml.nvmlDeviceGetUUID, handle)
            if uuid is None:
                continue
            mig_uuids = (ask(nvml, nvml.nvmlDeviceGetUUID, each) for each in mig_handles(nvml, handle))
            aliases = (str(index), *(str(each) for each in mig_uuids if each is not None))
            users = _Users(GpuProcesses(nvml, all_pids=self.all_pids), handle)
            gpu = self._open(str(uuid), aliases, users)
            if gpu is not None:
                self._gpus.append(gpu)
            else:
                product = str(ask(nvml, nvml.nvmlDeviceGetName, handle) or "of unknown name")
                self._silent[str(uuid)] = _SilentGpu(product, aliases, users)
        with contextlib.suppress(SensorUnavailable):
            names = {uuid: gpu.product for uuid, gpu in self._silent.items()}
            self._model = GpuLoadModelSensor(names, self._load_ratios, monotonic=self._monotonic)
        if not self._gpus and self._model is None:
            raise SensorUnavailable("; ".join(("NVML finds no GPU that can be read", *self.unmetered)))

    def _open(self, uuid: str, aliases: tuple[str, ...], users: _Users) -> _Gpu | None:
        """``None`` for one that tells neither energy nor power."""
        nvml, handle = self._nvml, users.handle
        counter_millijoules = ask(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        architecture = ask(nvml, nvml.nvmlDeviceGetArchitecture, handle)
        is_old = architecture is not None and architecture < _AMPERE
        power_watts = self._usage_watts if is_old else self._instant_watts
        if not counter_millijoules and power_watts(handle) is None:
            return None
        sampled_error = SAMPLED_ERROR if is_old else QUARTER_SAMPLED_ERROR
        error_ratio, error_source = COUNTER_ERROR if counter_millijoules else sampled_error
        limit_milliwatts = ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        device = Device(
            name=uuid,
            domain=Domain.GPU,
            method=Method.MEASURED,
            power_watts_max=limit_milliwatts / MILLIWATTS_PER_WATT if limit_milliwatts else POWER_WATTS_MAX,
            error_ratio=error_ratio,
            error_source=error_source,
            counter_is_shared=bool(counter_millijoules),
            aliases=aliases,
        )
        gpu = _Gpu(device, users, power_watts=power_watts, sampled_error_ratio=sampled_error[0])
        if not counter_millijoules:
            gpu.trace = PowerTrace(device.power_watts_max)
        return gpu

    # --- reading -----------------------------------------------------------------------------------

    def _read(self, gpu: _Gpu) -> Reading:
        is_valid = self._read_counter(gpu) if gpu.trace is None else self._poll(gpu)
        if is_valid:
            return gpu.reading(self._monotonic())
        self._find_again(gpu.device.name, gpu.users)
        return Reading(device=gpu.device.name, monotonic_seconds=self._monotonic(), energy_microjoules=None)

    def _read_model(self) -> Sequence[Reading]:
        if self._model is None:
            return ()
        try:
            return self._model.read()
        except SensorRetry:
            now_seconds = self._monotonic()
            return [
                Reading(device=device.name, monotonic_seconds=now_seconds, energy_microjoules=None)
                for device in self._model.devices()
            ]

    def _load_ratios(self) -> dict[str, float | None]:
        """The part of NVML's last sample period in which each silent GPU was busy, 0 to 1; ``None`` if not told."""
        found: dict[str, float | None] = {}
        for uuid, gpu in self._silent.items():
            rates = ask(self._nvml, self._nvml.nvmlDeviceGetUtilizationRates, gpu.users.handle)
            found[uuid] = None if rates is None else rates.gpu / PERCENT_PER_UNIT
            if rates is None:
                self._find_again(uuid, gpu.users)
        return found

    def _read_counter(self, gpu: _Gpu) -> bool:
        """Whether there is a valid energy now, by the counter or, from now on, by the power."""
        millijoules = ask(self._nvml, self._nvml.nvmlDeviceGetTotalEnergyConsumption, gpu.users.handle)
        if millijoules is None:
            return False
        if gpu.is_alive(millijoules * MICROJOULES_PER_MILLIJOULE, self._monotonic()):
            return True
        power_watts = gpu.power_watts(gpu.users.handle)
        if not power_watts:
            return True
        gpu.trace = PowerTrace(gpu.device.power_watts_max)
        gpu.trace.poll(gpu.moved_seconds, power_watts)
        return self._poll(gpu)

    def _poll(self, gpu: _Gpu) -> bool:
        power_watts = gpu.power_watts(gpu.users.handle)
        if gpu.trace is None or power_watts is None:
            return False
        gpu.trace.poll(self._monotonic(), power_watts)
        return True

    def _usage_watts(self, handle: Any) -> float | None:
        """The power drawn, before Ampere that of an instant, later the mean of a second (NVML's reference)."""
        milliwatts = ask(self._nvml, self._nvml.nvmlDeviceGetPowerUsage, handle)
        return None if milliwatts is None else float(milliwatts / MILLIWATTS_PER_WATT)

    def _instant_watts(self, handle: Any) -> float | None:
        """The power of an instant where the driver tells it apart from the mean."""
        nvml = self._nvml
        fields = ask(nvml, nvml.nvmlDeviceGetFieldValues, handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if fields is None or fields[0].nvmlReturn != nvml.NVML_SUCCESS:
            return self._usage_watts(handle)
        return float(fields[0].value.uiVal / MILLIWATTS_PER_WATT)

    def _poll_in_background(self) -> None:
        if self._polls_itself and self._poller is None and any(gpu.trace is not None for gpu in self._gpus):
            self._poller = threading.Thread(target=self._keep_polling, name="green-gpu-power", daemon=True)
            self._poller.start()

    def _keep_polling(self) -> None:
        # A driver's bug must not write into the user's terminal; from then on polls are missing, and the bounds wide.
        with contextlib.suppress(Exception):
            while not self._closed.wait(self.poll()):
                pass

    # --- losing and finding ------------------------------------------------------------------------

    def _find_again(self, uuid: str, users: _Users) -> None:
        users.handle = ask(self._nvml, self._nvml.nvmlDeviceGetHandleByUUID, uuid) or users.handle

    def _start_again(self) -> None:
        """No GPU answers: perhaps the driver was loaded anew."""
        ask(self._nvml, self._nvml.nvmlShutdown)
        ask(self._nvml, self._nvml.nvmlInit)
        for gpu in self._gpus:
            self._find_again(gpu.device.name, gpu.users)
        for uuid, silent in self._silent.items():
            self._find_again(uuid, silent.users)


class _Users:
    """Who uses the GPU of this handle, from look to look."""

    def __init__(self, processes: GpuProcesses, handle: Any) -> None:
        self.handle = handle
        self._processes = processes
        self._last_use: DeviceUse | None = None

    def look(self, reading: Reading) -> DeviceUse | None:
        """Who uses the GPU; of one that cannot be read, probably those who used it last."""
        if reading.energy_microjoules is not None:
            self._last_use = self._processes.look(self.handle, reading.monotonic_seconds)
            return self._last_use
        return self._last_use and replace(self._last_use, method=Method.ESTIMATED)


class _SilentGpu(NamedTuple):
    """One that tells neither energy nor power; ``product`` is its name on the data sheet."""

    product: str
    aliases: tuple[str, ...]
    users: _Users


class _Gpu:
    """Its counter last moved at ``moved_seconds``; with a ``trace`` that goes on from the counter's last value."""

    def __init__(
        self,
        device: Device,
        users: _Users,
        *,
        power_watts: Callable[[Any], float | None],
        sampled_error_ratio: float,
    ) -> None:
        self.device = device
        self.users = users
        self.power_watts = power_watts
        self.trace: PowerTrace | None = None
        self.moved_seconds = 0.0
        self._counter_microjoules: int | None = None
        self._sampled_error_ratio = sampled_error_ratio

    def is_alive(self, counter_microjoules: int, now_seconds: float) -> bool:
        """Take in a value of the counter; ``False`` if it has stood still for too long."""
        if counter_microjoules != self._counter_microjoules:
            self._counter_microjoules, self.moved_seconds = counter_microjoules, now_seconds
        return now_seconds - self.moved_seconds < STILL_SECONDS_MAX

    def reading(self, now_seconds: float) -> Reading:
        """The energy with the error band of each part, so that a change from one to the other keeps the interval."""
        counted, ratio = self._counter_microjoules or 0, self.device.error_ratio
        joules = low_joules = high_joules = 0.0
        if self.trace is not None:
            self.trace.read()
            joules = self.trace.energy_joules
            low_joules = self.trace.low_joules * (1 - self._sampled_error_ratio)
            high_joules = self.trace.high_joules * (1 + self._sampled_error_ratio)
        return Reading(
            device=self.device.name,
            monotonic_seconds=now_seconds,
            energy_microjoules=counted + microjoules(joules),
            energy_low_microjoules=round(counted * (1 - ratio)) + microjoules(low_joules),
            energy_high_microjoules=round(counted * (1 + ratio)) + microjoules(high_joules),
        )


def _load() -> Any:
    try:
        # Without a driver this costs microseconds, importing pynvml 0.07 CPU seconds.
        ctypes.CDLL(LIBRARY)
        import pynvml
    except OSError as error:
        raise SensorUnavailable(f"no NVIDIA driver here (no {LIBRARY})") from error
    except ImportError as error:
        raise SensorUnavailable(f"cannot import pynvml ({error}); install nvidia-ml-py") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SensorUnavailable(f"the NVIDIA driver does not answer: {error}; try 'nvidia-smi'") from error
    return pynvml
