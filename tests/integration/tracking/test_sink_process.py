"""The sink as the process that Snakemake starts: it gets ready, delivers, survives MLflow, and ends with its pipe."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.sql import open_ledger

CLOCK = SystemClock()
MOUNTINFO = Path("/proc/self/mountinfo")


@pytest.fixture
def ledger_url(tmp_path):
    return f"sqlite:///{tmp_path / '.green' / 'ledger.db'}"


@pytest.fixture
def books(make_books, ledger_url):
    ledger = open_ledger(ledger_url, mountinfo_path=MOUNTINFO, clock=CLOCK)
    yield make_books(ledger)
    ledger.close()


@pytest.fixture
def start_sink(ledger_url, tmp_path, clean_environ):
    started = []

    def start(*more, **environ):
        command = [sys.executable, "-m", "mlflow_green.tracking.sink"]
        command += ["--workflow-run", "w1", "--project", "demo", "--name", "my workflow", *more]
        sink = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=clean_environ | {"MLFLOW_GREEN_LEDGER": ledger_url} | environ,
        )
        started.append(sink)
        return sink

    yield start
    for sink in started:
        sink.kill()
        sink.communicate()


def end(sink):
    """Close the pipe as a main process that ends does; the sink's last line and its warnings."""
    out, err = sink.communicate(timeout=90)
    return (out.splitlines() or [""])[-1], err


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def runs(url, experiment="demo"):
    client = MlflowClient(url)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def test_two_scripts_that_start_together_on_a_fresh_store_live_and_their_runs_get_the_energy(
    books, start_sink, tmp_path, clean_environ
):
    url = f"sqlite:///{tmp_path / 'fresh.db'}"
    environ = {"MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_NAME": "demo"}
    sink = start_sink(**environ)
    assert sink.stdout.readline() == "ready\n"
    assert os.getpriority(os.PRIO_PROCESS, sink.pid) == 19
    assert os.getsid(sink.pid) == sink.pid

    holds = [books.hold("train", model=model) for model in ("a", "b")]
    scripts = []
    for hold in holds:
        context = f'{{"green.hold_id": "{hold.hold_id}"}}'
        code = "import mlflow\nwith mlflow.start_run(): mlflow.log_metric('mape', 2.0)"
        tagged = clean_environ | environ | {"MLFLOW_RUN_CONTEXT": context}
        scripts.append(subprocess.Popen([sys.executable, "-c", code], env=tagged, cwd=tmp_path))
    assert [script.wait(90) for script in scripts] == [0, 0]

    books.tell("running")
    for hold in holds:
        books.settle(hold, watt_hours=3)
    wait_until(lambda: books.ledger.count("mlflow") == 0)  # while its pipe is open
    assert {told["quality/mape"] for told in books.ledger.facts().values()} == {2.0}
    books.tell("finished")
    assert end(sink) == ("drained", "")
    energies = sorted(run.data.metrics["energy/total_wh"] for run in runs(url))
    assert energies == [3.0, 3.0, 6.0]
    assert {run.info.status for run in runs(url)} == {"FINISHED"}


def test_a_main_process_that_was_killed_leaves_no_run_that_runs_for_ever(books, start_sink, store_url):
    books.tell("running")
    books.settle(books.hold("train"), phase="training")
    sink = start_sink(MLFLOW_TRACKING_URI=store_url, MLFLOW_EXPERIMENT_NAME="demo")
    assert end(sink)[0] == "drained"
    assert {run.info.run_name: run.info.status for run in runs(store_url)} == {
        "my workflow": "KILLED",
        "train": "FINISHED",
    }


def test_what_a_server_that_was_down_did_not_take_is_written_later(
    books, start_sink, migrated_store, tmp_path, clean_environ
):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {"MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_NAME": "demo"}
    books.tell("running")
    books.settle(books.hold("train"), phase="training")
    books.tell("failed")
    sink = start_sink(**environ)
    assert sink.stdout.readline().startswith("failed: ")
    last, warnings = end(sink)
    assert last == "left 3"
    assert warnings.count("mlflow-green:") == 1
    assert "tried again" in warnings
    assert books.ledger.count("mlflow") == 3

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    server = subprocess.Popen(
        command,
        env=clean_environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        wait_until(lambda: is_listening(port))
        later = start_sink("--once", **environ)
        assert end(later)[0] == "drained"
        assert later.returncode == 0
        assert {run.info.run_name: run.info.status for run in runs(url)} == {
            "my workflow": "FAILED",
            "train": "FINISHED",
        }
        assert list((tmp_path / "served").rglob("green/jobs.json"))
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def test_a_workflow_that_never_began_leaves_no_run(start_sink, store_url):
    sink = start_sink(MLFLOW_TRACKING_URI=store_url, MLFLOW_EXPERIMENT_NAME="demo")
    assert end(sink)[0] == "drained"
    assert runs(store_url) == []


def test_a_tracking_address_that_cannot_be_is_said_and_harms_nothing(books, start_sink):
    books.settle(books.hold("train"), phase="training")
    sink = start_sink("--once", MLFLOW_TRACKING_URI="gopher://nowhere")
    last, warnings = end(sink)
    assert last == "left 1"
    assert sink.returncode == 1
    assert "gopher" in warnings
    assert "Traceback" not in warnings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
