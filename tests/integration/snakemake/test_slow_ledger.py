"""The ledger is slow, because another process holds its write lock: Snakemake goes on, and ends when told to."""

import os
import signal
import sqlite3
import threading
import time
from contextlib import contextmanager

import pytest

from mlflow_green.records import Outcome
from tests.testkit.snakemake_folder import SnakemakeFolder, processes_in

SNAKEFILE = """
    rule all:
        input: expand("out/{i}", i=range(COUNT))

    rule step:
        output: "out/{i}"
        shell: "sleep SECONDS; touch {output}"
"""


def folder_of(path, *, count, seconds):
    return SnakemakeFolder(path, SNAKEFILE.replace("COUNT", str(count)).replace("SECONDS", str(seconds)), "")


@contextmanager
def locked(folder):
    """Hold the write lock of the ledger, as a long transaction of another process does."""
    connection = sqlite3.connect(folder.path / ".green" / "ledger.db", isolation_level=None, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def done(folder):
    out = folder.path / "out"
    return len(list(out.iterdir())) if out.is_dir() else 0


def test_jobs_that_were_granted_start_while_no_commit_gets_through(tmp_path):
    folder = folder_of(tmp_path / "wf", count=8, seconds=0.3)
    started = folder.start("-c1")
    started.wait_for(lambda: done(folder) >= 2, "two jobs")
    with locked(folder):
        started.wait_for(lambda: done(folder) == 8, "all jobs, with the ledger locked")
        before = len(folder.entries())
    run = started.end()
    assert run.returncode == 0, run.output
    assert before < 8
    assert len(folder.entries()) == 9
    assert folder.open_holds() == ()


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_snakemake_ends_cleanly_when_told_to_while_a_commit_hangs(tmp_path, how):
    folder = folder_of(tmp_path / "wf", count=6, seconds=2)
    started = folder.start("-c2")
    started.wait_for(lambda: done(folder) >= 1, "a job")
    with locked(folder):
        time.sleep(0.5)  # the settlement is on its way
        if how == "SIGTERM":
            os.kill(started.process.pid, signal.SIGTERM)
        else:
            os.killpg(started.process.pid, signal.SIGINT)
        time.sleep(3)
    run = started.end()
    assert run.returncode != 0, run.output
    assert "Traceback" not in run.output
    assert processes_in(folder.path) == []
    assert folder.open_holds() == ()
    outcomes = {entry.outcome for entry in folder.entries()}
    assert Outcome.SUCCEEDED in outcomes
    assert outcomes <= {Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.FAILED}
    assert len(folder.entries()) <= 5  # what was asked for ahead never began
    assert not list((folder.path / ".green" / "spool").iterdir())


def test_a_ledger_that_answers_late_at_the_start_only_delays_the_start(tmp_path):
    folder = folder_of(tmp_path / "wf", count=1, seconds=0)
    assert folder.run("-c1").returncode == 0
    unlock = threading.Event()

    def hold():
        with locked(folder):
            unlock.wait()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    started = folder.start("-c1", "--forceall")
    time.sleep(3)
    assert started.process.poll() is None, started.output
    unlock.set()
    holder.join()
    run = started.end()
    assert run.returncode == 0, run.output
    assert [entry.outcome for entry in folder.entries()] == [Outcome.SUCCEEDED] * 4
