"""Sums over entries: whole, per rule, and per variant of a model. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlflow_green.records import Energy, Entry, NodeWindow, total_energy
from mlflow_green.reports.pareto import Goal
from mlflow_green.reports.wording import Facts, answer_text, facts_of, number

_HIGHER_IS_BETTER = re.compile(
    r"(^|[^a-z0-9])(acc|accuracy|auc|auroc|f1|r2|precision|recall|score|bleu|iou|dice|ndcg)($|[^a-z0-9])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTotal:
    """All jobs of one rule; ``energy_ratio`` is their part of the energy of all rules, in [0, 1].

    ``answers`` says in words how many were answered other than by a plain yes; empty where none was.
    """

    name: str
    jobs: int
    energy: Energy | None
    energy_ratio: float | None
    carbon_micrograms: int | None
    answers: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model as a reader compares it: its metric, and the energy of every job with the same wildcards.

    A metric is often told by an evaluation that costs nothing, so the energy of one job alone would mislead.
    """

    label: str
    workflow_run: str
    metric: float
    energy: Energy


def variants(entries: Iterable[Entry], facts: Facts, metric: str) -> list[Variant]:
    """The variants that have this metric; a job without wildcards is a variant of its own."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.started_at):
        key = (entry.workflow_run, entry.wildcards) if entry.wildcards else (entry.workflow_run, "", entry.entry_id)
        groups.setdefault(key, []).append(entry)
    found = []
    for group in groups.values():
        told = [value for entry in group if (value := number(facts_of(entry, facts), metric)) is not None]
        energy = metered(group)
        if told and energy is not None:
            found.append(
                Variant(label=_label(group), workflow_run=group[0].workflow_run, metric=told[-1], energy=energy)
            )
    return found


def _label(group: Sequence[Entry]) -> str:
    values = ",".join(pair.partition("=")[2] or pair for pair in group[0].wildcards.split(","))
    tier = next((entry.tier for entry in group if entry.tier), None)
    name = values or group[0].step
    return f"{name} ({tier})" if tier else name


def metric_goal(metric: str) -> Goal:
    """Which way a metric is better, by its name; errors and losses are the rule."""
    return "max" if _HIGHER_IS_BETTER.search(metric.lower()) else "min"


def rule_totals(entries: Iterable[Entry]) -> list[RuleTotal]:
    """The totals of each rule, the dearest first."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.step, []).append(entry)
    whole = metered(entry for group in groups.values() for entry in group)
    totals = []
    for name, group in groups.items():
        part = metered(group)
        totals.append(
            RuleTotal(
                name=name,
                jobs=len(group),
                energy=part,
                energy_ratio=part.microjoules / whole.microjoules if part and whole and whole.microjoules else None,
                carbon_micrograms=carbon_micrograms(group),
                answers=_answers(group),
            )
        )
    return sorted(totals, key=lambda total: -(total.energy.microjoules if total.energy else -1))


def _answers(group: Sequence[Entry]) -> str:
    counts = Counter(filter(None, map(answer_text, group)))
    return ", ".join(
        words if count == len(group) else f"{count} of {len(group)} {words}" for words, count in counts.items()
    )


def metered(entries: Iterable[Entry]) -> Energy | None:
    """The metered energy of all entries, ``None`` where none was metered."""
    return total_energy(total for entry in entries if (total := entry.total) is not None)


def carbon_micrograms(entries: Iterable[Entry]) -> int | None:
    """Operational carbon of all entries, ``None`` where none is known."""
    known = [e.operational_micrograms_co2e for e in entries if e.operational_micrograms_co2e is not None]
    return sum(known) if known else None


def embodied_micrograms(entries: Iterable[Entry]) -> int | None:
    """Embodied carbon of all entries, ``None`` where none is known."""
    known = [e.embodied_micrograms_co2e for e in entries if e.embodied_micrograms_co2e is not None]
    return sum(known) if known else None


def charged_beyond_metered_microjoules(entries: Iterable[Entry]) -> int:
    """What budgets were charged more than was metered: the worst case of lost holds."""
    return sum(
        entry.energy_charged_microjoules - (total.microjoules if (total := entry.total) else 0) for entry in entries
    )


def windows_of(entries: Sequence[Entry], windows: Iterable[NodeWindow]) -> tuple[NodeWindow, ...]:
    """The node windows of the samplers that metered these entries, while they ran."""
    spans: dict[str, tuple[float, float]] = {}
    for entry in entries:
        if entry.sampler_id is None:
            continue
        start, end = entry.started_at.timestamp(), entry.ended_at.timestamp()
        first, last = spans.get(entry.sampler_id, (start, end))
        spans[entry.sampler_id] = (min(first, start), max(last, end))
    return tuple(
        window
        for window in windows
        if (span := spans.get(window.sampler_id)) is not None
        and window.ended_at.timestamp() >= span[0]
        and window.started_at.timestamp() <= span[1]
    )
