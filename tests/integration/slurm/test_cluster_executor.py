"""Until jobs of a cluster are metered: observed they run as usual and it is said, and a hard budget starts nothing."""

import json

import pytest

from tests.testkit.snakemake_folder import SnakemakeFolder
from tests.testkit.waiting import comes_true

SNAKEFILE = """
    rule all:
        input: "out/x"

    rule work:
        output: "out/x"
        resources: mem_mb=200, runtime=5
        shell: "env > {output}"
"""
OPTIONS = (
    *("--executor", "slurm", "--jobs", "2", "--default-resources", "slurm_partition=main", "slurm_account=test"),
    *("--slurm-init-seconds-before-status-checks", "1", "-q", "host"),
)
BUDGET = "budgets:\n  - {name: lab, limit: 1 kWh, period: total, mode: hard}\n"


def accounted(slurm):
    """Node and state of each job that Slurm's accounting knows."""
    rows = slurm.run("sacct", "-X", "-n", "-P", "--format=JobID,NodeList,State").split()
    return [tuple(row.split("|")[1:]) for row in rows]


def test_a_hard_budget_that_cannot_be_kept_there_submits_nothing(slurm, tmp_path):
    before = accounted(slurm)
    folder = SnakemakeFolder(tmp_path / "wf", SNAKEFILE, BUDGET)
    done = folder.start(*OPTIONS, **slurm.environ).end()
    assert done.returncode == 1, done.output
    assert "jobs of cluster executors are not metered yet" in done.output
    assert "A hard budget cannot be kept without it, so nothing was started" in done.output
    assert not folder.exists("out/x")
    assert accounted(slurm) == before
    assert slurm.run("squeue", "-h") == ""


@pytest.mark.timeout(180)
def test_observed_jobs_run_on_the_nodes_and_are_said_to_be_unmetered(slurm, tmp_path):
    folder = SnakemakeFolder(tmp_path / "wf", SNAKEFILE)
    done = folder.start(*OPTIONS, **slurm.environ).end(limit_seconds=120)
    assert done.returncode == 0, done.output
    assert "Jobs run as usual, but nothing is metered in this run" in done.output
    environ = dict(line.split("=", 1) for line in folder.read("out/x").splitlines() if "=" in line)
    assert environ["SLURMD_NODENAME"] in slurm.nodes
    assert not any(name.startswith("GREEN_") for name in environ)
    assert not folder.exists(".green")
    # The accounting lags behind the job by some seconds.
    assert comes_true(lambda: (environ["SLURMD_NODENAME"], "COMPLETED") in accounted(slurm), 20), json.dumps(environ)
