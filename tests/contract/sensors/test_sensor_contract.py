"""What every sensor promises, run against each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_green.records import Method
from mlflow_green.sensors.codecarbon import open_cpu
from mlflow_green.sensors.gpu_load_model import GpuLoadModelSensor
from mlflow_green.sensors.load_model import LoadModelSensor, cpu_model_from
from mlflow_green.sensors.memory_model import MemoryModelSensor, memory_model
from mlflow_green.sensors.rapl import RaplSensor
from mlflow_green.sensors.replay import ReplaySensor
from mlflow_green.sensors.sensor import Sensor
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.metering_fakes import device, reading, write_proc_stat


@pytest.fixture(params=["rapl", "load model", "memory model", "gpu load model", "codecarbon", "replay"])
def sensor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sensor]:
    if request.param == "rapl":
        FakePowercap(tmp_path / "powercap", layout="server", sockets=2).advance(1)
        opened: Sensor = RaplSensor(tmp_path / "powercap")
    elif request.param == "load model":
        write_proc_stat(tmp_path, busy_seconds=10)
        opened = LoadModelSensor(cpu_model_from(tmp_path), tmp_path)
    elif request.param == "codecarbon":
        opened = open_cpu()
    elif request.param == "memory model":
        opened = MemoryModelSensor(memory_model(2**30))
    elif request.param == "gpu load model":
        opened = GpuLoadModelSensor({"GPU-a": "Tesla T4"}, lambda: {"GPU-a": 0.5})
    else:
        trace = [[reading(second, second * 100)] for second in range(10)]
        opened = ReplaySensor([device()], trace)
    yield opened
    opened.close()


def test_its_devices_have_unique_names_and_stay_the_same(sensor):
    names = [each.name for each in sensor.devices()]
    assert len(set(names)) == len(names) > 0
    assert [each.name for each in sensor.devices()] == names


def test_every_device_says_how_it_is_metered_and_how_far_it_may_be_off(sensor):
    for each in sensor.devices():
        assert each.method in {Method.MEASURED, Method.ESTIMATED}
        assert each.power_watts_max > 0
        assert each.error_ratio > 0
        assert each.error_source


def test_it_reads_every_device_once(sensor):
    assert sorted(each.device for each in sensor.read()) == sorted(each.name for each in sensor.devices())


def test_its_counters_and_its_time_do_not_go_back(sensor):
    first = {each.device: each for each in sensor.read()}
    for after in sensor.read():
        assert after.energy_microjoules >= first[after.device].energy_microjoules
        assert after.monotonic_seconds >= first[after.device].monotonic_seconds


def test_its_interval_holds_its_value(sensor):
    for each in sensor.read():
        if each.energy_low_microjoules is not None:
            assert each.energy_low_microjoules <= each.energy_microjoules <= each.energy_high_microjoules
