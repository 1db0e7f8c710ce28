"""The tags that a job's runs get through MLflow's own variable."""

from __future__ import annotations

import json

import pytest

from mlflow_green.tracking.context import run_context


def test_a_job_gets_its_hold_and_its_workflow():
    assert json.loads(run_context({}, "h1", "w1")) == {"green.hold_id": "h1", "green.workflow": "w1"}


def test_the_users_own_tags_stay():
    tags = json.loads(run_context({"MLFLOW_RUN_CONTEXT": '{"team": "grid"}'}, "h1", "w1"))
    assert tags == {"team": "grid", "green.hold_id": "h1", "green.workflow": "w1"}


def test_a_hold_from_an_outer_workflow_is_replaced():
    outer = run_context({}, "h1", "w1")
    assert json.loads(run_context({"MLFLOW_RUN_CONTEXT": outer}, "h2", "w2"))["green.hold_id"] == "h2"


@pytest.mark.parametrize("given", ["{", "[1]", "7"])
def test_a_value_that_is_no_json_object_is_left_alone(given):
    assert run_context({"MLFLOW_RUN_CONTEXT": given}, "h1", "w1") is None
