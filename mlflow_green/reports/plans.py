"""A plan in words and tables: every step's answer, what it leaves of each budget, and what cannot be known."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflow_green import units
from mlflow_green.recorder.plan import Plan, PlannedAnswer, PlannedBalance
from mlflow_green.records import Action, Energy, Method, Unit
from mlflow_green.reports.export import balance_to_json
from mlflow_green.reports.tables import ACTION_STYLES, Column, table_of
from mlflow_green.reports.wording import MISSING, interval_text, period_text

_ROWS_MAX = 40
_REASONS_MAX = 6
_SOURCE = "Known from"
_WORDS = {
    Action.ADMIT: "admitted",
    Action.DOWNGRADE: "downgraded",
    Action.WAIT: "waits for other runs",
    Action.REFUSE: "refused",
    Action.HALT: "halted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One step, or all steps of a rule that are answered alike."""

    answers: tuple[PlannedAnswer, ...]

    @property
    def first(self) -> PlannedAnswer:
        return self.answers[0]

    @property
    def label(self) -> str:
        step = self.first.step
        return step.label if len(self.answers) == 1 else f"{step.name} ({len(self.answers)} steps)"


def print_plan(console: Console, plan: Plan) -> None:
    """The tables, the reasons, the totals and the verdict."""
    if plan.answers:
        table = plan_table(plan.answers, width=console.width)
        console.print(table)
        if _SOURCE not in {column.header for column in table.columns}:
            console.print(Text(_sources(plan.answers), "dim"))
    for reason in _reasons(plan.answers):
        console.print(Text(reason))
    if plan.balances:
        console.print()
        console.print(planned_balance_table(plan.balances, width=console.width))
    if plan.overshoot_microjoules is not None:
        console.print(
            f"If a step has to be halted, at most {units.format_energy(plan.overshoot_microjoules)} more: all that "
            f"this machine can draw in {plan.overshoot_seconds:g} s (sampling period + grace)."
        )
    for note in plan.notes:
        console.print(note)
    console.print(Text(verdict(plan), "bold"))


def plan_text(plan: Plan) -> str:
    """The same as text for the host program's log."""
    width = max(80, min(120, shutil.get_terminal_size((100, 24)).columns))
    colour = sys.stdout.isatty()
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colour, no_color=not colour, highlight=False, markup=False, emoji=False
    )
    print_plan(console, plan)
    return file.getvalue().rstrip()


def verdict(plan: Plan) -> str:
    """How many steps get which answer, in one sentence."""
    if not plan.answers:
        return "Nothing is to be done: no step would run."
    counts = [
        (plan.count(Action.ADMIT), "admitted"),
        (plan.count(Action.DOWNGRADE), "downgraded"),
        (plan.count(Action.REFUSE), "refused"),
        (plan.count(Action.HALT), "halted"),
        (plan.count(Action.WAIT), "waiting for other runs"),
        (plan.count(None), "not reached"),
    ]
    parts = ", ".join(f"{count} {word}" for count, word in counts if count)
    late = sum(answer.is_delayed for answer in plan.answers)
    waits = f"; {late} would wait for a budget first" if late else ""
    return f"Of {units.format_number_of(len(plan.answers), 'step')}: {parts}{waits}."


def plan_table(answers: Sequence[PlannedAnswer], *, width: int = 120) -> Table:
    """One line a step; where there are many, one for all steps of a rule that are answered alike."""
    columns: list[Column[_Line]] = [
        Column(title="Step", cell=lambda line: line.label),
        Column(title="Answer", cell=lambda line: _answer(line.first)),
        Column(title="Uses", cell=_uses, right=True),
        Column(title="Interval", cell=lambda line: Text(_interval(line), "dim"), rank=2),
        Column(title="Holds", cell=_holds, right=True, rank=3),
        Column(title="Budget", cell=lambda line: _budget(line.first), rank=1),
        Column(
            title=_SOURCE,
            cell=lambda line: Text(_source(line.first), "dim"),
            rank=4,
            wraps=True,
            told_elsewhere=True,
        ),
    ]
    return table_of(columns, _lines(answers), width=width)


def _lines(answers: Sequence[PlannedAnswer]) -> list[_Line]:
    answers = sorted(answers, key=lambda answer: (answer.decided_at is None, answer.decided_at))
    if len(answers) <= _ROWS_MAX:
        return [_Line(answers=(answer,)) for answer in answers]
    alike: dict[object, list[PlannedAnswer]] = {}
    for answer in answers:
        alike.setdefault((answer.step.name, _answer(answer).plain, _budget(answer), answer.behind), []).append(answer)
    return [_Line(answers=tuple(group)) for group in alike.values()]


def _answer(answer: PlannedAnswer) -> Text:
    action = answer.action
    if action is None:
        return Text(f"not reached, behind {answer.behind}" if answer.behind else "not reached", "dim")
    text = _WORDS[action]
    if action is Action.DOWNGRADE and answer.decision is not None:
        text = f"downgraded to {answer.decision.tier}"
    if answer.is_delayed:
        text = f"waits, then {text}"
    return Text(text, ACTION_STYLES[Action.WAIT] if answer.is_delayed else ACTION_STYLES.get(action, ""))


def _budget(answer: PlannedAnswer) -> str:
    """The budget that stands in the way of the dearest tier, or did when the step asked first."""
    named = (answer.decision, answer.first)
    return next((decision.budget for decision in named if decision is not None and decision.budget), MISSING)


def _uses(line: _Line) -> str:
    points = [answer.expected.point for answer in line.answers if answer.expected and _runs(answer)]
    return units.format_energy(sum(points)) if points else MISSING


def _interval(line: _Line) -> str:
    used = [answer.expected for answer in line.answers if answer.expected and _runs(answer)]
    lows = [expected.low for expected in used if expected.low is not None]
    highs = [expected.high for expected in used if expected.high is not None]
    if not used or len(lows) < len(line.answers):
        return MISSING
    point = sum(expected.point for expected in used)
    return interval_text(
        Energy(microjoules=point, low_microjoules=sum(lows), high_microjoules=sum(highs), method=Method.ESTIMATED)
    )


def _runs(answer: PlannedAnswer) -> bool:
    return answer.decision is not None and answer.decision.admitted


def _holds(line: _Line) -> str:
    """What it holds, or what it would need where it is refused."""
    held = [
        answer.decision.amounts.get(Unit.ENERGY) if _runs(answer) and answer.decision else _needed(answer)
        for answer in line.answers
    ]
    known = [amount for amount in held if amount is not None]
    return units.format_energy(sum(known)) if known else MISSING


def _needed(answer: PlannedAnswer) -> int | None:
    amounts = answer.estimate.amounts if answer.estimate else None
    return None if amounts is None else amounts.get(Unit.ENERGY)


def _source(answer: PlannedAnswer) -> str:
    return answer.estimate.source if answer.estimate and answer.decision else MISSING


def _sources(answers: Iterable[PlannedAnswer]) -> str:
    """Where the estimates come from, for a terminal that has no room for the column: of each rule the first."""
    told: dict[str, str] = {}
    for answer in answers:
        if _source(answer) != MISSING:
            told.setdefault(answer.step.name, f"{answer.step.name}: {_source(answer)}")
    more = len(told) - _REASONS_MAX
    listed = [*list(told.values())[:_REASONS_MAX], *([f"and {more} more; --json has all of them"] if more > 0 else [])]
    return f"{_SOURCE}: {'; '.join(listed)}." if told else ""


def _reasons(answers: Iterable[PlannedAnswer]) -> list[str]:
    """Why steps wait, are refused or halted: of each rule and budget the first."""
    told: dict[tuple[str, str, str], str] = {}
    for answer in answers:
        reason = _reason(answer)
        if reason:
            told.setdefault((answer.step.name, _answer(answer).plain, _budget(answer)), reason)
    reasons = list(told.values())
    more = len(reasons) - _REASONS_MAX
    return [*reasons[:_REASONS_MAX], *([f"and {more} more; --json has all of them"] if more > 0 else [])]


def _reason(answer: PlannedAnswer) -> str:
    if answer.halt_reason:
        return answer.halt_reason
    if answer.refused_at is not None and answer.first is not None:
        until = f"{answer.refused_at:%Y-%m-%d %H:%M} UTC"
        return f"{answer.first.reason}; unless other runs settle, it is refused at {until}"
    if answer.action in {Action.REFUSE, Action.DOWNGRADE} and answer.decision is not None:
        return answer.decision.reason
    return answer.first.reason if answer.is_delayed and answer.first is not None else ""


def planned_balance_table(balances: Sequence[PlannedBalance], *, width: int = 120) -> Table:
    """One line a budget and unit: what is spent now, and after the workflow."""

    def amount(balance: PlannedBalance, value: int) -> str:
        return units.format_amount(balance.after.term.unit, value).removesuffix("CO2e")

    def interval(balance: PlannedBalance) -> str:
        if balance.low is None or balance.high is None:
            return MISSING
        return f"{amount(balance, balance.low)} to {amount(balance, balance.high)}"

    columns: list[Column[PlannedBalance]] = [
        Column(title="Budget", cell=lambda b: b.after.term.budget),
        Column(
            title="Unit", cell=lambda b: "CO2e" if b.after.term.unit is Unit.CARBON else b.after.term.unit.value, rank=2
        ),
        Column(title="Period", cell=lambda b: period_text(b.after.term.period), rank=3),
        Column(title="Limit", cell=lambda b: amount(b, b.after.limit), right=True),
        Column(title="Spent now", cell=lambda b: amount(b, b.before.spent), right=True),
        Column(
            title="Held now", cell=lambda b: amount(b, b.before.held) if b.before.held else MISSING, right=True, rank=4
        ),
        Column(title="Spent after", cell=lambda b: amount(b, b.after.spent), right=True),
        Column(title="Between", cell=lambda b: Text(interval(b), "dim"), rank=1),
        Column(title="Left", cell=lambda b: amount(b, b.after.available), right=True),
    ]
    return table_of(columns, balances, width=width)


# --- for programs -------------------------------------------------------------------------------------


def plan_to_json(plan: Plan) -> dict[str, object]:
    """All of a plan; amounts are integers in the ledger's scale."""
    return {
        "at": plan.at.isoformat(),
        "policy_sha256": plan.policy_sha256,
        "steps": [_answer_to_json(answer) for answer in plan.answers],
        "budgets": [_balance_to_json(balance) for balance in plan.balances],
        "overshoot_microjoules": plan.overshoot_microjoules,
        "overshoot_seconds": plan.overshoot_seconds,
        "notes": list(plan.notes),
    }


def _answer_to_json(answer: PlannedAnswer) -> dict[str, object]:
    decision, expected = answer.decision, answer.expected
    return {
        "step": answer.step.name,
        "wildcards": answer.step.wildcards,
        "answer": answer.action.value if answer.action else None,
        "first_answer": answer.first.action.value if answer.first else None,
        "would_answer": decision.would.value if decision else None,
        "tier": decision.tier if decision else None,
        "reason": _reason(answer) or (decision.reason if decision else ""),
        "budget": None if _budget(answer) == MISSING else _budget(answer),
        "is_delayed": answer.is_delayed,
        "refused_at": answer.refused_at.isoformat() if answer.refused_at else None,
        "behind": answer.behind,
        "amounts": {unit.value: amount for unit, amount in decision.amounts.items()} if decision else {},
        "expected_microjoules": expected.point if expected else None,
        "expected_low_microjoules": expected.low if expected else None,
        "expected_high_microjoules": expected.high if expected else None,
        "estimate_source": answer.estimate.source if answer.estimate else None,
    }


def _balance_to_json(balance: PlannedBalance) -> dict[str, object]:
    return {
        **balance_to_json(balance.before),
        "spent_after": balance.after.spent,
        "spent_after_low": balance.low,
        "spent_after_high": balance.high,
        "available_after": balance.after.available,
    }
