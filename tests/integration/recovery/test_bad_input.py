"""Bad input and broken surroundings: one clear message that says what to do, and every job's result is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_green.cli.doors import Place
from mlflow_green.cli.main import cli
from mlflow_green.records import Outcome
from tests.testkit.books import findings, ledger_in

SNAKEFILE = """
rule all:
    input: "a.txt", "b.txt"
rule a:
    output: "a.txt", metrics="a.json"
    shell: "echo 'no json' > {output.metrics}; echo a > {output[0]}"
rule b:
    output: "b.txt", metrics="b.json"
    shell: "echo '{{\\"mape\\": 2.5}}' > {output.metrics}; echo b > {output[0]}"
"""
OBSERVE = "version: 1\nproject: demo\ntracking: {jobs: none}\n"
HARD = (
    OBSERVE
    + "budgets:\n  - {name: total, scope: {project: demo}, limit: [1 kWh], period: total, mode: hard, unknown_step: admit}\n"
)
SMALL_DISK_BYTES = 262_144


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def snakemake(folder: Path, policy: str, **environ: str) -> tuple[int, list[str]]:
    """The exit code, and the lines that mlflow-green said."""
    (folder / "green.yaml").write_text(policy)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-c2", "--scheduler", "green"],
        cwd=folder,
        env={**os.environ, "MLFLOW_GREEN_RUNTIME_DIR": str(folder / "runtime"), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    print(done.stdout)
    return done.returncode, [line for line in done.stdout.splitlines() if "mlflow-green: " in line]


def has_results(folder: Path) -> bool:
    return (folder / "a.txt").exists() and (folder / "b.txt").exists()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A ``.green`` on a disk of its own, of 256 kB."""
    disk = folder / ".green"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_doctor_names_a_disk_that_is_almost_full(folder, small_disk) -> None:
    told = CliRunner().invoke(cli, ["doctor"], obj=Place(cwd=folder, environ={}))
    assert told.exit_code == 1
    assert f"the disk of {small_disk} has 0.3 MB left" in " ".join(told.output.split())


def test_a_metrics_file_that_is_no_json_costs_only_its_numbers(folder) -> None:
    code, said = snakemake(folder, OBSERVE)
    assert (code, has_results(folder)) == (0, True)
    (line,) = said
    assert "a.json is not a JSON object" in line
    assert 'write e.g. {"mape": 2.1}' in line
    told = {name: value for facts in ledger_in(folder).facts().values() for name, value in facts.items()}
    assert told == {"quality/mape": 2.5}


@pytest.mark.parametrize("policy", [OBSERVE, HARD])
def test_a_state_folder_that_cannot_be_written_stops_only_a_hard_budget(folder, policy) -> None:
    (folder / ".green").write_text("a file, not a folder")
    code, said = snakemake(folder, policy)
    assert (code, has_results(folder)) == ((0, True) if policy == OBSERVE else (1, False))
    (line,) = said
    assert ".green" in line
    assert "nothing is metered" in line or "nothing was started" in line
    assert "MLFLOW_GREEN_LEDGER" in line


@pytest.mark.parametrize("policy", [OBSERVE, HARD])
def test_a_sqlite_ledger_that_was_moved_to_a_network_file_system_is_refused(folder, policy) -> None:
    ledger_in(folder).close()
    mounts = folder / "mountinfo"
    mounts.write_text(f"36 35 98:0 / {folder} rw,noatime master:1 - nfs4 server:/export rw\n")
    code, said = snakemake(folder, policy, MLFLOW_GREEN_MOUNTINFO=str(mounts))
    assert (code, has_results(folder)) == ((0, True) if policy == OBSERVE else (1, False))
    (line,) = said
    assert "is a SQLite file on a network file system (nfs4)" in line
    assert "MLFLOW_GREEN_LEDGER=sqlite:////var/tmp/" in line
    assert not (folder / ".green/ledger.journal").exists()


@pytest.mark.parametrize("policy", [OBSERVE, HARD])
def test_a_disk_that_is_full_from_the_start_stops_only_a_hard_budget(folder, small_disk, policy) -> None:
    (small_disk / "fill").write_bytes(bytes(SMALL_DISK_BYTES))
    code, said = snakemake(folder, policy)
    assert (code, has_results(folder)) == ((0, True) if policy == OBSERVE else (1, False))
    (line,) = said
    assert "space" in line


@pytest.mark.parametrize("is_freed", [True, False])
def test_a_disk_that_fills_up_loses_no_result_and_the_books_close(folder, small_disk, is_freed) -> None:
    # A disk that stays full is filled once b has been settled: what then has room neither in the ledger nor in the spool is lost, and says so.
    settled_first = "" if is_freed else "sleep 3; "
    fill = settled_first + "head -c 300000 /dev/zero > .green/fill || true; sleep 2; "
    free = "rm .green/fill; sleep 1; " if is_freed else ""
    (folder / "Snakefile").write_text(SNAKEFILE.replace("echo a >", fill + free + "echo a >"))
    code, said = snakemake(folder, OBSERVE)
    assert (code, has_results(folder)) == (0, True)
    # A settlement may still find room in the file that SQLite keeps; the spool then says it.
    assert sum(("No space left" in line and "free space" in line) or "free some space" in line for line in said) >= 1
    is_lost = any("are lost" in line for line in said)
    assert not (is_lost and is_freed)
    (small_disk / "fill").unlink(missing_ok=True)
    balance = [sys.executable, "-m", "mlflow_green.cli", "balance"]
    subprocess.run(balance, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    ledger = ledger_in(folder)
    assert findings(ledger) == ()
    assert ledger.open_holds() == ()
    outcomes = {entry.step: entry.outcome for entry in ledger.entries()}
    assert outcomes["b"] is Outcome.SUCCEEDED
    if not is_lost:
        assert outcomes == dict.fromkeys(("a", "b", "all"), Outcome.SUCCEEDED)
    ledger.close()


@pytest.mark.parametrize(
    ("policy", "place", "advice"),
    [
        ("version: 1\nproject: demo\nbudgts: []\n", "green.yaml:3:1", "budgets"),
        ("version: 1\nproject: demo\nsite: {country: ZZZ}\n", "green.yaml:3:", "ZZZ"),
        ("version: 1\nproject: [demo\n", "green.yaml:", ""),
    ],
)
def test_a_broken_policy_starts_nothing_and_says_where(folder, policy, place, advice) -> None:
    code, said = snakemake(folder, policy)
    assert (code, has_results(folder)) == (1, False)
    assert place in " ".join(said)
    assert advice in " ".join(said)


def test_an_mlflow_server_that_is_down_costs_no_result(folder) -> None:
    policy = OBSERVE.replace("none", "notable")
    code, said = snakemake(
        folder, policy, MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1"
    )
    assert (code, has_results(folder)) == (0, True)
    assert sum("MLflow cannot be written" in line for line in said) == 1
    ledger = ledger_in(folder)
    assert len(ledger.entries()) == 3
    assert ledger.count("mlflow") > 0, "it is written later"
