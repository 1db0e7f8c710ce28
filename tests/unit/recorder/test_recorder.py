from __future__ import annotations

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.verify import verify
from mlflow_green.metering.sampler import Sampler
from mlflow_green.recorder.recorder import Recorder, Verdict
from mlflow_green.records import CpuClockName, Outcome
from tests.testkit.metering_fakes import HandCpuClock
from tests.testkit.recorder_parts import BOOK, FailingLedger, SimplePlanner, bookkeeper, down, ticket

NEVER = 1_000.0
SECONDS = 10.0


class SpoolInMemory:
    """Fails while ``is_full``."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.is_full = False

    path = "spool.jsonl"

    def append(self, line) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.lines.append(line)

    def close(self) -> None:
        """Nothing to close."""


class AlwaysHalt:
    needs_balances = False

    def judge(self, ticket, balances) -> Verdict:
        return Verdict(halt_reason="over its grant", grace_seconds=0.0)


class Parts:
    def __init__(self, *, enforcer=None) -> None:
        self.said: list[str] = []
        self.ledger = FailingLedger()
        self.spool = SpoolInMemory()
        self.sampler = Sampler([], clock=SystemClock(), host="node1", boot_id="boot1", lock_path=None)
        self.keeper = bookkeeper(self.ledger, SimplePlanner(enforces=True), self.said)
        self.keeper.start = lambda: None  # it runs already
        self.recorder = Recorder(
            sampler=self.sampler,
            bookkeeper=self.keeper,
            spool=self.spool,
            enforcer=enforcer,
            book=BOOK,
            clock=SystemClock(),
            say=self.said.append,
            keeps_spool=True,
            period_seconds=NEVER,
        )
        self.recorder.start()

    def admitted(self, name: str):
        step = ticket(name)
        self.recorder.ask([step])
        assert self.keeper.flush(SECONDS)
        return step

    def begun(self, name: str):
        step = self.admitted(name)
        self.recorder.begin(step, HandCpuClock())
        return step


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_step_that_ends_before_the_first_sample_is_posted_with_its_cpu_time(parts) -> None:
    step = parts.admitted("quick")
    clock = HandCpuClock()
    parts.recorder.begin(step, clock)
    clock.cpu_seconds = 0.25
    parts.recorder.end(step)
    parts.recorder.tell(step, Outcome.SUCCEEDED)
    assert parts.recorder.close(SECONDS)
    (entry,) = parts.ledger.entries()
    assert (entry.outcome, entry.cpu_seconds, entry.cpu_clock) == (Outcome.SUCCEEDED, 0.25, CpuClockName.PERF)
    assert clock.closed
    assert verify(parts.ledger, lambda owner: True) == ()


def test_closing_settles_what_runs_and_voids_what_never_began(parts) -> None:
    parts.begun("running")
    parts.admitted("not begun")
    assert parts.recorder.close(SECONDS)
    assert [(entry.step, entry.outcome) for entry in parts.ledger.entries()] == [("running", Outcome.CANCELLED)]
    assert parts.ledger.open_holds() == ()
    assert [row.kind for row in parts.ledger.journal()].count("void") == 1


def test_lines_that_the_spool_could_not_take_are_written_when_it_can(parts) -> None:
    parts.spool.is_full = True
    first = parts.begun("first")
    second = parts.begun("second")
    parts.spool.is_full = False
    parts.begun("third")
    kinds = [(line["kind"], line.get("hold_id")) for line in parts.spool.lines]
    assert kinds[:2] == [("begin", first.hold_id), ("begin", second.hold_id)]
    assert len(kinds) == 3
    assert sum("cannot write" in text for text in parts.said) == 1


def test_books_that_cannot_be_closed_are_kept_in_the_spool(parts) -> None:
    step = parts.begun("train")
    parts.recorder.end(step)
    parts.recorder.tell(step, Outcome.SUCCEEDED)
    parts.ledger.problem = down()
    assert not parts.recorder.close(SECONDS)
    assert [line["kind"] for line in parts.spool.lines] == ["begin", "tick", "closing", "end"]


def test_a_step_that_has_finished_is_not_halted_any_more() -> None:
    parts = Parts(enforcer=AlwaysHalt())
    step = parts.begun("train")
    parts.recorder.end(step)
    parts.recorder._tick()
    parts.recorder._halt(step, "judged before it ended", 0.0)
    assert step.halt_reason is None


def test_a_halted_step_is_halted_whatever_its_exit_says() -> None:
    parts = Parts(enforcer=AlwaysHalt())
    step = parts.begun("train")
    parts.recorder._tick()
    parts.recorder.end(step)
    parts.recorder.tell(step, Outcome.FAILED)
    assert parts.recorder.close(SECONDS)
    (entry,) = parts.ledger.entries()
    assert (entry.outcome, entry.reason) == (Outcome.HALTED, "over its grant")


def test_a_step_whose_host_ends_before_it_tells_is_still_a_halted_one() -> None:
    parts = Parts(enforcer=AlwaysHalt())
    parts.begun("train")
    parts.recorder._tick()
    assert parts.recorder.close(SECONDS)
    (entry,) = parts.ledger.entries()
    assert (entry.outcome, entry.reason) == (Outcome.HALTED, "over its grant")


def test_a_ledger_that_does_not_answer_does_not_keep_the_host_from_ending(parts) -> None:
    step = parts.begun("train")
    parts.recorder.end(step)
    parts.recorder.tell(step, Outcome.SUCCEEDED)
    parts.ledger.is_free.clear()
    assert not parts.recorder.close(0.1)
    assert parts.recorder.ledger_is_busy
    assert [line["kind"] for line in parts.spool.lines] == ["begin", "tick", "closing", "end"]
    parts.ledger.is_free.set()
