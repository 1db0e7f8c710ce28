"""A job on a compute node: what it finds in its environment, and what is not as the main process left it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_green.bootstrap import NodeSession, open_node_session
from mlflow_green.errors import UnsupportedHost
from mlflow_green.recorder.late_hold import promised_hold
from mlflow_green.recorder.placement import VARIABLE, PlacedStep, Placement
from mlflow_green.recorder.spool_session import SpoolSession, node_folder, read_node_sessions
from mlflow_green.records import Action, Decision, Domain, Outcome, Site, Step, StepSpec, Unit
from mlflow_green.units import microjoules
from tests.testkit.ledger_samples import OWNER, request
from tests.testkit.waiting import comes_true

GRANTED = {Unit.ENERGY: microjoules(1e9)}  # more than a test can use


def sent(name: str) -> PlacedStep:
    hold = replace(promised_hold(request(name, 0, hold_id=f"hold-{name}"), OWNER), amounts=GRANTED)
    return PlacedStep(
        ticket_id=hold.hold_id,
        step=hold.step,
        spec=StepSpec(),
        decision=Decision(action=Action.ADMIT, would=Action.ADMIT, tier=None, amounts=GRANTED, reason="fits"),
        hold=hold,
        late_request=None,
        granted=GRANTED,
        leashes=(),
        grace_seconds=0.0,
    )


class Job:
    """A job of two steps, as the main process places it."""

    def __init__(self, folder: Path, *, enforces: bool, steps: tuple[str, ...] = ("train", "test")) -> None:
        self.said: list[str] = []
        self.placement = Placement(
            placement_id="p",
            main=OWNER,
            workflow_run="run1",
            project="demo",
            user="ana",
            site=Site(),
            spool_dir=str(folder / "spool"),
            acts=enforces,
            enforces=enforces,
            steps=tuple(map(sent, steps)),
        )
        self.folder = node_folder(folder / "spool", "p")
        self.folder.mkdir(parents=True)
        self.environ = {VARIABLE: self.placement.encoded(), "SLURM_JOB_ID": "7"}

    def open(self) -> NodeSession | None:
        return open_node_session(wake=lambda: None, say=self.said.append, environ=self.environ)

    def opened(self) -> NodeSession:
        session = self.open()
        assert session is not None
        return session

    @property
    def sessions(self) -> list[SpoolSession]:
        return read_node_sessions(self.folder)


@pytest.fixture(autouse=True)
def _node_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture(params=["hard", "observe"])
def job(tmp_path, request) -> Job:
    return Job(tmp_path, enforces=request.param == "hard")


@pytest.fixture
def hard(tmp_path) -> Job:
    return Job(tmp_path, enforces=True)


@pytest.fixture
def observed(tmp_path) -> Job:
    return Job(tmp_path, enforces=False)


def run(session: NodeSession, name: str, outcome: Outcome = Outcome.SUCCEEDED, *, burns: bool = False) -> None:
    ticket = session.ticket(Step(workflow_run="run1", name=name), StepSpec())
    session.begin(ticket)
    if burns:
        assert comes_true(lambda: ticket.usage is not None and sum(range(100_000)) and used(ticket) > 0, 20, 0.0)
    session.end(ticket)
    session.tell(ticket, outcome)


def used(ticket) -> int:
    total = ticket.usage.total if ticket.usage else None
    return total.microjoules if total else 0


def test_a_job_finds_what_was_granted_and_leaves_its_last_words(job) -> None:
    session = job.opened()
    assert VARIABLE not in job.environ, "what runs inside the job was not sent"
    run(session, "train")
    run(session, "test", Outcome.FAILED)
    session.close(interrupted=False)
    (written,) = job.sessions
    assert written.origin is not None
    assert (written.origin.main, written.origin.placement_id, written.origin.job_id) == (OWNER, "p", "7")
    outcomes = {hold_id: closing.entry.outcome for hold_id, closing in written.closings.items() if closing.entry}
    assert outcomes == {"hold-train": Outcome.SUCCEEDED, "hold-test": Outcome.FAILED}
    assert written.ended
    assert job.said == []


@pytest.mark.parametrize(("steps", "pays"), [(("train",), True), (("train", "test"), False)])
def test_the_memory_of_the_process_itself_is_that_of_a_job_of_one_step(tmp_path, monkeypatch, steps, pays) -> None:
    """Snakemake runs a ``run:`` directive of such a job in this process, which carries no mark in /proc."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    session = Job(tmp_path, enforces=False, steps=steps).opened()
    ticket = session.ticket(Step(workflow_run="run1", name="train"), StepSpec())
    session.begin(ticket)
    try:
        assert comes_true(lambda: ticket.usage is not None and Domain.DRAM in ticket.usage.energy, 20)
        assert (ticket.usage.energy[Domain.DRAM].microjoules > 0) is pays
    finally:
        session.end(ticket)
        session.tell(ticket, Outcome.SUCCEEDED)
        session.close(interrupted=False)


@pytest.mark.parametrize("variable", [{}, {"MLFLOW_GREEN_DISABLE": "1"}])
def test_without_a_placement_or_switched_off_nothing_is_metered(job, variable) -> None:
    job.environ.update(variable)
    if not variable:
        del job.environ[VARIABLE]
    assert job.open() is None
    assert VARIABLE not in job.environ
    assert (job.sessions, job.said) == ([], [])


@pytest.mark.parametrize("garbage", ["", "x", "not a placement", "eJyrrgUAAXUA-Q=="])
def test_garbage_fails_the_job_for_nobody_knows_what_it_may_use(job, garbage) -> None:
    job.environ[VARIABLE] = garbage
    with pytest.raises(UnsupportedHost, match="GREEN_PLACEMENT"):
        job.open()
    assert VARIABLE not in job.environ


def test_what_only_observes_and_cannot_be_read_is_said_and_the_job_runs(job) -> None:
    job.environ[VARIABLE] = "observed.from-another-version"
    assert job.open() is None
    assert "install the same version" in job.said[0]


def test_a_folder_that_is_not_on_this_node_fails_a_job_under_a_hard_budget(hard) -> None:
    hard.folder.rmdir()
    with pytest.raises(UnsupportedHost, match="file system that both share") as refused:
        hard.open()
    assert "hard budget" in str(refused.value)


def test_a_folder_that_is_not_on_this_node_is_said_where_nothing_is_enforced(observed) -> None:
    observed.folder.rmdir()
    assert observed.open() is None
    (text,) = observed.said
    assert str(observed.folder) in text
    assert "not recorded" in text


CHILD = """
import resource, signal, sys
from mlflow_green.bootstrap import open_node_session
from mlflow_green.errors import UnsupportedHost

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as a full disk: no file takes a byte
try:
    print(open_node_session(wake=lambda: None, say=lambda text: print("said:", text)))
except UnsupportedHost as error:
    print("refused:", error)
sys.stdout.flush()
"""


def test_a_spool_that_cannot_be_written_fails_the_job_only_under_a_hard_budget(job) -> None:
    environ = {**os.environ, **job.environ}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    if job.placement.enforces:
        assert "refused:" in done.stdout, done.stderr
    else:
        assert "said:" in done.stdout, done.stderr
        assert done.stdout.endswith("None\n")


def test_a_job_that_is_begun_again_has_what_its_earlier_starts_left_of_the_grant(hard) -> None:
    session = hard.opened()
    run(session, "train", Outcome.FAILED, burns=True)
    session.close(interrupted=True)
    (first,) = hard.sessions
    total = first.usages["hold-train"].total
    assert total is not None
    hard.environ[VARIABLE] = hard.placement.encoded()
    again = hard.opened()
    granted = {
        name: again.ticket(Step(workflow_run="run1", name=name), StepSpec()).granted for name in ("train", "test")
    }
    again.close(interrupted=True)
    assert granted["train"] == {Unit.ENERGY: GRANTED[Unit.ENERGY] - total.microjoules}
    assert granted["test"] == GRANTED
    assert len(hard.sessions) == 2


def test_a_job_that_has_used_up_its_grant_has_nothing_left(hard) -> None:
    hard.placement = replace(
        hard.placement, steps=tuple(replace(step, granted={Unit.ENERGY: 1}) for step in hard.placement.steps)
    )
    for _ in range(2):
        hard.environ[VARIABLE] = hard.placement.encoded()
        session = hard.opened()
        run(session, "train", Outcome.FAILED, burns=True)
        session.close(interrupted=True)
    hard.environ[VARIABLE] = hard.placement.encoded()
    session = hard.opened()
    assert session.ticket(Step(workflow_run="run1", name="train"), StepSpec()).granted == {Unit.ENERGY: 0}
    session.close(interrupted=True)


def test_a_step_that_was_not_sent_is_refused_only_under_a_hard_budget(job) -> None:
    session = job.opened()
    stranger = session.ticket(Step(workflow_run="run1", name="stranger"), StepSpec())
    assert stranger.refused is job.placement.enforces
    session.ticket(Step(workflow_run="run1", name="train"), StepSpec())
    second = session.ticket(Step(workflow_run="run1", name="train"), StepSpec())
    assert second.refused is job.placement.enforces, "what was granted once is not granted twice"
    session.close(interrupted=True)
