"""Tables for a terminal: per job, per rule, and per budget.

Snakemake's process prints these, so rich is all that they import. Columns that do not fit are left
out, least important first, and the caption names them; a column in which nothing is known is not shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Generic, TextIO, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflow_green import units
from mlflow_green.ledger.allowances import agreement_text
from mlflow_green.records import (
    Action,
    Allowance,
    Balance,
    Energy,
    Entry,
    Mode,
    NodeWindow,
    Outcome,
    Unit,
    total_energy,
)
from mlflow_green.reports.reliability import Reliability
from mlflow_green.reports.totals import (
    RuleTotal,
    carbon_micrograms,
    charged_beyond_metered_microjoules,
    metered,
    rule_totals,
    windows_of,
)
from mlflow_green.reports.wording import (
    MISSING,
    Facts,
    carbon_text,
    decision_text,
    facts_of,
    interval_text,
    metric_title,
    number,
    outcome_text,
    period_text,
    quality_metric,
    wildcard_values,
)

WIDTH_WITHOUT_TERMINAL = 120
_WIDE = 110
_WRAPPED_WIDTH = 12
_NEARLY_USED_RATIO = 0.8
_ANSWERS_MAX = 6
ACTION_STYLES = {Action.DOWNGRADE: "yellow", Action.WAIT: "cyan", Action.REFUSE: "red", Action.HALT: "magenta"}
_OUTCOME_STYLES = {
    Outcome.SUCCEEDED: "green",
    Outcome.HALTED: "magenta",
    Outcome.CANCELLED: "dim",
    Outcome.FAILED: "red",
    Outcome.REFUSED: "red",
    Outcome.LOST: "red",
}

Cell = Text | str
Row = TypeVar("Row")


def terminal(file: TextIO | None = None) -> Console:
    """A console as wide as the terminal, else ``COLUMNS``, else 120; no colour off a terminal or with NO_COLOR."""
    file = sys.stdout if file is None else file
    width = None if file.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """``rank`` says when the column goes if the width does not suffice: the highest goes first, 0 stays.

    One that ``wraps`` goes on in a second line before any column goes. The caption does not name one that is
    ``told_elsewhere``.
    """

    title: str
    cell: Callable[[Row], Cell]
    rank: int = 0
    right: bool = False
    wraps: bool = False
    told_elsewhere: bool = False


# --- per job ----------------------------------------------------------------------------------------


def jobs_table(
    entries: Sequence[Entry], facts: Facts, windows: Iterable[NodeWindow] = (), *, width: int = 120
) -> Table:
    """One line a job, by start; the sum, and the node's idle and other energy where windows are given."""
    entries = sorted(entries, key=lambda entry: (entry.started_at, entry.step, entry.wildcards))
    beyond = charged_beyond_metered_microjoules(entries)
    return table_of(
        _job_columns(entries, facts, width),
        entries,
        totals=_job_totals(entries, windows_of(entries, windows)),
        width=width,
        note=f"Lost steps were charged {units.format_energy(beyond)} more than was metered." if beyond > 0 else "",
    )


def _job_columns(entries: Sequence[Entry], facts: Facts, width: int) -> list[Column[Entry]]:
    def fact(name: str, text: Callable[[float], str]) -> Callable[[Entry], str]:
        def cell(entry: Entry) -> str:
            value = number(facts_of(entry, facts), name)
            return MISSING if value is None else text(value)

        return cell

    wildcards_width = max(width // 10, 12)
    names_fit = all(len(entry.wildcards) <= wildcards_width for entry in entries)

    def wildcards(entry: Entry) -> str:
        return (entry.wildcards if names_fit else wildcard_values(entry.wildcards, wildcards_width)) or MISSING

    metric = quality_metric(entries, facts)
    columns: list[Column[Entry]] = [
        Column(title="Rule", cell=lambda e: e.step),
        Column(title="Wildcards", cell=wildcards, rank=2),
        Column(title="Tier", cell=lambda e: e.tier or MISSING, rank=3),
        Column(title="Decision", cell=_decision),
        Column(title="Outcome", cell=_outcome),
        Column(title="Energy", cell=lambda e: _point(e.total), right=True),
        Column(title="Interval", cell=lambda e: Text(interval_text(e.total), "dim"), rank=1),
        Column(title="CO2e", cell=lambda e: carbon_text(e.operational_micrograms_co2e), right=True, rank=5),
    ]
    if metric is not None:
        columns.append(Column(title=metric_title(metric), cell=fact(metric, units.three_digits), right=True, rank=4))
    columns += [
        Column(title="Params", cell=fact("complexity/parameters", units.format_count), right=True, rank=6),
        Column(title="Density", cell=fact("complexity/density_ratio", units.three_digits), right=True, rank=8),
        Column(title="MACs", cell=fact("complexity/macs_nominal", units.format_count), right=True, rank=7),
    ]
    return columns


def _decision(entry: Entry) -> Text:
    return Text(decision_text(entry), ACTION_STYLES.get(entry.would_decision, ""))


def _outcome(entry: Entry) -> Text:
    return Text(outcome_text(entry.outcome), _OUTCOME_STYLES[entry.outcome])


def _point(energy: Energy | None) -> str:
    return units.format_energy(energy.microjoules if energy else None)


def _job_totals(entries: Sequence[Entry], windows: Sequence[NodeWindow]) -> list[Mapping[str, str]]:
    total = metered(entries)
    carbon = carbon_text(carbon_micrograms(entries))
    rows: list[Mapping[str, str]] = [
        {"Rule": "All jobs", "Energy": _point(total), "Interval": interval_text(total), "CO2e": carbon}
    ]
    node = total_energy(window.energy for window in windows)
    if node is not None:
        rows += [
            {"Rule": "Idle node", "Energy": units.format_energy(sum(w.idle_microjoules for w in windows))},
            {"Rule": "Other", "Energy": units.format_energy(sum(w.other_microjoules for w in windows))},
            {"Rule": "Whole node", "Energy": _point(node), "Interval": interval_text(node)},
        ]
    return rows


# --- per rule ---------------------------------------------------------------------------------------


def rules_table(entries: Sequence[Entry], *, width: int = 120) -> Table:
    """One line a rule, the dearest first: jobs, energy with interval and method, its share, carbon."""
    whole = metered(entries)
    bar_width = 20 if width >= _WIDE else 10
    columns: list[Column[RuleTotal]] = [
        Column(title="Rule", cell=lambda r: r.name),
        Column(title="Jobs", cell=lambda r: str(r.jobs), right=True),
        Column(title="Energy", cell=lambda r: _point(r.energy), right=True),
        Column(title="Interval", cell=lambda r: Text(interval_text(r.energy), "dim")),
        Column(title="Share", cell=lambda r: _percent(r.energy_ratio), right=True, rank=1),
        Column(title="", cell=lambda r: _bar(((r.energy_ratio or 0.0, "green"),), bar_width), rank=3),
        Column(title="CO2e", cell=lambda r: carbon_text(r.carbon_micrograms), right=True, rank=2),
    ]
    total = {
        "Rule": "All rules",
        "Jobs": str(len(entries)),
        "Energy": _point(whole),
        "Interval": interval_text(whole),
        "CO2e": carbon_text(carbon_micrograms(entries)),
    }
    rules = rule_totals(entries)
    return table_of(columns, rules, totals=[total], width=width, note=_answers_note(rules))


def _answers_note(rules: Sequence[RuleTotal]) -> str:
    """Which rules were answered other than by a plain yes, and how; empty where none was."""
    told = [f"{rule.name}: {rule.answers}" for rule in rules if rule.answers]
    more = len(told) - _ANSWERS_MAX
    told = [*told[:_ANSWERS_MAX], *([f"and {units.format_number_of(more, 'more rule')}"] if more > 0 else [])]
    return f"{'; '.join(told)}." if told else ""


# --- per budget -------------------------------------------------------------------------------------


def balance_table(balances: Sequence[Balance], before: Sequence[Balance] = (), *, width: int = 120) -> Table:
    """One line a budget, unit and period; with ``before``, what was spent then stands beside what is spent now."""
    spent_before = {balance.term.key: balance.spent for balance in before}
    bar_width = 20 if width >= _WIDE else 10

    def amount(balance: Balance, value: int) -> str:
        return units.format_amount(balance.term.unit, value).removesuffix("CO2e")

    def available(balance: Balance) -> Text:
        return Text(amount(balance, balance.available), "bold red" if balance.available < 0 else "")

    columns: list[Column[Balance]] = [
        Column(title="Budget", cell=lambda b: _budget_name(b, balances)),
        Column(title="Unit", cell=lambda b: "CO2e" if b.term.unit is Unit.CARBON else b.term.unit.value),
        Column(title="Period", cell=lambda b: period_text(b.term.period), rank=2),
        Column(title="Mode", cell=lambda b: b.term.mode.value),
        Column(title="Limit", cell=lambda b: amount(b, b.limit), right=True),
    ]
    if before:
        columns.append(Column(title="Before", cell=lambda b: amount(b, spent_before.get(b.term.key, 0)), right=True))
    columns += [
        Column(title="Spent", cell=lambda b: amount(b, b.spent), right=True),
        Column(title="Held", cell=lambda b: amount(b, b.held), right=True),
        Column(title="Pending", cell=lambda b: amount(b, b.pending) if b.pending else MISSING, right=True, rank=1),
        Column(title="Available", cell=available, right=True),
        Column(title="Used", cell=lambda b: _percent(b.committed / b.limit if b.limit else None), right=True),
        Column(title="", cell=lambda b: balance_bar(b, bar_width), rank=3),
    ]
    return table_of(columns, balances, width=width)


def allowance_table(allowances: Sequence[Allowance], now: datetime, *, width: int = 120, zone: tzinfo = UTC) -> Table:
    """One line for each thing that was added to a limit, oldest first; ``zone`` is that of its periods."""
    from mlflow_green.policy.raising import allowance_state  # loads the schema of a policy, which a summary never needs

    columns: list[Column[Allowance]] = [
        Column(title="ID", cell=lambda a: a.allowance_id[:12]),
        Column(title="Budget", cell=lambda a: a.budget),
        Column(title="Account", cell=lambda a: a.account, rank=5),
        Column(title="Period", cell=lambda a: period_text(a.period), rank=4),
        Column(title="Kind", cell=lambda a: a.kind.value),
        Column(title="Amount", cell=lambda a: units.format_amount(a.unit, a.amount), right=True),
        Column(title="State", cell=lambda a: allowance_state(a, now, zone)),
        Column(
            title="Until",
            cell=lambda a: f"{a.expires_at:%Y-%m-%d %H:%M} UTC" if a.expires_at else MISSING,
            wraps=True,
        ),
        Column(title="Agreed", cell=lambda a: agreement_text(a) if a.requested_by else MISSING, rank=1, wraps=True),
        Column(title="Reason", cell=lambda a: a.reason or MISSING, wraps=True),
    ]
    return table_of(columns, allowances, width=width)


def _budget_name(balance: Balance, balances: Sequence[Balance]) -> str:
    """The account stands beside the budget only where one budget has several."""
    accounts = {other.term.account for other in balances if other.term.budget == balance.term.budget}
    return f"{balance.term.budget} {balance.term.account}" if len(accounts) > 1 else balance.term.budget


def balance_bar(balance: Balance, width: int) -> Text:
    """Spent, held and free as one bar: red once the limit is passed, yellow from 80 % on."""
    limit = balance.limit
    if limit <= 0:
        return Text(" " * width)
    used = balance.committed / limit
    over = used > 1 and balance.term.mode is not Mode.OBSERVE
    style = "red" if over else "yellow" if used >= _NEARLY_USED_RATIO else "green"
    return _bar(((balance.spent / limit, style), (balance.held / limit, "cyan")), width, rest="░")


# --- per kind of estimate ------------------------------------------------------------------------------


def reliability_table(found: Sequence[Reliability], *, width: int = 120) -> Table:
    """One line a kind of estimate: how often a step stayed within what was held for it, and what was promised."""
    columns: list[Column[Reliability]] = [
        Column(title="Held by", cell=lambda r: r.basis),
        Column(title="Steps", cell=lambda r: str(r.steps), right=True),
        Column(title="Stayed within", cell=lambda r: _percent(r.kept_ratio), right=True),
        Column(title="95 % interval", cell=lambda r: Text(f"[{r.low_ratio:.0%}, {r.high_ratio:.0%}]", "dim"), rank=1),
        Column(title="Promised", cell=lambda r: _percent(r.promised_ratio), right=True, rank=2),
    ]
    return table_of(columns, found, width=width)


# --- shared -----------------------------------------------------------------------------------------


def table_of(
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    *,
    totals: Sequence[Mapping[str, str]] = (),
    width: int,
    note: str = "",
) -> Table:
    """Cells under the columns that have something to say and that fit; the caption names those left out."""
    filled = [(column, [_text(column.cell(row)) for row in rows]) for column in columns]
    filled = [(c, cells) for c, cells in filled if c.rank == 0 or any(cell.plain != MISSING for cell in cells)]
    shown, left_out, gap = _fitting(filled, totals, width)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style="bold", show_edge=False,
        caption_justify="left",
    )  # fmt: skip
    any_wraps = any(column.wraps for column, _ in shown)
    for column, _ in shown:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=any_wraps and not column.wraps,
        )
    for row in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*row)
    if totals:
        table.add_section()
    for total in totals:
        table.add_row(*(Text(total.get(column.title, ""), "bold") for column, _ in shown))
    hint = f"A wider terminal also shows: {', '.join(left_out)}." if left_out else ""
    table.caption = Text(" ".join(part for part in (note, hint) if part), "dim") if note or hint else None
    return table


Filled = list[tuple[Column[Row], list[Text]]]


def _fitting(cells: Filled[Row], totals: Sequence[Mapping[str, str]], width: int) -> tuple[Filled[Row], list[str], int]:
    """The columns that fit the width, the titles of those that were left out, and the gap between columns."""
    shown, left_out = list(cells), []

    def needed(gap: int, *, wrapped: bool = False) -> int:
        return sum(needed_by(column, texts, wrapped=wrapped) + gap for column, texts in shown)

    def needed_by(column: Column[Row], texts: Sequence[Text], *, wrapped: bool) -> int:
        full = max(len(column.title), *map(len, texts), *(len(total.get(column.title, "")) for total in totals), 0)
        return min(full, _WRAPPED_WIDTH) if wrapped and column.wraps else full

    while needed(gap=1, wrapped=True) > width and any(column.rank for column, _ in shown):
        last = max(shown, key=lambda pair: pair[0].rank)
        shown.remove(last)
        if not last[0].told_elsewhere:
            left_out.append(last[0].title)
    gap = next((gap for gap in (3, 2) if needed(gap) <= width), 1)
    return shown, [title for title in left_out if title], gap


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _percent(ratio: float | None) -> str:
    return MISSING if ratio is None else units.format_share(ratio)


def _bar(parts: Sequence[tuple[float, str]], width: int, rest: str = " ") -> Text:
    """Parts of 1 side by side; the second part is drawn lighter."""
    bar = Text()
    for (ratio, style), mark in zip(parts, "█▒", strict=False):
        bar.append(mark * min(round(ratio * width), width - len(bar)), style)
    bar.append(rest * (width - len(bar)), "dim")
    return bar
