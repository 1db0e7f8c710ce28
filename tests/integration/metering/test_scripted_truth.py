"""Random schedules of jobs in several programs on one machine, of which the script knows everything."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlflow_green.attribution.idle import BASELINE_WINDOWS_MIN
from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import CpuClockName, Domain, NodeWindow, Usage
from mlflow_green.sensors.proc_stat import TICK_SECONDS
from tests.testkit.metering_fakes import CounterSensor, HandClock, HandCpuClock, device, write_proc_stat

JOULE = 1_000_000
THREADS = 16
JOBS_MAX = 16
STEPS = 40
WATTS_PER_CPU_MAX = 15.0
TICK_MICROJOULES_MAX = round(TICK_SECONDS * WATTS_PER_CPU_MAX * JOULE)  # what /proc/stat rounds away
PACKAGE = device("package-0", counter_is_shared=True, power_watts_max=1_000.0)


@dataclass(kw_only=True)
class Job:
    """A job in a program: ``rates`` are the CPUs that it keeps busy in each step of the script from ``first`` on.

    Its clock sees ``seen_ratio`` of that.
    """

    name: str
    program: int
    first: int
    rates: list[float]
    seen_ratio: float = 1.0
    clock: HandCpuClock = field(default_factory=HandCpuClock)

    @property
    def last(self) -> int:
        return self.first + len(self.rates) - 1


@dataclass(kw_only=True)
class Script:
    """What happens: in each step so many seconds pass, others keep so many CPUs busy, and at its end there is a tick or not.

    A CPU second costs ``watts_per_cpu`` joules, the machine at rest ``watts_idle``.
    """

    programs: int
    jobs: list[Job]
    seconds: list[float]
    others: list[float]
    ticks: list[bool]
    watts_idle: float
    watts_per_cpu: list[float]
    begins_at_rest: bool

    def used(self, step: int) -> dict[str, float]:
        """CPU seconds in a step by job, and under "" those of all others."""
        running = {job.name: job.rates[step - job.first] for job in self.jobs if job.first <= step <= job.last}
        return {name: rate * self.seconds[step] for name, rate in {**running, "": self.others[step]}.items()}

    def idle_joules(self, step: int) -> float:
        return self.watts_idle * self.seconds[step]

    def dynamic_joules(self, step: int) -> float:
        return self.watts_per_cpu[step] * sum(self.used(step).values())

    def shares_joules(self) -> dict[str, float]:
        """What is due by the rule: from tick to tick, what is above a known idle energy by CPU seconds."""
        due: defaultdict[str, float] = defaultdict(float)
        used: defaultdict[str, float] = defaultdict(float)
        to_share_joules = 0.0
        for step, is_tick in enumerate(self.ticks):
            to_share_joules += self.dynamic_joules(step) + (0.0 if self.begins_at_rest else self.idle_joules(step))
            for name, cpu_seconds in self.used(step).items():
                used[name] += cpu_seconds
            if is_tick:
                for name, cpu_seconds in used.items():
                    due[name] += to_share_joules * cpu_seconds / (sum(used.values()) or 1.0)
                used.clear()
                to_share_joules = 0.0
        return due


def random_script(seed: int) -> Script:
    """At least two steps a job, up to ``JOBS_MAX`` jobs at once, some of which sleep; the host is never full."""
    dice = random.Random(seed)
    programs = dice.randint(1, 3)
    jobs = []
    for number in range(dice.randint(1, 2 * JOBS_MAX)):
        first = dice.randrange(STEPS - 2)
        length = dice.randint(2, STEPS - first)
        if sum(job.first <= first + length and first <= job.last for job in jobs) >= JOBS_MAX:
            continue
        sleeps = dice.random() < 0.15
        rates = [0.0 if sleeps else dice.choice([0.0, dice.random(), 1.0]) * 0.9 for _ in range(length)]
        jobs.append(Job(name=f"job-{number}", program=dice.randrange(programs), first=first, rates=rates))
    return Script(
        programs=programs,
        jobs=jobs,
        seconds=[dice.uniform(0.2, 1.5) for _ in range(STEPS)],
        others=[dice.choice([0.0, 0.05, dice.uniform(0, 1.5)]) for _ in range(STEPS)],
        ticks=[dice.random() < 0.7 for _ in range(STEPS - 1)] + [True],
        watts_idle=dice.uniform(5, 100),
        watts_per_cpu=[dice.uniform(5, WATTS_PER_CPU_MAX) for _ in range(STEPS)],
        begins_at_rest=dice.random() < 0.5,
    )


class Machine:
    """The programs' samplers, which meet in one folder; the first leads. The script's time and counters are theirs."""

    def __init__(self, folder: Path, programs: int) -> None:
        self.folder, self.clock = folder, HandClock()
        self.energy_joules = self.busy_seconds = 0.0
        self.counters = {"package-0": 0}
        self.windows: list[NodeWindow] = []
        self.final: dict[str, Usage] = {}
        self._to_tick: list[Sampler] = []
        write_proc_stat(folder, busy_seconds=0, threads=THREADS)
        self.samplers = [self._sampler() for _ in range(programs)]

    def _sampler(self) -> Sampler:
        return Sampler(
            [CounterSensor(self.clock, [PACKAGE], self.counters)],
            clock=self.clock,
            host="node1",
            boot_id="boot",
            lock_path=self.folder / "run" / "sampler.lock",
            proc_root=self.folder,
            pause=lambda _: self._tick_next(),
        )

    def passes(self, seconds: float, *, busy_seconds: float, energy_joules: float) -> None:
        self.clock.seconds += seconds
        self.busy_seconds += busy_seconds
        self.energy_joules += energy_joules
        self.counters["package-0"] = round(self.energy_joules * JOULE)
        write_proc_stat(self.folder, busy_seconds=self.busy_seconds, threads=THREADS)

    def tick(self) -> None:
        """The followers tick and then the leader; one that waits for the leader's answer lets the next ones go on."""
        self._to_tick = list(self.samplers)
        while self._to_tick:
            self._tick_next()

    def _tick_next(self) -> None:
        tick = self._to_tick.pop().tick()
        self.windows += tick.windows
        self.final |= {name: tick.usages[name] for name in tick.final}


def play(script: Script, machine: Machine) -> None:
    if script.begins_at_rest:  # so that the idle power is known
        for _ in range(BASELINE_WINDOWS_MIN):
            machine.passes(1.0, busy_seconds=0.0, energy_joules=script.watts_idle)
            machine.tick()
    for step, seconds in enumerate(script.seconds):
        for job in script.jobs:
            if job.first == step:
                machine.samplers[job.program].join(job.name, job.clock)
        used = script.used(step)
        for job in script.jobs:
            job.clock.cpu_seconds += used.get(job.name, 0.0) * job.seen_ratio
        energy_joules = script.idle_joules(step) + script.dynamic_joules(step)
        machine.passes(seconds, busy_seconds=sum(used.values()), energy_joules=energy_joules)
        for job in script.jobs:
            if job.last == step:
                machine.samplers[job.program].leave(job.name)
        if script.ticks[step]:
            machine.tick()
    machine.tick()


def assert_covered(usage: Usage, due_joules: float) -> None:
    given = usage.energy[Domain.CPU]
    assert given.low_microjoules <= due_joules * JOULE + TICK_MICROJOULES_MAX
    assert given.high_microjoules >= due_joules * JOULE * 0.999 - 10


@pytest.mark.parametrize("seed", range(50))
def test_every_job_gets_its_share_and_nothing_is_shared_twice(tmp_path, seed):
    script = random_script(seed)
    machine = Machine(tmp_path, script.programs)
    play(script, machine)
    due_joules = script.shares_joules()
    assert machine.final.keys() == {job.name for job in script.jobs}
    for window in machine.windows:
        assert min(window.idle_microjoules, window.other_microjoules) >= 0
    given = {name: usage.energy[Domain.CPU].microjoules for name, usage in machine.final.items()}
    assert sum(given.values()) == sum(window.attributed_microjoules for window in machine.windows)
    assert sum(given.values()) <= sum(window.energy.microjoules for window in machine.windows)
    assert sum(window.energy.microjoules for window in machine.windows) == machine.counters["package-0"]
    for job in script.jobs:
        assert given[job.name] / JOULE == pytest.approx(due_joules[job.name], rel=0.02, abs=1e-5)
        assert any(job.rates) or given[job.name] == 0
        assert_covered(machine.final[job.name], due_joules[job.name])


class MissingClock(HandCpuClock):
    name = CpuClockName.POLLING


@pytest.mark.parametrize("seed", range(100, 115))
def test_the_interval_of_a_clock_that_misses_time_covers_the_share_that_was_due(tmp_path, seed):
    script, dice = random_script(seed), random.Random(seed)
    for job in script.jobs[::2]:
        job.clock, job.seen_ratio = MissingClock(), dice.choice([0.0, dice.random()])
    machine = Machine(tmp_path, script.programs)
    play(script, machine)
    due_joules = script.shares_joules()
    for job in script.jobs:
        assert_covered(machine.final[job.name], due_joules[job.name])
