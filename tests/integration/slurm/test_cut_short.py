"""Jobs, nodes and main processes that end before their time: nothing healthy is killed, nothing is charged twice."""

import os
import signal

import pytest

from mlflow_green.records import Outcome
from tests.integration.slurm.workflows import HARD, OnCluster, processes_with
from tests.testkit.waiting import comes_true

pytestmark = pytest.mark.timeout(180)

# The job says that it runs, then works until somebody lets it go on.
WAITING = """
    rule work:
        output: "out/x"
        shell: "touch began; while [ ! -e go ]; do sleep 0.1; done; touch {output}"
"""


def start(slurm, path, *options):
    """A workflow whose job has begun on its node, and the id of that job."""
    cluster = OnCluster(slurm, path, WAITING, HARD.format(limit="1 kWh"))
    started = cluster.start(*options)
    started.wait_for(lambda: cluster.folder.exists("began"), "the job began")
    (job,) = cluster.jobs()
    return cluster, started, job


def kill_main(started):
    os.killpg(started.process.pid, signal.SIGKILL)
    started.process.wait()


def reading_of(cluster, hold):
    """Whether the meter of the job's node has written what the step used so far."""
    files = (cluster.folder.path / ".green/spool/nodes").rglob("*.jsonl")
    return any(f'"usages":{{"{hold.hold_id}"' in file.read_text() for file in files)


def test_scancel_charges_what_was_used_until_then(slurm, tmp_path):
    # By sacct, this executor takes "CANCELLED by 0" for a state that it does not know, and waits for ever.
    cluster, started, job = start(slurm, tmp_path / "wf", "--slurm-status-command", "squeue")
    slurm.run("scancel", job)
    done = started.end(limit_seconds=90)
    assert done.returncode == 1, done.output
    entry = cluster.folder.entry("work")
    assert entry.outcome is Outcome.CANCELLED
    assert entry.host in slurm.nodes
    cluster.assert_books_close()


def test_a_job_that_is_cancelled_in_the_queue_costs_nothing(slurm, tmp_path):
    snakefile = """
        rule work:
            output: "out/x"
            resources: slurm_extra="--begin=now+1hour"
            shell: "touch {output}"
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="1 kWh"))
    started = cluster.start("--slurm-status-command", "squeue")
    started.wait_for(cluster.jobs, "the job is in the queue")
    slurm.run("scancel", *cluster.jobs())
    done = started.end(limit_seconds=90)
    assert done.returncode == 1, done.output
    assert cluster.folder.entries() == ()
    assert all(balance.spent == 0 for balance in cluster.folder.balances())
    cluster.assert_books_close()


def test_a_killed_slurmd_does_not_end_a_healthy_job(slurm, tmp_path):
    cluster, started, job = start(slurm, tmp_path / "wf")
    node = slurm.run("squeue", "-h", "-o", "%N", "-j", job).strip()
    slurm.kill_node(node)
    (cluster.folder.path / "go").touch()
    assert comes_true(lambda: cluster.folder.exists("out/x"), 20)
    slurm.start_node(node)
    started.end(limit_seconds=120)
    (entry,) = cluster.folder.entries()
    assert entry.outcome in {Outcome.SUCCEEDED, Outcome.FAILED}  # as Slurm tells it
    assert entry.cpu_seconds > 0
    cluster.assert_books_close()


def test_a_main_process_that_is_gone_for_a_while_finds_its_jobs_alive_and_settles_them(slurm, tmp_path):
    cluster, started, _job = start(slurm, tmp_path / "wf")
    kill_main(started)
    (hold,) = cluster.folder.open_holds()
    assert processes_with(f"GREEN_HOLD_ID={hold.hold_id}")
    code, said = cluster.green("balance")
    assert code == 0, said
    assert "1 steps of a killed run may still run on the cluster" in said
    assert cluster.folder.open_holds() == (hold,)
    assert processes_with(f"GREEN_HOLD_ID={hold.hold_id}")
    code, said = cluster.green("ledger", "verify")
    assert code == 0, said
    (cluster.folder.path / "go").touch()
    assert comes_true(lambda: cluster.jobs() == [], 30)
    again = cluster.run("--rerun-incomplete", "--unlock")
    assert again.returncode == 0, again.output
    again = cluster.run("--rerun-incomplete")
    assert again.returncode == 0, again.output
    cluster.assert_books_close()
    first, *_ = cluster.folder.entries()
    assert (first.hold_id, first.outcome) == (hold.hold_id, Outcome.SUCCEEDED)
    assert len({entry.hold_id for entry in cluster.folder.entries()}) == len(cluster.folder.entries())


def test_a_node_that_loses_power_while_nobody_watches_is_charged_for_its_silence(slurm, tmp_path):
    cluster, started, job = start(slurm, tmp_path / "wf", "--slurm-no-requeue")
    kill_main(started)
    (hold,) = cluster.folder.open_holds()
    node = slurm.run("squeue", "-h", "-o", "%N", "-j", job).strip()
    assert comes_true(lambda: reading_of(cluster, hold), 20)
    slurm.kill_node(node, with_jobs=True)
    try:
        assert comes_true(lambda: cluster.green("balance")[0] == 0 and cluster.folder.open_holds() == (), 60, 2)
    finally:
        slurm.start_node(node)
    (entry,) = cluster.folder.entries()
    assert (entry.hold_id, entry.outcome) == (hold.hold_id, Outcome.LOST)
    assert entry.energy_charged_microjoules > entry.total.microjoules
    cluster.assert_books_close()


def test_ctrl_c_cancels_the_jobs_and_posts_what_they_used(slurm, tmp_path):
    cluster, started, _job = start(slurm, tmp_path / "wf")
    started.process.send_signal(signal.SIGINT)
    done = started.end(limit_seconds=90)
    assert done.returncode != 0
    assert comes_true(lambda: cluster.green("balance")[0] == 0 and cluster.folder.open_holds() == (), 40, 2)
    assert [entry.outcome for entry in cluster.folder.entries()] == [Outcome.CANCELLED]
    cluster.assert_books_close()


def test_a_job_that_slurm_begins_again_is_charged_for_both_starts(slurm, tmp_path):
    cluster, started, job = start(slurm, tmp_path / "wf", "--slurm-requeue")
    (cluster.folder.path / "began").unlink()
    slurm.run("scontrol", "requeue", job)
    started.wait_for(lambda: cluster.folder.exists("began"), "the job began again")
    (cluster.folder.path / "go").touch()
    done = started.end(limit_seconds=120)
    assert done.returncode == 0, done.output
    entries = cluster.folder.entries()
    assert [entry.outcome for entry in entries][-1] is Outcome.SUCCEEDED
    assert len(entries) == 2
    assert len({entry.hold_id for entry in entries}) == 1
    (balance,) = cluster.folder.balances()
    assert balance.spent == sum(entry.energy_charged_microjoules for entry in entries)
    cluster.assert_books_close()
