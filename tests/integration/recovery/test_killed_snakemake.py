"""kill -9 of Snakemake at random moments: no hold stays open, no process is left, no joule is lost or posted twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_green.records import Outcome
from mlflow_green.units import microjoules
from tests.testkit.books import SpooledEnergy, findings, ledger_in, processes_left, spool_lines

BURN = """
import os, sys, time
truth = f"truth/{os.environ['GREEN_HOLD_ID']}"
while time.process_time() < float(sys.argv[1]):
    sum(i * i for i in range(20_000))
    with open(truth + ".new", "w") as file:
        file.write(str(time.process_time()))
    os.replace(truth + ".new", truth)
open(sys.argv[2], "w").write("done")
"""
SNAKEFILE = """
rule all:
    input: expand("out/{n}.txt", n=range(7)), "out/run.txt"
rule burn:
    output: "out/{n}.txt"
    params: seconds=lambda wc: 0.3 + 0.2 * int(wc.n)
    shell: "python3 burn.py {params.seconds} {output}"
rule burn_in_run:
    output: "out/run.txt"
    run:
        import time
        while time.process_time() < 2:
            sum(i * i for i in range(20_000))
        open(output[0], "w").write("done")
"""
POLICY = """
version: 1
project: kills
site: {country: FRA}
tracking: {jobs: none}
budgets:
  - {name: total, scope: {project: kills}, limit: [5 kWh, 5 kgCO2e], period: total, mode: hard, unknown_step: admit}
"""
KILLS = [(seed, seed % 2 == 0) for seed in range(10)]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "green.yaml").write_text(POLICY)
    (tmp_path / "burn.py").write_text(BURN)
    (tmp_path / "truth").mkdir()
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "-c2", "--scheduler", "green", *arguments],
            cwd=folder,
            env={**os.environ, "MLFLOW_GREEN_RUNTIME_DIR": str(folder / "runtime")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_for_a_job(folder: Path, snakemake: subprocess.Popen[bytes]) -> None:
    """Until this Snakemake, not an earlier one, has begun a job."""
    while snakemake.poll() is None:
        mine = {
            line["sampler"]
            for line in spool_lines(folder)
            if line["kind"] == "session" and line["owner"]["pid"] == snakemake.pid
        }
        if any(line["kind"] == "begin" and line["sampler"] in mine for line in spool_lines(folder)):
            return
        time.sleep(0.02)


def test_ten_kills_of_snakemake_leave_the_books_closed_and_no_process_behind(pipeline: Path) -> None:
    kill_and_check(pipeline, KILLS, lost_at_least=5)


def test_kills_without_any_budget_where_nothing_is_held_leave_no_less_behind(pipeline: Path) -> None:
    (pipeline / "green.yaml").write_text("version: 1\nproject: kills\ntracking: none\n")
    kill_and_check(pipeline, KILLS[:4], lost_at_least=2)


def kill_and_check(pipeline: Path, kills: list[tuple[int, bool]], *, lost_at_least: int) -> None:
    seen = SpooledEnergy()
    for seed, kills_group in kills:
        dice = random.Random(seed)
        snakemake = start(pipeline, "--rerun-incomplete", "--forceall")
        if dice.random() < 0.8:
            wait_for_a_job(pipeline, snakemake)
        time.sleep(dice.uniform(0, 2))
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if kills_group else os.kill)(snakemake.pid, signal.SIGKILL)
        snakemake.wait()
        seen.look(pipeline)
        assert start(pipeline, "--unlock").wait() == 0
    last = start(pipeline, "--rerun-incomplete")
    assert last.wait() == 0, (pipeline / "log").read_text()

    ledger = ledger_in(pipeline)
    entries = ledger.entries()
    lost = sum(entry.outcome is Outcome.LOST for entry in entries)
    assert lost >= lost_at_least, "the kills must have hit running jobs"
    assert sum(balance.held for balance in ledger.balances()) == 0
    assert ledger.open_holds() == ()
    assert findings(ledger) == ()
    assert processes_left(ledger) == set()
    assert list((pipeline / ".green/spool").iterdir()) == []
    assert seen.missing_from(ledger) == {}
    for entry in entries:
        check_charge_covers_cpu_time(pipeline, entry, seen)
    ledger.close()


def check_charge_covers_cpu_time(pipeline: Path, entry, seen: SpooledEnergy) -> None:
    """What the job says that it used after its last reading is charged, at the most that a core can draw."""
    truth = pipeline / "truth" / (entry.hold_id or "-")
    if entry.outcome is not Outcome.LOST or not truth.exists():
        return
    unread_cpu_seconds = float(truth.read_text()) - (entry.cpu_seconds or 0.0)
    watts_a_core = seen.power_watts_max[entry.sampler_id] / os.cpu_count() if entry.sampler_id else 0.0
    metered = entry.total.microjoules if entry.total else 0
    assert entry.energy_charged_microjoules >= metered + microjoules(max(0.0, unread_cpu_seconds) * watts_a_core)
