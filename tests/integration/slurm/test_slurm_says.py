"""What a real Slurm says of its jobs, and that the test cluster's energy counters are what they are said to be."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_green.metering.slurm import JobState, has_energy_plugin, job_energy, job_reports
from mlflow_green.sensors.rapl import RaplSensor
from tests.testkit.slurm.cluster import POWER_WATTS, SlurmCluster
from tests.testkit.waiting import comes_true

pytestmark = pytest.mark.timeout(180)
LAG_SECONDS = 30  # sacct usually knows after 1 to 4


@pytest.fixture(autouse=True)
def _commands(slurm: SlurmCluster, monkeypatch):
    for name, text in slurm.environ.items():
        monkeypatch.setenv(name, text)
    yield
    if jobs := slurm.run("squeue", "-h", "-o", "%A").split():
        slurm.run("scancel", *jobs)
        assert comes_true(lambda: not slurm.run("squeue", "-h").strip(), 30)


def submit(slurm: SlurmCluster, script: str, *options: str) -> str:
    """The id of a job that runs the script; ``srun`` in it makes steps."""
    return slurm.run("sbatch", "--parsable", "-o", "/dev/null", *options, "--wrap", script).strip()


def wait_for(job_id: str, state: JobState, slurm_state: str = ""):
    """The job's first report of this kind."""
    seen = []

    def is_so() -> bool:
        seen.append(job_reports([job_id])[job_id])
        return seen[-1].state is state and seen[-1].slurm_state.startswith(slurm_state)

    assert comes_true(is_so, LAG_SECONDS + 20, 0.5), seen[-1]
    return seen[-1]


# --- states --------------------------------------------------------------------------------------


def test_a_job_is_followed_from_its_start_to_its_end(slurm):
    before = datetime.now(UTC) - timedelta(seconds=1)
    job_id = submit(slurm, "sleep 10")
    running = wait_for(job_id, JobState.RUNNING)
    ended = wait_for(job_id, JobState.ENDED)
    assert ended.slurm_state == "COMPLETED"
    assert before <= running.started_at == ended.started_at <= ended.ended_at <= datetime.now(UTC)
    assert running.ended_at is None
    assert timedelta(seconds=2) <= ended.ended_at - ended.started_at <= timedelta(seconds=40)


def test_jobs_of_all_kinds_are_reported_in_one_answer(slurm):
    failed = submit(slurm, "exit 3")
    full = submit(slurm, "sleep 100", "-w", "node1", "-n4")
    waiting = submit(slurm, "sleep 100", "-w", "node1", "-n4")
    never_ran = submit(slurm, "sleep 100", "-w", "node1", "-n4")
    array = submit(slurm, "sleep 100", "-w", "node2", "--array=1-5%1")
    slurm.run("scancel", never_ran)
    expected = {
        failed: "FAILED",
        full: "RUNNING",
        waiting: "PENDING",
        never_ran: "CANCELLED",
        f"{array}_1": "RUNNING",
        f"{array}_4": "PENDING",
        "999999": "",
        "not a job": "",
    }
    seen = []

    def all_are_as_expected() -> bool:
        seen.append(job_reports(expected))
        return {job_id: report.slurm_state for job_id, report in seen[-1].items()} == expected

    assert comes_true(all_are_as_expected, LAG_SECONDS, 0.5), seen[-1]
    reports = seen[-1]
    assert [job_id for job_id in expected if reports[job_id].started_at] == [failed, full, f"{array}_1"]
    assert [job_id for job_id in expected if reports[job_id].ended_at] == [failed, never_ran]
    slurm.run("scancel", full)
    assert wait_for(full, JobState.ENDED).slurm_state == "CANCELLED"


def test_the_id_that_a_job_sees_of_itself_is_known_too(slurm, tmp_path):
    submit(slurm, f"echo $SLURM_JOB_ID > {tmp_path}/$SLURM_ARRAY_TASK_ID", "--array=1-2")
    assert comes_true(lambda: all((tmp_path / name).exists() for name in "12"), 60)
    own = [(tmp_path / name).read_text().strip() for name in "12"]
    assert comes_true(lambda: {each.state for each in job_reports(own).values()} == {JobState.ENDED}, LAG_SECONDS)


def test_a_requeued_job_waits_and_then_has_its_last_start(slurm):
    job_id = submit(slurm, "sleep 100")
    first = wait_for(job_id, JobState.RUNNING)
    slurm.run("scontrol", "requeue", job_id)
    assert wait_for(job_id, JobState.PENDING).started_at is None
    assert wait_for(job_id, JobState.RUNNING).started_at > first.started_at


@pytest.mark.parametrize("lost", ["command", "accounting"])
def test_the_controller_is_asked_where_there_is_no_accounting(slurm, tmp_path, monkeypatch, lost):
    job_id = submit(slurm, "true")
    wait_for(job_id, JobState.ENDED)
    (tmp_path / "squeue").symlink_to(slurm.folder / "bin/squeue")
    if lost == "accounting":
        (tmp_path / "sacct").write_text("#!/bin/sh\necho Slurm accounting storage is disabled >&2; exit 1\n")
        (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if lost == "command" else f"{tmp_path}:/bin")
    assert job_reports([job_id])[job_id].slurm_state == "COMPLETED"
    assert job_reports(["999999"])["999999"].state is JobState.UNKNOWN


def test_where_nobody_answers_jobs_are_unknown_and_energy_says_why(slurm, tmp_path, monkeypatch):
    for name in ("sacct", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\nexec /bin/sleep 60\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    began = time.monotonic()
    assert job_reports(["1"], timeout_seconds=0.5)["1"].state is JobState.UNKNOWN
    assert "sacct did not answer" in job_energy(["1"], timeout_seconds=0.5)["1"].note
    assert time.monotonic() - began < 30
    monkeypatch.setenv("PATH", "/nonexistent")
    assert job_reports(["1"])["1"].state is JobState.UNKNOWN
    assert "not on the PATH" in job_energy(["1"])["1"].note


def test_a_node_that_dies_fails_its_job_and_works_again_when_it_is_back(slurm):
    job_id = submit(slurm, "sleep 100", "-w", "node2")
    once = submit(slurm, "sleep 100", "-w", "node2", "--no-requeue")
    wait_for(job_id, JobState.RUNNING)
    wait_for(once, JobState.RUNNING)
    slurm.kill_node("node2", with_jobs=True)
    try:
        assert comes_true(lambda: slurm.node_state("node2").startswith("down"), 60, 0.5)
        assert wait_for(once, JobState.ENDED).slurm_state == "NODE_FAIL"
        # sacct calls this one ended, too; only the controller knows that it will run again.
        assert wait_for(job_id, JobState.PENDING).started_at is None
    finally:
        slurm.start_node("node2")
    assert slurm.run("srun", "-w", "node2", "printenv", "SLURMD_NODENAME") == "node2\n"
    assert slurm.node_state("node1") == "idle"  # which nobody touched


# --- energy --------------------------------------------------------------------------------------


def accounted_energy(job_id: str):
    wait_for(job_id, JobState.ENDED)
    return job_energy([job_id])[job_id]


def test_a_job_alone_on_its_node_has_the_energy_of_its_steps(slurm):
    assert has_energy_plugin()
    script = "srun -n1 sleep 4; sleep 4; srun -n1 sleep 4"
    all_cpus = submit(slurm, script, "-w", "node1", "-n4")
    exclusive = submit(slurm, script, "-w", "node2", "-n1", "--exclusive")
    for job_id, power_watts in ((all_cpus, POWER_WATTS[0]), (exclusive, POWER_WATTS[1])):
        ended = wait_for(job_id, JobState.ENDED)
        energy = job_energy([job_id])[job_id]
        assert (energy.is_exclusive, energy.note) == (True, "")
        seconds = energy.energy_microjoules / 1e6 / power_watts
        whole_seconds = (ended.ended_at - ended.started_at).total_seconds()
        assert 6 < seconds < whole_seconds - 2  # without what the node used between the steps


def test_energy_that_is_not_the_jobs_own_is_said_to_be_so(slurm):
    shared = submit(slurm, "srun sleep 4", "-w", "node1", "-n1")
    without_step = submit(slurm, "sleep 4", "-w", "node2", "-n4")
    side_by_side = submit(slurm, "for i in 1 2; do srun -n1 --overlap sleep 5 & done; wait", "-w", "node1", "-n2")
    both_nodes = submit(slurm, "srun sleep 4", "-N2", "--exclusive")
    assert "what others used there" in accounted_energy(shared).note
    assert "no step made by srun" in accounted_energy(without_step).note
    assert "side by side" in accounted_energy(side_by_side).note
    energy = accounted_energy(both_nodes)
    assert (energy.is_exclusive, energy.note) == (True, "")
    assert energy.energy_microjoules / 1e6 > 3 * sum(POWER_WATTS)
    unknown = job_energy(["999999", "not a job"])
    assert {each.energy_microjoules for each in unknown.values()} == {None}
    assert all(each.note for each in unknown.values())


def test_the_counters_move_on_at_the_power_of_their_node(slurm):
    sensors = {node: RaplSensor(slurm.powercap_root(node)) for node in slurm.nodes}
    slurm.set_power("node2", 20)
    try:
        began, before = time.monotonic(), {node: slurm.counter_microjoules(node) for node in slurm.nodes}
        assert comes_true(lambda: slurm.counter_microjoules("node2") > before["node2"] + 20e6, 30)
        seconds, after = time.monotonic() - began, {node: slurm.counter_microjoules(node) for node in slurm.nodes}
    finally:
        slurm.set_power("node2", POWER_WATTS[1])
    for node, power_watts in (("node1", POWER_WATTS[0]), ("node2", 20)):
        assert after[node] - before[node] == pytest.approx(power_watts * seconds * 1e6, rel=0.1)
        (reading,) = sensors[node].read()
        assert before[node] < reading.energy_microjoules <= slurm.counter_microjoules(node)


def test_each_task_finds_the_counters_and_the_runtime_folder_of_its_node(slurm, tmp_path):
    shown = "printenv SLURMD_NODENAME MLFLOW_GREEN_POWERCAP_ROOT MLFLOW_GREEN_RUNTIME_DIR | paste -s"
    script = f"{shown} > {tmp_path}/batch; srun sh -c '{shown}' > {tmp_path}/steps"
    assert wait_for(submit(slurm, script, "-N2"), JobState.ENDED).slurm_state == "COMPLETED"
    batch, steps = ((tmp_path / name).read_text().splitlines() for name in ("batch", "steps"))
    told = [f"{node}\t{slurm.powercap_root(node)}\t{slurm.folder}/nodes/{node}/runtime" for node in slurm.nodes]
    assert sorted(steps) == told
    assert batch == [told[0]]
