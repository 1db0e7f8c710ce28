"""The main process waits for what nodes write on a share that can be late, silent or broken."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mlflow_green.recorder.late_hold import promised_hold
from mlflow_green.recorder.placed import JobEnd
from mlflow_green.recorder.placement_watch import PlacementWatch
from mlflow_green.recorder.spool_session import END_LINE, Origin, begin_line, closing_line, node_folder, session_line
from mlflow_green.recorder.ticket import Ticket, entry_of
from mlflow_green.records import Closing, ClosingKind, NodeWindow, Outcome, Tick
from mlflow_green.spool import SpoolWriter, to_json
from tests.testkit.ledger_samples import NOON, OWNER, SetClock, request, usage, window
from tests.testkit.recorder_parts import BOOK, ticket
from tests.testkit.waiting import comes_true

NEVER = 1_000_000.0
LAG_SECONDS = 60
ASK_SECONDS = 60
READ = 7


class Watched:
    """A watch that is turned by hand, and what it has done."""

    def __init__(self, folder: Path, *, period_seconds: float = NEVER) -> None:
        self.folder = folder
        self.clock = SetClock()
        self.ends: dict[str, JobEnd | None] = {}
        self.asked: list[set[str]] = []
        self.problem: Exception | None = None
        self.settled: list[tuple[str, Closing]] = []
        self.windows: list[NodeWindow] = []
        self.watch = PlacementWatch(
            folder,
            OWNER,
            self.clock,
            job_ends=self.job_ends,
            settle=lambda step, closing: self.settled.append((step.step.name, closing)),
            post=self.windows.extend,
            period_seconds=period_seconds,
        )

    def job_ends(self, job_ids: Collection[str]) -> Mapping[str, JobEnd | None]:
        self.asked.append(set(job_ids))
        if self.problem is not None:
            raise self.problem
        return {job_id: end for job_id, end in self.ends.items() if job_id in job_ids}

    def place(self, *names: str, job_id: str | None = "7", placement_id: str = "p") -> Sequence[Ticket]:
        tickets = [ticket(name) for name in names]
        for step in tickets:
            step.hold = promised_hold(request(step.step.name, 0, hold_id=step.ticket_id), OWNER)
            step.placed_at, step.placement_id, step.job_id = self.clock.now(), placement_id, job_id
            step.walltime_seconds = 3600.0
        self.watch.make_room(placement_id)
        self.watch.add(tickets)
        return tickets

    def tell(self, tickets: Sequence[Ticket], outcome: Outcome) -> None:
        for step in tickets:
            step.told_at, step.outcome = self.clock.now(), outcome

    def look(self, *, after_seconds: float = 0.0) -> list[tuple[str, ClosingKind, Outcome | None]]:
        self.clock.move(after_seconds)
        self.watch._advance()
        return self.closings

    @property
    def closings(self) -> list[tuple[str, ClosingKind, Outcome | None]]:
        return [(name, each.kind, each.entry.outcome if each.entry else None) for name, each in self.settled]

    def node(self, tickets: Sequence[Ticket], *outcomes: Outcome, ends: bool = True, reason: str = "") -> None:
        """A node runs the tickets; those beyond ``outcomes`` are cut off."""
        folder = node_folder(self.folder, tickets[0].placement_id or "")
        writer = SpoolWriter(folder / f"{len(list(folder.iterdir()))}.jsonl")
        origin = Origin(at=self.clock.now(), main=OWNER, placement_id=tickets[0].placement_id or "", job_id="7")
        writer.append(session_line(OWNER, replace(BOOK, sampler_id="sampler1"), origin=origin))
        steps = [replace(step, began_at=self.clock.now(), usage=usage(READ), outcome=None) for step in tickets]
        for step in steps:
            writer.append(begin_line(step))
        usages = {step.hold_id: usage(READ) for step in steps}
        windows = (window(1, READ * len(steps)),)
        at = self.clock.now()
        tick = Tick(sampler_id="sampler1", sequence=1, at=at, windows=windows, usages=usages, final=frozenset())
        writer.append({"kind": "tick", "tick": to_json(tick)})
        for step, outcome in zip(steps, outcomes, strict=False):
            step.halt_reason = reason or None
            entry = entry_of(step, outcome, BOOK, self.clock.now())
            writer.append(closing_line(Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry)))
        if ends:
            writer.append(END_LINE)
        writer.close()


@pytest.fixture
def watched(tmp_path) -> Watched:
    return Watched(tmp_path)


def test_a_job_is_settled_as_its_node_says_once_the_host_program_says_that_it_is_over(watched) -> None:
    steps = watched.place("train", "test")
    watched.node(steps, Outcome.SUCCEEDED, Outcome.SUCCEEDED)
    assert watched.look() == []
    watched.tell(steps, Outcome.SUCCEEDED)
    assert watched.look() == [(name, ClosingKind.SETTLE, Outcome.SUCCEEDED) for name in ("train", "test")]
    assert [each.attributed_microjoules for each in watched.windows] == [2 * READ]
    assert watched.asked == []
    assert watched.watch.is_done
    watched.watch.remove_files()
    assert list((watched.folder / "nodes").iterdir()) == []


def test_files_that_a_share_shows_late_are_waited_for(watched) -> None:
    steps = watched.place("train")
    watched.tell(steps, Outcome.SUCCEEDED)
    assert watched.look() == []
    assert watched.look(after_seconds=LAG_SECONDS - 1) == []
    watched.node(steps, Outcome.SUCCEEDED)
    assert watched.look() == [("train", ClosingKind.SETTLE, Outcome.SUCCEEDED)]


def test_lines_that_a_share_shows_late_are_waited_for(watched) -> None:
    steps = watched.place("train")
    watched.node(steps, ends=False)
    watched.tell(steps, Outcome.FAILED)
    assert watched.look() == []
    watched.look(after_seconds=LAG_SECONDS)
    ((_, closing),) = watched.settled
    assert closing.kind is ClosingKind.LOST
    assert closing.entry is not None
    assert closing.entry.total is not None
    assert closing.entry.total.microjoules == READ
    assert closing.entry.energy_charged_microjoules == READ, "it was told that it is over at its last reading"


def test_a_job_of_which_nothing_was_written_is_charged_what_it_held_and_leaves_no_folder(watched) -> None:
    watched.tell(watched.place("train"), Outcome.FAILED)
    watched.look()
    assert watched.look(after_seconds=LAG_SECONDS) == [("train", ClosingKind.LOST, Outcome.LOST)]
    assert watched.asked == [{"7"}]
    assert list((watched.folder / "nodes").iterdir()) == []


def test_what_succeeded_on_the_node_and_has_no_output_here_has_failed(watched) -> None:
    steps = watched.place("train")
    watched.node(steps, Outcome.SUCCEEDED)
    watched.tell(steps, Outcome.FAILED)
    assert watched.look() == [("train", ClosingKind.SETTLE, Outcome.FAILED)]


def test_a_member_that_never_began_is_void(watched) -> None:
    steps = watched.place("train", "test")
    watched.node(steps[:1], Outcome.FAILED)
    watched.tell(steps, Outcome.FAILED)
    assert watched.look()[1] == ("test", ClosingKind.VOID, None)


# --- halted -----------------------------------------------------------------------------------------


def test_why_a_step_was_halted_is_learnt_from_its_node(watched) -> None:
    steps = watched.place("train", "test")
    placement_id = steps[0].placement_id
    assert watched.watch.halt_reasons(placement_id) == {}
    watched.node(steps, Outcome.HALTED, Outcome.FAILED, reason="month: used 2 Wh of 1 Wh")
    assert watched.watch.halt_reasons(placement_id) == {steps[0].hold_id: "month: used 2 Wh of 1 Wh"}


def test_on_a_share_that_does_not_answer_nothing_is_learnt(watched) -> None:
    (step,) = watched.place("train")
    break_share(watched)
    assert watched.watch.halt_reasons(step.placement_id) == {}


# --- cancelled --------------------------------------------------------------------------------------


def test_a_cancelled_job_is_settled_only_when_the_batch_system_says_that_it_is_over(watched) -> None:
    steps = watched.place("train")
    watched.node(steps, Outcome.FAILED)
    watched.tell(steps, Outcome.CANCELLED)
    assert watched.look() == []
    watched.ends["7"] = None
    assert watched.look() == []
    watched.ends["7"] = JobEnd(at=watched.clock.now(), started=True)
    assert watched.look() == [("train", ClosingKind.SETTLE, Outcome.CANCELLED)]


def test_a_job_that_is_cancelled_in_a_long_queue_costs_nothing(watched) -> None:
    steps = watched.place("train")
    watched.clock.move(timedelta(days=1).total_seconds())
    watched.tell(steps, Outcome.CANCELLED)
    watched.ends["7"] = None
    assert watched.look() == watched.look(after_seconds=LAG_SECONDS) == []
    watched.ends["7"] = JobEnd(at=watched.clock.now(), started=False)
    assert watched.look() == [("train", ClosingKind.VOID, None)]


def test_all_that_is_cancelled_is_asked_after_at_once(watched) -> None:
    """One question, not one a job: the batch system can take seconds to answer."""
    for number in range(5):
        steps = watched.place("train", job_id=str(number), placement_id=f"p{number}")
        watched.node(steps, Outcome.FAILED)
        watched.tell(steps, Outcome.CANCELLED)
    watched.look()
    assert watched.asked == [{"0", "1", "2", "3", "4"}]


# --- nobody told ------------------------------------------------------------------------------------


def test_a_silent_job_is_asked_after_though_nobody_told_that_it_is_over(watched) -> None:
    steps = watched.place("train")
    watched.node(steps, ends=False)
    watched.ends["7"] = JobEnd(at=NOON, started=True)
    watched.look(after_seconds=ASK_SECONDS)
    assert watched.asked == [], "it has just written"
    watched.look(after_seconds=ASK_SECONDS - 1)
    assert watched.asked == []
    assert watched.look(after_seconds=1) == [("train", ClosingKind.LOST, Outcome.LOST)]


@pytest.mark.parametrize("ends", [{}, {"7": None}])
def test_a_silent_job_of_which_nothing_else_is_known_stays(watched, ends) -> None:
    watched.place("train")
    watched.ends = ends
    for _ in range(100):
        assert watched.look(after_seconds=ASK_SECONDS) == []
    assert watched.asked


def test_a_job_that_writes_is_not_asked_after(watched) -> None:
    steps = watched.place("train")
    for _ in range(5):
        watched.node(steps, ends=False)
        watched.look(after_seconds=ASK_SECONDS)
    assert watched.asked == []


# --- what breaks ------------------------------------------------------------------------------------


def break_share(watched: Watched) -> None:
    """From now on a look into the nodes' folder fails, for root too: it is a loop of links."""
    nodes = watched.folder / "nodes"
    nodes.rename(watched.folder / "aside")
    nodes.symlink_to(nodes)


def mend_share(watched: Watched) -> None:
    (watched.folder / "nodes").unlink()
    (watched.folder / "aside").rename(watched.folder / "nodes")


def test_a_share_that_fails_is_said_once_and_read_when_it_works_again(watched, caplog) -> None:
    steps = watched.place("train")
    watched.node(steps, Outcome.SUCCEEDED)
    watched.tell(steps, Outcome.SUCCEEDED)
    break_share(watched)
    for _ in range(5):
        assert watched.look(after_seconds=ASK_SECONDS) == []
    assert len(caplog.records) == 1
    mend_share(watched)
    assert watched.look() == [("train", ClosingKind.SETTLE, Outcome.SUCCEEDED)]


def test_a_share_that_fails_while_a_job_runs_does_not_end_the_watch(watched) -> None:
    steps = watched.place("train")
    break_share(watched)
    watched.look(after_seconds=ASK_SECONDS)
    mend_share(watched)
    watched.node(steps, Outcome.SUCCEEDED)
    watched.tell(steps, Outcome.SUCCEEDED)
    assert watched.look() == [("train", ClosingKind.SETTLE, Outcome.SUCCEEDED)]


def test_a_batch_system_that_cannot_be_asked_does_not_end_the_watch(watched) -> None:
    watched.problem = OSError("sacct: no such file")
    silent = watched.place("silent", placement_id="silent")
    cancelled = watched.place("cancelled", placement_id="cancelled")
    watched.node(cancelled, Outcome.FAILED)
    watched.tell(cancelled, Outcome.CANCELLED)
    for _ in range(3):
        assert watched.look(after_seconds=ASK_SECONDS) == []
    watched.problem = None
    watched.ends["7"] = JobEnd(at=NOON, started=True)
    watched.tell(silent, Outcome.FAILED)
    watched.look()
    watched.look(after_seconds=LAG_SECONDS)
    assert {name for name, _ in watched.settled} == {"silent", "cancelled"}


def test_one_job_that_cannot_be_settled_does_not_keep_the_others(watched) -> None:
    def settle(step: Ticket, closing: Closing) -> None:
        if step.step.name == "bad":
            raise RuntimeError("an impossible step")
        watched.settled.append((step.step.name, closing))

    watched.watch._settle = settle
    for name in ("bad", "good"):
        steps = watched.place(name, placement_id=name)
        watched.node(steps, Outcome.SUCCEEDED)
        watched.tell(steps, Outcome.SUCCEEDED)
    assert watched.look() == [("good", ClosingKind.SETTLE, Outcome.SUCCEEDED)]


# --- its end ----------------------------------------------------------------------------------------


def test_a_job_that_was_not_submitted_is_forgotten_with_its_folder(watched) -> None:
    steps = watched.place("train", "test")
    watched.watch.forget(steps)
    assert watched.watch.is_done
    assert list((watched.folder / "nodes").iterdir()) == []


def test_the_watch_ends_in_time_with_all_that_is_over(watched) -> None:
    steps = watched.place("train")
    watched.node(steps, Outcome.SUCCEEDED)
    watched.tell(steps, Outcome.SUCCEEDED)
    assert watched.watch.finish(10.0)
    assert watched.closings == [("train", ClosingKind.SETTLE, Outcome.SUCCEEDED)]


def test_the_watch_ends_in_time_without_what_is_not_over(watched) -> None:
    steps = watched.place("train")
    watched.node(steps, ends=False)
    watched.tell(steps, Outcome.CANCELLED)
    assert not watched.watch.finish(0.2)
    assert watched.closings == []


def test_a_batch_system_that_does_not_answer_does_not_keep_the_watch_from_ending(watched) -> None:
    watched.problem = RuntimeError("slurm_load_jobs error")
    watched.tell(watched.place("train"), Outcome.CANCELLED)
    assert not watched.watch.finish(0.2)


def test_it_looks_by_itself(tmp_path) -> None:
    watched = Watched(tmp_path, period_seconds=0.01)
    steps = watched.place("train")
    watched.node(steps, Outcome.SUCCEEDED)
    watched.tell(steps, Outcome.SUCCEEDED)
    assert comes_true(lambda: watched.watch.is_done, 10)
    assert watched.watch.finish(10.0)
