"""What an entry and its MLflow run exchange."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mlflow_green.records import Action, Boundary, Domain, Energy, Entry, Fact, Method, Outcome
from mlflow_green.tracking.run_metrics import (
    ENTRY_TAG,
    KIND_TAG,
    RunView,
    entry_metrics,
    entry_tags,
    is_notable,
    jobs_table,
    large_shares,
    run_facts,
    run_of_entry,
    workflow_metrics,
)
from mlflow_green.units import MICROJOULES_PER_WATT_HOUR as WATT_HOUR

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def energy(watt_hours, method=Method.ESTIMATED):
    middle = watt_hours * WATT_HOUR
    return Energy(microjoules=middle, low_microjoules=middle // 2, high_microjoules=middle * 2, method=method)


ENTRY = Entry(
    entry_id="e1",
    hold_id="h1",
    project="demo",
    user="me",
    workflow_run="w1",
    step="train",
    wildcards="model=mlp",
    attempt=1,
    host="here",
    started_at=NOW,
    ended_at=NOW,
    duration_seconds=3.0,
    outcome=Outcome.SUCCEEDED,
    tier=None,
    decision=Action.ADMIT,
    would_decision=Action.ADMIT,
    reason="fits",
    phase=None,
    energy={Domain.CPU: energy(2), Domain.GPU: energy(4)},
    energy_charged_microjoules=6 * WATT_HOUR,
    boundary=Boundary.COMPONENT,
    sampler_id="s",
    cpu_seconds=None,
    cpu_clock=None,
    coverage_ratio=None,
    carbon_intensity_g_per_kwh=None,
    intensity_source=None,
    pue=1.0,
    operational_micrograms_co2e=None,
    embodied_micrograms_co2e=None,
)


def run(run_id, parent_id=None, metrics=None, **tags):
    return RunView(run_id=run_id, parent_id=parent_id, tags=tags, metrics=metrics or {}, running=False)


def test_domains_that_were_not_read_and_unknown_grams_have_no_metric():
    assert entry_metrics(ENTRY, {}) == {"energy/total_wh": 6.0, "energy/cpu_wh": 2.0, "energy/gpu_wh": 4.0}


def test_quality_from_the_rules_metrics_file_goes_to_the_run_and_other_facts_do_not():
    told = {"quality/mape": 2.5, "quality/note": "text", "quality/bad": float("nan"), "mlflow/run_id": "r"}
    assert {name for name in entry_metrics(ENTRY, told) if not name.startswith("energy/")} == {"quality/mape"}


def test_the_tags_say_the_interval_and_the_method():
    tags = entry_tags(ENTRY)
    assert tags["green.energy_interval_wh"] == "[3, 12]"
    assert tags["green.method"] == "estimated"
    assert "green.tier" not in tags


def test_the_only_top_level_run_is_the_entrys():
    nested = run("nested", parent_id="top")
    assert run_of_entry([run("top"), nested], "e1", "parent") == run("top")


def test_two_top_level_runs_get_nothing_and_the_job_gets_one_of_its_own():
    assert run_of_entry([run("a"), run("b")], "e1", "parent") is None


def test_a_run_that_an_interrupted_delivery_moved_below_the_parent_is_found_again():
    moved = run("top", parent_id="parent")
    assert run_of_entry([moved], "e1", "parent") == moved


def test_the_run_that_has_the_entry_is_taken_again_before_all_others():
    mine = run("mine", parent_id="parent", **{ENTRY_TAG: "e1", KIND_TAG: "job"})
    assert run_of_entry([run("a"), mine], "e1", "parent") == mine


def test_the_workflows_own_run_is_no_run_of_a_job():
    assert run_of_entry([run("parent", **{KIND_TAG: "workflow"})], "e1", "parent") is None


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "half"},
        {"phase": "training"},
        {"decision": Action.DOWNGRADE},
        {"outcome": Outcome.HALTED},
    ],
    ids=str,
)
def test_a_job_with_tiers_a_phase_or_an_answer_other_than_yes_is_notable(change):
    assert is_notable(replace(ENTRY, **change), {})


def test_a_plain_admitted_job_is_not_notable_until_it_has_a_quality():
    assert not is_notable(ENTRY, {"mlflow/run_id": "r"})
    assert is_notable(ENTRY, {"quality/mape": 1.0})


def test_a_tenth_of_the_energy_is_a_large_share():
    small = replace(ENTRY, entry_id="small", energy={Domain.CPU: energy(1)})
    large = replace(ENTRY, entry_id="large", energy={Domain.CPU: energy(99)})
    refused = replace(ENTRY, entry_id="refused", energy={})
    assert large_shares([small, large, refused]) == {"large"}
    assert large_shares([refused]) == frozenset()


def test_a_run_teaches_its_id_its_models_complexity_and_the_users_metrics():
    seen = run("r", metrics={"mape": 3.0, "energy/total_wh": 1.0, "complexity/parameters": 9.0, "loss": float("inf")})
    assert run_facts("h1", seen) == (
        Fact(hold_id="h1", name="mlflow/run_id", value="r"),
        Fact(hold_id="h1", name="complexity/parameters", value=9.0),
        Fact(hold_id="h1", name="quality/mape", value=3.0),
    )


def test_a_workflow_has_totals_and_energy_by_rule_and_grams_only_if_all_jobs_have_them():
    green = replace(ENTRY, operational_micrograms_co2e=2_000_000)
    other = replace(green, step="it's odd", energy={Domain.CPU: energy(1)})
    assert workflow_metrics([green, green, other]) == {
        "energy/total_wh": 13.0,
        "emissions/operational_g_co2e": 6.0,
        "energy_by_rule/train_wh": 12.0,
        "energy_by_rule/it_s odd_wh": 1.0,
    }
    assert "emissions/operational_g_co2e" not in workflow_metrics([green, ENTRY])
    made = replace(green, embodied_micrograms_co2e=500_000)
    assert workflow_metrics([made, made])["emissions/embodied_g_co2e"] == 1.0
    assert "emissions/embodied_g_co2e" not in workflow_metrics([made, green])


def test_the_table_has_a_row_a_job_and_a_column_a_quality():
    table = jobs_table([ENTRY, replace(ENTRY, hold_id=None, energy={})], {"h1": {"quality/mape": 2.5}})
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["quality/mape"] for row in rows] == [2.5, None]
    assert [row["energy_wh"] for row in rows] == [6.0, None]
