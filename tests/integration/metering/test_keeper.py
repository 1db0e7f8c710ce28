"""The keeper as a process: where it comes from, what it does for the steps of a killed program, and when it is gone."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_green.clock import SystemClock, boot_id
from mlflow_green.metering.cpu_clock import PerfClock
from mlflow_green.metering.handover import Handover, RunningStep
from mlflow_green.metering.keeping import Keeping
from mlflow_green.metering.sampler import Sampler
from mlflow_green.metering.supervise import send, step_processes
from mlflow_green.recorder.admission import Freely
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.spool_only import SpoolOnly
from mlflow_green.recorder.ticket import Book, Ticket, bare_request
from mlflow_green.records import Site, Step, StepSpec, Tick
from mlflow_green.sensors.rapl import RaplSensor
from mlflow_green.spool import SpoolWriter, from_json, nobody_goes_on, read_spool, to_json
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.keepers import keepers_of
from tests.testkit.metering_fakes import HandCpuClock
from tests.testkit.waiting import comes_true

# Burns until it has been an orphan for a while, in a child that is forked when its owner is dead already.
BURNS_AS_AN_ORPHAN = """
import os, time
owner = os.getppid()
while os.getppid() == owner: time.sleep(0.01)
if os.fork() == 0:
    end = time.process_time() + 0.5
    while time.process_time() < end: pass
    os._exit(0)
os.wait()
"""
TELLS_THAT_IT_IS_ENDED = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).touch(), sys.exit(0)))
while True: time.sleep(1)
"""


@pytest.fixture
def folder(tmp_path: Path):
    tree = FakePowercap(tmp_path / "powercap", layout="server")
    yield tmp_path
    send(step_processes("hold-1"), signal.SIGKILL)
    send(keepers_of(tmp_path), signal.SIGKILL)
    tree.close()


@pytest.fixture
def owner(folder: Path):
    """Starts a program that hands one step over; gives its process."""
    started = []

    def start(*command: str, clock: str = "perf", grace: str = "none") -> subprocess.Popen:
        if clock == "perf":
            try:
                PerfClock.open_on_current_thread().close()
            except OSError as error:
                pytest.skip(f"perf_event_open is not allowed here: {error}")
        arguments = [sys.executable, "-m", "tests.integration.metering.owner_process", folder, clock, grace, *command]
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def ticks(folder: Path) -> list[Tick]:
    return [from_json(Tick, line["tick"]) for line in read_spool(folder / "spool.jsonl") if line["kind"] == "tick"]


def is_final(folder: Path) -> bool:
    return any("hold-1" in tick.final for tick in ticks(folder))


def nothing_is_left(folder: Path) -> bool:
    return not keepers_of(folder) and [path.name for path in (folder / "run").iterdir()] == ["lock"]


class Program:
    """This process as a program with a sampler and one step."""

    def __init__(self, folder: Path, sensor: RaplSensor | None = None) -> None:
        self.lock_path, root = folder / "run" / "lock", folder / "powercap"
        self.sampler = Sampler(
            [sensor or RaplSensor(root)], clock=SystemClock(), host="node1", boot_id=boot_id(), lock_path=self.lock_path
        )
        self.sampler.join("hold-1", HandCpuClock())
        self.handover = Handover(self.lock_path, powercap_root=root, host="node1", period_seconds=0.1)
        self._step = RunningStep(
            hold_id="hold-1",
            standing=self.sampler.standing()["hold-1"],
            sampler_id=self.sampler.sampler_id,
            spool_path=folder / "spool.jsonl",
            grace_seconds=None,
        )

    def hands_over(self) -> bool:
        self.handover.update([self._step])
        return self.handover.knows(self._step.standing.key)

    def close(self) -> None:
        self.sampler.close()
        self.handover.close()


# --- as a process ---------------------------------------------------------------------------------


def test_two_programs_have_one_keeper_in_a_session_of_its_own_that_is_gone_after_both(folder):
    one, other = Program(folder), Program(folder)
    assert comes_true(one.hands_over, 30)
    assert comes_true(other.hands_over, 30)
    (keeper,) = keepers_of(folder)
    assert os.getsid(keeper) == keeper
    proc = Path(f"/proc/{keeper}")
    assert (proc / "cwd").readlink() == Path("/")
    files = {str(fd.readlink()) for fd in (proc / "fd").iterdir()}
    named = {name for name in files if not name.startswith(("socket:", "pipe:", "anon_inode:"))}
    assert named == {"/dev/null", str(folder / "run")}
    assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o700
    one.close()
    assert keepers_of(folder) == [keeper]
    assert other.sampler.tick().windows  # it leads now
    other.close()
    assert comes_true(lambda: nothing_is_left(folder), 10)


def test_a_keeper_that_was_killed_is_replaced(folder):
    program = Program(folder)
    assert comes_true(program.hands_over, 30)
    (first,) = keepers_of(folder)
    os.kill(first, signal.SIGKILL)
    assert comes_true(lambda: program.hands_over() and keepers_of(folder) not in ([], [first]), 30)
    program.close()
    assert comes_true(lambda: nothing_is_left(folder), 10)


def test_a_forked_child_does_not_speak_for_its_parent(folder):
    program = Program(folder)
    assert comes_true(program.hands_over, 30)
    pid = os.fork()
    if pid == 0:
        program.handover.update([])
        program.handover.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert program.hands_over()
    assert len(keepers_of(folder)) == 1
    program.close()


def test_in_a_folder_that_others_may_enter_nothing_is_kept_and_the_program_goes_on(folder):
    program = Program(folder)
    (folder / "run").chmod(0o755)
    assert not program.hands_over()
    assert comes_true(lambda: not keepers_of(folder), 10)
    assert program.sampler.tick().windows
    program.close()


class LooksWhenItIsClosed(RaplSensor):
    knew: bool | None = None

    def look_at(self, program: Program, key: str) -> None:
        self.program, self.key = program, key

    def close(self) -> None:
        self.knew = self.program.handover.knows(self.key)
        super().close()


def test_a_step_is_handed_over_however_often_others_end_and_taken_back_before_the_lock(folder):
    sensor = LooksWhenItIsClosed(folder / "powercap")
    program = Program(folder, sensor)
    program.sampler.leave("hold-1")
    book = Book(project="demo", user="ana", host="node1", site=Site(), sampler_id=None, power_watts_max=10.0)
    recorder = Recorder(
        sampler=program.sampler,
        bookkeeper=SpoolOnly(),
        spool=SpoolWriter(folder / "spool.jsonl"),
        enforcer=None,
        book=book,
        clock=SystemClock(),
        say=print,
        handover=program.handover,
    )
    recorder.start()
    step = Ticket(step=Step(workflow_run="run1", name="train"), spec=StepSpec())
    Freely(lambda each, now: bare_request(each, book, (), now), SystemClock()).admit(step)
    recorder.begin(step, HandCpuClock())
    key = program.sampler.standing()[step.hold_id].key

    def is_known_while_others_end() -> bool:
        recorder.sample_soon()
        return program.handover.knows(key)

    assert comes_true(is_known_while_others_end, 5)
    sensor.look_at(program, key)
    recorder.close(10)
    assert sensor.knew is False


# --- what it does ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("clock", "share_known"), [("perf", 0.97), ("polling", 0.6)])
def test_a_step_of_a_killed_program_is_metered_to_its_end(folder, owner, clock, share_known):
    process = owner(sys.executable, "-c", BURNS_AS_AN_ORPHAN, clock=clock)
    process.kill()
    assert comes_true(lambda: is_final(folder), 30)
    usage = ticks(folder)[-1].usages["hold-1"]
    assert 0.5 * share_known <= usage.cpu_seconds <= 1.5
    assert usage.cpu_clock == clock
    assert comes_true(lambda: nothing_is_left(folder), 10)


def test_under_a_hard_budget_the_step_is_asked_to_end_after_its_grace(folder, owner):
    process = owner(sys.executable, "-c", TELLS_THAT_IT_IS_ENDED, str(folder / "told"), grace="0.3")
    process.kill()
    assert comes_true(lambda: is_final(folder), 30)
    assert (folder / "told").exists()
    assert step_processes("hold-1") == frozenset()


def test_in_observe_nothing_is_ended_and_sigterm_of_the_keeper_leaves_what_it_read(folder, owner):
    process = owner("sleep", "60")
    process.kill()
    assert comes_true(lambda: len(ticks(folder)) > 3, 30)
    (keeper,) = keepers_of(folder)
    os.kill(keeper, signal.SIGTERM)
    assert comes_true(lambda: nothing_is_left(folder), 10)
    assert step_processes("hold-1")
    assert not is_final(folder)


def test_while_it_keeps_a_step_recovery_cannot_have_the_spool_file_and_another_program_follows(folder, owner):
    process = owner("sleep", "60")
    key = process.pid
    process.kill()
    assert comes_true(lambda: ticks(folder), 30)
    with nobody_goes_on(folder / "spool.jsonl") as is_last:
        assert not is_last
    other = Program(folder)
    assert other.sampler.sampler_id == ticks(folder)[0].sampler_id
    state = json.loads((folder / "run" / "lock.state").read_text())
    assert [int(name.partition("-")[0]) for name in state["accounts"]] == [key]
    send(step_processes("hold-1"), signal.SIGKILL)
    assert comes_true(lambda: is_final(folder), 30)
    assert comes_true(lambda: bool(other.sampler.tick().windows), 10)  # the keeper has gone, and this one leads
    other.close()


def test_a_step_that_its_owner_metered_to_its_end_is_not_opened_anew(folder, owner):
    process = owner("sleep", "60", grace="0.1")
    at = SystemClock().now()
    last = Tick(sampler_id="s", sequence=9, at=at, windows=(), usages={}, final=frozenset({"hold-1"}))
    with (folder / "spool.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "tick", "tick": to_json(last)}) + "\n")
    process.kill()
    assert comes_true(lambda: nothing_is_left(folder), 30)
    assert ticks(folder) == [last]
    assert step_processes("hold-1")


def test_a_step_whose_spool_file_recovery_has_is_left_alone(folder, owner):
    process = owner("sleep", "60")
    with nobody_goes_on(folder / "spool.jsonl") as is_last:
        assert is_last
        process.kill()
        assert comes_true(lambda: nothing_is_left(folder), 30)
    assert ticks(folder) == []
    assert step_processes("hold-1")


def test_what_makes_no_sense_is_not_kept_nor_is_its_descriptor(folder):
    options = {
        "powercap_root": str(folder / "powercap"),
        "host": "node1",
        "period_seconds": 0.1,
        "rapl_prefers_psys": False,
        "memory_watts_per_gib": None,
    }
    (folder / "run").mkdir(mode=0o700)
    lock_path = folder / "run" / "lock"
    keeping = Keeping(str(lock_path), os.open(lock_path, os.O_RDWR | os.O_CREAT), options)
    clock = os.open("/dev/null", os.O_RDONLY)
    keeping.take([({"key": "1", "hold_id": "hold-1", "grace_seconds": "soon"}, clock)])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(clock)
    assert not keeping.advance()


# --- its spool file -------------------------------------------------------------------------------


def test_going_on_with_a_file_starts_a_line_of_its_own(tmp_path):
    path = tmp_path / "spool.jsonl"
    path.write_bytes(b'{"kind":"a"}\n{"kind":"to')
    writer = SpoolWriter(path, goes_on=True)
    with pytest.raises(BlockingIOError):
        SpoolWriter(path, goes_on=True)
    writer.append({"kind": "b"})
    writer.close()
    assert [line["kind"] for line in read_spool(path)] == ["a", "b"]


def test_a_file_that_was_posted_meanwhile_is_not_gone_on_with(tmp_path):
    with pytest.raises(FileNotFoundError):
        SpoolWriter(tmp_path / "gone.jsonl", goes_on=True)
    assert list(tmp_path.iterdir()) == []
