"""The messages that a transaction promises: to MLflow, and to the channels of a budget whose threshold is crossed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mlflow_green.ledger.allowances import LimitChange, allowance_text, change_text
from mlflow_green.records import AlertRule, Allowance, Balance, Entry, Hold, PolicyVersion
from mlflow_green.units import exact, format_amount


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
        f"budget {term.budget} ({term.account}, {term.period}) is past {rule.at_ratio:.0%} {base}:"
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
