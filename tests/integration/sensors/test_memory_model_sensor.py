from __future__ import annotations

import pytest

from mlflow_green.errors import SensorUnavailable
from mlflow_green.records import Domain
from mlflow_green.sensors.detect import detect_sensors
from mlflow_green.sensors.memory_model import MemoryModelSensor, memory_model, read_memory_bytes
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.metering_fakes import HandClock, write_memory, write_proc_stat

GIB = 2**30


def test_memory_draws_its_constant_power_and_all_of_it_is_idle():
    clock = HandClock()
    sensor = MemoryModelSensor(memory_model(100 * GIB), monotonic=clock.monotonic_seconds)
    clock.seconds = 10
    (read,) = sensor.read()
    assert read.energy_microjoules == read.idle_microjoules == 372_500_000
    assert (read.energy_low_microjoules, read.energy_high_microjoules) == (78_000_000, 1_100_000_000)


@pytest.mark.parametrize(
    ("published", "watts_per_gib"),
    [
        ("Cloud Carbon Footprint", 0.392),
        ("CodeCarbon, 5 W a module of 8 GiB", 5 / 8),
        ("CodeCarbon, 5 W a module of 64 GiB", 5 / 64),
        ("Teads, Xeon Platinum 8151, at rest", 0.130),
        ("Teads, Xeon Platinum 8124M, full load", 0.662),
        ("Teads, Xeon Platinum 8275CL, full load", 1.096),
    ],
)
def test_the_interval_spans_what_others_publish(published, watts_per_gib):
    memory = memory_model(GIB)
    assert memory.low_watts <= watts_per_gib <= memory.high_watts, published


def test_a_stated_power_wins_and_says_so():
    memory = memory_model(10 * GIB, 0.1)
    assert (memory.low_watts, memory.watts, memory.high_watts) == pytest.approx((0.3, 1.0, 2.0))
    assert "as stated" in memory.source


@pytest.mark.parametrize("text", ["", "MemFree: 1 kB\n", "MemTotal: much kB\n", "MemTotal:\n"])
def test_a_machine_that_does_not_say_its_memory_has_no_model(tmp_path, text):
    (tmp_path / "meminfo").write_text(text)
    with pytest.raises(SensorUnavailable, match="meminfo"):
        read_memory_bytes(tmp_path)


def domains(found) -> list[tuple[Domain, str]]:
    return [(device.domain, device.name) for sensor in found.sensors for device in sensor.devices()]


def test_memory_is_modelled_beside_a_package_counter_and_never_beside_a_dram_counter(tmp_path):
    write_memory(tmp_path, memory_bytes=8 * GIB)
    FakePowercap(tmp_path / "amd", layout="amd")
    FakePowercap(tmp_path / "server", layout="server")
    found = detect_sensors(tmp_path / "amd", tmp_path)
    assert (Domain.DRAM, "memory-model") in domains(found)
    assert any(note.startswith("Memory: estimated by a model of 2.98 W") for note in found.notes)
    names = [name for domain, name in domains(detect_sensors(tmp_path / "server", tmp_path)) if domain is Domain.DRAM]
    assert names == ["package-0/dram"]


def test_memory_is_modelled_beside_the_load_model(tmp_path):
    write_proc_stat(tmp_path, busy_seconds=1)
    write_memory(tmp_path, memory_bytes=8 * GIB)
    assert (Domain.DRAM, "memory-model") in domains(detect_sensors(tmp_path / "nothing", tmp_path))


def test_memory_can_be_stated_or_left_out(tmp_path):
    write_memory(tmp_path, memory_bytes=8 * GIB)
    stated = detect_sensors(tmp_path / "nothing", tmp_path, memory_watts_per_gib=1.0)
    assert any("8 GiB at 1 W/GiB as stated" in note for note in stated.notes)
    left_out = detect_sensors(tmp_path / "nothing", tmp_path, memory_watts_per_gib=0.0)
    assert all(domain is not Domain.DRAM for domain, _ in domains(left_out))
    assert any(note.startswith("Memory: left out") for note in left_out.notes)
