from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import Domain
from mlflow_green.sensors.detect import detect_sensors
from mlflow_green.sensors.rapl import RaplSensor
from tests.testkit.fakepowercap import FakePowercap, as_nobody
from tests.testkit.metering_fakes import HandClock, write_proc_stat


def joules(sensor: RaplSensor) -> dict[str, int | None]:
    return {
        each.device: None if each.energy_microjoules is None else each.energy_microjoules // 1_000_000
        for each in sensor.read()
    }


@pytest.mark.parametrize(
    ("layout", "sockets", "expected"),
    [
        ("intel", 1, {"package-0": 500, "package-0/dram": 50}),
        ("intel", 2, {"package-0": 500, "package-0/dram": 50, "package-1": 500, "package-1/dram": 50}),
        ("server", 1, {"package-0": 500, "package-0/dram": 50}),
        ("amd", 1, {"package-0": 500}),
        ("mmio", 1, {"package-0": 500}),
    ],
)
def test_package_and_dram_are_read_once_and_nothing_that_overlaps_them(tmp_path, layout, sockets, expected):
    tree = FakePowercap(tmp_path / "powercap", layout=layout, sockets=sockets)
    sensor = RaplSensor(tmp_path / "powercap")
    tree.advance(10)
    assert joules(sensor) == expected
    domains = {each.name: each.domain for each in sensor.devices()}
    assert all((domain is Domain.DRAM) == name.endswith("dram") for name, domain in domains.items())


def test_a_package_that_only_mmio_shows_is_read_there(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="mmio")
    for link in (tmp_path / "powercap").glob("intel-rapl:*"):
        link.unlink()
    tree.advance(1)
    assert joules(RaplSensor(tmp_path / "powercap")) == {"package-0": 50}


def test_the_zones_limits_bound_the_power_unless_they_are_beyond_belief(tmp_path):
    FakePowercap(tmp_path / "powercap", layout="amd")
    limit = tmp_path / "powercap" / "intel-rapl:0" / "constraint_0_power_limit_uw"
    assert RaplSensor(tmp_path / "powercap").devices()[0].power_watts_max == 125
    limit.write_text("4095000000\n")
    assert RaplSensor(tmp_path / "powercap").devices()[0].power_watts_max == 500


def test_a_closed_counter_says_the_command_that_opens_it():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to nobody
        Path(folder).chmod(0o755)
        root = Path(folder) / "powercap"
        FakePowercap(root, mode=0o400)
        if os.geteuid() != 0:
            for counter in root.glob("*/energy_uj"):
                counter.chmod(0)
        with as_nobody(), pytest.raises(SensorUnavailable, match="sudo chmod a\\+r") as caught:
            RaplSensor(root)
        os.system(str(caught.value).partition("opens them: ")[2].removeprefix("sudo "))
        with as_nobody():
            assert joules(RaplSensor(root))["package-0"] == 0


def test_a_machine_without_counters_says_so(tmp_path):
    with pytest.raises(SensorUnavailable, match="no RAPL energy counter"):
        RaplSensor(tmp_path / "nothing")


def test_a_vanished_zone_is_a_gap_and_all_of_them_a_retry(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="server")
    sensor = RaplSensor(tmp_path / "powercap")
    tree.zone("dram").remove()
    assert joules(sensor) == {"package-0": 0, "package-0/dram": None}
    tree.zone("package-0").remove()
    with pytest.raises(SensorRetry):
        sensor.read()


def test_a_counter_that_wraps_loses_nothing_through_the_sampler(tmp_path):
    tree = FakePowercap(
        tmp_path / "powercap", layout="amd", power_watts={"package": 50}, range_microjoules=1_999_999_999
    )
    write_proc_stat(tmp_path, busy_seconds=0)
    clock = HandClock()
    sensor = RaplSensor(tmp_path / "powercap", monotonic=clock.monotonic_seconds)
    sampler = Sampler([sensor], clock=clock, host="h", boot_id="b", lock_path=None, proc_root=tmp_path)
    total_microjoules = 0
    for _ in range(100):
        tree.advance(5)
        clock.seconds += 5
        (window,) = sampler.tick().windows
        total_microjoules += window.energy.microjoules
    assert total_microjoules == 100 * 5 * 50 * 1_000_000
    assert window.coverage_ratio == 1


def test_detection_prefers_the_counter_and_says_what_is_missing(tmp_path):
    FakePowercap(tmp_path / "powercap", layout="amd")
    found = detect_sensors(tmp_path / "powercap", tmp_path)
    assert found.sensors[0].name == "rapl"
    assert any("measured by RAPL, ±10 %" in note for note in found.notes)
    assert any(note.startswith("Memory: not metered") for note in found.notes)


def test_detection_falls_back_to_the_load_model_and_says_why(tmp_path):
    write_proc_stat(tmp_path, busy_seconds=1)
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t: fpu hypervisor\n")
    found = detect_sensors(tmp_path / "nothing", tmp_path)
    assert found.sensors[0].name == "load model"
    assert any(
        "estimated by a load model of 4.08 W, 0.16-1.44 W at rest and 1.36-12.2 W at full load" in note
        for note in found.notes
    )
    assert any("no RAPL energy counter" in note for note in found.notes)


def test_detection_of_nothing_at_all_is_two_sentences_and_no_sensor(tmp_path):
    found = detect_sensors(tmp_path / "nothing", tmp_path / "nothing")
    assert all(each.name == "nvml" for each in found.sensors)
    assert any(note.startswith("CPU: not metered") for note in found.notes)
