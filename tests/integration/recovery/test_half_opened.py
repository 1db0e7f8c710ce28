"""A meter of which a part could not be opened leaves nothing behind that stands in the way of others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlflow_green.bootstrap import open_process_meter, open_sampler, open_session
from mlflow_green.clock import SystemClock
from mlflow_green.errors import LedgerUnavailable
from mlflow_green.settings import load_settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_spool(folder):
    """Where the spool's folder should be, a file is."""
    (folder / ".green").mkdir()
    (folder / ".green" / "spool").touch()
    return folder


def another_leads(folder) -> bool:
    """Whether the next program finds somebody whom it must follow."""
    settings = load_settings(folder, {})
    sampler = open_sampler(settings, settings.spool_dir, SystemClock())
    try:
        return not sampler.tick().windows
    finally:
        sampler.close()


def test_a_workflow_that_goes_on_without_a_spool_does_not_lead(no_spool):
    said: list[str] = []
    (no_spool / "green.yaml").write_text("version: 1\nproject: demo\ntracking: {jobs: none}\n")
    assert open_session(name="wf", policy=None, host_problem=None, wake=lambda: None, say=said.append) is None
    assert "nothing is metered in this run" in said[-1]
    assert not another_leads(no_spool)


def test_a_program_whose_readings_are_kept_nowhere_does_not_lead(no_spool):
    said: list[str] = []
    opened = open_process_meter(load_settings(no_spool, {}), project=None, workflow_run="run1", say=said.append)
    try:
        assert "is not recorded" in said[-1]
        assert not another_leads(no_spool)
    finally:
        opened.close(10)


def test_a_command_whose_readings_are_kept_nowhere_does_not_lead(no_spool):
    green = [sys.executable, "-m", "mlflow_green.cli", "run", "--", "sh", "-c", "echo started; read line"]
    with subprocess.Popen(green, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        assert not another_leads(no_spool)
        process.communicate("\n", timeout=30)


@pytest.mark.parametrize(("answer", "starts"), [("admit", True), ("wait", False), ("refuse", False)])
def test_a_workflow_starts_without_a_ledger_under_a_soft_budget_only_if_its_policy_admits_that(folder, answer, starts):
    said: list[str] = []
    (folder / ".green" / "ledger.db").mkdir(parents=True)
    budget = f"{{name: a, limit: 1 kWh, period: day, mode: soft, ledger_down: {answer}}}"
    (folder / "green.yaml").write_text(f"version: 1\nproject: demo\nbudgets: [{budget}]\n")

    def start():
        return open_session(name="wf", policy=None, host_problem=None, wake=lambda: None, say=said.append)

    if starts:
        assert start() is None
        assert "nothing is metered in this run" in said[-1]
    else:
        with pytest.raises(LedgerUnavailable, match=r"'ledger_down' in green\.yaml lets no step start without it"):
            start()
