import json
from dataclasses import replace

from mlflow_green.records import Domain, Energy, Method, Outcome
from mlflow_green.reports.export import entry_to_json, window_to_json
from tests.testkit.report_samples import entry, estimated, hold_id, pipeline_windows

ENTRY_FIELDS = [
    "entry_id",
    "hold_id",
    "project",
    "user",
    "workflow_run",
    "step",
    "wildcards",
    "attempt",
    "host",
    "started_at",
    "ended_at",
    "duration_seconds",
    "outcome",
    "tier",
    "decision",
    "would_decision",
    "reason",
    "phase",
    "energy_microjoules",
    "energy_charged_microjoules",
    "energy_low_microjoules",
    "energy_high_microjoules",
    "method",
    "boundary",
    "sampler_id",
    "cpu_seconds",
    "cpu_clock",
    "coverage_ratio",
    "carbon_intensity_g_per_kwh",
    "intensity_source",
    "pue",
    "operational_g_co2e",
    "embodied_g_co2e",
    "mlflow_run_id",
    "slurm_job_id",
    "slurm_energy_microjoules",
    "slurm_energy_difference_ratio",
    "slurm_energy_note",
]
WINDOW_FIELDS = [
    "host",
    "boot_id",
    "sampler_id",
    "started_at",
    "ended_at",
    "domain",
    "energy_microjoules",
    "attributed_microjoules",
    "idle_microjoules",
    "other_microjoules",
    "method",
    "coverage_ratio",
]


def test_an_entry_has_exactly_the_documented_fields():
    assert list(entry_to_json(entry("train"), {})) == ENTRY_FIELDS


def test_a_window_has_exactly_the_documented_fields():
    assert list(window_to_json(pipeline_windows()[0])) == WINDOW_FIELDS


def test_energies_are_integers_by_domain_with_their_total():
    gpu = Energy(microjoules=5, low_microjoules=4, high_microjoules=6, method=Method.MEASURED)
    told = entry_to_json(replace(entry("train"), energy={Domain.CPU: estimated(9), Domain.GPU: gpu}), {})
    assert told["energy_microjoules"] == {"cpu": 9, "dram": None, "gpu": 5, "platform": None, "total": 14}
    assert (told["energy_low_microjoules"], told["energy_high_microjoules"]) == (7, 33)
    assert told["method"] == "mixed"


def test_what_is_missing_is_null_and_never_zero():
    refused = entry("sweep", energy=None, outcome=Outcome.REFUSED, cpu_seconds=None, cpu_clock=None)
    told = json.loads(json.dumps(entry_to_json(refused, {})))
    for name in ("hold_id", "energy_low_microjoules", "method", "cpu_seconds", "operational_g_co2e", "mlflow_run_id"):
        assert told[name] is None
    assert told["energy_microjoules"]["total"] is None


def test_carbon_is_in_grams_and_the_run_id_comes_from_the_facts():
    facts = {hold_id("train"): {"mlflow/run_id": "abc"}}
    told = entry_to_json(entry("train", operational_micrograms_co2e=2_500_000), facts)
    assert told["operational_g_co2e"] == 2.5
    assert told["mlflow_run_id"] == "abc"


def test_the_shares_of_a_window_sum_to_the_whole():
    told = window_to_json(pipeline_windows()[0])
    parts = told["attributed_microjoules"] + told["idle_microjoules"] + told["other_microjoules"]
    assert parts == told["energy_microjoules"]
