"""Allowances, rollovers and policy versions for the tests of limits, in bare numbers as in ``ledger_samples``."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from mlflow_green.records import Allowance, AllowanceKind, PolicyVersion, Rollover, Term, Unit
from tests.testkit.ledger_samples import NOON, term

HOUR = timedelta(hours=1)


def months(
    budget: str = "month", *, unused: float = 0.25, cap: float = 0.5, carries: bool = True, **more
) -> list[Term]:
    """Four months of one budget, each of which inherits from the one before."""
    found: list[Term] = []
    for number in range(9, 13):
        period = f"2026-{number:02d}"
        rollover = Rollover(
            previous_period=f"2026-{number - 1:02d}",
            unused_ratio=unused,
            cap_ratio=cap,
            carries_overspend=carries,
        )
        found.append(term(budget, period=period, rollover=rollover, **more))
    return found


def grant(amount: int, **more) -> Allowance:
    """Approved by ana unless said otherwise."""
    values: dict = {"budget": "month", "account": "project:demo", "unit": Unit.ENERGY, "period": "2026-11"}
    values |= {"allowance_id": f"grant of {amount}", "approved_by": "ana"} | more
    return Allowance(
        kind=values.pop("kind", AllowanceKind.GRANT),
        amount=amount,
        made_at=NOON,
        requested_by="bob",
        reason=values.pop("reason", "deadline"),
        **values,
    )


def override(amount: int, expires_at: datetime = NOON + HOUR, **more) -> Allowance:
    more.setdefault("allowance_id", f"override of {amount}")
    return grant(amount, kind=AllowanceKind.OVERRIDE, expires_at=expires_at, **more)


def version(text: str = "version: 1", author: str = "bob") -> PolicyVersion:
    return PolicyVersion(sha256=f"sha of {text}", text=text, author=author, at=NOON)


def limited(limit: int, **more) -> Term:
    return replace(term(**more), limit=limit)
