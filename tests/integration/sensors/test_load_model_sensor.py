from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.sensors.cpu_model import CpuModel
from mlflow_green.sensors.cpu_series import CLOUD_CPUS, SERIES
from mlflow_green.sensors.load_model import LoadModelSensor, cpu_model_from, rated_power_watts
from mlflow_green.sensors.proc_stat import read_host_cpu
from tests.testkit.metering_fakes import HandClock, write_proc_stat

CPUINFO = Path(__file__).parents[2] / "testkit" / "cpuinfo"
CPU = CpuModel(
    name="test",
    threads=2,
    low_watts=(1.0, 1.0, 1.0, 5.0),
    watts=(2.0, 3.0, 7.0, 10.0),
    high_watts=(6.0, 6.0, 6.0, 30.0),
    source="a test",
)


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def sensor(tmp_path, clock):
    write_proc_stat(tmp_path, busy_seconds=100)
    return LoadModelSensor(CPU, tmp_path, monotonic=clock.monotonic_seconds)


@pytest.mark.parametrize(
    ("busy_seconds", "expected_joules"), [(0, 20), (2, 30), (6, 50), (10, 70), (20, 100), (50, 100), (-50, 20)]
)
def test_ten_seconds_cost_what_the_curve_says_of_their_load(tmp_path, clock, sensor, busy_seconds, expected_joules):
    clock.seconds = 10
    write_proc_stat(tmp_path, busy_seconds=100 + busy_seconds)
    (read,) = sensor.read()
    assert read.energy_microjoules == expected_joules * 1_000_000
    assert read.idle_microjoules == 20 * 1_000_000


def test_the_interval_has_curves_of_its_own(tmp_path, clock, sensor):
    clock.seconds = 10
    sensor.read()
    clock.seconds = 20
    write_proc_stat(tmp_path, busy_seconds=120)
    (read,) = sensor.read()
    assert (read.energy_low_microjoules, read.energy_high_microjoules) == (60 * 1_000_000, 360 * 1_000_000)


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
    assert sensor.read()[0].energy_microjoules == 20 * 1_000_000


def test_without_a_stat_file_there_is_no_model(tmp_path):
    with pytest.raises(SensorUnavailable, match="cannot be modelled"):
        LoadModelSensor(CPU, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("machine", "full_load_watts", "told"),
    [
        ("epyc_7763_two_sockets", 2 * 280 * 1.02, "AMD EPYC 7763 64-Core Processor is rated at 280 W"),
        ("aws_m6a", 2 * 225 / 96 * 1.02, "2 of the 96 threads of one EPYC 7R13"),
        ("azure_dasv4", 2 * 155 / 64 * 1.02, "2 of the 64 threads of one AMD EPYC 7452 32-Core Processor"),
        ("aws_m5", 2 * 210 / 48 * 1.02, "2 of the 48 threads of one Xeon Platinum 8259CL"),
        ("gcp_n1_broadwell", 2 * 145 / 36 * 1.02, "a Broadwell-EP CPU"),
        ("gcp_n2_cascade_lake", 2 * 205 / 48 * 1.02, "a Cascade Lake-SP CPU"),
        ("kvm_genoa", 2 * 360 / 192 * 1.02, "a Genoa CPU"),
        ("aws_graviton2", 2 * 210 / 80 * 1.02, "a Neoverse N1 CPU"),
        ("desktop_i7_8700k", 95 * 1.02, "a desktop CPU may draw twice its rated power"),
        ("aws_graviton3", 8 * 1.02, "a guess"),
        ("qemu_default", 8 * 1.02, "a guess"),
    ],
)
def test_a_machine_is_known_by_what_its_cpuinfo_says(tmp_path, machine, full_load_watts, told):
    (tmp_path / "cpuinfo").write_text((CPUINFO / machine).read_text())
    cpu = cpu_model_from(tmp_path)
    assert cpu.power_watts_max == pytest.approx(full_load_watts)
    assert told in cpu.source


def test_a_host_that_does_not_say_its_cpu_is_guessed(tmp_path):
    cpu = cpu_model_from(tmp_path)
    assert (cpu.name, cpu.threads, cpu.watts[-1]) == (None, 1, pytest.approx(4.08))


def test_rated_powers_agree_with_codecarbons_table():
    rated = {each for series in SERIES for each in (series.leanest, series.typical, series.hungriest)}
    for each in rated | set(CLOUD_CPUS.values()):
        if "Xeon" in each.name or "EPYC" in each.name:
            maker = "Intel" if "Xeon" in each.name else "AMD"
            assert rated_power_watts(f"{maker} {each.name}") == each.power_watts, each


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
