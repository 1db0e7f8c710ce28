"""Records to rows of the SQL ledger and back: nothing is lost and every amount stays an integer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from mlflow_green.ledger.holds import BookedHold, HoldState
from mlflow_green.records import (
    Action,
    AlertRule,
    Allowance,
    AllowanceKind,
    AppliedLimit,
    ApprovedLimit,
    Balance,
    Boundary,
    CpuClockName,
    Decision,
    DecisionRow,
    Domain,
    Energy,
    Entry,
    Hold,
    JournalRow,
    LetterState,
    Method,
    Mode,
    NodeWindow,
    OutboxRow,
    Outcome,
    Owner,
    Rollover,
    Step,
    StepSpec,
    Term,
    Tier,
    Unit,
)

Row = dict[str, Any]
"""One row: column name to value."""

ReadRow = Mapping[Any, Any]
"""A row as SQLAlchemy reads it."""

_ENTRY_NAMES = tuple(field.name for field in fields(Entry))


def bucket_row(term: Term) -> Row:
    return {
        "budget": term.budget,
        "account": term.account,
        "unit": term.unit.value,
        "period": term.period,
        "limit_amount": term.limit,
        "mode": term.mode.value,
        "alerts": _alerts_json(term.alerts),
        "previous_period": None if term.rollover is None else term.rollover.previous_period,
        "rollover": None if term.rollover is None else asdict(term.rollover),
    }


def balance_of(row: ReadRow) -> Balance:
    term = Term(
        budget=row["budget"],
        account=row["account"],
        unit=Unit(row["unit"]),
        period=row["period"],
        limit=row["limit_amount"],
        mode=Mode(row["mode"]),
        alerts=_alerts_of(row["alerts"]),
        rollover=None if row["rollover"] is None else Rollover(**row["rollover"]),
    )
    return Balance(term=term, spent=row["spent"], held=row["held"])


def outbox_row_of(row: ReadRow) -> OutboxRow:
    return OutboxRow(
        outbox_id=row["outbox_id"],
        kind=row["kind"],
        payload=row["payload"],
        tries=row["tries"],
        state=LetterState(row["state"]),
        due_at=row["next_try"],
        error=row["error"],
    )


def hold_row(booked: BookedHold) -> Row:
    hold = booked.hold
    return {
        "hold_id": hold.hold_id,
        "step_key": hold.step.key,
        "state": booked.state.value,
        "step": _step_json(hold.step),
        "project": hold.project,
        "user": hold.user,
        "spec": _spec_json(hold.spec),
        "tier": hold.tier,
        "decision": hold.decision.value,
        "would_decision": hold.would_decision.value,
        "policy_sha256": hold.policy_sha256,
        "amounts": amounts_json(hold.amounts),
        "terms": [_term_json(term) for term in hold.terms],
        "owner": owner_json(hold.owner),
        "opened_at": hold.opened_at,
        "epoch": hold.epoch,
        "wanted": amounts_json(hold.wanted),
    }


def booked_hold_of(row: ReadRow) -> BookedHold:
    hold = Hold(
        hold_id=row["hold_id"],
        step=Step(**row["step"]),
        project=row["project"],
        user=row["user"],
        spec=_spec_of(row["spec"]),
        tier=row["tier"],
        decision=Action(row["decision"]),
        would_decision=Action(row["would_decision"]),
        amounts=_amounts_of(row["amounts"]),
        terms=tuple(_term_of(term) for term in row["terms"]),
        owner=Owner(**row["owner"]),
        opened_at=row["opened_at"],
        epoch=row["epoch"],
        wanted=_amounts_of(row["wanted"]),
        policy_sha256=row["policy_sha256"],
    )
    return BookedHold(hold=hold, state=HoldState(row["state"]))


def journal_row(row: JournalRow, bucket_id: int) -> Row:
    return {
        "at": row.at,
        "hold_id": row.hold_id,
        "bucket_id": bucket_id,
        "kind": row.kind,
        "delta_held": row.delta_held,
        "delta_spent": row.delta_spent,
        "delta_limit": row.delta_limit,
        "reason": row.reason,
    }


def journal_row_of(row: ReadRow) -> JournalRow:
    return JournalRow(**{**row, "unit": Unit(row["unit"])})


def entry_row(entry: Entry) -> Row:
    row = {name: getattr(entry, name) for name in _ENTRY_NAMES}
    total = entry.total
    return row | {
        "energy": {domain.value: _energy_json(energy) for domain, energy in entry.energy.items()},
        "energy_total_microjoules": None if total is None else total.microjoules,
        "outcome": entry.outcome.value,
        "decision": entry.decision.value,
        "would_decision": entry.would_decision.value,
        "boundary": entry.boundary.value,
        "cpu_clock": None if entry.cpu_clock is None else entry.cpu_clock.value,
    }


def entry_of(row: ReadRow) -> Entry:
    values = {name: row[name] for name in _ENTRY_NAMES}
    values |= {
        "energy": {Domain(name): _energy_of(energy) for name, energy in row["energy"].items()},
        "outcome": Outcome(row["outcome"]),
        "decision": Action(row["decision"]),
        "would_decision": Action(row["would_decision"]),
        "boundary": Boundary(row["boundary"]),
        "cpu_clock": None if row["cpu_clock"] is None else CpuClockName(row["cpu_clock"]),
    }
    return Entry(**values)


def window_row(window: NodeWindow) -> Row:
    return {
        "sampler_id": window.sampler_id,
        "host": window.host,
        "boot_id": window.boot_id,
        "domain": window.domain.value,
        "sequence_first": window.sequence_first,
        "sequence_last": window.sequence_last,
        "started_at": window.started_at,
        "ended_at": window.ended_at,
        "energy_microjoules": window.energy.microjoules,
        "energy_low_microjoules": window.energy.low_microjoules,
        "energy_high_microjoules": window.energy.high_microjoules,
        "method": window.energy.method.value,
        "attributed_microjoules": window.attributed_microjoules,
        "idle_microjoules": window.idle_microjoules,
        "other_microjoules": window.other_microjoules,
        "coverage_ratio": window.coverage_ratio,
    }


def window_of(row: ReadRow) -> NodeWindow:
    return NodeWindow(
        sampler_id=row["sampler_id"],
        host=row["host"],
        boot_id=row["boot_id"],
        domain=Domain(row["domain"]),
        sequence_first=row["sequence_first"],
        sequence_last=row["sequence_last"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        energy=Energy(
            microjoules=row["energy_microjoules"],
            low_microjoules=row["energy_low_microjoules"],
            high_microjoules=row["energy_high_microjoules"],
            method=Method(row["method"]),
        ),
        attributed_microjoules=row["attributed_microjoules"],
        idle_microjoules=row["idle_microjoules"],
        other_microjoules=row["other_microjoules"],
        coverage_ratio=row["coverage_ratio"],
    )


def decision_row(row: DecisionRow) -> Row:
    return {
        "at": row.at,
        "step_key": row.step.key,
        "hold_id": row.hold_id,
        "action": row.decision.action.value,
        "reason": row.decision.reason,
        "step": _step_json(row.step),
        "decision": _decision_json(row.decision),
        "balances": [
            {
                "term": _term_json(balance.term),
                "spent": balance.spent,
                "held": balance.held,
                "extra": balance.extra,
                "pending": balance.pending,
            }
            for balance in row.balances
        ],
    }


def decision_row_of(row: ReadRow) -> DecisionRow:
    return DecisionRow(
        at=row["at"],
        hold_id=row["hold_id"],
        step=Step(**row["step"]),
        decision=_decision_of(row["decision"]),
        balances=tuple(Balance(**{**balance, "term": _term_of(balance["term"])}) for balance in row["balances"]),
    )


def allowance_row(allowance: Allowance) -> Row:
    return {**asdict(allowance), "kind": allowance.kind.value, "unit": allowance.unit.value}


def allowance_of(row: ReadRow) -> Allowance:
    return Allowance(**{**row, "kind": AllowanceKind(row["kind"]), "unit": Unit(row["unit"])})


def approved_limit_row(limit: ApprovedLimit) -> Row:
    row = {**asdict(limit), "unit": limit.unit.value, "mode": limit.mode.value}
    row["limit_amount"] = row.pop("limit")
    return row


def approved_limit_of(row: ReadRow) -> ApprovedLimit:
    values = {**row, "unit": Unit(row["unit"]), "mode": Mode(row["mode"])}
    return ApprovedLimit(limit=values.pop("limit_amount"), **values)


def applied_limit_row(applied: AppliedLimit) -> Row:
    row = {**asdict(applied), "unit": applied.unit.value}
    for name in ("before", "after"):
        mode = row[f"{name}_mode"]
        row |= {f"{name}_amount": row.pop(name), f"{name}_mode": mode.value if mode else None}
    return row


def applied_limit_of(row: ReadRow) -> AppliedLimit:
    values = {name: value for name, value in row.items() if name != "change_number"} | {"unit": Unit(row["unit"])}
    for name in ("before", "after"):
        mode = values[f"{name}_mode"]
        values |= {name: values.pop(f"{name}_amount"), f"{name}_mode": Mode(mode) if mode else None}
    return AppliedLimit(**values)


def amounts_json(amounts: Mapping[Unit, int]) -> Row:
    return {unit.value: amount for unit, amount in amounts.items()}


def owner_json(owner: Owner) -> Row:
    return {
        "host": owner.host,
        "boot_id": owner.boot_id,
        "pid": owner.pid,
        "started_ticks": owner.started_ticks,
        "spool_dir": owner.spool_dir,
    }


def _amounts_of(json: Mapping[str, int]) -> dict[Unit, int]:
    return {Unit(unit): amount for unit, amount in json.items()}


def _alerts_json(alerts: tuple[AlertRule, ...]) -> list[Row]:
    return [{"at_ratio": a.at_ratio, "of_committed": a.of_committed, "to": list(a.to)} for a in alerts]


def _alerts_of(json: list[Row]) -> tuple[AlertRule, ...]:
    return tuple(AlertRule(**{**alert, "to": tuple(alert["to"])}) for alert in json)


def _term_json(term: Term) -> Row:
    return {
        "budget": term.budget,
        "account": term.account,
        "unit": term.unit.value,
        "period": term.period,
        "limit": term.limit,
        "mode": term.mode.value,
        "alerts": _alerts_json(term.alerts),
        "rollover": None if term.rollover is None else asdict(term.rollover),
    }


def _term_of(json: ReadRow) -> Term:
    rollover = json.get("rollover")
    typed = {
        "unit": Unit(json["unit"]),
        "mode": Mode(json["mode"]),
        "alerts": _alerts_of(json["alerts"]),
        "rollover": None if rollover is None else Rollover(**rollover),
    }
    return Term(**{**json, **typed})


def _step_json(step: Step) -> Row:
    return {
        "workflow_run": step.workflow_run,
        "name": step.name,
        "wildcards": step.wildcards,
        "attempt": step.attempt,
    }


def _spec_json(spec: StepSpec) -> Row:
    names = (field.name for field in fields(StepSpec))
    row: Row = {name: getattr(spec, name) for name in names}
    return row | {"tiers": [[tier.name, tier.energy_ratio] for tier in spec.tiers]}


def _spec_of(json: ReadRow) -> StepSpec:
    tiers = tuple(Tier(name=name, energy_ratio=ratio) for name, ratio in json["tiers"])
    return StepSpec(**{**json, "tiers": tiers})


def _decision_json(decision: Decision) -> Row:
    names = (field.name for field in fields(Decision))
    row: Row = {name: getattr(decision, name) for name in names}
    return row | {
        "action": decision.action.value,
        "would": decision.would.value,
        "amounts": amounts_json(decision.amounts),
        "unit": None if decision.unit is None else decision.unit.value,
    }


def _decision_of(json: ReadRow) -> Decision:
    typed = {
        "action": Action(json["action"]),
        "would": Action(json["would"]),
        "amounts": _amounts_of(json["amounts"]),
        "unit": None if json["unit"] is None else Unit(json["unit"]),
    }
    return Decision(**{**json, **typed})


def _energy_json(energy: Energy) -> list[Any]:
    return [energy.microjoules, energy.low_microjoules, energy.high_microjoules, energy.method.value]


def _energy_of(json: list[Any]) -> Energy:
    point, low, high, method = json
    return Energy(microjoules=point, low_microjoules=low, high_microjoules=high, method=Method(method))
