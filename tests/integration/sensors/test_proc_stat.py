from __future__ import annotations

import pytest

from mlflow_green.metering.sampler import Sampler
from mlflow_green.sensors.detect import detect_sensors
from mlflow_green.sensors.proc_stat import read_host_cpu
from tests.testkit.metering_fakes import CounterSensor, HandClock, HandCpuClock, device, write_proc_stat

JOULE = 1_000_000


def test_stolen_time_is_neither_busy_nor_idle(tmp_path):
    write_proc_stat(tmp_path, busy_seconds=3, idle_seconds=50, stolen_seconds=2)
    host = read_host_cpu(tmp_path)
    assert (host.busy_seconds, host.stolen_seconds, host.grain_seconds) == (3, 2, 0.02)


def test_a_kernel_that_does_not_count_stolen_time_leaves_it_unknown(tmp_path):
    (tmp_path / "stat").write_text("cpu  300 0 0 5000 0 0 0\ncpu0 300 0 0 5000 0 0 0\nintr 1\n")
    old = read_host_cpu(tmp_path)
    assert (old.busy_seconds, old.stolen_seconds) == (3, None)
    write_proc_stat(tmp_path, busy_seconds=4, stolen_seconds=1)
    assert read_host_cpu(tmp_path).stolen_since(old) is None
    assert read_host_cpu(tmp_path).stolen_since(read_host_cpu(tmp_path)) == 0


def test_a_tick_tells_the_stolen_time_and_nobody_is_charged_for_it(tmp_path):
    clock, counters = HandClock(), {"package-0": 0}
    write_proc_stat(tmp_path, busy_seconds=0, stolen_seconds=0)
    sensor = CounterSensor(clock, [device()], counters)
    sampler = Sampler([sensor], clock=clock, host="h", boot_id="b", lock_path=None, proc_root=tmp_path)
    sampler.join("a", job := HandCpuClock())
    clock.seconds, job.cpu_seconds, counters["package-0"] = 1.0, 0.5, 60 * JOULE
    write_proc_stat(tmp_path, busy_seconds=1, stolen_seconds=0.8)
    tick = sampler.tick()
    assert tick.stolen_seconds == pytest.approx(0.8)
    assert tick.usages["a"].total.microjoules == 30 * JOULE
    (window,) = tick.windows
    assert window.other_microjoules == 30 * JOULE


@pytest.mark.parametrize(("stolen_seconds", "told"), [(0, False), (10, True)])
def test_stolen_time_is_told_where_there_is_much_of_it(tmp_path, stolen_seconds, told):
    write_proc_stat(tmp_path, busy_seconds=90, stolen_seconds=stolen_seconds)
    notes = detect_sensors(tmp_path / "nothing", tmp_path).notes
    assert any("the hypervisor gave 10.0% to others" in note for note in notes) == told
