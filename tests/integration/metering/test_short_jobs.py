"""Jobs that fit between two ticks of /proc/stat, on a machine whose energy is modelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import CpuClockName, Domain, Energy
from mlflow_green.sensors.cpu_model import CpuModel
from mlflow_green.sensors.load_model import LoadModelSensor
from tests.testkit.metering_fakes import HandClock, HandCpuClock, write_proc_stat

JOULE = 1_000_000
LINE = (1.0, 1.9, 5.5, 10.0)  # watts at LOADS
CPU = CpuModel(
    name="test",
    threads=2,
    low_watts=tuple(watts / 2 for watts in LINE),
    watts=LINE,
    high_watts=tuple(watts * 3 for watts in LINE),
    source="a test",
)
WATTS_PER_CPU = (LINE[-1] - LINE[0]) / CPU.threads


def metered(folder, *, used_seconds: float, seen_seconds: float, name=CpuClockName.PERF) -> Energy:
    """What a job gets that used CPU time for 3 ms, in which no tick passed."""
    clock, cpu_clock = HandClock(), HandCpuClock()
    cpu_clock.name = name
    write_proc_stat(folder, busy_seconds=5)
    sensor = LoadModelSensor(CPU, folder, monotonic=clock.monotonic_seconds)
    sampler = Sampler([sensor], clock=clock, host="h", boot_id="b", lock_path=None, proc_root=folder)
    sampler.join("job", cpu_clock)
    clock.seconds, cpu_clock.cpu_seconds = 0.003, seen_seconds
    sampler.leave("job")
    tick = sampler.tick()
    (window,) = tick.windows
    assert window.energy.high_microjoules >= window.energy.microjoules + used_seconds * WATTS_PER_CPU * JOULE
    return tick.usages["job"].energy[Domain.CPU]


def test_a_job_of_a_millisecond_gets_the_energy_of_a_millisecond(tmp_path):
    energy = metered(tmp_path, used_seconds=0.001, seen_seconds=0.001)
    assert energy.microjoules == pytest.approx(0.001 * WATTS_PER_CPU * JOULE, rel=0.01)
    assert (energy.low_microjoules, energy.high_microjoules) == pytest.approx(
        (energy.microjoules / 2, energy.microjoules * 3), rel=0.01
    )


def test_the_interval_covers_what_neither_a_clock_nor_a_tick_has_seen(tmp_path):
    energy = metered(tmp_path, used_seconds=0.003, seen_seconds=0.0, name=CpuClockName.POLLING)
    assert (energy.low_microjoules, energy.microjoules) == (0, 0)
    assert energy.high_microjoules >= 0.003 * WATTS_PER_CPU * 3 * JOULE


def test_a_command_that_does_nothing_has_an_energy_above_zero(tmp_path):
    environ = {**os.environ, "MLFLOW_GREEN_RUNTIME_DIR": str(tmp_path / "runtime")}
    command = [sys.executable, "-m", "mlflow_green.cli", "run", "--json", "--", "true"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True, timeout=60)
    entry = json.loads(done.stderr.splitlines()[-1])["entry"]
    assert entry["cpu_seconds"] > 0
    assert 0 < entry["energy_microjoules"]["total"] < entry["energy_high_microjoules"]
