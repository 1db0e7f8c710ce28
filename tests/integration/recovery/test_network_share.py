"""A working folder on a network file system, as its user meets it: the real Snakemake and the real command line.

A second host is a set of namespaces: another boot id and name, processes and a cache of its own, and the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.testkit.books import spool_lines
from tests.testkit.snakemake_folder import SnakemakeFolder, processes_in, wait_for

LOAD_FORECAST = Path(__file__).parents[3] / "workflows" / "load_forecast" / "Snakefile"
SNAKEFILE = """
    import sys
    rule all:
        input: "out/prepared", "out/model", "out/score", "out/big"
    rule prepare:
        output: "out/prepared"
        params: green=lambda wc, resources: dict(energy="1 Wh")
        shell: "echo data > {output}"
    rule train:
        input: "out/prepared"
        output: "out/model"
        params: green=lambda wc, resources: dict(tiers="full:1,half:0.4", energy="20 Wh")
        shell: "echo {resources.green_tier} > {output}"
    rule evaluate:
        input: "out/model"
        output: "out/score"
        shell: "{sys.executable} -m mlflow_green.cli ledger export > {output}"
    rule big:
        output: "out/big"
        params: green=lambda wc, resources: dict(energy="5 kWh")
        shell: "echo big > {output}"
    rule long:
        output: "out/long"
        params: green=lambda wc, resources: dict(energy="1 Wh")
        shell: "sleep 100; echo done > {output}"
    rule short:
        output: "out/short"
        shell: "echo short > {output}"
"""
HARD = """
    budgets:
      - {name: total, scope: {project: test}, limit: 10 Wh, period: total, mode: hard, unknown_step: admit}
"""
BALANCE = ("budget", "account", "unit", "period", "mode", "limit", "held")
ENTRY = ("step", "attempt", "outcome", "decision", "would_decision", "tier")


class Project(SnakemakeFolder):
    """A folder with a pipeline and a hard budget; on a network file system if that is declared."""

    def __init__(self, path: Path, *, on_share: bool) -> None:
        super().__init__(path, SNAKEFILE, HARD)
        self.mounts = path.parent / "mountinfo"
        share = f"2 1 0:2 / {path} rw - nfs4 server:/export rw\n" if on_share else ""
        self.mounts.write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\n" + share)

    @property
    def cache(self) -> Path:
        (folder,) = (self.path.parent / f"{self.path.name}-runtime").glob("mlflow-green-*/ledger-*")
        return folder

    def environ(self, **extra: str) -> dict[str, str]:
        return super().environ(MLFLOW_GREEN_MOUNTINFO=str(self.mounts), **extra)

    def python(self, *arguments: str, host: Host | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m ...`` here or on another host."""
        command = [sys.executable, "-m", *arguments]
        if host:
            command, extra = host.command(command), {**extra, "MLFLOW_GREEN_RUNTIME_DIR": str(host.runtime)}
        return subprocess.run(
            command, cwd=self.path, env=self.environ(**extra), capture_output=True, text=True, timeout=60, check=False
        )

    def green(self, *arguments: str, host: Host | None = None) -> subprocess.CompletedProcess[str]:
        return self.python("mlflow_green.cli", *arguments, host=host)

    def told(self, *arguments: str, host: Host | None = None) -> list[dict]:
        done = self.green(*arguments, host=host)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def balances(self, host: Host | None = None) -> list[dict]:
        return json.loads(self.green("balance", "--json", host=host).stdout)["balances"]

    def begin_long_job(self):
        snakemake = self.start("-c1", "out/long", "--rerun-incomplete", "--nolock")
        self.wait_for_begin()
        return snakemake

    def wait_for_begin(self) -> None:
        """Until a step is in a spool: then a kill loses it, and another process could take its meter for dead."""
        wait_for(lambda: any(line["kind"] == "begin" for line in spool_lines(self.path)), "step in a spool")

    def spools(self) -> list[Path]:
        return list((self.path / ".green/spool").glob("*.jsonl"))

    def let_lapse(self) -> None:
        """Make the holder's last sign of life an hour old."""
        (lease,) = (self.path / ".green/ledger.journal").glob("*.lease")
        hour_ago = time.time() - 3600
        os.utime(lease, (hour_ago, hour_ago))


class Host:
    """Another host that has the same folder mounted."""

    def __init__(self, folder: Path, name: str) -> None:
        self.runtime = folder / "runtime"
        self._name = name
        self._boot_id = folder / "boot_id"
        folder.mkdir()
        self._boot_id.write_text(f"boot-of-{name}\n")

    def command(self, command: list[str]) -> list[str]:
        boot_id = f"mount --bind {self._boot_id} /proc/sys/kernel/random/boot_id"
        script = f'hostname {self._name} && {boot_id} && exec "$@"'
        return ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *command]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "project", on_share=True)
    yield project
    for pid, _ in processes_in(project.path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def node7(tmp_path: Path) -> Host:
    host = Host(tmp_path / "node7", "node7")
    if subprocess.run(host.command(["true"]), check=False, capture_output=True).returncode != 0:
        pytest.skip("a second host needs the right to make namespaces and mounts")
    return host


def kill(snakemake) -> None:
    os.killpg(snakemake.process.pid, signal.SIGKILL)
    snakemake.process.wait()


def some(rows: list[dict], keys: tuple[str, ...]) -> list[dict]:
    return sorted(({key: row[key] for key in keys} for row in rows), key=str)


def sqlite_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.open("rb").read(6) == b"SQLite"]


def test_a_pipeline_with_a_hard_budget_runs_as_on_a_local_disk(tmp_path: Path, project: Project) -> None:
    local = Project(tmp_path / "other" / "project", on_share=False)
    runs = [each.run("-c2", "--keep-going") for each in (project, local)]
    assert [run.returncode for run in runs] == [1, 1], runs[0].output
    assert not project.exists("out/big")
    assert project.read("out/model") == "half\n"
    assert project.exists("out/score"), "a job reads the ledger that its Snakemake has open"
    entries, entries_local = project.told("ledger", "export"), local.told("ledger", "export")
    assert some(entries, ENTRY) == some(entries_local, ENTRY)
    assert {entry["step"]: entry["outcome"] for entry in entries}["big"] == "refused"
    (balance,), (balance_local,) = project.balances(), local.balances()
    assert some([balance], BALANCE) == some([balance_local], BALANCE)
    assert balance["spent"] == sum(entry["energy_charged_microjoules"] or 0 for entry in entries)
    for each in (project, local):
        verified = each.green("ledger", "verify")
        assert verified.returncode == 0, verified.stdout
    assert sqlite_files(project.path) == []
    assert sqlite_files(local.path) != []


def test_after_kill_nine_and_the_loss_of_the_cache_the_books_are_the_same_and_close(project: Project) -> None:
    kill(project.begin_long_job())
    before, entries = project.balances(), project.told("ledger", "export")
    assert before[0]["spent"] > 0
    assert [(entry["step"], entry["outcome"]) for entry in entries] == [("long", "lost")]
    shutil.rmtree(project.cache)
    assert (project.balances(), project.told("ledger", "export")) == (before, entries)

    kill(project.begin_long_job())
    shutil.rmtree(project.cache)
    assert "was deleted here" in project.green("balance").stderr
    project.let_lapse()
    verified = project.green("ledger", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    (after,) = project.balances()
    assert after["held"] == 0
    assert after["spent"] > before[0]["spent"]
    assert [entry["outcome"] for entry in project.told("ledger", "export")] == ["lost", "lost"]
    assert project.spools() == []


def test_a_second_host_is_refused_and_takes_over_once_the_first_is_dead(project: Project, node7: Host) -> None:
    snakemake = project.begin_long_job()
    here = os.uname().nodename

    refused = project.green("balance", host=node7)
    assert refused.returncode == 3
    for words in (f"in use by host {here}, since 20", "last sign of life", "work there, or wait"):
        assert words in refused.stderr
    doctor = project.green("doctor", "--json", host=node7)
    told = json.loads(doctor.stdout)["ledger"]
    assert (told["held_by"]["host"], told["journal"]) == (here, str(project.path / ".green/ledger.journal"))
    assert json.loads(project.green("doctor", "--json").stdout)["ledger"]["held_by"] is None

    observed = project.write("observe.yaml", "version: 1\nproject: test\ntracking: none\n")
    snakemake_there = ("snakemake", "--scheduler", "green", "-c1", "--nolock")
    unmetered = project.python(*snakemake_there, "out/short", host=node7, MLFLOW_GREEN_POLICY=str(observed))
    assert unmetered.returncode == 0, unmetered.stderr
    assert f"in use by host {here}" in unmetered.stderr
    assert "nothing is metered in this run" in unmetered.stderr
    closed = project.python(*snakemake_there, "out/prepared", host=node7)
    assert closed.returncode != 0
    assert f"in use by host {here}" in closed.stderr
    assert "nothing was started" in closed.stderr
    assert project.green("run", "--", "touch", "out/touched", host=node7).returncode == 3
    assert [path.name for path in (project.path / "out").iterdir()] == ["short"]

    kill(snakemake)
    assert project.green("balance", host=node7).returncode == 3, "it may only be cut off"
    project.let_lapse()
    doctor = project.green("doctor", "--json", host=node7)
    assert json.loads(doctor.stdout)["ledger"]["held_by"]["last_sign_of_life_seconds"] > 3000
    (balance,) = project.balances(host=node7)
    assert balance["held"] == 0
    assert balance["spent"] > 0
    verified = project.green("ledger", "verify", host=node7)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    (entry,) = project.told("ledger", "export", host=node7)
    assert (entry["step"], entry["outcome"]) == ("long", "lost")
    assert entry["energy_charged_microjoules"] == balance["spent"]
    assert project.balances() == [balance], "released, it is the first host's again"


def test_a_command_that_runs_on_another_host_is_not_taken_for_dead(project: Project, node7: Host) -> None:
    project.policy("")
    running = project.start("run", "--", "sleep", "6", program=("-m", "mlflow_green.cli"))
    project.wait_for_begin()
    assert project.told("ledger", "export", host=node7) == []
    assert running.end().returncode == 0
    (entry,) = project.told("ledger", "export")
    assert (entry["step"], entry["outcome"]) == ("sleep", "succeeded")
    assert project.green("ledger", "verify").returncode == 0


def test_a_host_that_was_replaced_while_it_stood_still_breaks_no_job(project: Project, node7: Host) -> None:
    # What it reads from then on is lost: its steps were charged as lost when it was replaced (ADR 7).
    project.write("Snakefile", project.read("Snakefile").replace("sleep 100", "sleep 6"))
    snakemake = project.begin_long_job()
    snakemake.process.send_signal(signal.SIGSTOP)
    project.let_lapse()
    (balance,) = project.balances(host=node7)
    assert balance["held"] == 0
    snakemake.process.send_signal(signal.SIGCONT)
    done = snakemake.end()
    assert (done.returncode, project.exists("out/long")) == (0, True), "measuring must not break a job that runs"
    assert "was taken over" in done.output
    assert project.green("ledger", "verify").returncode == 0
    (entry,) = project.told("ledger", "export")
    assert entry["outcome"] == "lost"
    assert entry["energy_charged_microjoules"] > 0


def test_a_project_that_is_copied_home_from_the_share_keeps_its_books(tmp_path: Path, project: Project) -> None:
    assert project.run("-c1", "out/model").returncode == 0
    home = Project(tmp_path / "home" / "project", on_share=False)
    shutil.copytree(project.path, home.path, dirs_exist_ok=True)
    assert home.balances() == project.balances()
    assert home.run("-c1", "out/score").returncode == 0
    assert {entry["step"] for entry in home.told("ledger", "export")} == {"prepare", "train", "evaluate"}
    assert sqlite_files(home.path) == []


def test_a_model_of_the_example_pipeline_is_trained_there(tmp_path: Path, project: Project) -> None:
    pytest.importorskip("pmdarima")
    pytest.importorskip("sklearn")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"  # MLflow's own, which mlflow-green does not move
    options = ("-c2", "--snakefile", LOAD_FORECAST, "--config", "fast=1")
    done = project.run("metrics/ridge.json", *options, MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.output
    entries = project.told("ledger", "export")
    assert {entry["step"] for entry in entries} == {"prepare", "train", "predict", "evaluate"}
    assert all(entry["outcome"] == "succeeded" and entry["energy_charged_microjoules"] > 0 for entry in entries)
    assert project.green("ledger", "verify").returncode == 0
    assert sqlite_files(project.path) == []
