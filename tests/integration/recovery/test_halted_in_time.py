"""A step that draws 400 W is stopped within 400 W x (sampling period + grace + 0.5 s) of its grant, every time.

The processes, signals and threads are real, and so is the time that passes. The power is not: each step draws 400 W
while its process lives.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.metering.sampler import Sampler
from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.leash import Leash
from mlflow_green.recorder.bookkeeper import Bookkeeper
from mlflow_green.recorder.escrow import Escrow, GrantEnforcer
from mlflow_green.recorder.late_hold import promised_hold
from mlflow_green.recorder.placement import PlacedStep
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.recorder import SAMPLING_PERIOD_SECONDS, Bookkeeping, Enforcer, Recorder
from mlflow_green.recorder.ticket import Book, Ticket
from mlflow_green.records import (
    Action,
    CpuClockName,
    Decision,
    Device,
    Domain,
    Method,
    Outcome,
    Reading,
    Site,
    Step,
    StepSpec,
    Unit,
)
from mlflow_green.spool import SpoolWriter
from mlflow_green.units import microjoules
from tests.testkit.ledger_samples import OWNER, open_at, request
from tests.testkit.metering_fakes import write_proc_stat
from tests.testkit.waiting import comes_true

CROWD_TRIALS, AT_ONCE = 150, 40
LONE_SESSIONS, LONE_TRIALS = 10, 5
POWER_WATTS, GRACE_SECONDS = 400, 1
OVERSHOOT_JOULES_MAX = POWER_WATTS * (SAMPLING_PERIOD_SECONDS + GRACE_SECONDS + 0.5)
POLICY = """
version: 1
project: demo
budgets:
  - name: lab
    limit: {joules} J
    period: total
    mode: hard
    reserve: declared
    enforce: point
    rules: [{{at: 10000%, do: halt, grace: {grace} s}}]
"""
STUBBORN = ["sh", "-c", "trap '' TERM; exec sleep 60"]


class Draw:
    """One step's process and the energy that it draws. As a CPU clock, it keeps one core busy."""

    name = CpuClockName.PERF

    def __init__(self) -> None:
        self._began_seconds: float | None = None
        self._ended_seconds: float | None = None

    def run(self, command: Sequence[str], hold_id: str) -> int:
        """Run it to its end, in the calling thread; its exit code."""
        self._began_seconds = time.monotonic()
        process = subprocess.Popen(command, env={**os.environ, "GREEN_HOLD_ID": hold_id})
        code = process.wait()
        self._ended_seconds = time.monotonic()
        return code

    def seconds(self) -> float:
        return self.seconds_at(time.monotonic())

    def seconds_at(self, now: float) -> float:
        if self._began_seconds is None:
            return 0.0
        return max(0.0, (self._ended_seconds or now) - self._began_seconds)

    @property
    def span(self) -> tuple[float, float]:
        """Its beginning and its end, once it is over."""
        assert self._began_seconds is not None
        assert self._ended_seconds is not None
        return self._began_seconds, self._ended_seconds

    @property
    def joules(self) -> float:
        return POWER_WATTS * self.seconds()

    def close(self) -> None:
        pass


class PowerOfSteps:
    """A counter of the energy that all steps have drawn."""

    name = "power of steps"

    def __init__(self, draws: Sequence[Draw], at_once: int) -> None:
        self._draws = draws
        self._shown = 0
        self._power_watts_max = 2 * POWER_WATTS * at_once  # a machine that is late shows more than there is

    def devices(self) -> list[Device]:
        values = {"domain": Domain.CPU, "method": Method.MEASURED, "power_watts_max": self._power_watts_max}
        return [Device(name="steps", error_ratio=0.0, error_source="exact in this test", **values)]

    def read(self) -> list[Reading]:
        now = time.monotonic()
        drawn = microjoules(POWER_WATTS * sum(draw.seconds_at(now) for draw in self._draws))
        self._shown = max(self._shown, drawn)  # the end of a step may be noted after a look that was later
        values = {"energy_microjoules": self._shown, "idle_microjoules": 0}  # at rest the machine draws nothing
        return [Reading(device="steps", monotonic_seconds=now, **values)]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Trial:
    ticket: Ticket
    draw: Draw
    grant_joules: int

    def run(self, recorder: Recorder) -> None:
        recorder.begin(self.ticket, self.draw)
        self.draw.run(STUBBORN, self.ticket.hold_id)
        recorder.end(self.ticket)
        recorder.tell(self.ticket, Outcome.FAILED)


def trials(dice: random.Random, count: int) -> list[Trial]:
    grants = [dice.randint(40, 900) for _ in range(count)]
    specs = [StepSpec(energy_microjoules=microjoules(joules)) for joules in grants]
    tickets = [Ticket(step=Step(workflow_run="run1", name=f"step{n}"), spec=spec) for n, spec in enumerate(specs)]
    return [Trial(ticket, Draw(), joules) for ticket, joules in zip(tickets, grants, strict=True)]


class Session:
    """Samples these trials for real; ``at_once`` of them run side by side, or each alone."""

    def __init__(self, folder: Path, trials: list[Trial], at_once: int) -> None:
        folder.mkdir()
        write_proc_stat(folder, busy_seconds=0)  # nobody else is on this host
        self.folder, self.trials, self.at_once = folder, trials, at_once
        self.clock, self.said = SystemClock(), []
        sensor = PowerOfSteps([trial.draw for trial in trials], at_once)
        self._sampler = Sampler(
            [sensor], clock=self.clock, host="node1", boot_id="boot1", lock_path=None, proc_root=folder
        )
        self.book = Book(
            project="demo",
            user="ana",
            host="node1",
            site=Site(),
            sampler_id=None,
            power_watts_max=self._sampler.power_watts_max,
        )

    def run(self, bookkeeper: Bookkeeping, enforcer: Enforcer) -> None:
        recorder = Recorder(
            sampler=self._sampler,
            bookkeeper=bookkeeper,
            spool=SpoolWriter(self.folder / "spool.jsonl"),
            enforcer=enforcer,
            book=self.book,
            clock=self.clock,
            say=self.said.append,
        )
        recorder.start()
        recorder.ask([trial.ticket for trial in self.trials])
        assert comes_true(lambda: all(trial.ticket.admitted for trial in self.trials), 30), self.said
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(lambda trial: trial.run(recorder), self.trials))
        assert recorder.close(30), self.said


def run_with_ledger(session: Session) -> None:
    joules = sum(trial.grant_joules for trial in session.trials)
    policy = parse_policy(POLICY.format(joules=joules, grace=GRACE_SECONDS).encode())
    ledger, planner = open_at(session.folder, clock=session.clock), Planner(policy, session.book, "run1")
    said = session.said.append
    session.run(Bookkeeper(ledger, planner, session.book, OWNER, session.clock, wake=lambda: None, say=said), planner)
    assert (len(ledger.entries()), ledger.open_holds()) == (len(session.trials), ())
    ledger.close()


def run_by_grant_alone(session: Session) -> None:
    """As on a compute node, where nobody can be asked and the spool is all there is."""
    steps = [placed(trial) for trial in session.trials]
    session.trials = [replace(trial, ticket=step.ticket()) for trial, step in zip(session.trials, steps, strict=True)]
    session.run(Escrow(lambda: None), GrantEnforcer(steps, session.book, session.clock))


# Beside the trials and in a process of its own, so that nothing of ours can be what it waits for.
SLEEPER = """
import time
before = time.monotonic()
while True:
    time.sleep(0.02)
    now = time.monotonic()
    print(before, now, flush=True)
    before = now
"""


class Machine:
    """How late the machine woke a process that only sleeps: no meter can be earlier."""

    def __init__(self, folder: Path) -> None:
        self._said = folder / "slept"

    def __enter__(self) -> Self:
        with self._said.open("w") as said:
            self._sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=said)
        return self

    def __exit__(self, *_: object) -> None:
        self._sleeper.kill()
        self._sleeper.wait()
        lines = self._said.read_text().splitlines()
        self._sleeps = [tuple(map(float, line.split())) for line in lines[:-1]]  # the last may be torn
        assert self._sleeps

    def late_seconds(self, began: float = 0.0, ended: float = float("inf")) -> float:
        """The latest that it woke between the two; both in seconds of the monotonic clock."""
        within = (now - before - 0.02 for before, now in self._sleeps if now > began and before < ended)
        return max(within, default=0.0)


@pytest.mark.alone
@pytest.mark.parametrize("run", [run_with_ledger, run_by_grant_alone])
def test_two_hundred_steps_are_each_stopped_in_time_alone_and_in_a_crowd(tmp_path, run) -> None:
    """Where other jobs keep a sleeping process waiting for a processor, a step is stopped that much later at most."""
    dice = random.Random(7)
    crowd = Session(tmp_path / "crowd", trials(dice, CROWD_TRIALS), AT_ONCE)
    lone = [Session(tmp_path / f"lone{n}", trials(dice, LONE_TRIALS), 1) for n in range(LONE_SESSIONS)]
    with Machine(tmp_path) as machine, ThreadPoolExecutor(LONE_SESSIONS) as pool:
        run(crowd)
        list(pool.map(run, lone))
    for sessions in ([crowd], lone):
        done = [trial for session in sessions for trial in session.trials]
        assert {trial.ticket.outcome for trial in done} == {Outcome.HALTED}
        overshoots = [trial.draw.joules - trial.grant_joules for trial in done]
        in_time = sum(overshoot <= OVERSHOOT_JOULES_MAX for overshoot in overshoots)
        print(
            f"\n{in_time} of {len(done)} in time; the worst of them was {max(overshoots):.0f} J over its grant, of"
            f" {OVERSHOOT_JOULES_MAX:.0f} J allowed; a process that only sleeps woke up to {machine.late_seconds():.3f} s late"
        )
        late_joules = [POWER_WATTS * machine.late_seconds(*trial.draw.span) for trial in done]
        assert all(over <= OVERSHOOT_JOULES_MAX + late for over, late in zip(overshoots, late_joules, strict=True))
        assert min(overshoots) > 0, "nobody is halted before the grant is used up"


def placed(trial: Trial) -> PlacedStep:
    granted = {Unit.ENERGY: microjoules(trial.grant_joules)}
    hold = promised_hold(request(trial.ticket.step.name, 0, hold_id=trial.ticket.ticket_id), OWNER)
    return PlacedStep(
        ticket_id=trial.ticket.ticket_id,
        step=trial.ticket.step,
        spec=trial.ticket.spec,
        decision=Decision(action=Action.ADMIT, would=Action.ADMIT, tier=None, amounts=granted, reason="fits"),
        hold=replace(hold, amounts=granted),
        late_request=None,
        granted=granted,
        leashes=(Leash(budget="lab", unit=Unit.ENERGY, enforce="point"),),
        grace_seconds=GRACE_SECONDS,
    )
