"""Why a step waits, in words: what it needs, who has it, what happens next, and what can be done."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console
from rich.text import Text

from mlflow_green import units
from mlflow_green.policy.document import Budget
from mlflow_green.policy.raising import percent_short_of, way_to_raise
from mlflow_green.recorder.waits import Holder, Waiting
from mlflow_green.records import Unit
from mlflow_green.reports.explanation import print_facts


def explain_waiting(console: Console, waiting: Waiting, now: datetime, *, is_known: bool = False) -> None:
    """A few lines about one step. ``is_known``: the ledger itself knows who writes."""
    decision, unit = waiting.row.decision, waiting.row.decision.unit or Unit.ENERGY
    console.print(Text(f"{waiting.row.step.label}: waits for {decision.budget or 'a budget'}", "bold"))
    lines = [
        (
            "since",
            f"{_clock(waiting.since)}, {_span(waiting.since, now)} ago; last answer {_span(waiting.row.at, now)} ago",
        ),
        ("why", decision.reason),
    ]
    if waiting.balance is not None:
        balance = waiting.balance
        of, available = (units.format_amount(unit, each) for each in (balance.limit, balance.available))
        lines.append(("now", f"{available} available of {of}"))
    lines += [("held by", _holder(holder, unit)) for holder in waiting.holders]
    if waiting.holders_more:
        lines.append(("", f"and {waiting.holders_more} more; --json has all of them"))
    lines.append(("next", _next(waiting)))
    if waiting.budget is not None:
        lines.append(("to do", _advice(waiting, waiting.budget, is_known=is_known)))
    print_facts(console, lines)
    console.print()


def _holder(holder: Holder, unit: Unit) -> str:
    hold = holder.hold
    end = f", ends at about {_clock(holder.ends_at)}" if holder.ends_at else ""
    amount = units.format_amount(unit, holder.amount)
    if holder.wanted:
        amount = f"{amount}, waits for {units.format_amount(unit, holder.wanted)} more"
    return f"{hold.step.label} {amount} ({hold.user} on {hold.owner.host}, since {_clock(hold.opened_at)}{end})"


def _next(waiting: Waiting) -> str:
    """What may end the waiting, and when it ends at the latest."""
    hopes = []
    if waiting.holders:
        hopes.append("it is asked again whenever a step settles")
    by = waiting.refused_by
    if waiting.period_ends_at is not None and (by is None or waiting.period_ends_at <= by):
        hopes.append(f"the budget starts afresh at {_clock(waiting.period_ends_at)}")
    if by is not None:
        hopes.append(f"refused at {_clock(by)} at the latest")
    return "; ".join(hopes) or "not known: the policy has no such budget any more"


def _advice(waiting: Waiting, budget: Budget, *, is_known: bool) -> str:
    """Only what really can be done."""
    if waiting.row.decision.needed is None and budget.unknown_step == "wait":
        return (
            f"say what it needs, for the next run: steps: {{{waiting.row.step.name}: {{energy: 5 Wh}}}} in green.yaml"
        )
    patience = "nothing, or end what holds it" if waiting.holders else "nothing"
    short = percent_short_of(budget, waiting.balance, waiting.row.decision.needed or 0) if waiting.balance else 0
    return f"{patience}; else {way_to_raise(budget, is_known=is_known, percent_short=short)}"


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _span(moment: datetime, now: datetime) -> str:
    seconds = max(0.0, (now - moment).total_seconds())
    return f"{seconds:.0f} s" if seconds < units.SECONDS["min"] else units.format_hours(seconds / units.SECONDS["h"])


def waiting_to_json(waiting: Waiting) -> dict[str, object]:
    """All of it; amounts are integers in the ledger's scale."""
    row, decision = waiting.row, waiting.row.decision
    return {
        "step": row.step.name,
        "wildcards": row.step.wildcards,
        "workflow_run": row.step.workflow_run,
        "attempt": row.step.attempt,
        "since": waiting.since.isoformat(),
        "answered_at": row.at.isoformat(),
        "reason": decision.reason,
        "budget": decision.budget,
        "unit": decision.unit.value if decision.unit else None,
        "needed": decision.needed,
        "pending": waiting.balance.pending if waiting.balance else None,
        "available": waiting.balance.available if waiting.balance else decision.available,
        "holders": [
            {
                "step": holder.hold.step.label,
                "hold_id": holder.hold.hold_id,
                "amount": holder.amount,
                "wanted": holder.wanted,
                "user": holder.hold.user,
                "host": holder.hold.owner.host,
                "pid": holder.hold.owner.pid,
                "since": holder.hold.opened_at.isoformat(),
                "ends_at": holder.ends_at.isoformat() if holder.ends_at else None,
            }
            for holder in waiting.holders
        ],
        "holders_more": waiting.holders_more,
        "period_ends_at": waiting.period_ends_at.isoformat() if waiting.period_ends_at else None,
        "refused_by": waiting.refused_by.isoformat() if waiting.refused_by else None,
    }
