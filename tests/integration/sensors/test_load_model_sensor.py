from __future__ import annotations

import subprocess
import sys

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.sensors.load_model import IDLE_RATIO, CpuModel, LoadModelSensor, cpu_model_from, rated_power_watts
from mlflow_green.sensors.proc_stat import read_host_cpu
from tests.testkit.metering_fakes import HandClock, write_proc_stat

CPU = CpuModel(
    name="test",
    threads=2,
    power_watts_max=10.0,
    power_watts_max_low=5.0,
    power_watts_max_high=30.0,
    source="a test",
)


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def sensor(tmp_path, clock):
    write_proc_stat(tmp_path, busy_seconds=100)
    return LoadModelSensor(CPU, tmp_path, monotonic=clock.monotonic_seconds)


@pytest.mark.parametrize(("busy_seconds", "expected_joules"), [(0, 12), (20, 100), (10, 56), (50, 100), (-50, 12)])
def test_ten_seconds_cost_idle_power_and_the_rest_by_load(tmp_path, clock, sensor, busy_seconds, expected_joules):
    clock.seconds = 10
    write_proc_stat(tmp_path, busy_seconds=100 + busy_seconds)
    (read,) = sensor.read()
    assert read.energy_microjoules == expected_joules * 1_000_000
    assert read.idle_microjoules == pytest.approx(IDLE_RATIO * 10.0 * 10 * 1_000_000)
    assert (read.energy_low_microjoules * 2, read.energy_high_microjoules / 3) == (read.energy_microjoules,) * 2


def test_stolen_time_and_idle_time_are_not_busy(tmp_path):
    write_proc_stat(tmp_path, busy_seconds=3, idle_seconds=50, threads=4)
    host = read_host_cpu(tmp_path)
    assert (host.busy_seconds, host.threads) == (3, 4)


def test_an_unreadable_stat_file_is_a_gap_that_the_next_read_bridges(tmp_path, clock, sensor):
    (tmp_path / "stat").write_text("garbage")
    clock.seconds = 5
    with pytest.raises(SensorRetry):
        sensor.read()
    clock.seconds = 10
    write_proc_stat(tmp_path, busy_seconds=100)
    assert sensor.read()[0].energy_microjoules == 12 * 1_000_000


def test_without_a_stat_file_there_is_no_model(tmp_path):
    with pytest.raises(SensorUnavailable, match="cannot be modelled"):
        LoadModelSensor(CPU, tmp_path / "nothing")


def test_the_cpu_is_read_from_cpuinfo(tmp_path):
    block = "processor\t: {}\nmodel name\t: AMD EPYC 7763 64-Core Processor\nphysical id\t: {}\nflags\t: fpu\n\n"
    (tmp_path / "cpuinfo").write_text("".join(block.format(index, index % 2) for index in range(4)))
    cpu = cpu_model_from(tmp_path)
    assert (cpu.threads, cpu.power_watts_max) == (4, 560)


def test_a_host_that_does_not_say_its_cpu_is_guessed(tmp_path):
    cpu = cpu_model_from(tmp_path)
    assert (cpu.name, cpu.threads, cpu.power_watts_max) == (None, 1, 4)


def test_codecarbons_table_is_found():
    assert rated_power_watts("AMD EPYC 7763 64-Core Processor") == 280


@pytest.mark.parametrize("name", ["AMD EPYC", "Intel Xeon", "AMD EPYC 776", "AMD EPYC 7763P", "", "@ 2 GHz"])
def test_a_name_that_is_only_part_of_a_known_one_is_unknown(name):
    assert rated_power_watts(name) is None


def test_no_heavy_package_is_imported_to_find_the_sensors():
    code = (
        "import sys; from mlflow_green.sensors.detect import detect_sensors; import mlflow_green.metering.sampler; "
        "detect_sensors(); print(sorted({'codecarbon', 'pandas', 'numpy', 'psutil', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
