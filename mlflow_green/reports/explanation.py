"""One decision in words: the answer, the reason, the estimate, and the balances that it saw."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlflow_green import units
from mlflow_green.records import DecisionRow, Entry, PolicyVersion
from mlflow_green.reports.tables import balance_table
from mlflow_green.reports.wording import energy_text, next_use_text

_INDENT = 2
_SHA_DIGITS = 12


def explain_decision(
    console: Console,
    row: DecisionRow,
    entry: Entry | None,
    version: PolicyVersion | None = None,
    *,
    hints: bool = True,
    way_out: str = "",
) -> None:
    """Print why the step got this answer, and how it ended and which policy that was where these are known.

    ``hints``: name the columns that the table leaves out. ``way_out`` is what can be done about it.
    """
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
    next_use = next_use_text(decision)
    if next_use:
        lines.append(("expected", f"{next_use}, by the order of earlier runs"))
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
    if way_out:
        lines.append(("to do", way_out))
    print_facts(console, lines)
    if row.balances:
        table = balance_table(row.balances, width=console.width - _INDENT)
        table.caption = table.caption if hints else None
        console.print(Padding(table, (1, 0, 0, _INDENT), expand=False))
    console.print()


def print_facts(console: Console, lines: Iterable[tuple[str, str]]) -> None:
    """A name and a text a line; a long text goes on under its own beginning."""
    grid = Table.grid(padding=(0, 1), pad_edge=False)
    for name, text in lines:
        grid.add_row(Text(f"{name:<8}"), Text(text))
    console.print(Padding(grid, (0, 0, 0, _INDENT), expand=False))


def _watched(row: DecisionRow) -> str:
    return f"{row.decision.action}, as its budgets only watch; a hard budget would have answered {row.decision.would}"
