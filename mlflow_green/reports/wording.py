"""How records read to people: the words, numbers and short forms that every report shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mlflow_green import units
from mlflow_green.records import Action, Decision, Energy, Entry, Method, Outcome

Facts = Mapping[str, Mapping[str, float | str]]
"""Hold id to fact name to value, as ``LedgerReader.facts`` tells them."""

MISSING = "-"
QUALITY = "quality/"
METHOD_MARKS = {Method.MEASURED: "meas.", Method.ESTIMATED: "est.", Method.MIXED: "mixed"}
ANSWERS = {
    Action.ADMIT: "admitted",
    Action.DOWNGRADE: "downgraded",
    Action.WAIT: "waited",
    Action.REFUSE: "refused",
    Action.HALT: "halted",
}
WITHOUT_RESULT = frozenset({Outcome.FAILED, Outcome.HALTED, Outcome.LOST, Outcome.CANCELLED})
_PREFERRED_METRICS = ("quality/mape",)


def interval_text(energy: Energy | None) -> str:
    """``"[1.40, 12.6] est."``: the interval in the unit of the value, and how it was obtained."""
    if energy is None:
        return MISSING
    text = units.format_energy_interval(energy.microjoules, energy.low_microjoules, energy.high_microjoules)
    return f"{text[text.index('[') :]} {METHOD_MARKS[energy.method]}"


def energy_text(energy: Energy | None) -> str:
    """``"4.20 mWh [1.40, 12.6] est."``."""
    return MISSING if energy is None else f"{units.format_energy(energy.microjoules)} {interval_text(energy)}"


def next_use_text(decision: Decision) -> str | None:
    """``"1.20 Wh to 2.00 Wh in 90 % of cases"``: where the use was expected to lie; ``None`` where nothing was said."""
    low, level_ratio = decision.estimate_low_microjoules, decision.estimate_level_ratio
    if low is None or level_ratio is None:
        return None
    high = decision.estimate_high_microjoules
    ends = "at least {}, no upper end is known," if high is None else "{} to {}"
    amounts = (units.format_energy(end) for end in (low, high) if end is not None)
    return f"{ends.format(*amounts)} in {level_ratio:.0%} of cases".replace("%", " %")


def carbon_text(carbon_micrograms: int | None) -> str:
    """Carbon without its "CO2e", for a column whose head says it: ``"1.20 g"``."""
    return units.format_carbon(carbon_micrograms).removesuffix("CO2e")


def period_text(period: str) -> str:
    """A budget's period for people: ``2026-11``, or the start of a workflow run's id."""
    kind, colon, run = period.partition(":")
    return f"{kind} {run[:8]}" if colon else period


def decision_text(entry: Entry) -> str:
    """What was decided; in a budget that only watches, what would have been."""
    if entry.would_decision != entry.decision:
        return f"would {entry.would_decision}"
    return entry.decision.value


def answer_text(entry: Entry) -> str:
    """How a job was answered and stopped, in words: ``"downgraded to tiny"``; empty for a plain yes."""
    if entry.outcome is Outcome.HALTED:
        return "halted"
    if entry.would_decision != entry.decision:
        return f"would be {ANSWERS[entry.would_decision]}"
    if entry.decision is Action.DOWNGRADE and entry.tier:
        return f"{ANSWERS[entry.decision]} to {entry.tier}"
    return "" if entry.decision is Action.ADMIT else ANSWERS[entry.decision]


def outcome_text(outcome: Outcome) -> str:
    return "ok" if outcome is Outcome.SUCCEEDED else outcome.value


def wildcard_values(wildcards: str, width: int) -> str:
    """The values of wildcards without their names, in at most ``width`` characters."""
    values = ",".join(pair.partition("=")[2] or pair for pair in wildcards.split(","))
    return values if len(values) <= width else values[: width - 1] + "…"


def facts_of(entry: Entry, facts: Facts) -> Mapping[str, float | str]:
    """What was learnt about the job of this entry; empty for a refused step."""
    return facts.get(entry.hold_id, {}) if entry.hold_id else {}


def number(facts: Mapping[str, float | str], name: str) -> float | None:
    value = facts.get(name)
    return None if value is None or isinstance(value, str) else float(value)


def quality_metric(entries: Iterable[Entry], facts: Facts) -> str | None:
    """The metric that a report shows: MAPE where there is one, else the most frequent, else ``None``."""
    counts = Counter(
        name for entry in entries for name in facts_of(entry, facts) if name.startswith(QUALITY)
    )  # a Counter keeps the order of first sight, and most_common is stable
    for name in _PREFERRED_METRICS:
        if name in counts:
            return name
    return counts.most_common(1)[0][0] if counts else None


def metric_title(metric: str) -> str:
    """``quality/mape`` as a column head: short names are abbreviations."""
    name = metric.removeprefix(QUALITY)
    return name.upper() if len(name) <= len("smape") else name
