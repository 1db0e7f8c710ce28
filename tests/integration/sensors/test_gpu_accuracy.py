"""GPU energy and its shares against the programmable NVML, whose traces have exact integrals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.testkit.nvml import build_fake_nvml, run_with_fake_nvml

OPEN = """
import json
from tests.testkit.gpu_bench import CONTAINER, HOST, JOULE, Bench, integral_joules, trace_line
def say(*values): print(json.dumps(values))
"""
NO_COUNTER = "*.error.nvmlDeviceGetTotalEnergyConsumption = NOT_SUPPORTED\\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def run(library, tmp_path):
    """What the code says, a list for each call of ``say``."""

    def on_fake(code: str) -> list:
        said = run_with_fake_nvml(library, tmp_path / "gpus.conf", OPEN + code)
        assert "Traceback" not in said, said
        return [json.loads(line) for line in said.splitlines()]

    return on_fake


@pytest.mark.parametrize("update_ms", [0, 20, 100])
def test_a_counter_is_within_half_a_percent_over_a_minute(run, update_ms):
    code = f"""
trace = [(0, 60.0), (7.03, 290.0), (21.51, 130.0), (44.4, 310.0), (59.0, 45.0)]
bench = Bench(f"0.update_ms = {update_ms}\\n0.energy_mj = 5\\n0.trace = {{trace_line(trace)}}\\n0.procs = {{{{job}}}}:1:90", jobs={{"job": {{}}}})
windows = [bench.tick() for _ in range(60)]
say(bench.joules("job"), integral_joules(trace, 60), min(window.coverage_ratio for window in windows))
bench.close()
"""
    ((low, point, high), true, coverage_ratio) = run(code)[0]
    assert point == pytest.approx(true, rel=0.005)
    assert low <= true <= high
    assert (high - low) / 2 <= 0.101 * point
    assert coverage_ratio == 1


@pytest.mark.parametrize("update_ms", [20, 100])
def test_sampled_power_covers_the_exact_integral_in_every_window(run, update_ms):
    """Levels as short as 0.11 s, changing between the samples; every window and their sum."""
    code = f"""
import random
chance = random.Random(7)
trace, seconds = [(0.0, 60.0)], 0.0
while seconds < 12:
    seconds += chance.uniform(0.11, 0.9)
    trace.append((round(seconds, 4), round(chance.uniform(50, 340))))
bench = Bench(f"{NO_COUNTER}0.architecture = 6\\n0.update_ms = {update_ms}\\n0.trace = {{trace_line(trace)}}\\n0.procs = {{{{job}}}}:1:90", jobs={{"job": {{}}}})
before = 0.0
for second in range(1, 13):
    energy = bench.tick(polls=True).energy
    after = integral_joules(trace, second)
    say(energy.low_microjoules / JOULE, energy.microjoules / JOULE, energy.high_microjoules / JOULE, after - before)
    before = after
say(bench.joules("job"), before)
bench.close()
"""
    *windows, (total, true_joules) = run(code)
    for low, point, high, true in windows:
        assert low <= true <= high
        assert low <= point <= high
    low, point, high = total
    assert low <= true_joules <= high
    assert point == pytest.approx(true_joules, rel=0.05)
    assert (high - low) / 2 <= 0.35 * point


@pytest.mark.parametrize("update_ms", [20, 100])
def test_the_poller_covers_the_exact_integral_in_real_time(run, update_ms):
    code = f"""
import os, time
from mlflow_green.sensors.nvml import NvmlSensor
trace = [(0.0, 60.0), (0.53, 300.0), (0.91, 120.0), (1.37, 330.0)]
epoch = time.time()
open(os.environ["FAKE_NVML_STATE"], "w").write(f"{NO_COUNTER}epoch = {{epoch!r}}\\n0.architecture = 6\\n0.update_ms = {update_ms}\\n0.trace = {{trace_line(trace)}}")
sensor = NvmlSensor()
(first,), begin = sensor.read(), time.time() - epoch
time.sleep(2.0)
(last,), end = sensor.read(), time.time() - epoch
sensor.close()
true = integral_joules(trace, end) - integral_joules(trace, begin)
say([(after - before) / JOULE for before, after in (
    (first.energy_low_microjoules, last.energy_low_microjoules),
    (first.energy_microjoules, last.energy_microjoules),
    (first.energy_high_microjoules, last.energy_high_microjoules))], true, sensor._poller.is_alive())
"""
    ((low, point, high), true, is_alive) = run(code)[0]
    assert low <= true <= high
    assert low <= point <= high
    assert not is_alive


def test_a_lost_gpu_is_a_gap_while_the_other_goes_on_and_begins_anew_when_it_is_back(run):
    code = """
GPUS = "count = 2\\n*.power_mw = 100000\\n*.energy_mj = 1\\n0.procs = {a}:1:90\\n1.procs = {b}:1:90\\n"
bench = Bench(GPUS, jobs={"a": {}, "b": {}})
coverage = [bench.tick().coverage_ratio for _ in range(2)]
bench.gpus = GPUS + "1.error = GPU_IS_LOST\\n"
coverage += [bench.tick().coverage_ratio for _ in range(2)]
bench.gpus = GPUS + "1.trace = 0:0, 4:100000\\n"  # its counter has begun at 0
coverage += [bench.tick().coverage_ratio for _ in range(3)]
say(coverage, bench.joules("a"), bench.joules("b"))
bench.close()
"""
    coverage, a, b = run(code)[0]
    assert coverage == [1, 1, 0.5, 0.5, 0.5, 1, 1]
    assert a[1] == pytest.approx(700)
    low, point, high = b
    assert low <= 700 <= high
    assert point >= 400  # what was read; the rest is an estimate


def test_mig_devices_share_their_gpu_by_slices_and_it_counts_once(run):
    code = """
bench = Bench("0.power_mw = 210000\\n0.energy_mj = 1\\n0.mig = 1\\n0.mig_devices = 3\\n0.mig.0.slices = 3\\n0.mig.0.procs = {a}:1\\n"
              "0.mig.1.slices = 2\\n0.mig.1.procs = {b}:1\\n", jobs={"a": {}, "b": {}})
window = bench.tick()
say(len(bench.sensor.devices()), window.energy.microjoules, window.idle_microjoules, bench.joules("a"), bench.joules("b"))
bench.close()
"""
    (devices, whole, idle, a, b) = run(code)[0]
    assert (devices, whole, idle) == (1, 210_000_000, 60_000_000)  # the instance without processes, and the free slice
    assert a == [0, 90, pytest.approx(231)]
    assert b == [0, 60, pytest.approx(231)]


def test_two_processes_on_one_gpu_share_it_by_their_utilisation(run):
    code = """
bench = Bench("0.power_mw = 100000\\n0.energy_mj = 1\\n0.procs = {a}:1:60, {b}:1:20, {sleeper}:1:0, {stranger}:1:20",
              jobs={"a": {}, "b": {}, "sleeper": {}, "stranger": {}})
window = bench.tick()
say(window.other_microjoules, window.idle_microjoules, *(bench.joules(name) for name in ("a", "b", "sleeper")))
bench.close()
"""
    other, idle, a, b, sleeper = run(code)[0]
    assert (other, idle) == (20_000_000, 0)
    assert a == pytest.approx([54, 60, 88])
    assert b == pytest.approx([18, 20, 44])
    assert sleeper[:2] == [0, 0]


def test_without_utilisation_the_processes_that_are_there_share_equally_and_may_have_used_anything(run):
    code = """
bench = Bench("*.error.nvmlDeviceGetProcessUtilization = NOT_SUPPORTED\\n0.power_mw = 100000\\n0.energy_mj = 1\\n0.procs = {a}:1, {b}:1",
              jobs={"a": {}, "b": {}})
bench.tick()
say(bench.joules("a"), bench.joules("b"), bench.used["a"].method)
bench.close()
"""
    a, b, method = run(code)[0]
    assert a == b == [0, 50, pytest.approx(110)]
    assert method == "estimated"


def test_of_four_gpus_a_job_has_the_two_that_it_sees(run):
    code = """
bench = Bench("count = 4\\n*.energy_mj = 1\\n0.power_mw = 300000\\n1.power_mw = 100000\\n2.power_mw = 50000\\n3.power_mw = 200000\\n"
              "0.procs = {stranger}:1:99\\n1.procs = {job}:1:90\\n3.procs = {job}:1:80",
              jobs={"job": {"CUDA_VISIBLE_DEVICES": "1,3"}, "stranger": {}})
window = bench.tick()
say(window.other_microjoules, window.idle_microjoules, bench.joules("job"))
bench.close()
"""
    other, idle, job = run(code)[0]
    assert (other, idle) == (300_000_000, 50_000_000)
    assert job == pytest.approx([270, 300, 330])


def test_a_gpu_that_nobody_computes_on_is_idle(run):
    code = """
bench = Bench("0.power_mw = 40000\\n0.energy_mj = 1\\n0.procs = {job}:1:0", jobs={"job": {}})
window = bench.tick()
say(window.idle_microjoules, bench.joules("job"))
bench.close()
"""
    idle, job = run(code)[0]
    assert (idle, job) == (40_000_000, [0, 0, 0])


@pytest.mark.parametrize(
    ("use", "reserved", "expected"),
    [
        ("0.util = 80,10", {"a": "0", "b": "0", "c": "-1"}, [[0, 50, 110], [0, 50, 110], [0, 0, 0]]),
        ("0.util = 80,10", {"a": "0", "b": "", "c": ""}, [[0, 100, 110], [0, 0, 0], [0, 0, 0]]),
        ("0.mig = 1\n0.mig_devices = 1\n0.mig.0.slices = 7", {"a": "0"}, [[0, 100, 110]]),
        ("0.util = 0,0", {"a": "0"}, [[0, 0, 0]]),
    ],
)
def test_what_a_container_hides_is_split_among_those_who_reserved_the_gpu(run, use, reserved, expected):
    jobs = {name: {"CUDA_VISIBLE_DEVICES": gpus} for name, gpus in reserved.items()}
    code = f"""
bench = Bench({use!r} + "\\n0.power_mw = 100000\\n0.energy_mj = 1\\n", jobs={jobs!r}, pid_namespace=CONTAINER)
bench.tick()
say(*(bench.joules(name) for name in {list(jobs)!r}))
bench.close()
"""
    assert run(code)[0] == [pytest.approx(each) for each in expected]


def test_a_counter_that_stands_still_while_power_is_drawn_is_none(run):
    code = """
bench = Bench("0.architecture = 6\\n0.power_mw = 100000\\n0.stuck_mj = 7000\\n0.procs = {job}:1:90", jobs={"job": {}})
for second in range(10):
    bench.tick(polls=second > 1)
say(bench.joules("job"))
bench.close()
"""
    ((low, point, high),) = run(code)[0]
    assert low <= 1000 <= high
    assert point == pytest.approx(1000, rel=0.01)


def test_a_driver_that_is_loaded_anew_begins_anew_and_nothing_is_negative(run):
    code = """
bench = Bench("0.power_mw = 100000\\n0.energy_mj = 900000\\n0.procs = {job}:1:90", jobs={"job": {}})
windows = [bench.tick() for _ in range(2)]
bench.gpus = "reload = 1\\n0.trace = 0:0, 2.5:100000\\n0.procs = {job}:1:90"
windows += [bench.tick() for _ in range(4)]
say([window.coverage_ratio for window in windows], [window.energy.microjoules for window in windows], bench.joules("job"))
bench.close()
"""
    coverage, windows, (low, point, high) = run(code)[0]
    assert coverage == [1, 1, 0, 0, 1, 1]
    assert min(windows) > 0
    assert low <= 550 <= high
    assert point == pytest.approx(600)


@pytest.mark.parametrize(("namespace", "is_said"), [("HOST", False), ("CONTAINER", True)])
def test_doctor_is_told_where_a_container_may_hide_who_uses_a_gpu(run, tmp_path, namespace, is_said):
    code = f"""
from pathlib import Path
from mlflow_green.sensors.detect import HIDDEN_GPU_PROCESSES, detect_sensors
bench = Bench("0.uuid = GPU-a\\n0.energy_mj = 1", pid_namespace={namespace})
found = detect_sensors(Path("/nothing"), bench.proc_root)
say([note for note in found.notes if "GPU" in note], HIDDEN_GPU_PROCESSES)
"""
    notes, hidden = run(code)[0]
    assert notes[0].startswith("GPU-a: measured by NVML, ±10 %")
    assert (hidden in notes) == is_said
