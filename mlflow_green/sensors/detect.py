"""Which sensors this host has, and what a person should know about them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Domain, Method
from mlflow_green.sensors.codecarbon import has_amd_gpu, open_amd_gpus, open_cpu
from mlflow_green.sensors.load_model import LoadModelSensor, cpu_model_from
from mlflow_green.sensors.memory_model import MemoryModelSensor, memory_model, read_memory_bytes
from mlflow_green.sensors.nvml import NvmlSensor
from mlflow_green.sensors.proc_stat import PROC_ROOT, TICK_SECONDS, read_host_cpu
from mlflow_green.sensors.rapl import POWERCAP_ROOT, RaplSensor
from mlflow_green.sensors.sensor import Sensor

STOLEN_RATIO_TOLD = 0.001
MISSING = "its energy is missing from every figure"
_GPU_WAYS = {Method.MEASURED: "measured by NVML", Method.ESTIMATED: "estimated by its utilisation"}
HIDDEN_GPU_PROCESSES = (
    "GPU: this container may hide who uses it; hidden use is split among the jobs that reserved the GPU, from nothing "
    "to the whole. Sharing the host's processes ends that: docker run --pid=host, or hostPID: true."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The sensors to read, none twice, and one sentence for each thing that is measured, estimated or missing."""

    sensors: tuple[Sensor, ...]
    notes: tuple[str, ...]


def detect_sensors(
    powercap_root: Path = POWERCAP_ROOT,
    proc_root: Path = PROC_ROOT,
    *,
    prefers_psys: bool = False,
    memory_watts_per_gib: float | None = None,
) -> Detection:
    """RAPL where it can be read, else a load model of the CPU; NVML where it can be read. Raises nothing.

    What is neither, CodeCarbon reads: AMD's GPUs, and the CPU of another system than Linux. Memory is modelled where
    no counter shows it: ``memory_watts_per_gib`` is what the user knows of it, ``None`` for the published constant, and
    0 leaves it out.
    """
    sensors: list[Sensor] = []
    notes: list[str] = []
    cpu = _cpu(powercap_root, proc_root, prefers_psys=prefers_psys) if sys.platform == "linux" else _elsewhere()
    for opened, said in (cpu, _gpu(proc_root)):
        if opened is not None:
            sensors.append(opened)
        notes += said
    domains = {device.domain for sensor in sensors for device in sensor.devices()}
    if domains.isdisjoint({Domain.DRAM, Domain.PLATFORM}):
        memory, said = _memory(proc_root, memory_watts_per_gib)
        sensors += memory
        notes += said
    notes += _stolen(proc_root)
    return Detection(sensors=tuple(sensors), notes=tuple(notes))


def _cpu(powercap_root: Path, proc_root: Path, *, prefers_psys: bool) -> tuple[Sensor | None, list[str]]:
    try:
        rapl = RaplSensor(powercap_root, proc_root=proc_root, prefers_psys=prefers_psys)
    except SensorUnavailable as error:
        sensor, notes = _cpu_model(proc_root)
        return sensor, [*notes, f"The CPU is not measured: {error}."]
    notes = [f"{device.name}: measured by RAPL, {device.error_source}." for device in rapl.devices()]
    return rapl, [*notes, *rapl.notes]


def _cpu_model(proc_root: Path) -> tuple[Sensor | None, list[str]]:
    try:
        sensor = LoadModelSensor(cpu_model_from(proc_root), proc_root)
    except SensorUnavailable as error:
        return None, [f"CPU: not metered; {error}."]
    device = sensor.devices()[0]
    return sensor, [f"CPU: estimated by a load model of {device.power_watts_max:.3g} W, {device.error_source}."]


def _memory(proc_root: Path, memory_watts_per_gib: float | None) -> tuple[list[Sensor], list[str]]:
    if memory_watts_per_gib == 0:
        return [], [f"Memory: left out, as MLFLOW_GREEN_MEMORY_WATTS_PER_GIB says; {MISSING}."]
    try:
        memory = memory_model(read_memory_bytes(proc_root), memory_watts_per_gib)
    except SensorUnavailable as error:
        return [], [f"Memory: not metered, {error}; {MISSING}."]
    return [MemoryModelSensor(memory)], [f"Memory: estimated by a model of {memory.watts:.3g} W, {memory.source}."]


def _stolen(proc_root: Path) -> list[str]:
    """How much CPU time a hypervisor took away since the boot, where it is worth a line."""
    try:
        cpu = read_host_cpu(proc_root)
    except SensorRetry:
        return []
    stolen_ratio = (cpu.stolen_seconds or 0.0) / max(cpu.busy_seconds + (cpu.stolen_seconds or 0.0), TICK_SECONDS)
    if stolen_ratio < STOLEN_RATIO_TOLD:
        return []
    return [f"CPU time: the hypervisor gave {stolen_ratio:.1%} to others; charged to nobody."]


def _gpu(proc_root: Path) -> tuple[Sensor | None, list[str]]:
    try:
        nvml = NvmlSensor(proc_root)
    except SensorUnavailable as error:
        return _amd_gpu() if has_amd_gpu() else (None, [f"GPU: not metered; {error}."])
    notes = [f"{device.name}: {_GPU_WAYS[device.method]}, {device.error_source}." for device in nvml.devices()]
    notes += [f"{said}; {MISSING}." for said in nvml.unmetered]
    if not nvml.all_pids:
        notes.append(HIDDEN_GPU_PROCESSES)
    return nvml, notes


def _amd_gpu() -> tuple[Sensor | None, list[str]]:
    try:
        amd = open_amd_gpus()
    except SensorUnavailable as error:
        return None, [f"GPU: not metered; {error}."]
    return amd, [f"{device.name}: measured, {device.error_source}." for device in amd.devices()]


def _elsewhere() -> tuple[Sensor | None, list[str]]:
    """The CPU where there is neither powercap nor /proc."""
    try:
        cpu = open_cpu()
    except SensorUnavailable as error:
        return None, [f"CPU: not metered; {error}."]
    return cpu, [f"{device.name}: {device.method}, {device.error_source}." for device in cpu.devices()]
