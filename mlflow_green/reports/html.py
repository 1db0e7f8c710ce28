"""The report as one self-contained HTML file: no network, no script, light and dark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from mlflow_green import units
from mlflow_green.emissions import equivalents
from mlflow_green.ledger.ledger import LedgerReader
from mlflow_green.records import (
    Action,
    Balance,
    Boundary,
    DecisionRow,
    Entry,
    JournalRow,
    Method,
    Outcome,
    Term,
    Unit,
    total_energy,
)
from mlflow_green.reports.charts import Level, budget_chart, front_indices, pareto_chart
from mlflow_green.reports.pareto import Goal
from mlflow_green.reports.reliability import reliabilities
from mlflow_green.reports.totals import (
    Variant,
    carbon_micrograms,
    charged_beyond_metered_microjoules,
    embodied_micrograms,
    metered,
    metric_goal,
    rule_totals,
    variants,
    windows_of,
)
from mlflow_green.reports.wording import (
    ANSWERS,
    MISSING,
    QUALITY,
    WITHOUT_RESULT,
    Facts,
    decision_text,
    energy_text,
    interval_text,
    metric_title,
    outcome_text,
    period_text,
    quality_metric,
)

CHART_WIDTHS = (("wide", 960), ("narrow", 360))
CHARTS_MAX = 6
ROWS_MAX = 500
SHOWN_MAX = 3  # more intensities than these are told as a range, more sources as a number
_BOUNDARIES = {
    Boundary.COMPONENT: "the metered components (processor, memory and GPU where they have a counter or a model)",
    Boundary.NODE: "the whole node",
    Boundary.FACILITY: "the whole facility, with cooling (PUE)",
}
_METHODS = {
    Method.MEASURED: "measured: read from energy counters",
    Method.ESTIMATED: "estimated: modelled from load and rated power, not read from a counter",
    Method.MIXED: "mixed: in part read from counters, in part modelled",
}


class ReportSource(LedgerReader, Protocol):
    """What a report reads: the ledger's views and its balances."""

    def balances(self, terms: Sequence[Term] = ()) -> tuple[Balance, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One headline number."""

    title: str
    value: str
    note: str


def write_report(
    source: ReportSource,
    path: Path,
    *,
    now: datetime,
    workflow_run: str | None = None,
    goals: Mapping[str, Goal] | None = None,
) -> Path:
    """Write the report; ``goals`` says of metrics which way is better. Raises ``OSError`` as the file system does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(source, now=now, workflow_run=workflow_run, goals=goals), encoding="utf-8")
    return path


def render_report(
    source: ReportSource, *, now: datetime, workflow_run: str | None = None, goals: Mapping[str, Goal] | None = None
) -> str:
    """The report's HTML, of one workflow run or of the whole ledger."""
    from jinja2 import Environment, PackageLoader

    entries = sorted(source.entries(workflow_run=workflow_run), key=lambda entry: entry.started_at)
    facts = source.facts()
    environment = Environment(
        loader=PackageLoader("mlflow_green.reports", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        version=version("mlflow-green"),
        generated_at=f"{now:%Y-%m-%d %H:%M} UTC",
        project=", ".join(sorted({entry.project for entry in entries})),
        workflow_run=workflow_run,
        span=_span(entries),
        cards=_cards(entries),
        likeness=_likeness(entries),
        budgets=_budgets(source.journal(), source.balances()),
        rules=_rule_rows(entries),
        node=_node_rows(entries, source),
        pareto=_pareto(entries, facts, goals or {}),
        without_result=_without_result(entries),
        answers=_answers(source.decisions(), entries, workflow_run),
        reliabilities=_reliability_rows(source.decisions(), entries),
        jobs=_job_rows(entries),
        jobs_left_out=max(len(entries) - ROWS_MAX, 0),
        methods=_methods(entries),
    )


# --- the parts of the page --------------------------------------------------------------------------


def _span(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    start, end = entries[0].started_at, max(entry.ended_at for entry in entries)
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"


def _cards(entries: Sequence[Entry]) -> list[Card]:
    total = metered(entries)
    cards = [
        Card(
            title="Energy of all jobs",
            value=units.format_energy(total.microjoules if total else None),
            note=f"{interval_text(total).split(']')[0]}], {total.method}" if total else "nothing was metered",
        ),
        _carbon_card(entries),
    ]
    embodied = embodied_micrograms(entries)
    if embodied is not None:
        note = "each job's part of making the node, by the figures of green.yaml; in no carbon budget"
        cards.append(Card(title="Carbon, embodied", value=units.format_carbon(embodied), note=note))
    costs = _costs(entries)
    if costs:
        cards.append(Card(title="Cost", value=costs, note="energy x price at the site"))
    lost = [entry for entry in entries if entry.outcome in WITHOUT_RESULT]
    counts = Counter(entry.outcome for entry in entries if entry.outcome is not Outcome.SUCCEEDED)
    spent = metered(lost)
    ratio = (
        f"{units.format_share(spent.microjoules / total.microjoules)} of all: "
        if spent and total and total.microjoules
        else ""
    )
    cards.append(
        Card(
            title="Energy without a result",
            value=units.format_energy(spent.microjoules) if spent else "none" if entries else MISSING,
            note=ratio
            + (", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "every job succeeded"),
        )
    )
    runs = len({entry.workflow_run for entry in entries})
    cards.append(Card(title="Jobs", value=str(len(entries)), note=f"in {runs} workflow run{'s' if runs != 1 else ''}"))
    return cards


def _carbon_card(entries: Sequence[Entry]) -> Card:
    carbon = carbon_micrograms(entries)
    if carbon is None:
        note = "no carbon intensity is known: set site.country in green.yaml"
        return Card(title="Carbon", value="not known", note=note)
    intensities = sorted({e.carbon_intensity_g_per_kwh for e in entries if e.carbon_intensity_g_per_kwh is not None})
    at = ", ".join(f"{value:g}" for value in intensities)
    if len(intensities) > SHOWN_MAX:
        at = f"{intensities[0]:g} to {intensities[-1]:g}"
    note = "; ".join([f"at {at} g/kWh", *_sources(entries)])
    without = sum(entry.total is not None and entry.operational_micrograms_co2e is None for entry in entries)
    if without:
        note = f"{without} of {len(entries)} jobs ran while no intensity was set and are not in it; {note}"
    return Card(title="Carbon, operational", value=units.format_carbon(carbon), note=note)


def _sources(entries: Sequence[Entry]) -> list[str]:
    sources = sorted({entry.intensity_source for entry in entries if entry.intensity_source})
    more = len(sources) - SHOWN_MAX
    if more <= 0:
        return sources
    return [*sources[:SHOWN_MAX], f"and {more} more sources, which 'mlflow-green ledger export' names"]


def _likeness(entries: Sequence[Entry]) -> str | None:
    """What energy and carbon are like, in one line with its sources; ``None`` where nothing was metered."""
    total, carbon = metered(entries), carbon_micrograms(entries)
    if total is None:
        return None
    hours = units.format_hours(equivalents.lamp_hours(total.microjoules))
    likeness = f"The energy is about that of {hours} of {equivalents.LAMP_SOURCE}"
    if carbon is None:
        return f"{likeness}."
    distance = units.format_kilometres(equivalents.car_km(carbon))
    return f"{likeness}; the carbon is about that of {distance} in an average new car ({equivalents.CAR_SOURCE})."


def _costs(entries: Sequence[Entry]) -> str:
    by_currency: Counter[str] = Counter()
    for entry in entries:
        if entry.cost_micro_units is not None:
            by_currency[entry.currency or ""] += entry.cost_micro_units
    return ", ".join(units.format_money(amount, currency) for currency, amount in by_currency.items())


def _budgets(journal: Iterable[JournalRow], balances: Sequence[Balance]) -> dict[str, Any]:
    levels: dict[tuple[str, str, str, str], list[Level]] = {}
    for row in sorted(journal, key=lambda row: (row.at, row.journal_id)):
        line = levels.setdefault(row.key, [])
        spent, held = (line[-1].spent, line[-1].held) if line else (0, 0)
        line.append(Level(at=row.at, spent=spent + row.delta_spent, held=held + row.delta_held))
    drawn = sorted(
        (balance for balance in balances if levels.get(balance.term.key)),
        key=lambda balance: levels[balance.term.key][-1].at,
        reverse=True,
    )
    return {
        "rows": [_budget_row(balance) for balance in balances],
        "has_pending": any(balance.pending for balance in balances),
        "charts": [_budget_chart(balance, levels[balance.term.key]) for balance in drawn[:CHARTS_MAX]],
        "left_out": max(len(drawn) - CHARTS_MAX, 0),
    }


def _budget_row(balance: Balance) -> dict[str, Any]:
    term = balance.term
    return {
        "name": term.budget,
        "account": term.account,
        "unit": "CO2e" if term.unit is Unit.CARBON else term.unit.value,
        "period": period_text(term.period),
        "mode": term.mode.value,
        "limit": units.format_amount(term.unit, balance.limit),
        "spent": units.format_amount(term.unit, balance.spent),
        "held": units.format_amount(term.unit, balance.held),
        "pending": units.format_amount(term.unit, balance.pending) if balance.pending else MISSING,
        "available": units.format_amount(term.unit, balance.available),
        "over": balance.available < 0,
    }


def _budget_chart(balance: Balance, levels: Sequence[Level]) -> dict[str, Any]:
    term = balance.term
    title = f"{term.budget}, {'CO2e' if term.unit is Unit.CARBON else term.unit}, {period_text(term.period)}"
    alt = (
        f"Budget over time, {title}: {units.format_amount(term.unit, balance.spent)} spent and "
        f"{units.format_amount(term.unit, balance.held)} held of {units.format_amount(term.unit, balance.limit)}"
    )
    return {
        "title": title,
        "svgs": [
            (kind, budget_chart(levels, term.unit, balance.limit, width=w, title=alt)) for kind, w in CHART_WIDTHS
        ],
    }


def _rule_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [
        {
            "name": rule.name,
            "jobs": rule.jobs,
            "energy": units.format_energy(rule.energy.microjoules if rule.energy else None),
            "interval": interval_text(rule.energy),
            "percent": round(100 * rule.energy_ratio, 1) if rule.energy_ratio is not None else None,
            "carbon": units.format_carbon(rule.carbon_micrograms),
            "answers": rule.answers,
        }
        for rule in rule_totals(entries)
    ]


def _node_rows(entries: Sequence[Entry], source: ReportSource) -> list[tuple[str, str]]:
    windows = windows_of(entries, source.node_windows())
    whole = total_energy(window.energy for window in windows)
    if whole is None:
        return []
    return [
        ("Idle node", units.format_energy(sum(window.idle_microjoules for window in windows))),
        ("Other processes", units.format_energy(sum(window.other_microjoules for window in windows))),
        ("Whole node meanwhile", energy_text(whole)),
    ]


def _pareto(entries: Sequence[Entry], facts: Facts, goals: Mapping[str, Goal]) -> dict[str, Any] | None:
    metric = quality_metric(entries, facts)
    points = variants(entries, facts, metric) if metric else []
    if metric is None or not points:
        return None
    goal = goals.get(metric.removeprefix(QUALITY)) or metric_goal(metric)
    title = metric_title(metric)
    front = front_indices(points, goal)
    alt = f"{title} against energy; on the Pareto front: {', '.join(points[index].label for index in front)}"
    return {
        "metric": title,
        "goal": "lower" if goal == "min" else "higher",
        "svgs": [(kind, pareto_chart(points, title, goal, width=w, title=alt)) for kind, w in CHART_WIDTHS],
        "rows": [_variant_row(points[index], index in front) for index in _by_energy(points)],
    }


def _by_energy(points: Sequence[Variant]) -> list[int]:
    return sorted(range(len(points)), key=lambda index: points[index].energy.microjoules)


def _variant_row(variant: Variant, on_front: bool) -> dict[str, Any]:  # noqa: FBT001 - a column of the table
    return {
        "label": variant.label,
        "workflow_run": variant.workflow_run,
        "metric": units.three_digits(variant.metric),
        "energy": units.format_energy(variant.energy.microjoules),
        "interval": interval_text(variant.energy),
        "on_front": on_front,
    }


def _without_result(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [
        {
            "step": _step_label(entry.step, entry.wildcards),
            "outcome": entry.outcome.value,
            "energy": energy_text(entry.total),
            "charged": units.format_energy(entry.energy_charged_microjoules),
            "reason": entry.reason or MISSING,
        }
        for entry in entries
        if entry.outcome in WITHOUT_RESULT
    ]


def _answers(decisions: Iterable[DecisionRow], entries: Sequence[Entry], workflow_run: str | None) -> dict[str, Any]:
    """Every answer that was not a plain yes; a step that asked again and again while it waited is one row."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in decisions:
        decision = row.decision
        if workflow_run not in {None, row.step.workflow_run} or Action.ADMIT is decision.action is decision.would:
            continue
        answer = ANSWERS[decision.action]
        if decision.action is Action.ADMIT:
            answer = f"would have been {ANSWERS[decision.would]}"
        found = rows.setdefault((row.step.key, answer), {"at": row.at, "step": row.step.label, "times": 0})
        found |= {"answer": answer, "action": decision.would.value, "reason": decision.reason}
        found["times"] += 1
    for entry in entries:
        if entry.outcome is Outcome.HALTED:
            step = _step_label(entry.step, entry.wildcards)
            row_key = (entry.entry_id, "halted")
            rows[row_key] = {"at": entry.ended_at, "step": step, "times": 1, "answer": "halted", "action": "halt"}
            rows[row_key]["reason"] = entry.reason or MISSING
    listed = sorted(rows.values(), key=lambda row: row["at"])
    counts = Counter(row["answer"] for row in listed)
    return {
        "rows": [{**row, "at": f"{row['at']:%Y-%m-%d %H:%M:%S}"} for row in listed[-ROWS_MAX:]],
        "left_out": max(len(listed) - ROWS_MAX, 0),
        "summary": ", ".join(f"{count} {answer}" for answer, count in counts.items()),
    }


def _reliability_rows(decisions: Iterable[DecisionRow], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [
        {
            "basis": found.basis,
            "steps": found.steps,
            "kept": f"{found.kept_ratio:.0%}",
            "interval": f"[{found.low_ratio:.0%}, {found.high_ratio:.0%}]",
            "promised": MISSING if found.promised_ratio is None else f"{found.promised_ratio:.0%}",
        }
        for found in reliabilities(decisions, entries)
    ]


def _job_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [
        {
            "at": f"{entry.started_at:%m-%d %H:%M:%S}",
            "step": _step_label(entry.step, entry.wildcards),
            "tier": entry.tier or MISSING,
            "decision": decision_text(entry),
            "outcome": outcome_text(entry.outcome),
            "energy": units.format_energy(entry.total.microjoules if entry.total else None),
            "interval": interval_text(entry.total),
            "carbon": units.format_carbon(entry.operational_micrograms_co2e),
        }
        for entry in entries[-ROWS_MAX:]
    ]


def _step_label(step: str, wildcards: str) -> str:
    return f"{step}[{wildcards}]" if wildcards else step


def _methods(entries: Sequence[Entry]) -> dict[str, Any]:
    methods = Counter(entry.total.method for entry in entries if entry.total)
    clocks = Counter(entry.cpu_clock.value for entry in entries if entry.cpu_clock)
    coverages = [entry.coverage_ratio for entry in entries if entry.coverage_ratio is not None]
    beyond = charged_beyond_metered_microjoules(entries)
    return {
        "boundaries": [_BOUNDARIES[boundary] for boundary in {entry.boundary: None for entry in entries}],
        "methods": [f"{_METHODS[method]} ({count} jobs)" for method, count in methods.items()],
        "clocks": ", ".join(f"{clock} ({count} jobs)" for clock, count in clocks.items()),
        "coverage": f"{min(coverages):.0%}" if coverages else None,
        "sources": _sources(entries),
        "pues": ", ".join(f"{pue:g}" for pue in sorted({entry.pue for entry in entries})),
        "beyond": units.format_energy(beyond) if beyond > 0 else None,
    }
