"""Workflows that the tests send to the cluster, and what a person would look at afterwards."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.testkit.snakemake_folder import SnakemakeFolder

OPTIONS = (
    *("--executor", "slurm", "--jobs", "4", "--default-resources", "slurm_partition=main", "slurm_account=test"),
    *("mem_mb=200", "runtime=5", "--slurm-init-seconds-before-status-checks", "1", "-q", "host", "--latency-wait", "5"),
)
HARD = "budgets:\n  - {{name: lab, limit: {limit}, period: total, mode: hard, enforce: high}}\n"
BUSY = "timeout {seconds} sh -c 'while :; do :; done' || true"


class OnCluster:
    """A folder whose Snakemake sends its jobs to the test cluster."""

    def __init__(self, slurm, path, snakefile, policy=None):
        self.slurm = slurm
        self.folder = SnakemakeFolder(path, snakefile, policy)

    def start(self, *options):
        return self.folder.start(*OPTIONS, *options, **self.slurm.environ)

    def run(self, *options, limit_seconds=120):
        return self.start(*options).end(limit_seconds)

    def green(self, *arguments):
        """What ``mlflow-green`` says in this folder, and its exit status."""
        command = [sys.executable, "-m", "mlflow_green.cli", *arguments]
        environ = self.folder.environ(**self.slurm.environ)
        done = subprocess.run(
            command, cwd=self.folder.path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def assert_books_close(self):
        code, said = self.green("ledger", "verify")
        assert code == 0, said
        assert self.folder.open_holds() == ()
        assert not list((self.folder.path / ".green/spool").rglob("*.jsonl"))

    def jobs(self):
        """The ids of the jobs that are in Slurm's queue."""
        return self.slurm.run("squeue", "-h", "-o", "%A").split()

    def job_states(self):
        """Node and state of each job that Slurm's accounting knows."""
        rows = self.slurm.run("sacct", "-X", "-n", "-P", "--format=JobID,NodeList,State").split("\n")
        return [tuple(row.split("|")[1:]) for row in rows if row]


def environment(text):
    """The variables in the output of ``env``."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def processes_with(variable):
    """Process ids whose environment has this line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
