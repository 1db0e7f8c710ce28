"""One decision in words: the answer, the reason, the estimate, and the balances that it saw."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from mlflow_green import units
from mlflow_green.records import DecisionRow, Entry, PolicyVersion
from mlflow_green.reports.tables import balance_table
from mlflow_green.reports.wording import energy_text

_INDENT = 2
_SHA_DIGITS = 12


def explain_decision(
    console: Console, row: DecisionRow, entry: Entry | None, version: PolicyVersion | None = None
) -> None:
    """Print why the step got this answer, and how it ended and which policy that was where these are known."""
    decision = row.decision
    answer = decision.action.value if decision.action == decision.would else _watched(row)
    console.print(Text(f"{row.step.label}: {answer}", "bold"))
    lines = [
        ("when", f"{row.at:%Y-%m-%d %H:%M:%S} UTC, workflow run {row.step.workflow_run}"),
        ("why", decision.reason),
    ]
    if decision.tier:
        lines.append(("tier", decision.tier))
    if decision.estimate_source:
        lines.append(("estimate", decision.estimate_source))
    if decision.amounts:
        lines.append(
            ("holds", ", ".join(units.format_amount(unit, amount) for unit, amount in decision.amounts.items()))
        )
    if decision.budget and decision.unit:
        needed, available = (units.format_amount(decision.unit, each) for each in (decision.needed, decision.available))
        lines.append(("budget", f"{decision.budget} ({decision.unit}): needed {needed}, available {available}"))
    if decision.policy_sha256:
        known = (
            f"used first by {version.author}, {version.at:%Y-%m-%d %H:%M} UTC" if version else "its text was not kept"
        )
        lines.append(("policy", f"{decision.policy_sha256[:_SHA_DIGITS]}, {known}"))
    if entry is not None:
        told = f", {entry.reason}" if entry.reason and entry.reason != decision.reason else ""
        lines.append(("ended", f"{entry.outcome}, {energy_text(entry.total)}{told}"))
    for name, text in lines:
        console.print(Padding(Text(f"{name:<9}{text}"), (0, 0, 0, _INDENT), expand=False))
    if row.balances:
        table = balance_table(row.balances, width=console.width - _INDENT)
        console.print(Padding(table, (1, 0, 0, _INDENT), expand=False))
    console.print()


def _watched(row: DecisionRow) -> str:
    return f"{row.decision.action}, as its budgets only watch; a hard budget would have answered {row.decision.would}"
