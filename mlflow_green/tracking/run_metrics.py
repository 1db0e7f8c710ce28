"""Which numbers, tags and facts an entry and its MLflow run exchange; pure, and knows MLflow's names only as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

from mlflow_green.records import Action, Domain, Energy, Entry, Fact, Outcome, total_energy
from mlflow_green.tracking.context import HOLD_TAG, WORKFLOW_TAG
from mlflow_green.units import format_carbon, format_energy, grams, watt_hours

PARENT_TAG = "mlflow.parentRunId"
ENTRY_TAG = "green.entry_id"
KIND_TAG = "green.kind"
WORKFLOW_KIND = "workflow"
JOB_KIND = "job"
"""``green.kind`` marks the runs that the sink made: the workflow's own and those of jobs without a run."""

NOTABLE_SHARE = 0.1
"""A job that used at least this part of the workflow's energy gets a run of its own."""
FACTS_MAX = 100
RULES_MAX = 500
"""MLflow takes 1,000 metrics in a batch; more rules than this are in the table only, the smallest first."""

_OURS = ("energy/", "emissions/", "energy_by_rule/", "system/")
_FORBIDDEN = re.compile(r"[^\w\-. ]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What is needed of an MLflow run: ``parent_id`` is the run above it, ``None`` for a top-level run."""

    run_id: str
    parent_id: str | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow execution as its parent run shows it."""

    workflow_run: str
    project: str
    name: str
    started_at: datetime | None = None


def run_of_entry(runs: Sequence[RunView], entry_id: str, workflow_parent_id: str) -> RunView | None:
    """The run that gets the entry's energy, of all runs with its hold; ``None`` if it needs one of its own.

    The run that has it already, so that a second delivery changes nothing; else the only top-level run of the job.
    A run below the workflow's parent is top-level: an interrupted delivery put it there.
    """
    for run in runs:
        if run.tags.get(ENTRY_TAG) == entry_id:
            return run
    top = [run for run in runs if run.parent_id in {None, workflow_parent_id} and KIND_TAG not in run.tags]
    return top[0] if len(top) == 1 else None


def is_notable(entry: Entry, facts: Mapping[str, float | str]) -> bool:
    """Whether a job without a run of its own is worth one: tiers, phase or metrics named, or not simply admitted."""
    return (
        entry.tier is not None
        or entry.phase is not None
        or any(name.startswith("quality/") for name in facts)
        or entry.decision is not Action.ADMIT
        or entry.outcome is not Outcome.SUCCEEDED
    )


def large_shares(entries: Iterable[Entry]) -> frozenset[str]:
    """Ids of the entries with at least ``NOTABLE_SHARE`` of the whole energy; there are at most ten."""
    energies = {entry.entry_id: entry.total.microjoules for entry in entries if entry.total is not None}
    whole = sum(energies.values())
    return frozenset(key for key, energy in energies.items() if whole > 0 and energy >= NOTABLE_SHARE * whole)


def entry_metrics(entry: Entry, facts: Mapping[str, float | str]) -> dict[str, float]:
    """The MLflow metrics of an entry, in watt-hours and grams; what is not known has no metric."""
    values = {
        "energy/total_wh": _watt_hours(entry.total),
        "energy/cpu_wh": _watt_hours(entry.energy.get(Domain.CPU)),
        "energy/gpu_wh": _watt_hours(entry.energy.get(Domain.GPU)),
        "energy/dram_wh": _watt_hours(entry.energy.get(Domain.DRAM)),
        "emissions/operational_g_co2e": _grams(entry.operational_micrograms_co2e),
        "emissions/embodied_g_co2e": _grams(entry.embodied_micrograms_co2e),
    }
    known = {name: value for name, value in values.items() if value is not None}
    told = {
        name: float(value)
        for name, value in facts.items()
        if name.startswith(("quality/", "complexity/")) and _is_number(value)
    }
    return known | told


def entry_tags(entry: Entry) -> dict[str, str]:
    tags = {
        ENTRY_TAG: entry.entry_id,
        HOLD_TAG: entry.hold_id,
        WORKFLOW_TAG: entry.workflow_run,
        "green.project": entry.project,
        "green.step": entry_label(entry),
        "green.tier": entry.tier,
        "green.decision": entry.decision.value,
        "green.outcome": entry.outcome.value,
    }
    return {name: value for name, value in tags.items() if value is not None} | energy_tags(entry.total)


def energy_tags(energy: Energy | None) -> dict[str, str]:
    if energy is None:
        return {}
    low, high = watt_hours(energy.low_microjoules), watt_hours(energy.high_microjoules)
    return {"green.energy_interval_wh": f"[{low:.6g}, {high:.6g}]", "green.method": energy.method.value}


def entry_label(entry: Entry) -> str:
    return f"{entry.step}[{entry.wildcards}]" if entry.wildcards else entry.step


def run_facts(hold_id: str, run: RunView) -> tuple[Fact, ...]:
    """What the run says about its job: its id, the model's complexity, the user's own metrics as ``quality/NAME``."""
    values: dict[str, float | str] = {"mlflow/run_id": run.run_id}
    for name, value in sorted(run.metrics.items()):
        if name.startswith(_OURS) or not isfinite(value):
            continue
        values[name if name.startswith(("complexity/", "quality/")) else f"quality/{name}"] = value
    return tuple(Fact(hold_id=hold_id, name=name, value=value) for name, value in list(values.items())[:FACTS_MAX])


def workflow_metrics(entries: Sequence[Entry]) -> dict[str, float]:
    """Totals of a workflow and the energy of each rule. Grams only if every job with energy has them."""
    metrics = {f"energy_by_rule/{_FORBIDDEN.sub('_', step)}_wh": value for step, value in _by_rule(entries).items()}
    total = workflow_energy(entries)
    operational, embodied = _workflow_carbon(entries), _workflow_embodied(entries)
    if total is not None:
        metrics["energy/total_wh"] = watt_hours(total.microjoules)
    if operational is not None:
        metrics["emissions/operational_g_co2e"] = grams(operational)
    if embodied is not None:
        metrics["emissions/embodied_g_co2e"] = grams(embodied)
    return metrics


def workflow_energy(entries: Iterable[Entry]) -> Energy | None:
    return total_energy(entry.total for entry in entries if entry.total is not None)


def workflow_note(entries: Sequence[Entry]) -> str:
    """The description of the parent run; MLflow shows its first line only."""
    total = workflow_energy(entries)
    energy = format_energy(total.microjoules if total else None)
    interval = (
        f" [{format_energy(total.low_microjoules)}, {format_energy(total.high_microjoules)}], {total.method.value}"
        if total
        else ""
    )
    return f"{energy}{interval}; {format_carbon(_workflow_carbon(entries))}; {len(entries)} jobs"


def jobs_table(entries: Sequence[Entry], facts: Mapping[str, Mapping[str, float | str]]) -> dict[str, Sequence[object]]:
    """Every job as a row, in the layout (pandas' ``split``) that MLflow's table viewer reads."""
    quality = sorted({name for told in facts.values() for name in told if name.startswith("quality/")})
    extra = [
        *quality[:20],
        "complexity/parameters",
        "complexity/density_ratio",
        "complexity/macs_nominal",
        "mlflow/run_id",
    ]
    rows = []
    for entry in entries:
        told = facts.get(entry.hold_id or "", {})
        energy = entry.total
        rows.append(
            [
                *(entry.step, entry.wildcards, entry.tier, entry.decision.value, entry.outcome.value),
                _watt_hours(energy),
                watt_hours(energy.low_microjoules) if energy else None,
                watt_hours(energy.high_microjoules) if energy else None,
                energy.method.value if energy else None,
                _grams(entry.operational_micrograms_co2e),
                entry.duration_seconds,
                entry.reason,
                *(told.get(name) for name in extra),
            ]
        )
    columns = [
        *("rule", "wildcards", "tier", "decision", "outcome"),
        *("energy_wh", "energy_low_wh", "energy_high_wh", "method", "operational_g_co2e", "duration_seconds", "reason"),
        *extra,
    ]
    return {"columns": columns, "data": rows}


def _by_rule(entries: Iterable[Entry]) -> dict[str, float]:
    microjoules: dict[str, int] = {}
    for entry in entries:
        if entry.total is not None:
            microjoules[entry.step] = microjoules.get(entry.step, 0) + entry.total.microjoules
    largest = sorted(microjoules.items(), key=lambda item: -item[1])[:RULES_MAX]
    return {step: watt_hours(energy) for step, energy in largest}


def _workflow_carbon(entries: Iterable[Entry]) -> int | None:
    return _sum_of_all([entry.operational_micrograms_co2e for entry in entries if entry.total is not None])


def _workflow_embodied(entries: Iterable[Entry]) -> int | None:
    return _sum_of_all([entry.embodied_micrograms_co2e for entry in entries if entry.total is not None])


def _sum_of_all(carbon_micrograms: Sequence[int | None]) -> int | None:
    known = [value for value in carbon_micrograms if value is not None]
    return sum(known) if known and len(known) == len(carbon_micrograms) else None


def _watt_hours(energy: Energy | None) -> float | None:
    return None if energy is None else watt_hours(energy.microjoules)


def _grams(carbon_micrograms: int | None) -> float | None:
    return None if carbon_micrograms is None else grams(carbon_micrograms)


def _is_number(value: float | str) -> bool:
    return not isinstance(value, str) and isfinite(value)
