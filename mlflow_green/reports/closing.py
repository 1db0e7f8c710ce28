"""What a person reads when a workflow has ended: the table by rule, the budgets, and what to do next."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console

from mlflow_green.records import Balance, Entry, Outcome
from mlflow_green.reports.tables import balance_table, rules_table


def closing_text(entries: Sequence[Entry], balances: Sequence[Balance], *, has_policy: bool, has_place: bool) -> str:
    """The closing table as text for the host program's log; empty where no step was metered."""
    if not entries:
        return ""
    width = max(80, min(120, shutil.get_terminal_size((100, 24)).columns))
    colour = sys.stderr.isatty()
    console = Console(file=io.StringIO(), width=width, force_terminal=colour, no_color=not colour)
    console.print(rules_table(entries, width=width))
    if balances:
        console.print(balance_table(balances, width=width))
    refused = next((entry.step for entry in entries if entry.outcome is Outcome.REFUSED), None)
    if refused is not None:
        console.print(f"Next: 'mlflow-green explain {refused}' shows why it was refused, and what can be done.")
    elif not has_policy:
        console.print("Next: 'mlflow-green init' writes a green.yaml with your country (grams of CO2e) and a budget.")
    elif not has_place:
        console.print("Next: set site.country in green.yaml for grams of CO2e.")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
