"""The example pipeline by itself: plain Snakemake, no plugin."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

pytest.importorskip("pmdarima")
pytest.importorskip("sklearn")

SNAKEFILE = Path(__file__).parents[3] / "workflows" / "load_forecast" / "Snakefile"
LIMIT_SECONDS = 400


def command(folder, *targets_and_options):
    base = [sys.executable, "-m", "snakemake", "-c2", "--scheduler", "greedy", "--snakefile", SNAKEFILE]
    return [*base, "--directory", folder, *targets_and_options]


def environment():
    without_user_settings = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**without_user_settings, "MLFLOW_GREEN_DISABLE": "1"}


def run(folder, *targets_and_options):
    return subprocess.run(
        command(folder, *targets_and_options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def start(folder, *targets_and_options):
    return subprocess.Popen(
        command(folder, *targets_and_options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_until(process, words):
    """The output up to the line that holds ``words``; a process that never says them is ended by the clock."""
    clock = threading.Timer(LIMIT_SECONDS, process.kill)
    clock.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if words in line:
                return "".join(lines)
    finally:
        clock.cancel()
    raise AssertionError(f"{words!r} was never printed:\n{''.join(lines)}")


def terminate_jobs_of(snakemake):
    """SIGTERM to every process below Snakemake and not to Snakemake itself, as a halt does."""
    for process in psutil.Process(snakemake.pid).children(recursive=True):
        process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def finished_pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load_forecast")
    done = run(folder, "results/leaderboard.csv", "results/sweep.json", "--config", "fast=1")
    assert done.returncode == 0, done.stdout
    return folder


def test_the_leaderboard_ranks_every_model_by_its_error(finished_pipeline):
    with (finished_pipeline / "results/leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [float(row["mape_percent"]) for row in rows]
    assert {row["model"] for row in rows} == {"persistence", "ridge", "gbm", "mlp"}
    assert errors == sorted(errors)
    assert all(0 < error < 10 for error in errors)


def test_the_ridge_forecasts_better_than_persistence(finished_pipeline):
    metrics = {
        name: json.loads((finished_pipeline / f"metrics/{name}.json").read_text()) for name in ("ridge", "persistence")
    }
    assert metrics["ridge"]["mape"] < metrics["persistence"]["mape"]
    assert metrics["ridge"]["mase"] < 1


def test_without_a_ledger_the_energy_is_empty_and_the_leaderboard_says_so(finished_pipeline):
    with (finished_pipeline / "results/leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["development_mwh"] for row in rows} == {""}
    assert "Energy is empty" in (finished_pipeline / "results/leaderboard.md").read_text()
    assert "energy not known" in (finished_pipeline / "results/pareto.svg").read_text()


def test_the_sweep_judges_models_best_first(finished_pipeline):
    errors = [
        result["validation_mape"] for result in json.loads((finished_pipeline / "results/sweep.json").read_text())
    ]
    assert len(errors) > 20
    assert errors == sorted(errors)


def test_a_finished_pipeline_has_nothing_to_do_when_declarations_depend_on_resources(finished_pipeline):
    again = run(finished_pipeline, "results/leaderboard.csv", "results/sweep.json", "--dry-run")
    assert "Nothing to be done" in again.stdout, again.stdout


def test_a_long_training_that_is_told_to_stop_keeps_a_checkpoint_and_goes_on_from_it(finished_pipeline):
    target = "metrics/mlp_long.json"
    stopped = start(finished_pipeline, target, "--config", "epochs_long=4000")
    read_until(stopped, "epoch 10 of 4000")
    terminate_jobs_of(stopped)
    said = read_until(stopped, "stopped after epoch")
    rest, _ = stopped.communicate(timeout=LIMIT_SECONDS)
    assert stopped.returncode == 1, said + rest
    assert not (finished_pipeline / "models/mlp_long.joblib").exists()
    assert (finished_pipeline / "checkpoints/mlp_long.joblib").exists()

    resumed = run(finished_pipeline, target, "--config", "epochs_long=20")
    assert resumed.returncode == 0, resumed.stdout
    assert "resumed from epoch" in resumed.stdout
    assert (finished_pipeline / target).exists()
    assert not (finished_pipeline / "checkpoints/mlp_long.joblib").exists()
