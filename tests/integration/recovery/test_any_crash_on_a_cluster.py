"""Steps that a batch system runs: whatever dies, nothing healthy is closed, and every start is charged once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.recorder.placed import WALLTIME_MARGIN, JobEnd
from mlflow_green.recorder.placement_watch import PlacementWatch
from mlflow_green.recorder.recovery import recover
from mlflow_green.recorder.spool_session import (
    END_LINE,
    Origin,
    begin_line,
    closing_line,
    placed_line,
    session_line,
    submitted_line,
    unplaced_line,
    unposted_sessions,
)
from mlflow_green.recorder.ticket import Book, Ticket, entry_of
from mlflow_green.records import (
    Action,
    Batch,
    Closing,
    ClosingKind,
    Decision,
    Hold,
    NodeWindow,
    Outcome,
    Owner,
    Site,
    Tick,
)
from mlflow_green.spool import SpoolWriter, to_json
from tests.testkit.ledger_samples import NOON, OWNER, SetClock, admit_anything, usage, window
from tests.testkit.recorder_parts import BOOK, SimplePlanner, ticket

NEVER = 1_000_000.0
JOBS_MAX = 3  # few, so that much happens to each
WALLTIME = timedelta(hours=1)
NODE = Owner(host="node7", boot_id="boot7", pid=7, started_ticks=7)
PLANNER = SimplePlanner(enforces=True, limit=10**15, amount=1000)
ADMITTED = Decision(action=Action.ADMIT, would=Action.ADMIT, tier=None, amounts={}, reason="fits")
LAST_WORDS = {Outcome.SUCCEEDED, Outcome.HALTED}


@dataclass
class Start:
    """One meter on a node, from the job's start until the node closes it or is cut off."""

    writer: SpoolWriter
    book: Book
    running: dict[str, Ticket] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)  # of every step that began, by hold id
    outcomes: set[Outcome] = field(default_factory=set)
    sequence: int = 0
    closed: bool = False


@dataclass
class Job:
    """A job as it is in truth. ``state``: placed, queued, running, over."""

    tickets: list[Ticket]
    job_id: str | None
    state: str = "placed"
    starts: list[Start] = field(default_factory=list)
    heard_at: datetime = NOON
    over_at: datetime = NOON
    began_last: bool = False
    id_spooled_at: int | None = None  # the main process's spool tells its id from this byte on

    @property
    def alive(self) -> bool:
        return self.state in {"queued", "running"}


@dataclass
class Cluster:
    """The batch system with its nodes, and the main process, which does what session and recorder do, by hand."""

    folder: Path
    clock: SetClock = field(default_factory=SetClock)
    jobs: list[Job] = field(default_factory=list)
    queue: list[Closing] = field(default_factory=list)
    windows: list[NodeWindow] = field(default_factory=list)
    main_lives: bool = True
    length: int = 0
    known_length: int = 0  # of the main process's spool: others have acted upon this much of it
    has_told: bool = True  # whether the batch system answers
    lags: bool = False  # whether it still says of what ended a moment ago that it runs
    answered_ended: set[str] = field(default_factory=set)
    settled_alive: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = MemoryLedger(self.clock)
        self.spool = SpoolWriter(self.folder / "main.jsonl")
        self.write(session_line(OWNER, BOOK))
        self.known_length = self.length
        self.watch = PlacementWatch(
            self.folder,
            OWNER,
            self.clock,
            job_ends=self.ends,
            settle=self.settle,
            post=self.windows.extend,
            period_seconds=NEVER,
        )
        self.watch._stopping.set()  # it is turned by hand

    def job(self, which: int, *states: str) -> Job | None:
        found = [job for job in self.jobs if job.state in states]
        return found[which % len(found)] if found else None

    # --- the batch system ------------------------------------------------------------------------

    def ends(self, job_ids: Collection[str]) -> Mapping[str, JobEnd | None]:
        if not self.has_told:
            return {}
        by_id = {job.job_id: job for job in self.jobs if job.job_id in job_ids}
        return {job_id: self.end(job) for job_id, job in by_id.items() if job_id}

    def end(self, job: Job) -> JobEnd | None:
        if job.state != "over" or (self.lags and job.job_id not in self.answered_ended):
            return None
        self.answered_ended.add(job.job_id or "")
        return JobEnd(at=job.over_at, started=job.began_last)

    def is_out_of_sight(self, job: Job) -> bool:
        """Nobody can tell how it is: the batch system does not answer, and its wall time has long passed."""
        can_ask = self.has_told and job.job_id and (job.id_spooled_at is None or job.starts or self.main_lives)
        matters = job.alive or (job.state == "over" and job.job_id)
        return bool(matters) and not can_ask and self.clock.now() >= job.heard_at + WALLTIME + WALLTIME_MARGIN

    # --- the main process ------------------------------------------------------------------------

    def write(self, line: Mapping[str, object]) -> None:
        self.spool.append(line)
        self.length += len(json.dumps(line, separators=(",", ":"))) + 1

    def place(self, which: int) -> None:
        if not self.main_lives or len(self.jobs) == JOBS_MAX:
            return
        number = len(self.jobs)
        tickets = [self.asked(f"step{number}.{member}", which // 3 % 3) for member in range(which % 3 + 1)]
        job = Job(tickets, job_id=f"{number}" if which % 5 else None, heard_at=self.clock.now())
        self.watch.make_room(f"placement{number}")
        for step in tickets:
            step.placement_id, step.placed_at = f"placement{number}", self.clock.now()
            step.walltime_seconds = WALLTIME.total_seconds()
            self.write(placed_line(step))
        self.watch.add(tickets)
        self.jobs.append(job)

    def asked(self, name: str, kind: int) -> Ticket:
        """A step with a hold, with the promise of one, or under no budget."""
        step = ticket(name, decision=ADMITTED)
        if kind == 0:
            batch = Batch(requests=(PLANNER.request(step, self.ledger, NOON),), owner=OWNER)
            step.hold = self.ledger.commit(batch, admit_anything).answers[0].hold
            self.known_length = self.length
        elif kind == 1:
            step.late_request = PLANNER.bare_request(step, NOON)
        else:
            request = replace(PLANNER.bare_request(step, NOON), terms=())
            step.hold = Hold.of_nothing(request, ADMITTED, OWNER, hold_id=step.ticket_id)
        return step

    def submit(self, which: int) -> None:
        job = self.job(which, "placed")
        if job is None or not self.main_lives:
            return
        self.known_length = self.length  # the batch system has the job now
        job.state = "queued"
        for step in job.tickets:
            step.submitted, step.job_id = True, job.job_id
            self.write(submitted_line(step))
        job.id_spooled_at = self.length

    def unplace(self, which: int) -> None:
        job = self.job(which, "placed")
        if job is None or not self.main_lives:
            return
        job.state = "unplaced"
        self.watch.forget(job.tickets)
        for step in job.tickets:
            self.write(unplaced_line(step))
            self.void(step)

    def void(self, step: Ticket) -> None:
        self.queue.append(Closing(kind=ClosingKind.VOID, hold_id=step.hold_id, entry=None, reason="not submitted"))

    def tell(self, which: int) -> None:
        job = self.job(which, "over")
        if job is not None:
            outcomes = job.starts[-1].outcomes if job.starts and job.starts[-1].closed else set()
            self.told(job, Outcome.SUCCEEDED if outcomes == {Outcome.SUCCEEDED} else Outcome.FAILED)

    def tell_cancelled(self, which: int) -> None:
        """The main process ends, and does not wait for what it cancels."""
        job = self.job(which, "queued", "running", "over")
        if job is not None:
            self.told(job, Outcome.CANCELLED)

    def told(self, job: Job, outcome: Outcome) -> None:
        for step in job.tickets:
            if self.main_lives and step.outcome is None:
                step.told_at, step.outcome = self.clock.now(), outcome

    def settle(self, step: Ticket, closing: Closing) -> None:
        self.settled_alive += [step for job in self.jobs if job.alive and step in job.tickets]
        if closing.kind is ClosingKind.VOID:
            self.write(unplaced_line(step))
            self.void(step)
        else:
            self.write(closing_line(closing))
            self.queue.append(closing)

    def look(self, _which: int) -> None:
        if self.main_lives and not any(map(self.is_out_of_sight, self.jobs)):
            self.watch._advance()
        assert self.settled_alive == []

    def commit(self, _which: int) -> None:
        if not self.main_lives:
            return
        closing = {each.hold_id for each in self.queue if each.kind is not ClosingKind.VOID}
        late = [step.late_request for job in self.jobs for step in job.tickets if step.hold_id in closing]
        for request in filter(None, late):
            self.ledger.commit(Batch(requests=(request,), owner=OWNER), admit_anything)
        batch = Batch(closings=tuple(self.queue), windows=tuple(self.windows))
        self.ledger.commit(batch, admit_anything)
        self.queue.clear()
        self.windows.clear()
        self.known_length = self.length

    def die(self, cut: int) -> None:
        """Its spool is whole as far as others have acted upon it; after that it may be torn anywhere."""
        if not self.main_lives:
            return
        self.main_lives = False
        self.spool.close()
        kept = self.known_length + (self.length - self.known_length) * cut // 100
        path = self.folder / "main.jsonl"
        path.write_bytes(path.read_bytes()[:kept])
        for job in self.jobs:
            if job.id_spooled_at is not None and job.id_spooled_at <= kept:
                job.id_spooled_at = None

    def close(self) -> None:
        """As ``Recorder.close`` does: what is not over stays in the spool for others."""
        for number in range(len(self.jobs)):
            self.tell_cancelled(number)
        self.clock.move(10)
        self.look(0)
        self.clock.move(61)
        self.look(0)
        for job in self.jobs:
            if job.state == "placed":
                self.watch.forget(job.tickets)
        self.commit(0)
        if self.watch.is_done:
            self.watch.remove_files()
            (self.folder / "main.jsonl").unlink()
        self.die(100) if not self.watch.is_done else self.spool.close()
        self.main_lives = False

    # --- the nodes -------------------------------------------------------------------------------

    def begin_job(self, which: int) -> None:
        job = self.job(which, "queued")
        if job is None:
            return
        job.state, job.began_last, job.heard_at = "running", True, self.clock.now()
        placement_id = job.tickets[0].placement_id or ""
        folder = self.folder / "nodes" / placement_id
        assert folder.is_dir(), "the folder of a job that may begin was taken away"
        number = sum(len(each.starts) for each in self.jobs)
        book = replace(BOOK, host="node7", sampler_id=f"sampler{number}", site=Site())
        writer = SpoolWriter(folder / f"{number:09}.jsonl")
        origin = Origin(at=self.clock.now(), main=OWNER, placement_id=placement_id, job_id=job.job_id)
        writer.append(session_line(NODE, book, origin=origin))
        job.starts.append(Start(writer, book))

    def begin_step(self, which: int) -> None:
        job = self.job(which, "running")
        start = job.starts[-1] if job else None
        if job is None or start is None or len(start.used) == len(job.tickets):
            return
        sent = job.tickets[len(start.used)]
        step = replace(sent, began_at=self.clock.now(), usage=None, outcome=None)
        start.writer.append(begin_line(step))
        start.running[step.hold_id] = step
        start.used[step.hold_id] = 0
        job.heard_at = self.clock.now()

    def tick(self, which: int) -> None:
        job = self.job(which, "running")
        if job is None:
            return
        self.clock.move(1)
        start, job.heard_at = job.starts[-1], self.clock.now()
        start.sequence += 1
        for hold_id, step in start.running.items():
            start.used[hold_id] += which
            step.usage = usage(start.used[hold_id])
        tick = Tick(
            sampler_id=start.book.sampler_id or "",
            sequence=start.sequence,
            at=self.clock.now(),
            windows=(window(start.sequence, which * len(start.running), sampler_id=start.book.sampler_id),),
            usages={hold_id: step.usage for hold_id, step in start.running.items() if step.usage},
            final=frozenset(),
        )
        start.writer.append({"kind": "tick", "tick": to_json(tick)})

    def end_step(self, which: int) -> None:
        job = self.job(which, "running")
        if job and job.starts[-1].running:
            outcomes = (Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.FAILED, Outcome.HALTED)
            self.settle_on_node(job, outcomes[which % len(outcomes)])

    def settle_on_node(self, job: Job, outcome: Outcome) -> None:
        start, job.heard_at = job.starts[-1], self.clock.now()
        step = start.running.pop(next(iter(start.running)))
        assert step.began_at is not None
        step.duration_seconds = (self.clock.now() - step.began_at).total_seconds()
        entry = entry_of(step, outcome, start.book, self.clock.now())
        start.writer.append(closing_line(Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry)))
        start.outcomes.add(outcome)

    def end_job(self, which: int) -> None:
        """The node closes its books. What did not go well may be begun again; where nobody can ask, at once."""
        job = self.job(which, "running")
        if job is None:
            return
        start = job.starts[-1]
        while start.running:
            self.settle_on_node(job, Outcome.CANCELLED)
        start.writer.append(END_LINE)
        start.closed = True
        self.stop(job)
        if which % 2 and not (start.outcomes and start.outcomes <= LAST_WORDS):
            self.queue_again(job)
            if job.job_id is None:
                self.begin_job([each for each in self.jobs if each.state == "queued"].index(job))

    def cut_off(self, which: int) -> None:
        """The node loses power; the job is over, or waits for another node."""
        job = self.job(which, "running")
        if job is None:
            return
        self.stop(job)
        if which % 2:
            self.queue_again(job)

    def queue_again(self, job: Job) -> None:
        job.state, job.began_last = "queued", False

    def cancel(self, which: int) -> None:
        job = self.job(which, "queued")
        if job is not None:
            job.state, job.over_at = "over", self.clock.now()

    def stop(self, job: Job) -> None:
        job.starts[-1].writer.close()
        job.state, job.over_at = "over", self.clock.now()

    # --- what usually follows each other ---------------------------------------------------------

    def send(self, which: int) -> None:
        self.place(which)
        self.submit(0)

    def run(self, which: int) -> None:
        self.begin_job(which)
        for job in self.jobs:
            if job.state == "running" and not job.starts[-1].used:
                self.begin_step([each for each in self.jobs if each.state == "running"].index(job))
        self.tick(which)

    # --- time and recovery -----------------------------------------------------------------------

    def wait(self, which: int) -> None:
        self.clock.move(which)

    def wait_long(self, _which: int) -> None:
        self.clock.move(3 * 3600)

    def recover(self, which: int) -> None:
        """While the batch system answers, does not, or lags behind."""
        self.has_told, self.lags = which % 3 > 0, which % 3 == 2
        if not self.main_lives and not any(map(self.is_out_of_sight, self.jobs)):
            self.recover_now()
            self.assert_healthy_stay_open()
        self.has_told, self.lags = True, False

    def recover_now(self) -> None:
        recover(
            self.ledger,
            self.folder,
            host="node1",
            clock=self.clock,
            say=lambda text: None,
            job_ends=self.ends,
        )
        samplers = {session.book.sampler_id for session in unposted_sessions(self.folder)}
        assert verify(self.ledger, lambda owner: True, samplers) == ()

    def assert_healthy_stay_open(self) -> None:
        opened = {hold.hold_id for hold in self.ledger.open_holds()}
        for job in self.jobs:
            if job.alive:
                assert {step.hold_id for step in job.tickets if step.hold is None or step.hold.terms} <= opened

    def folders_left(self) -> set[str]:
        """But for empty ones of jobs that no file tells of: its main process died between the folder and the line."""
        unheard = {job.tickets[0].placement_id for job in self.jobs if job.state == "placed"}
        return {path.name for path in self.folder.glob("nodes/*")} - unheard

    def end_everything(self) -> None:
        for number in range(len(self.jobs)):
            while self.jobs[number].state == "running":
                self.end_job(2 * number) if number % 2 else self.cut_off(0)
            if self.jobs[number].state == "queued":
                self.jobs[number].state, self.jobs[number].over_at = "over", self.clock.now()


def books(ledger: MemoryLedger) -> tuple:
    return ledger.entries(), ledger.journal(), ledger.node_windows(), ledger.balances(), ledger.open_holds()


def assert_charged_once(cluster: Cluster) -> None:
    entries = defaultdict(list)
    for entry in cluster.ledger.entries():
        entries[entry.hold_id].append(entry)
    for job in cluster.jobs:
        for step in job.tickets:
            posted = entries[step.hold_id]
            read = [start.used[step.hold_id] for start in job.starts if step.hold_id in start.used]
            assert sum(entry.total.microjoules for entry in posted if entry.total) == sum(read)
            assert sum(entry.energy_charged_microjoules for entry in posted) >= sum(read)
            assert len(posted) == len(read) if read else len(posted) <= 1
            was_said_not_to_begin = job.state == "over" and job.job_id and job.id_spooled_at is None
            if not job.starts and was_said_not_to_begin:
                assert posted == []


MAIN = ["place", "send", "send", "submit", "unplace", "tell", "tell_cancelled", "look", "look", "commit"]
NODES = [
    *("begin_job", "run", "run", "run", "begin_step", "begin_step", "tick", "tick"),
    *("end_step", "end_step", "end_job", "end_job", "cut_off", "cut_off", "cancel", "wait", "wait_long"),
]


def some(actions: list[str]) -> st.SearchStrategy[list[tuple[str, int]]]:
    """0 to 30 of them: a list of free length is mostly too short for anything to happen."""
    action = st.tuples(st.sampled_from(actions), st.integers(0, 100))
    return st.integers(0, 30).flatmap(lambda count: st.lists(action, min_size=count, max_size=count))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=some(MAIN + NODES), cut=st.integers(0, 100), closes=st.booleans(), after=some([*NODES, *["recover"] * 4]))
def test_whatever_dies_on_a_cluster_nothing_healthy_is_closed_and_every_start_is_charged_once(
    before, cut, closes, after
) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as copy:
        cluster = Cluster(Path(folder))
        for action, which in before:
            getattr(cluster, action)(which)
        if closes:
            cluster.close()
        cluster.die(cut)
        for action, which in after:
            getattr(cluster, action)(which)
        cluster.recover(1)
        cluster.end_everything()
        cluster.clock.move(timedelta(days=8).total_seconds())
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        cluster.recover_now()

        assert cluster.ledger.open_holds() == ()
        assert verify(cluster.ledger, lambda owner: False) == ()
        assert_charged_once(cluster)
        assert list(Path(folder).glob("*.jsonl")) == []
        assert cluster.folders_left() == set()

        closed = books(cluster.ledger)
        cluster.recover_now()
        assert books(cluster.ledger) == closed
        shutil.copytree(copy, folder, dirs_exist_ok=True)  # as if it was killed before it removed any file
        cluster.recover_now()
        assert books(cluster.ledger) == closed
        assert cluster.folders_left() == set()


# --- sequences that went wrong once -----------------------------------------------------------------


def after(folder: Path, *actions: str | tuple[str, int]) -> Cluster:
    """The cluster after these actions; one job of three steps with holds is placed and taken first."""
    cluster = Cluster(folder)
    for action in ("place", 2), "submit", *actions:
        name, which = (action, 1) if isinstance(action, str) else action
        getattr(cluster, name)(which)
    return cluster


def spent(cluster: Cluster) -> int:
    return sum(balance.spent for balance in cluster.ledger.balances())


def test_a_loss_is_not_undone_by_the_last_word_of_an_earlier_start(tmp_path) -> None:
    fails_and_begins_again = ("begin_job", "begin_step", ("tick", 70), ("end_step", 2), "end_job", "begin_job")
    cluster = after(tmp_path, *fails_and_begins_again, "begin_step", ("tick", 30), ("cut_off", 0), "die", "recover")
    first, second = (entry for entry in cluster.ledger.entries() if entry.total)
    assert (first.energy_charged_microjoules, first.outcome) == (70, Outcome.FAILED)
    assert second.outcome is Outcome.LOST
    assert spent(cluster) == sum(entry.energy_charged_microjoules for entry in cluster.ledger.entries()) > 100


def test_a_step_that_was_given_up_is_charged_all_of_its_starts_once_they_are_read(tmp_path) -> None:
    cluster = after(tmp_path, "die")
    cluster.clock.move(timedelta(days=1).total_seconds())
    cluster.has_told = False
    cluster.recover_now()
    assert spent(cluster) == 3 * PLANNER.amount
    (tmp_path / "nodes" / "placement0").mkdir()  # the share shows late what the nodes wrote
    for action, which in ("begin_job", 0), ("begin_step", 0), ("tick", 700), ("end_step", 2), ("end_job", 1):
        getattr(cluster, action)(which)
    for action, which in ("begin_job", 0), ("begin_step", 0), ("tick", 800), ("end_step", 0), ("end_job", 0):
        getattr(cluster, action)(which)
    recover(cluster.ledger, tmp_path, host="node1", clock=cluster.clock, say=lambda text: None)
    assert spent(cluster) == 700 + 800 + 2 * PLANNER.amount
    assert cluster.folders_left() == set()


def test_what_a_node_wrote_of_a_job_that_may_begin_again_is_kept(tmp_path) -> None:
    """Nothing had begun there, and it has been silent for long."""
    after(tmp_path, "begin_job", ("tick", 0), ("cut_off", 1), "die", ("wait", 100), "recover")
    assert len(list(tmp_path.glob("nodes/*/*.jsonl"))) == 1


def test_a_node_without_a_reading_leaves_nothing_behind(tmp_path) -> None:
    cluster = after(tmp_path, "begin_job", ("cut_off", 0), "die")
    cluster.clock.move(timedelta(days=1).total_seconds())
    cluster.has_told = False  # it is given up, and nobody says that its job is over
    cluster.recover_now()
    assert cluster.folders_left() == set()


def test_a_member_of_a_group_is_asked_after_under_the_job_id_that_its_node_knows(tmp_path) -> None:
    cluster = after(tmp_path, "begin_job", "begin_step", ("cut_off", 0), ("die", 0))
    cluster.recover_now()
    assert cluster.ledger.open_holds() == ()


def test_no_entry_turns_up_for_a_step_without_a_budget_that_never_began(tmp_path) -> None:
    cluster = Cluster(tmp_path)
    for action, which in ("place", 8), ("submit", 0), ("place", 1), ("submit", 0):  # the second waits in the queue
        getattr(cluster, action)(which)
    for action in ("begin_job", 0), ("begin_step", 0), ("tick", 7), ("end_step", 3), ("end_job", 0), ("die", 100):
        getattr(cluster, action[0])(action[1])
    cluster.recover_now()
    closed = books(cluster.ledger)
    assert [entry.outcome for entry in cluster.ledger.entries()] == [Outcome.HALTED]
    cluster.recover_now()
    assert books(cluster.ledger) == closed


def test_a_node_that_still_writes_keeps_its_file_though_its_step_was_closed(tmp_path) -> None:
    cluster = after(tmp_path, "begin_job", "begin_step", ("tick", 7))
    cluster.told(cluster.jobs[0], Outcome.FAILED)  # its host program is wrong
    cluster.watch._advance()
    cluster.clock.move(61)
    cluster.watch._advance()
    for action, which in ("commit", 0), ("tick", 0), ("die", 100):
        getattr(cluster, action)(which)
    cluster.recover_now()
    assert len(list(tmp_path.glob("nodes/*/*.jsonl"))) == 1
    cluster.clock.move(61)
    cluster.recover_now()
    assert cluster.folders_left() == set()
