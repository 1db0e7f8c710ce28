from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import Domain, Method, NodeWindow
from mlflow_green.sensors.detect import detect_sensors
from mlflow_green.sensors.memory_model import MemoryModelSensor, memory_model
from mlflow_green.sensors.rapl import RaplSensor, rapl_access_help
from mlflow_green.sensors.sensor import Sensor
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.metering_fakes import HandClock, write_proc_stat
from tests.testkit.nobody import as_nobody

JOULE = 1_000_000

AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme\n"
INTEL = AMD.replace("AuthenticAMD", "GenuineIntel")
VIRTUAL = INTEL.replace("fpu", "fpu hypervisor")


def joules(sensor: RaplSensor) -> dict[str, int | None]:
    return {
        each.device: None if each.energy_microjoules is None else each.energy_microjoules // 1_000_000
        for each in sensor.read()
    }


def gained(sensor: RaplSensor, tree: FakePowercap, seconds: float) -> dict[str, int]:
    """Joules that each device's counter moved on in these seconds; a device that is new has none."""
    before = joules(sensor)
    tree.advance(seconds)
    return {name: after - before[name] for name, after in joules(sensor).items() if name in before}


@pytest.mark.parametrize(
    ("layout", "sockets", "expected"),
    [
        ("intel", 1, {"package-0": 500, "package-0/dram": 50}),
        ("intel", 2, {"package-0": 500, "package-0/dram": 50, "package-1": 500, "package-1/dram": 50}),
        ("server", 1, {"package-0": 500, "package-0/dram": 50}),
        ("amd", 1, {"package-0": 500}),
        ("mmio", 1, {"package-0": 500}),
        ("server-mmio", 2, {"package-0": 500, "package-0/dram": 50, "package-1": 500, "package-1/dram": 50}),
        ("dies", 2, {"package-0-die-0": 500, "package-1-die-0": 500}),
        ("psys", 1, {"psys": 750}),
        ("core", 1, {"core": 300}),
    ],
)
def test_no_energy_is_read_twice_and_none_is_left_out(tmp_path, layout, sockets, expected):
    tree = FakePowercap(tmp_path / "powercap", layout=layout, sockets=sockets)
    sensor = RaplSensor(tmp_path / "powercap")
    assert gained(sensor, tree, 10) == expected
    domains = {each.name: each.domain for each in sensor.devices()}
    assert all((domain is Domain.DRAM) == name.endswith("dram") for name, domain in domains.items())
    assert all((domain is Domain.PLATFORM) == (name == "psys") for name, domain in domains.items())


def test_psys_is_read_instead_of_what_it_contains_where_it_is_asked_for(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="intel", sockets=2)
    sensor = RaplSensor(tmp_path / "powercap", prefers_psys=True)
    assert gained(sensor, tree, 10) == {"psys": 750}
    assert RaplSensor(tmp_path / "powercap").notes == (
        "psys contains what is read here, so it is not added; MLFLOW_GREEN_RAPL=psys reads it instead.",
    )


def test_psys_that_is_asked_for_and_missing_is_said_and_the_packages_are_read(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="server")
    sensor = RaplSensor(tmp_path / "powercap", prefers_psys=True)
    assert gained(sensor, tree, 1) == {"package-0": 50, "package-0/dram": 5}
    assert sensor.notes == ("MLFLOW_GREEN_RAPL=psys asks for a counter that this machine does not have.",)


def test_where_two_interfaces_show_one_package_it_is_said_which_was_read(tmp_path):
    FakePowercap(tmp_path / "powercap", layout="server-mmio", sockets=2)
    assert RaplSensor(tmp_path / "powercap").notes == (
        "package-0, package-1: read from the CPU's registers, not a second time through MMIO.",
    )


def test_cores_alone_are_a_lower_bound_of_the_package(tmp_path):
    tree, clock = FakePowercap(tmp_path / "powercap", layout="core"), HandClock()
    sampler = sampler_of(tmp_path, clock)
    energy = after(1, tree, clock, sampler).energy
    assert (energy.low_microjoules, energy.microjoules, energy.high_microjoules) == (0, 30 * JOULE, 125 * JOULE)


def test_dies_that_show_one_counter_are_counted_once_though_it_moves_on_between_two_reads(tmp_path):
    """A Threadripper 1950X that was reported to CodeCarbon: twice 68 W, from one counter."""
    tree = FakePowercap(tmp_path / "powercap", layout="dies", power_watts={"package": 68.0})
    clock = HandClock()

    def time_passes_at_every_look() -> float:
        clock.seconds += 0.0005
        tree.advance(0.0005)
        return clock.seconds

    sensor = RaplSensor(tmp_path / "powercap", monotonic=time_passes_at_every_look)
    assert gained(sensor, tree, 100) == {"package-0-die-0": 6800}
    assert sensor.notes == ("package-0-die-1 shows the counter of package-0-die-0: counted once.",)


def test_packages_that_only_began_at_the_same_value_are_told_apart(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="amd", sockets=2, power_watts={"package": (100, 80)})
    for zone in tree.zones:
        zone.reset()
    sensor = RaplSensor(tmp_path / "powercap")
    assert [each.name for each in sensor.devices()] == ["package-0"]
    assert gained(sensor, tree, 1) == {"package-0": 100}
    assert gained(sensor, tree, 1) == {"package-0": 100, "package-1": 80}


def test_a_package_that_only_mmio_shows_is_read_there(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="mmio")
    for link in (tmp_path / "powercap").glob("intel-rapl:*"):
        link.unlink()
    tree.advance(1)
    assert joules(RaplSensor(tmp_path / "powercap")) == {"package-0": 50}


def test_amds_counter_has_a_wider_band_for_it_is_a_model(tmp_path):
    FakePowercap(tmp_path / "powercap", layout="amd")
    for cpuinfo, error_ratio in ((AMD, 0.20), (INTEL, 0.10)):
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        (device,) = RaplSensor(tmp_path / "powercap", proc_root=tmp_path).devices()
        assert device.error_ratio == error_ratio


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


def test_closed_counters_are_opened_until_the_next_boot_or_for_good():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "powercap"
        tree = FakePowercap(root, mode=0o400 if os.geteuid() == 0 else 0)
        with as_nobody():
            until_boot, for_good = rapl_access_help(root)
        assert until_boot == f"until the next boot, for every user: sudo chmod a+r {root}/intel-rapl*:*/energy_uj"
        assert 'SUBSYSTEM=="powercap"' in for_good
        (commands := Path(folder) / "commands.sh").write_text(for_good.partition("\n")[2])
        assert subprocess.run(["sh", "-n", commands], check=False).returncode == 0
        for zone in tree.zones:
            (zone.path / "energy_uj").chmod(0o444)
        with as_nobody():
            assert rapl_access_help(root) == ()


@pytest.mark.parametrize("way", ["links that lead nowhere", "empty files"])
def test_counters_that_a_container_hides_say_how_it_is_started(tmp_path, way):
    root = tmp_path / "powercap"
    tree = FakePowercap(root, layout="server")
    if way == "empty files":
        for zone in tree.zones:
            (zone.path / "energy_uj").write_text("")
    else:
        shutil.rmtree(tmp_path / ".powercap.devices")
    (help_,) = rapl_access_help(root)
    assert "docker run -v /sys/devices/virtual/powercap/intel-rapl:/powercap:ro" in help_
    with pytest.raises(SensorUnavailable, match="docker run -v /sys/devices"):
        RaplSensor(root)


def test_the_folder_that_is_mounted_into_a_container_is_read_as_it_is(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="server", sockets=2)
    sensor = RaplSensor(tmp_path / ".powercap.devices" / "intel-rapl")
    assert gained(sensor, tree, 1) == {"package-0": 50, "package-0/dram": 5, "package-1": 50, "package-1/dram": 5}


@pytest.mark.parametrize(("cpuinfo", "is_there"), [(INTEL, True), (AMD, True), (VIRTUAL, False), ("", False)])
def test_a_driver_that_is_not_loaded_is_named_where_the_cpu_has_counters(tmp_path, cpuinfo, is_there):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert any("sudo modprobe intel_rapl_msr" in way for way in rapl_access_help(tmp_path, tmp_path)) is is_there
    with pytest.raises(SensorUnavailable, match="modprobe" if is_there else "virtual machines, containers and ARM"):
        RaplSensor(tmp_path, proc_root=tmp_path)


def test_a_machine_without_counters_says_so(tmp_path):
    with pytest.raises(SensorUnavailable, match="no RAPL energy counter"):
        RaplSensor(tmp_path / "nothing", proc_root=tmp_path)


def test_a_vanished_zone_is_a_gap_and_all_of_them_a_retry(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="server")
    sensor = RaplSensor(tmp_path / "powercap")
    tree.zone("dram").remove()
    assert joules(sensor) == {"package-0": 0, "package-0/dram": None}
    tree.zone("package-0").remove()
    with pytest.raises(SensorRetry):
        sensor.read()


def sampler_of(folder: Path, clock: HandClock, *more: Sensor) -> Sampler:
    write_proc_stat(folder, busy_seconds=0)
    sensor = RaplSensor(folder / "powercap", monotonic=clock.monotonic_seconds)
    return Sampler([sensor, *more], clock=clock, host="h", boot_id="b", lock_path=None, proc_root=folder)


def after(seconds: float, tree: FakePowercap, clock: HandClock, sampler: Sampler) -> NodeWindow:
    """The CPU's window of this length."""
    tree.advance(seconds)
    clock.seconds += seconds
    return next(window for window in sampler.tick().windows if window.domain is Domain.CPU)


def test_a_counter_that_wraps_loses_nothing_through_the_sampler(tmp_path):
    tree = FakePowercap(
        tmp_path / "powercap", layout="amd", power_watts={"package": 50}, range_microjoules=1_999_999_999
    )
    clock = HandClock()
    sampler = sampler_of(tmp_path, clock)
    windows = [after(5, tree, clock, sampler) for _ in range(100)]
    assert sum(window.energy.microjoules for window in windows) == 100 * 5 * 50 * JOULE
    assert windows[-1].coverage_ratio == 1


def test_a_host_that_slept_longer_than_a_wrap_takes_is_a_gap(tmp_path):
    tree = FakePowercap(
        tmp_path / "powercap", layout="amd", power_watts={"package": 50}, range_microjoules=1_999_999_999
    )
    clock = HandClock()
    sampler = sampler_of(tmp_path, clock)
    after(1, tree, clock, sampler)
    window = after(1_000, tree, clock, sampler)  # 25 wraps
    assert window.coverage_ratio == 0
    assert window.energy.microjoules == 50_000 * JOULE
    assert window.energy.high_microjoules == 125_000 * JOULE


def test_a_package_that_appears_is_metered_from_then_on(tmp_path):
    tree, clock = FakePowercap(tmp_path / "powercap", layout="server"), HandClock()
    sampler = sampler_of(tmp_path, clock)
    assert after(1, tree, clock, sampler).energy.microjoules == 50 * JOULE
    tree.add_socket(1)
    assert after(1, tree, clock, sampler).energy.microjoules == 50 * JOULE
    window = after(1, tree, clock, sampler)
    assert (window.energy.microjoules, window.coverage_ratio) == (100 * JOULE, 1)
    assert sampler.power_watts_max == 4 * 125


@pytest.mark.parametrize("modelled", [False, True])
def test_memory_that_appears_begins_a_domain_or_replaces_its_model(tmp_path, modelled):
    tree, clock = FakePowercap(tmp_path / "powercap", layout="package"), HandClock()
    model = MemoryModelSensor(memory_model(64 << 30), monotonic=clock.monotonic_seconds)
    sampler = sampler_of(tmp_path, clock, *[model][: int(modelled)])
    after(1, tree, clock, sampler)
    (tmp_path / "powercap" / "intel-rapl:0" / "energy_uj").unlink()  # the driver is loaded anew
    tree.close()
    tree = FakePowercap(tmp_path / "powercap", layout="server")
    after(1, tree, clock, sampler)
    clock.seconds += 1
    tree.advance(1)
    windows = sampler.tick().windows
    (memory,) = [window for window in windows if window.domain is Domain.DRAM]
    assert (memory.energy.microjoules, memory.sequence_first) == (5 * JOULE, 3)
    assert memory.energy.method is Method.MEASURED
    assert (
        sampler.notes == ["a counter that shows the memory has appeared: its energy is no longer modelled"] * modelled
    )


def test_a_zone_that_comes_back_under_another_number_goes_on(tmp_path):
    tree, clock = FakePowercap(tmp_path / "powercap", layout="amd"), HandClock()
    sampler = sampler_of(tmp_path, clock)
    after(1, tree, clock, sampler)
    link = tmp_path / "powercap" / "intel-rapl:0"
    link.rename(link.with_name("intel-rapl:5"))
    assert after(1, tree, clock, sampler).coverage_ratio == 1


def test_detection_prefers_the_counter_and_says_what_is_missing(tmp_path):
    FakePowercap(tmp_path / "powercap", layout="amd")
    (tmp_path / "cpuinfo").write_text(INTEL)
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


def test_counters_that_show_no_number_are_no_counters(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="package")
    (tree.zone("package-0").path / "energy_uj").write_text("abc\n")
    with pytest.raises(SensorUnavailable, match="no RAPL energy counter can be read"):
        RaplSensor(tmp_path / "powercap", proc_root=tmp_path)
