"""The messages that a transaction promises: to MLflow, and to the channels of a budget whose threshold is crossed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mlflow_green.ledger.allowances import LimitChange, allowance_text, change_text
from mlflow_green.records import AlertRule, Allowance, Balance, Decision, Entry, Hold, HoldRequest, PolicyVersion
from mlflow_green.units import exact, format_amount, format_percent

REFUSED, HALTED = "refused", "halted"
UNTIL_TAKEN = "|until taken"
"""How the ``dedup`` ends of a message that may be promised again as soon as it does not wait any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A row for the outbox; ``text`` is one sentence for people, empty for other programs."""

    kind: str
    dedup: str
    payload: Mapping[str, object]
    text: str = ""


def applied_message(
    change: LimitChange, version: PolicyVersion, approved_by: str, to: Sequence[str], now: datetime
) -> Message:
    """Tell the channels that a policy was applied, once for each budget and unit that it changed."""
    after = change.limit
    return Message(
        kind="alert",
        dedup="|".join(("applied", version.sha256, *after.key, now.isoformat())),
        payload={
            "budget": after.budget,
            "account": after.account,
            "unit": after.unit.value,
            "period": "",
            "at_ratio": None,
            "of": "policy",
            "amount": after.limit,
            "limit": after.limit,
            "to": list(to),
            "text": f"{approved_by} applied policy {version.sha256[:12]}: {change_text(change)}",
        },
    )


def allowance_message(allowance: Allowance, limit: int, to: Sequence[str]) -> Message:
    """Tell the channels of a budget that its limit was raised, or that somebody asks for that."""
    text = allowance_text(allowance)
    return Message(
        kind="alert",
        dedup=f"allowance|{allowance.allowance_id}|{'approved' if allowance.is_approved else 'asked'}",
        payload={
            "budget": allowance.budget,
            "account": allowance.account,
            "unit": allowance.unit.value,
            "period": allowance.period,
            "at_ratio": None,
            "of": allowance.kind.value,
            "amount": allowance.amount,
            "limit": limit,
            "to": list(to),
            "text": text,
            "allowance_id": allowance.allowance_id,
        },
    )


def mlflow_message(entry: Entry) -> Message:
    """The promise that this entry will reach MLflow."""
    return Message(kind="mlflow", dedup=f"entry:{entry.entry_id}", payload={"entry_id": entry.entry_id})


def _amount(rule: AlertRule, balance: Balance) -> int:
    return balance.committed if rule.of_committed else balance.spent


def is_reached(rule: AlertRule, balance: Balance) -> bool:
    ratio = exact(rule.at_ratio)
    return _amount(rule, balance) * ratio.denominator >= ratio.numerator * balance.limit


def crossing_message(rule: AlertRule, before: Balance, after: Balance, hold: Hold | None, generation: int) -> Message:
    """``generation`` makes every crossing a message of its own; ``hold`` is whose row crossed the threshold."""
    term = after.term
    base = "committed" if rule.of_committed else "spent"
    amount = _amount(rule, after)
    text = (
        f"budget {term.budget} ({term.account}, {term.period}) is past {format_percent(rule.at_ratio)} {base}:"
        f" {format_amount(term.unit, amount)} of {format_amount(term.unit, after.limit)} {term.unit.value}"
    )
    return Message(
        kind="alert",
        dedup="|".join((*term.key, repr(rule.at_ratio), base, ",".join(rule.to), str(generation))),
        payload={
            "budget": term.budget,
            "account": term.account,
            "unit": term.unit.value,
            "period": term.period,
            "at_ratio": rule.at_ratio,
            "of": base,
            "amount": amount,
            "limit": after.limit,
            "before": _amount(rule, before),
            "after": amount,
            "spent": after.spent,
            "held": after.held,
            "hold_id": hold.hold_id if hold else None,
            "step": hold.step.label if hold else None,
            "user": hold.user if hold else None,
            "project": hold.project if hold else None,
            "policy_sha256": hold.policy_sha256 if hold else None,
            "generation": generation,
            "to": list(rule.to),
            "text": text,
        },
        text=text,
    )


def refused_message(request: HoldRequest, decision: Decision, balances: Sequence[Balance]) -> Message | None:
    """Tell the channels of the budget that refused a step; ``None`` where it has none."""
    what = (decision.budget, decision.unit)
    balance = next((each for each in balances if (each.term.budget, each.term.unit) == what), None)
    if balance is None:
        return None
    about = {
        "needed": decision.needed,
        "available": decision.available,
        "hold_id": None,
        "policy_sha256": decision.policy_sha256,
    }
    return _stopped_message(REFUSED, balance, request, {**about, "reason": decision.reason})


def halted_message(hold: Hold, entry: Entry, balances: Sequence[Balance]) -> Message | None:
    """Tell the channels of the budget that halted a step: the entry's reason says "BUDGET: STEP used UNIT ...".

    ``hold`` and ``balances`` are as they were before the hold was closed.
    """
    named = [each for each in balances if entry.reason.startswith(f"{each.term.budget}: {hold.step.label} ")]
    if not named:
        return None
    balance = next((each for each in named if f" {each.term.unit.value} " in entry.reason), named[0])
    about = {
        "needed": hold.wanted.get(balance.term.unit),
        "available": balance.limit - balance.committed,
        "hold_id": hold.hold_id,
        "policy_sha256": hold.policy_sha256,
    }
    return _stopped_message(HALTED, balance, hold, {**about, "reason": entry.reason})


def _stopped_message(
    what: str, balance: Balance, who: HoldRequest | Hold, about: Mapping[str, object]
) -> Message | None:
    """One for each budget and workflow run, whatever number of steps it is about: the sender counts them."""
    term, step = balance.term, who.step
    to = list(dict.fromkeys(name for rule in term.alerts for name in rule.to))
    if not to:
        return None
    return Message(
        kind="alert",
        dedup="|".join((*term.key, what, step.workflow_run)) + UNTIL_TAKEN,
        payload={
            "budget": term.budget,
            "account": term.account,
            "unit": term.unit.value,
            "period": term.period,
            "at_ratio": None,
            "of": what,
            "limit": balance.limit,
            "spent": balance.spent,
            "held": balance.held,
            "step": step.label,
            "user": who.user,
            "project": who.project,
            "workflow_run": step.workflow_run,
            **about,
            "to": to,
            "text": f"budget {term.budget} {what} {step.label}: {about['reason']}",
        },
    )
