"""A small history of a pipeline under two budgets, as a ledger would tell it: every decision and outcome once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mlflow_green.records import (
    Action,
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
    Method,
    Mode,
    NodeWindow,
    Outcome,
    PastUse,
    Step,
    Term,
    Unit,
)

START = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
WH = 3_600_000_000
INTENSITY_SOURCE = "Ember via codecarbon, FRA 2023, CC BY 4.0"

ENERGY_TERM = Term(
    budget="project-month",
    account="project:load-forecast",
    unit=Unit.ENERGY,
    period="2026-11",
    limit=WH,
    mode=Mode.HARD,
)
CARBON_TERM = Term(
    budget="project-month",
    account="project:load-forecast",
    unit=Unit.CARBON,
    period="2026-11",
    limit=80_000,
    mode=Mode.HARD,
)


def estimated(microjoules: int) -> Energy:
    return Energy(
        microjoules=microjoules,
        low_microjoules=microjoules // 3,
        high_microjoules=microjoules * 3,
        method=Method.ESTIMATED,
    )


def entry(
    step: str,
    wildcards: str = "",
    *,
    energy: Energy | int | None = WH // 250,
    minute: float = 0,
    run: str = "run-2",
    outcome: Outcome = Outcome.SUCCEEDED,
    decision: Action = Action.ADMIT,
    would: Action | None = None,
    **other: object,
) -> Entry:
    measured = estimated(energy) if isinstance(energy, int) else energy
    joules = measured.microjoules if measured else 0
    values: dict[str, object] = {
        "entry_id": f"e-{run}-{step}-{wildcards}-{minute}",
        "hold_id": None if outcome is Outcome.REFUSED else hold_id(step, wildcards, run),
        "project": "load-forecast",
        "user": "uid:1000",
        "workflow_run": run,
        "step": step,
        "wildcards": wildcards,
        "attempt": 1,
        "host": "node1",
        "started_at": START + timedelta(minutes=minute),
        "ended_at": START + timedelta(minutes=minute, seconds=30),
        "duration_seconds": 30.0,
        "outcome": outcome,
        "tier": None,
        "decision": decision,
        "would_decision": would or decision,
        "reason": "",
        "phase": None,
        "energy": {} if measured is None else {Domain.CPU: measured},
        "energy_charged_microjoules": joules,
        "boundary": Boundary.COMPONENT,
        "sampler_id": "sampler-1",
        "cpu_seconds": 28.5,
        "cpu_clock": CpuClockName.PERF,
        "coverage_ratio": 0.98,
        "carbon_intensity_g_per_kwh": 56.0,
        "intensity_source": INTENSITY_SOURCE,
        "pue": 1.2,
        "operational_micrograms_co2e": joules * 56 * 12 // 36_000_000 if measured else None,
        "embodied_micrograms_co2e": None,
    }
    return Entry(**{**values, **other})  # type: ignore[arg-type]


def hold_id(step: str, wildcards: str = "", run: str = "run-2") -> str:
    return f"h-{run}-{step}-{wildcards}"


REFUSAL = (
    "refused: budget 'project-month' (energy, 2026-11) needs 900 mWh and has 212 mWh available; "
    "no cheaper tier of sweep is declared & <b>nothing</b> will settle within 24h"
)
HALT = "halted: used at least 61.0 mWh of a grant of 60.0 mWh, and project-month had no more to give"


def pipeline_entries() -> tuple[Entry, ...]:
    first = [
        entry("prepare", energy=WH // 2000, run="run-1", phase="data"),
        entry("train", "model=persistence", minute=1, energy=WH // 1000, run="run-1"),
        entry("train", "model=ridge", minute=2, energy=WH // 90, run="run-1"),
        entry("train", "model=gbm", minute=3, energy=WH // 21, run="run-1"),
        entry("train", "model=mlp", minute=4, energy=WH // 8, run="run-1", tier="full", would=Action.DOWNGRADE),
    ]
    second = [
        entry("prepare", minute=10, energy=WH // 2100, phase="data"),
        entry("train", "model=persistence", minute=11, energy=WH // 1050),
        entry("train", "model=ridge", minute=12, energy=WH // 88),
        entry("train", "model=gbm", minute=13, energy=WH // 20),
        entry(
            "train",
            "model=mlp",
            minute=14,
            energy=WH // 15,
            tier="half",
            decision=Action.DOWNGRADE,
            reason="full needs 163 mWh and 101 mWh are available in project-month; half fits",
        ),
        entry(
            "sweep", minute=15, energy=None, outcome=Outcome.REFUSED, decision=Action.REFUSE, reason=REFUSAL,
            cpu_seconds=None, cpu_clock=None, coverage_ratio=None, sampler_id=None,
        ),
        entry("train_long", "model=mlp", minute=16, energy=WH // 16, outcome=Outcome.HALTED, reason=HALT),
        entry("evaluate", "model=broken", minute=17, energy=WH // 700, outcome=Outcome.FAILED, reason="exit code 1"),
        entry(
            "predict", "model=gbm", minute=18, energy=WH // 900, outcome=Outcome.LOST,
            energy_charged_microjoules=WH // 300, reason="its owner died; charged the last reading and the silence after it",
        ),
    ]  # fmt: skip
    return (*first, *second)


def pipeline_facts() -> dict[str, dict[str, float | str]]:
    models = {
        "persistence": (7.9, 1, 1.0, 336),
        "ridge": (4.1, 337, 0.994, 113_000),
        "gbm": (2.84, 12_300, 1.0, 4_130_000),
        "mlp": (2.61, 88_400, 0.42, 29_700_000),
    }
    facts: dict[str, dict[str, float | str]] = {}
    for run in ("run-1", "run-2"):
        for model, (mape, parameters, density, macs) in models.items():
            facts[hold_id("train", f"model={model}", run)] = {
                "quality/mape": mape + (0.3 if (run, model) == ("run-2", "mlp") else 0.0),
                "quality/mase": mape / 5,
                "complexity/parameters": float(parameters),
                "complexity/density_ratio": density,
                "complexity/macs_nominal": float(macs),
                "mlflow/run_id": f"run{model}{run}",
            }
    return facts


def pipeline_windows() -> tuple[NodeWindow, ...]:
    attributed = sum(e.total.microjoules for e in pipeline_entries() if e.total)
    idle, other = WH // 5, WH // 50
    return (
        NodeWindow(
            sampler_id="sampler-1",
            host="node1",
            boot_id="boot-1",
            domain=Domain.CPU,
            sequence_first=1,
            sequence_last=1000,
            started_at=START,
            ended_at=START + timedelta(minutes=20),
            energy=estimated(attributed + idle + other),
            attributed_microjoules=attributed,
            idle_microjoules=idle,
            other_microjoules=other,
            coverage_ratio=0.99,
        ),
    )


def pipeline_balances() -> tuple[Balance, ...]:
    entries = pipeline_entries()
    return (
        Balance(term=ENERGY_TERM, spent=sum(e.charged[Unit.ENERGY] for e in entries), held=WH // 10),
        Balance(term=CARBON_TERM, spent=sum(e.charged.get(Unit.CARBON, 0) for e in entries), held=5_000),
    )


def pipeline_journal() -> tuple[JournalRow, ...]:
    rows: list[JournalRow] = []
    for item in pipeline_entries():
        for term in (ENERGY_TERM, CARBON_TERM):
            amount = item.charged.get(term.unit, 0)
            if item.hold_id is None:
                continue
            held = amount * 13 // 10
            rows.append(_row(len(rows), item, term, item.started_at, "hold", held, 0))
            rows.append(_row(len(rows), item, term, item.ended_at, "settle", -held, amount))
    late = entry("train", "model=late", minute=21)
    rows += [
        _row(len(rows), late, ENERGY_TERM, late.started_at, "hold", WH // 10, 0),
        _row(len(rows) + 1, late, CARBON_TERM, late.started_at, "hold", 5_000, 0),
    ]
    return tuple(rows)


def _row(number: int, item: Entry, term: Term, at: datetime, kind: str, held: int, spent: int) -> JournalRow:
    return JournalRow(
        journal_id=number,
        at=at,
        hold_id=item.hold_id,
        budget=term.budget,
        account=term.account,
        unit=term.unit,
        period=term.period,
        kind=kind,
        delta_held=held,
        delta_spent=spent,
        reason=item.reason,
    )


def decision_row(item: Entry, decision: Decision, *, minutes_earlier: float = 0) -> DecisionRow:
    return DecisionRow(
        at=item.started_at - timedelta(minutes=minutes_earlier),
        hold_id=item.hold_id,
        step=Step(workflow_run=item.workflow_run, name=item.step, wildcards=item.wildcards),
        decision=decision,
        balances=(Balance(term=ENERGY_TERM, spent=WH // 3, held=WH // 10),),
    )


def pipeline_decisions() -> tuple[DecisionRow, ...]:
    rows = []
    for item in pipeline_entries():
        decision = Decision(
            action=item.decision,
            would=item.would_decision,
            tier=item.tier,
            amounts={} if item.outcome is Outcome.REFUSED else {Unit.ENERGY: WH // 10},
            reason=item.reason if item.decision is not Action.ADMIT else "fits every budget",
            estimate_source="maximum of 3 runs of train[model=mlp] x 1.3",
            policy_sha256="0123456789abcdef" * 4,
            budget="project-month" if item.outcome is Outcome.REFUSED else None,
            unit=Unit.ENERGY if item.outcome is Outcome.REFUSED else None,
            needed=9 * WH // 10 if item.outcome is Outcome.REFUSED else None,
            available=WH // 5 if item.outcome is Outcome.REFUSED else None,
        )
        rows.append(decision_row(item, decision))
        if item.step == "train" and item.wildcards == "model=gbm" and item.workflow_run == "run-2":
            wait = Decision(
                action=Action.WAIT,
                would=Action.WAIT,
                tier=None,
                amounts={},
                reason="waits for train[model=ridge] to settle: needs 62.0 mWh, 40.1 mWh available in project-month",
                budget="project-month",
                unit=Unit.ENERGY,
                needed=62 * WH // 1000,
                available=40 * WH // 1000,
            )
            rows[-1:-1] = [decision_row(item, wait, minutes_earlier=early) for early in (0.9, 0.5, 0.2)]
    return tuple(sorted(rows, key=lambda row: row.at))


@dataclass(frozen=True)
class ToldBooks:
    """A reader that tells what it was given: the reports' view of a ledger."""

    told_entries: Sequence[Entry] = ()
    told_facts: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    windows: Sequence[NodeWindow] = ()
    told_journal: Sequence[JournalRow] = ()
    told_decisions: Sequence[DecisionRow] = ()
    told_balances: Sequence[Balance] = ()

    def entries(self, *, workflow_run: str | None = None) -> tuple[Entry, ...]:
        return tuple(e for e in self.told_entries if workflow_run in {None, e.workflow_run})

    def facts(self) -> Mapping[str, Mapping[str, float | str]]:
        return self.told_facts

    def node_windows(self) -> tuple[NodeWindow, ...]:
        return tuple(self.windows)

    def journal(self) -> tuple[JournalRow, ...]:
        return tuple(self.told_journal)

    def decisions(self) -> tuple[DecisionRow, ...]:
        return tuple(self.told_decisions)

    def balances(self, terms: Sequence[Term] = ()) -> tuple[Balance, ...]:
        return tuple(b for b in self.told_balances if not terms or b.term in terms)

    def open_holds(self) -> tuple[Hold, ...]:
        return ()

    def history(self, project: str, step: str) -> tuple[PastUse, ...]:
        return ()

    def pending(self, kind: str, now: datetime, limit: int = 100) -> tuple[()]:
        return ()

    def delivered(self, outbox_id: int, facts: object = ()) -> None: ...

    def failed(self, outbox_id: int, retry_at: datetime, error: str) -> None: ...

    def put(self, kind: str, dedup: str, payload: Mapping[str, object]) -> None: ...

    def count(self, kind: str) -> int:
        return 0

    def close(self) -> None: ...


def pipeline_books() -> ToldBooks:
    return ToldBooks(
        told_entries=pipeline_entries(),
        told_facts=pipeline_facts(),
        windows=pipeline_windows(),
        told_journal=pipeline_journal(),
        told_decisions=pipeline_decisions(),
        told_balances=pipeline_balances(),
    )
