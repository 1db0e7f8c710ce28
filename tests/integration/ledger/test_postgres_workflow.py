"""A workflow, its MLflow runs and the commands with a team's ledger in PostgreSQL."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from mlflow_green.records import Outcome
from tests.testkit.ledger_samples import open_url
from tests.testkit.postgres import PASSWORD
from tests.testkit.snakemake_folder import SnakemakeFolder, processes_in

SNAKEFILE = """
    rule all:
        input: "out/cheap", "out/dear"

    rule cheap:
        output: "out/cheap"
        params: green=lambda wc, resources: dict(energy="1 Wh")
        shell: "until [ -e go ]; do sleep 0.1; done; touch {output}"

    rule dear:
        output: "out/dear"
        params: green=lambda wc, resources: dict(energy="50 Wh")
        shell: "touch {output}"
"""
POLICY = """
    version: 1
    project: demo
    tracking: {jobs: all}
    budgets:
      - {name: month, scope: {project: demo}, limit: 10 Wh, period: month, mode: hard}
"""
COMMANDS = ("-m", "mlflow_green.cli")


@pytest.fixture
def url(postgres):
    return postgres.new_database()


@pytest.fixture
def folder(tmp_path):
    made = SnakemakeFolder(tmp_path / "wf", SNAKEFILE)
    made.write("green.yaml", POLICY)
    return made


def test_a_workflow_under_a_hard_budget_and_every_command_work_with_a_ledger_in_postgresql(folder, url):
    store = f"sqlite:///{folder.path / 'mlflow.db'}"
    environ = {"MLFLOW_GREEN_LEDGER": url, "MLFLOW_TRACKING_URI": store}
    started = folder.start("-c2", "--keep-going", **environ)
    started.wait_for(lambda: any("tracking.sink" in command for _, command in processes_in(folder.path)), "the sink")
    commands = " ".join(command for _, command in processes_in(folder.path))
    assert PASSWORD not in commands
    assert quote(PASSWORD, safe="") not in commands
    folder.write("go", "")
    run = started.end()
    assert folder.exists("out/cheap"), run.output
    assert not folder.exists("out/dear")
    assert "month" in run.output
    ledger = open_url(url)
    outcomes = {entry.step: entry.outcome for entry in ledger.entries() if entry.step in {"cheap", "dear"}}
    assert outcomes == {"cheap": Outcome.SUCCEEDED, "dear": Outcome.REFUSED}
    assert ledger.open_holds() == ()
    assert 0 < ledger.balances()[0].spent < 10 * 3_600_000_000
    ledger.close()

    told = [folder.run(*command, program=COMMANDS, **environ) for command in (["sync"], ["balance"], ["doctor"])]
    assert [one.returncode for one in told[:2]] == [0, 0], told
    assert "MLflow has everything" in told[0].output
    assert "month" in told[1].output
    verified = folder.run("ledger", "verify", "--json", program=COMMANDS, **environ)
    assert json.loads(verified.output)["ok"], verified.output
    shown = "\n".join([run.output, *(one.output for one in told)])
    assert "postgresql://test@" in told[2].output
    assert "0 rows wait to be written to MLflow" in told[2].output
    assert PASSWORD not in shown
    assert quote(PASSWORD, safe="") not in shown
    secrets = (PASSWORD.encode(), quote(PASSWORD, safe="").encode())
    kept = [path for path in folder.path.rglob("*") if path.is_file() and any(s in path.read_bytes() for s in secrets)]
    assert kept == []


def test_when_the_server_cannot_be_reached_nothing_starts_under_a_hard_budget(folder):
    run = folder.run("-c2", MLFLOW_GREEN_LEDGER="postgresql://ana:secret@127.0.0.1:1/green", MLFLOW_TRACKING_URI="")
    assert run.returncode != 0
    assert "postgresql://ana@127.0.0.1:1/green" in run.output
    assert "pg_isready" in run.output
    assert "secret" not in run.output
    assert not folder.exists("out/cheap")
