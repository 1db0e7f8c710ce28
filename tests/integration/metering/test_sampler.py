from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.metering.cpu_clock import ProcessTreeClock
from mlflow_green.metering.sampler import Sampler, merge_windows
from mlflow_green.records import Domain, Method, Tick
from mlflow_green.sensors.load_model import LoadModelSensor, cpu_model_from
from mlflow_green.sensors.replay import ReplaySensor
from tests.testkit.metering_fakes import (
    HandClock,
    HandCpuClock,
    device,
    reading,
    write_memory,
    write_proc_stat,
    write_process,
)
from tests.testkit.waiting import comes_true

JOULE = 1_000_000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Bench:
    """A sampler on a recorded trace of one CPU package, with everything turned by hand."""

    def __init__(self, folder, trace, *, lock_path=None, devices=None):
        self.folder, self.clock, self.busy_seconds = folder, HandClock(), 0.0
        write_proc_stat(folder, busy_seconds=0)
        sensor = ReplaySensor(devices or [device()], trace)
        self.sampler = Sampler(
            [sensor], clock=self.clock, host="node1", boot_id="boot", lock_path=lock_path, proc_root=folder
        )

    def tick(self, *, busy_seconds: float) -> Tick:
        self.clock.seconds += 1
        self.busy_seconds += busy_seconds
        write_proc_stat(self.folder, busy_seconds=self.busy_seconds)
        return self.sampler.tick()


def steady(power_watts: int = 60):
    return [[reading(second, second * power_watts * JOULE)] for second in range(50)]


def test_two_consumers_and_the_rest_of_the_host_share_the_window(tmp_path):
    bench = Bench(tmp_path, steady())
    a, b = HandCpuClock(), HandCpuClock()
    bench.sampler.join("a", a)
    bench.sampler.join("b", b)
    a.cpu_seconds, b.cpu_seconds = 0.5, 1.0
    tick = bench.tick(busy_seconds=2.0)
    (window,) = tick.windows
    assert tick.usages["a"].energy[Domain.CPU].microjoules == 15 * JOULE
    assert tick.usages["b"].energy[Domain.CPU].microjoules == 30 * JOULE
    assert (window.attributed_microjoules, window.idle_microjoules, window.other_microjoules) == (
        45 * JOULE,
        0,
        15 * JOULE,
    )
    assert (tick.usages["a"].cpu_seconds, tick.usages["a"].duration_seconds) == (0.5, 1.0)
    assert tick.usages["a"].coverage_ratio == 1


def test_usage_adds_up_and_is_final_once_after_leaving(tmp_path):
    bench = Bench(tmp_path, steady())
    a = HandCpuClock()
    bench.sampler.join("a", a)
    for expected_joules in (60, 120):
        a.cpu_seconds += 1
        tick = bench.tick(busy_seconds=1)
        assert tick.usages["a"].total.microjoules == expected_joules * JOULE
        assert tick.final == frozenset()
    a.cpu_seconds += 1
    bench.sampler.leave("a")
    bench.sampler.leave("a")
    a.cpu_seconds += 100  # whatever its clock says later is not its own
    tick = bench.tick(busy_seconds=1)
    assert (tick.usages["a"].total.microjoules, tick.final) == (180 * JOULE, {"a"})
    assert tick.usages["a"].duration_seconds == 2
    assert a.closed
    assert bench.tick(busy_seconds=1).usages == {}


def test_what_a_clock_had_counted_before_it_joined_is_not_charged(tmp_path):
    bench = Bench(tmp_path, steady())
    late = HandCpuClock()
    late.cpu_seconds = 1_000.0
    bench.sampler.join("late", late)
    late.cpu_seconds += 0.5
    tick = bench.tick(busy_seconds=1)
    assert tick.usages["late"].total.microjoules == 30 * JOULE
    assert tick.usages["late"].cpu_seconds == 0.5


def test_two_consumers_of_one_name_are_refused(tmp_path):
    bench = Bench(tmp_path, steady())
    bench.sampler.join("a", HandCpuClock())
    with pytest.raises(ValueError, match="joined already"):
        bench.sampler.join("a", HandCpuClock())


def test_a_failed_read_is_a_gap_and_never_zero(tmp_path):
    trace = [*steady()[:2], SensorRetry("bus error"), [reading(3, 180 * JOULE)]]
    bench = Bench(tmp_path, trace)
    bench.sampler.join("a", clock := HandCpuClock())
    ticks = []
    for _ in range(3):
        clock.cpu_seconds += 1
        ticks.append(bench.tick(busy_seconds=1))
    energies = [tick.windows[0].energy.microjoules for tick in ticks]
    assert energies == [60 * JOULE] * 3
    assert [tick.windows[0].coverage_ratio for tick in ticks] == [1, 0, 1]
    assert ticks[-1].usages["a"].coverage_ratio == pytest.approx(2 / 3)
    assert ticks[-1].usages["a"].energy[Domain.CPU].high_microjoules > 180 * JOULE


@pytest.mark.parametrize("error", [SensorUnavailable("driver unloaded"), RuntimeError("driver bug")])
def test_a_lost_sensor_is_said_once_and_its_energy_estimated(tmp_path, error):
    bench = Bench(tmp_path, [])

    class Broken(ReplaySensor):
        reads = 0

        def read(self):
            self.reads += 1
            if self.reads > 2:
                raise error
            return [reading(self.reads - 1, (self.reads - 1) * 60 * JOULE)]

    sensor = Broken([device()], [])
    sampler = Sampler([sensor], clock=bench.clock, host="h", boot_id="b", lock_path=None, proc_root=tmp_path)
    bench.sampler = sampler
    ticks = [bench.tick(busy_seconds=1) for _ in range(4)]
    assert [tick.windows[0].energy.microjoules for tick in ticks] == [60 * JOULE] * 4
    assert ticks[-1].windows[0].energy.low_microjoules == 0
    assert sensor.reads == 3
    assert len(sampler.notes) == 1
    sampler.close()


@pytest.mark.parametrize("trace", [[[reading(0, 5)]], [SensorRetry("no")] * 5, []])
def test_a_sensor_without_a_second_reading_is_never_free(tmp_path, trace):
    bench = Bench(tmp_path, trace)
    bench.sampler.join("a", clock := HandCpuClock())
    for _ in range(2):
        clock.cpu_seconds += 1
        tick = bench.tick(busy_seconds=1)
    total, coverage_ratio = tick.usages["a"].total, tick.usages["a"].coverage_ratio
    assert (total.low_microjoules, total.microjoules, total.high_microjoules) == (0, 100 * JOULE, 200 * JOULE)
    assert (total.method, coverage_ratio) == (Method.ESTIMATED, 0.0)


def test_the_note_on_a_lost_sensor_says_what_its_energy_is_estimated_from(tmp_path):
    early, late = Bench(tmp_path, steady()[:1]), Bench(tmp_path, steady()[:2])
    for bench in (early, late):
        for _ in range(3):
            bench.tick(busy_seconds=1)
    (early_note,), (late_note,) = early.sampler.notes, late.sampler.notes
    assert early_note == (
        "the sensor replay is lost before its second reading; from now on its energy is taken as half of its "
        "greatest power, anything from 0 to 100 W: the recorded trace has ended"
    )
    assert late_note == (
        "the sensor replay is lost; from now on its energy is estimated from its mean power so far: "
        "the recorded trace has ended"
    )


def test_estimated_time_teaches_no_baseline(tmp_path):
    bench = Bench(tmp_path, [])
    bench.sampler.join("a", clock := HandCpuClock())
    for _ in range(40):
        bench.tick(busy_seconds=0.0)
    clock.cpu_seconds += 2
    assert bench.tick(busy_seconds=2.0).windows[0].idle_microjoules == 0


def test_windows_that_put_an_estimate_right_teach_no_baseline(tmp_path):
    idle = [[reading(second, second * 10 * JOULE)] for second in range(1, 60)]
    bench = Bench(tmp_path, [SensorRetry("not yet"), *idle])
    energies = [bench.tick(busy_seconds=0.0).windows[0].energy.microjoules for _ in range(40)]
    assert energies[:5] == [50 * JOULE, 0, 0, 0, 0]
    bench.sampler.join("a", clock := HandCpuClock())
    clock.cpu_seconds += 2
    assert bench.tick(busy_seconds=2.0).windows[0].idle_microjoules == 10 * JOULE


def test_without_proc_stat_the_consumers_share_everything(tmp_path):
    bench = Bench(tmp_path, steady())
    bench.sampler.join("a", clock := HandCpuClock())
    clock.cpu_seconds = 1
    bench.clock.seconds += 1
    (tmp_path / "stat").unlink()
    assert bench.sampler.tick().usages["a"].total.microjoules == 60 * JOULE


def test_a_clock_that_breaks_charges_nothing_more(tmp_path):
    class Broken(HandCpuClock):
        def seconds(self) -> float:
            raise OSError("closed")

    bench = Bench(tmp_path, steady())
    bench.sampler.join("a", Broken())
    assert bench.tick(busy_seconds=1).usages["a"].total.microjoules == 0


def test_packages_and_memory_and_gpu_are_domains_of_their_own(tmp_path):
    devices = [
        device("package-0"),
        device("package-1"),
        device("dram", Domain.DRAM),
        device("GPU-a", Domain.GPU),
    ]
    trace = [[reading(second, second * JOULE, each.name) for each in devices] for second in range(5)]
    bench = Bench(tmp_path, trace, devices=devices)
    bench.sampler.join("a", clock := HandCpuClock())
    clock.cpu_seconds = 1
    tick = bench.tick(busy_seconds=2)
    usage = tick.usages["a"].energy
    assert {domain: energy.microjoules / JOULE for domain, energy in usage.items()} == {
        Domain.CPU: 1,
        Domain.DRAM: 0.5,
        Domain.GPU: 1,
    }
    assert usage[Domain.GPU].low_microjoules == 0
    assert bench.sampler.power_watts_max == 400


def memory_bench(folder, *, lock_path=None):
    """A memory of 1,000 pages whose energy is all idle, 10 W, with nobody's processes yet."""
    write_memory(folder, memory_bytes=1_000 * PAGE_BYTES)
    trace = [
        [reading(second, second * 10 * JOULE, "memory", idle_microjoules=second * 10 * JOULE)] for second in range(20)
    ]
    return Bench(folder, trace, devices=[device("memory", Domain.DRAM)], lock_path=lock_path)


def test_memory_that_is_kept_pays_for_itself_and_the_rest_is_idle(tmp_path):
    bench = memory_bench(tmp_path)
    bench.sampler.join("a", HandCpuClock())
    bench.sampler.join("b", HandCpuClock())
    write_process(tmp_path, 10, resident_pages=200, hold_id="a")
    write_process(tmp_path, 11, resident_pages=100, hold_id="a")
    write_process(tmp_path, 12, resident_pages=300, hold_id="nobody here")
    tick = bench.tick(busy_seconds=1)
    (window,) = tick.windows
    assert tick.usages["a"].energy[Domain.DRAM].microjoules == 3 * JOULE
    assert tick.usages["b"].energy[Domain.DRAM].microjoules == 0
    assert (window.attributed_microjoules, window.idle_microjoules) == (3 * JOULE, 7 * JOULE)


def test_a_block_pays_for_the_memory_of_its_own_process_and_a_view_shows_it(tmp_path):
    bench, here = memory_bench(tmp_path), os.getpid()
    bench.sampler.join("block", HandCpuClock(), is_own_process=True)
    bench.sampler.join("view", HandCpuClock(), is_view=True, is_own_process=True)
    bench.sampler.join("job", HandCpuClock())
    write_process(tmp_path, here, resident_pages=100)
    write_process(tmp_path, 10, resident_pages=20, parent=here, hold_id="of a block that has ended")
    write_process(tmp_path, 11, resident_pages=300, parent=here, hold_id="job")
    tick = bench.tick(busy_seconds=1)
    charged = {name: usage.energy[Domain.DRAM].microjoules / JOULE for name, usage in tick.usages.items()}
    assert charged == {"block": 1.2, "view": 4.2, "job": 3.0}
    assert tick.windows[0].idle_microjoules == 5.8 * JOULE


def test_memory_that_nobody_has_found_may_be_a_jobs(tmp_path):
    bench = memory_bench(tmp_path)
    bench.sampler.join("seen", HandCpuClock())
    bench.sampler.join("hidden", HandCpuClock())
    write_process(tmp_path, 10, resident_pages=200, hold_id="seen")
    hidden = bench.tick(busy_seconds=1).usages["hidden"].energy[Domain.DRAM]
    assert (hidden.low_microjoules, hidden.microjoules) == (0, 0)
    assert hidden.high_microjoules == pytest.approx(0.8 * 11 * JOULE)


def test_a_followers_consumers_pay_for_their_memory_too(tmp_path):
    bench = memory_bench(tmp_path, lock_path=tmp_path / "shared" / "lock")
    follower = Sampler(
        [ReplaySensor([device("memory", Domain.DRAM)], [])],
        clock=bench.clock,
        host="node1",
        boot_id="boot",
        lock_path=tmp_path / "shared" / "lock",
        proc_root=Path("/proc"),
    )
    job = subprocess.Popen(["sleep", "60"], env={"GREEN_HOLD_ID": "theirs", "PATH": os.environ["PATH"]})
    try:
        follower.join("theirs", HandCpuClock())

        def charged_microjoules() -> int:
            bench.clock.seconds += 3
            follower.tick()
            bench.tick(busy_seconds=0)
            usage = follower.tick().usages.get("theirs")
            return usage.energy[Domain.DRAM].microjoules if usage and usage.energy else 0

        assert comes_true(charged_microjoules, 5)
    finally:
        job.kill()
        job.wait()


def test_a_quiet_host_teaches_the_baseline_and_then_idle_is_its_own_line(tmp_path):
    bench = Bench(
        tmp_path, [[reading(second, second * 10 * JOULE)] for second in range(31)] + [[reading(31, 360 * JOULE)]]
    )
    for _ in range(30):
        assert bench.tick(busy_seconds=0.0).windows[0].idle_microjoules == 10 * JOULE
    bench.sampler.join("a", clock := HandCpuClock())
    clock.cpu_seconds = 2
    tick = bench.tick(busy_seconds=2)
    assert tick.windows[0].idle_microjoules == 10 * JOULE
    assert tick.usages["a"].total.microjoules == 50 * JOULE


def test_a_lock_that_cannot_be_made_leaves_the_sampler_uncoordinated(tmp_path):
    (tmp_path / "file").write_text("")
    assert not Bench(tmp_path, steady(), lock_path=tmp_path / "file" / "sampler.lock").sampler.coordinated


def test_merged_windows_keep_every_microjoule_and_stop_at_a_gap(tmp_path):
    bench = Bench(tmp_path, [*steady()[:4], SensorRetry("no"), *steady()[5:]])
    ticks = [bench.tick(busy_seconds=1) for _ in range(6)]
    windows = [window for tick in ticks for window in tick.windows]
    (whole,) = merge_windows(windows)
    assert whole.energy.microjoules == sum(window.energy.microjoules for window in windows)
    assert (whole.sequence_first, whole.sequence_last) == (1, 6)
    assert (whole.ended_at - whole.started_at).total_seconds() == 6
    assert whole.coverage_ratio == pytest.approx(5 / 6)
    parts = merge_windows([*windows[:2], *windows[3:]])
    assert [(part.sequence_first, part.sequence_last) for part in parts] == [(1, 2), (4, 6)]
    assert merge_windows([]) == ()


def test_real_jobs_on_the_load_model_sum_to_the_node_exactly(tmp_path):
    sampler = Sampler(
        [LoadModelSensor(cpu_model_from())],
        clock=SystemClock(),
        host="here",
        boot_id="boot",
        lock_path=tmp_path / "sampler.lock",
    )
    burn = "import time\nend = time.thread_time() + {}\nwhile time.thread_time() < end: pass"
    jobs = [subprocess.Popen([sys.executable, "-S", "-c", burn.format(0.2 + 0.1 * n)]) for n in range(5)]
    for number, job in enumerate(jobs):
        clock = ProcessTreeClock()
        clock.add_root(job.pid)
        sampler.join(f"job{number}", clock)
    final, windows = {}, []
    left: set[int] = set()
    while len(final) < len(jobs):
        for number, job in enumerate(jobs):
            if number not in left and job.poll() is not None:
                sampler.leave(f"job{number}")
                left.add(number)
        tick = sampler.tick()
        windows += tick.windows
        final |= {name: tick.usages[name] for name in tick.final}
    sampler.close()
    (whole,) = merge_windows(windows)
    charged = sum(usage.total.microjoules for usage in final.values())
    assert charged == whole.attributed_microjoules > 0
    assert charged + whole.idle_microjoules + whole.other_microjoules == whole.energy.microjoules
    assert whole.idle_microjoules > 0
    assert whole.energy.method is Method.ESTIMATED
    assert whole.energy.low_microjoules < whole.energy.microjoules < whole.energy.high_microjoules


def test_joining_and_leaving_while_ticking_loses_no_consumer(tmp_path):
    sampler = Sampler([LoadModelSensor(cpu_model_from())], clock=SystemClock(), host="h", boot_id="b", lock_path=None)

    def work(worker: int) -> None:
        for number in range(200):
            clock = HandCpuClock()
            sampler.join(f"{worker}-{number}", clock)
            clock.cpu_seconds = 0.001
            sampler.leave(f"{worker}-{number}")

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    final, charged, attributed = set(), 0, 0
    while len(final) < 800:
        tick = sampler.tick()
        charged += sum(tick.usages[name].total.microjoules for name in tick.final if tick.usages[name].energy)
        attributed += sum(window.attributed_microjoules for window in tick.windows)
        assert not final & tick.final
        final |= tick.final
    for worker in workers:
        worker.join()
    assert charged == attributed


def test_a_forked_child_can_end_while_the_sampler_lives(tmp_path):
    bench = Bench(tmp_path, steady(), lock_path=tmp_path / "lock")
    child = multiprocessing.get_context("fork").Process(target=bench.sampler.tick)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert bench.tick(busy_seconds=1).windows
