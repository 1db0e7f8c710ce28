"""Which sensors this host has, and what a person should know about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorUnavailable
from mlflow_green.records import Domain
from mlflow_green.sensors.load_model import LoadModelSensor, cpu_model_from
from mlflow_green.sensors.memory_model import MemoryModelSensor, memory_model, read_memory_bytes
from mlflow_green.sensors.nvml import NvmlSensor
from mlflow_green.sensors.proc_stat import PROC_ROOT
from mlflow_green.sensors.rapl import POWERCAP_ROOT, RaplSensor
from mlflow_green.sensors.sensor import Sensor

MISSING = "its energy is missing from every figure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The sensors to read, none twice, and one sentence for each thing that is measured, estimated or missing."""

    sensors: tuple[Sensor, ...]
    notes: tuple[str, ...]


def detect_sensors(
    powercap_root: Path = POWERCAP_ROOT, proc_root: Path = PROC_ROOT, *, memory_watts_per_gib: float | None = None
) -> Detection:
    """RAPL where it can be read, else a load model of the CPU; NVML where it can be read. Raises nothing.

    Memory is modelled where no counter shows it: ``memory_watts_per_gib`` is what the user knows of it, ``None`` for
    the published constant, and 0 leaves it out.
    """
    sensors: list[Sensor] = []
    notes: list[str] = []
    for opened, said in (_cpu(powercap_root, proc_root), _gpu()):
        if opened is not None:
            sensors.append(opened)
        notes += said
    domains = {device.domain for sensor in sensors for device in sensor.devices()}
    if domains.isdisjoint({Domain.DRAM, Domain.PLATFORM}):
        memory, said = _memory(proc_root, memory_watts_per_gib)
        sensors += memory
        notes += said
    return Detection(sensors=tuple(sensors), notes=tuple(notes))


def _cpu(powercap_root: Path, proc_root: Path) -> tuple[Sensor | None, list[str]]:
    try:
        rapl = RaplSensor(powercap_root)
    except SensorUnavailable as error:
        sensor, notes = _cpu_model(proc_root)
        return sensor, [*notes, f"The CPU is not measured: {error}."]
    return rapl, [f"{device.name}: measured by RAPL, {device.error_source}." for device in rapl.devices()]


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


def _gpu() -> tuple[Sensor | None, list[str]]:
    try:
        nvml = NvmlSensor()
    except SensorUnavailable as error:
        return None, [f"GPU: not metered; {error}."]
    return nvml, [f"{device.name}: measured by NVML, {device.error_source}." for device in nvml.devices()]
