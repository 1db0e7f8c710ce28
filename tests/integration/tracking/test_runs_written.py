"""Entries of a ledger as runs in a real MLflow SQLite store."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.records import Outcome
from mlflow_green.tracking.delivery import Delivery
from mlflow_green.tracking.run_metrics import Workflow
from mlflow_green.tracking.run_writer import RunWriter

CLOCK = SystemClock()


@pytest.fixture
def client(store_url, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "demo")
    client = MlflowClient(store_url)
    client.create_experiment("demo", artifact_location=str(tmp_path / "artifacts"))
    client.create_experiment("elsewhere")
    return client


@pytest.fixture
def books(make_books):
    return make_books(MemoryLedger(CLOCK))


@pytest.fixture
def deliver(books):
    def deliver(jobs="notable", workflow_run="w1"):
        workflow = workflow_run and Workflow(workflow_run=workflow_run, project="demo", name="my workflow")
        warnings = []
        delivery = Delivery(books.ledger, RunWriter(jobs=jobs), CLOCK, warnings.append, workflow)
        left = delivery.drain()
        delivery.close_unended()
        assert warnings == []
        return left

    return deliver


def user_run(client, hold, experiment="demo", **metrics):
    """What a script's fluent run looks like in the store."""
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    run = client.create_run(experiment_id, tags={"green.hold_id": hold.hold_id, "green.workflow": "w1"})
    for name, value in metrics.items():
        client.log_metric(run.info.run_id, name.replace("__", "/"), value)
    return run.info.run_id


def all_runs(client):
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(ids)


def parent_of(client):
    (parent,) = [run for run in all_runs(client) if run.data.tags.get("green.kind") == "workflow"]
    return parent


def test_the_only_run_of_a_job_gets_its_energy_wherever_it_is_and_the_ledger_its_metrics(client, books, deliver):
    hold = books.hold("train", model="mlp")
    run_id = user_run(client, hold, "elsewhere", mape=3.5, complexity__parameters=7)
    books.tell("running")
    books.settle(hold, watt_hours=6, facts={"quality/mase": 0.9})
    assert deliver() == 0

    run = client.get_run(run_id)
    assert run.data.metrics == {
        "mape": 3.5,
        "complexity/parameters": 7.0,
        "quality/mase": 0.9,
        "energy/total_wh": 6.0,
        "energy/cpu_wh": 6.0,
        "emissions/operational_g_co2e": 21.6,
    }
    assert run.data.tags["green.energy_interval_wh"] == "[3, 12]"
    assert run.data.tags["mlflow.parentRunId"] == parent_of(client).info.run_id
    assert run.info.status == "FINISHED"
    assert parent_of(client).info.run_name == "my workflow"
    told = books.ledger.facts()[hold.hold_id]
    assert told == {"quality/mase": 0.9, "mlflow/run_id": run_id, "complexity/parameters": 7.0, "quality/mape": 3.5}


def test_delivering_again_changes_nothing(client, books, deliver):
    with_run, notable = books.hold("train"), books.hold("tune")
    user_run(client, with_run)
    for hold in (with_run, notable):
        books.settle(hold, phase="training")
    assert deliver() == 0
    before = {run.info.run_id: run.data.to_dictionary() for run in all_runs(client)}
    for hold in (with_run, notable):
        books.ledger.put("mlflow", f"again:{hold.hold_id}", {"entry_id": f"entry-{hold.hold_id}"})
    assert deliver() == 0
    assert {run.info.run_id: run.data.to_dictionary() for run in all_runs(client)} == before
    assert len(before) == 3  # the workflow's, the user's, the notable job's
    history = client.get_metric_history(books.ledger.facts()[with_run.hold_id]["mlflow/run_id"], "energy/total_wh")
    assert len(history) == 1


def test_a_job_with_two_runs_gets_one_of_its_own_and_leaves_theirs_alone(client, books, deliver):
    hold = books.hold("train", model="mlp")
    theirs = [user_run(client, hold), user_run(client, hold)]
    books.settle(hold, phase="training")
    assert deliver() == 0
    own = client.get_run(books.ledger.facts()[hold.hold_id]["mlflow/run_id"])
    assert own.info.run_id not in theirs
    assert own.info.run_name == "train[model=mlp]"
    assert own.info.status == "FINISHED"
    assert all("energy/total_wh" not in client.get_run(run_id).data.metrics for run_id in theirs)


@pytest.mark.parametrize(("jobs", "runs"), [("all", {"plain", "named"}), ("notable", {"named"}), ("none", set())])
def test_which_jobs_without_a_run_get_one_is_the_users_choice(client, books, deliver, jobs, runs):
    books.settle(books.hold("plain"))
    books.settle(books.hold("named"), phase="training", watt_hours=100)
    assert deliver(jobs) == 0
    children = [run for run in all_runs(client) if run.data.tags.get("green.kind") == "job"]
    assert {run.info.run_name for run in children} == runs


def test_a_halted_jobs_run_does_not_run_for_ever(client, books, deliver):
    hold = books.hold("train")
    run_id = user_run(client, hold)
    books.settle(hold, outcome=Outcome.HALTED)
    assert deliver() == 0
    assert client.get_run(run_id).info.status == "KILLED"


def test_the_end_of_a_workflow_brings_totals_rules_the_table_and_the_report(client, books, deliver, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("<h1>joules</h1>")
    books.tell("running")
    for model, watt_hours in (("mlp", 90), ("ridge", 1)):
        books.settle(books.hold("train", model=model), watt_hours=watt_hours)
    books.settle(books.hold("prepare"), watt_hours=2)
    books.tell("finished", str(report))
    assert deliver() == 0

    parent = parent_of(client)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["energy/total_wh"] == 93.0
    assert parent.data.metrics["energy_by_rule/train_wh"] == 91.0
    assert parent.data.tags["green.energy_interval_wh"] == "[46.5, 186]"
    assert parent.data.tags["mlflow.note.content"].startswith("93.0 Wh [46.5 Wh, 186 Wh], estimated; ")
    children = [run for run in all_runs(client) if run.data.tags.get("green.kind") == "job"]
    assert [run.info.run_name for run in children] == ["train[model=mlp]"]  # the only one with a large share
    shown = client.load_table(parent.info.experiment_id, "green/jobs.json", [parent.info.run_id])
    assert list(shown["rule"]) == ["train", "train", "prepare"]
    folder = tmp_path / "artifacts" / parent.info.run_id / "artifacts" / "green"
    table = json.loads((folder / "jobs.json").read_text())
    assert [row[table["columns"].index("energy_wh")] for row in table["data"]] == [90.0, 1.0, 2.0]
    assert table["data"][0][table["columns"].index("mlflow/run_id")] == children[0].info.run_id
    assert (folder / "report.html").read_text() == "<h1>joules</h1>"


def test_an_entry_that_is_found_after_the_end_of_its_workflow_corrects_the_totals(client, books, deliver):
    books.tell("running")
    books.settle(books.hold("train"), watt_hours=1)
    books.tell("failed")
    assert deliver() == 0
    books.settle(books.hold("lost"), watt_hours=2, outcome=Outcome.LOST)
    assert deliver(workflow_run=None) == 0
    parent = parent_of(client)
    assert parent.data.metrics["energy/total_wh"] == 3.0
    assert parent.info.status == "FAILED"


def test_rows_of_another_workflow_are_left_to_its_own_sink_and_do_not_hold_up_ours(client, books, make_books, deliver):
    other = make_books(books.ledger, "other")
    for number in range(120):
        other.settle(other.hold("theirs", n=number))
    books.settle(books.hold("ours"), phase="training")
    assert deliver() == 0
    assert {run.info.run_name for run in all_runs(client)} == {"my workflow", "ours"}
    assert books.ledger.count("mlflow") == 120


def test_a_row_that_mlflow_refuses_waits_longer_and_longer_and_the_others_pass(client, books, monkeypatch):
    books.ledger.put("mlflow", "poison", {"entry_id": "no such entry"})
    books.settle(books.hold("train"), phase="training")
    warnings = []
    delivery = Delivery(books.ledger, RunWriter(jobs="notable"), CLOCK, warnings.append, None)
    assert [delivery.round(), delivery.round()] == [False, True]
    assert books.ledger.count("mlflow") == 1
    assert delivery.drain() == 1
    assert books.ledger.pending("mlflow", CLOCK.now()) == ()
    assert len(warnings) == 1
    assert "tried again" in warnings[0]
