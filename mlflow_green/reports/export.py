"""Entries and node windows as plain JSON objects: the fields of ``ledger export`` and of the DataFrame.

Energies are integers in microjoules, carbon is in grams of CO2e, times are ISO 8601 in UTC; a missing
value is ``null``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, tzinfo
from typing import Any

from mlflow_green import units
from mlflow_green.records import Allowance, AppliedLimit, Balance, DecisionRow, Domain, Entry, NodeWindow
from mlflow_green.reports.reliability import Reliability
from mlflow_green.reports.wording import Facts, facts_of

JsonObject = dict[str, Any]

RUN_ID_FACT = "mlflow/run_id"


def entry_to_json(entry: Entry, facts: Facts) -> JsonObject:
    """One entry; ``energy_microjoules`` has a value for each domain and their ``total``."""
    total, told = entry.total, facts_of(entry, facts)
    return {
        "entry_id": entry.entry_id,
        "hold_id": entry.hold_id,
        "project": entry.project,
        "user": entry.user,
        "workflow_run": entry.workflow_run,
        "step": entry.step,
        "wildcards": entry.wildcards,
        "attempt": entry.attempt,
        "host": entry.host,
        "started_at": entry.started_at.isoformat(),
        "ended_at": entry.ended_at.isoformat(),
        "duration_seconds": entry.duration_seconds,
        "outcome": entry.outcome.value,
        "tier": entry.tier,
        "decision": entry.decision.value,
        "would_decision": entry.would_decision.value,
        "reason": entry.reason,
        "phase": entry.phase,
        "energy_microjoules": {
            **{domain.value: _domain_microjoules(entry, domain) for domain in Domain},
            "total": total.microjoules if total else None,
        },
        "energy_charged_microjoules": entry.energy_charged_microjoules,
        "energy_low_microjoules": total.low_microjoules if total else None,
        "energy_high_microjoules": total.high_microjoules if total else None,
        "method": total.method.value if total else None,
        "boundary": entry.boundary.value,
        "sampler_id": entry.sampler_id,
        "cpu_seconds": entry.cpu_seconds,
        "cpu_clock": entry.cpu_clock.value if entry.cpu_clock else None,
        "coverage_ratio": entry.coverage_ratio,
        "carbon_intensity_g_per_kwh": entry.carbon_intensity_g_per_kwh,
        "intensity_source": entry.intensity_source,
        "pue": entry.pue,
        "operational_g_co2e": _grams(entry.operational_micrograms_co2e),
        "embodied_g_co2e": _grams(entry.embodied_micrograms_co2e),
        "mlflow_run_id": told.get(RUN_ID_FACT),
        "slurm_job_id": told.get("slurm/job_id"),
        "slurm_energy_microjoules": told.get("slurm/energy_microjoules"),
        "slurm_energy_difference_ratio": told.get("slurm/energy_difference_ratio"),
        "slurm_energy_note": told.get("slurm/energy_note"),
    }


def window_to_json(window: NodeWindow) -> JsonObject:
    """One node window: ``attributed + idle + other == energy``, in microjoules."""
    return {
        "host": window.host,
        "boot_id": window.boot_id,
        "sampler_id": window.sampler_id,
        "started_at": window.started_at.isoformat(),
        "ended_at": window.ended_at.isoformat(),
        "domain": window.domain.value,
        "energy_microjoules": window.energy.microjoules,
        "attributed_microjoules": window.attributed_microjoules,
        "idle_microjoules": window.idle_microjoules,
        "other_microjoules": window.other_microjoules,
        "method": window.energy.method.value,
        "coverage_ratio": window.coverage_ratio,
    }


def balance_to_json(balance: Balance) -> JsonObject:
    """One balance; amounts are integers in the unit's scale: microjoules, micrograms CO2e or micro-units of money."""
    term = balance.term
    return {
        "budget": term.budget,
        "account": term.account,
        "unit": term.unit.value,
        "period": term.period,
        "mode": term.mode.value,
        "limit": balance.limit,
        "extra": balance.extra,
        "spent": balance.spent,
        "held": balance.held,
        "pending": balance.pending,
        "available": balance.available,
    }


def allowance_to_json(allowance: Allowance, now: datetime, zone: tzinfo = UTC) -> JsonObject:
    """One allowance; ``state`` is ``active``, ``expired`` or ``pending``, the amount is in the unit's scale."""
    from mlflow_green.policy.raising import allowance_state

    return {
        "allowance_id": allowance.allowance_id,
        "kind": allowance.kind.value,
        "state": allowance_state(allowance, now, zone),
        "budget": allowance.budget,
        "account": allowance.account,
        "unit": allowance.unit.value,
        "period": allowance.period,
        "amount": allowance.amount,
        "made_at": allowance.made_at.isoformat(),
        "expires_at": allowance.expires_at.isoformat() if allowance.expires_at else None,
        "requested_by": allowance.requested_by,
        "approver": allowance.approver,
        "approved_by": allowance.approved_by,
        "reason": allowance.reason,
    }


def applied_to_json(applied: AppliedLimit) -> JsonObject:
    """What ``policy apply`` did to one limit; amounts are in the unit's scale."""
    return {**asdict(applied), "at": applied.at.isoformat(), "unit": applied.unit.value}


def decision_to_json(row: DecisionRow) -> JsonObject:
    """One decision with the balances that it saw; amounts as in ``balance_to_json``."""
    decision = row.decision
    return {
        "at": row.at.isoformat(),
        "hold_id": row.hold_id,
        "workflow_run": row.step.workflow_run,
        "step": row.step.name,
        "wildcards": row.step.wildcards,
        "attempt": row.step.attempt,
        "decision": decision.action.value,
        "would_decision": decision.would.value,
        "tier": decision.tier,
        "amounts": _amounts(decision.amounts),
        "reason": decision.reason,
        "estimate_source": decision.estimate_source,
        "estimate_basis": decision.estimate_basis,
        "estimate_low_microjoules": decision.estimate_low_microjoules,
        "estimate_high_microjoules": decision.estimate_high_microjoules,
        "estimate_level_ratio": decision.estimate_level_ratio,
        "policy_sha256": decision.policy_sha256,
        "budget": decision.budget,
        "unit": decision.unit.value if decision.unit else None,
        "needed": decision.needed,
        "available": decision.available,
        "balances": [balance_to_json(balance) for balance in row.balances],
    }


def reliability_to_json(found: Reliability) -> JsonObject:
    """How often a kind of estimate held; ratios are in [0, 1], the interval is one of 95 %."""
    return {
        "basis": found.basis,
        "steps": found.steps,
        "kept": found.kept,
        "kept_ratio": found.kept_ratio,
        "low_ratio": found.low_ratio,
        "high_ratio": found.high_ratio,
        "promised_ratio": found.promised_ratio,
    }


def _domain_microjoules(entry: Entry, domain: Domain) -> int | None:
    energy = entry.energy.get(domain)
    return energy.microjoules if energy else None


def _grams(carbon_micrograms: int | None) -> float | None:
    return None if carbon_micrograms is None else units.grams(carbon_micrograms)


def _amounts(amounts: Mapping[Any, int]) -> dict[str, int]:
    return {unit.value: amount for unit, amount in amounts.items()}
