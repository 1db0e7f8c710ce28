"""A step that ran without a hold gets one of nothing when it is settled, so that its budgets are charged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from mlflow_green.errors import HoldClosed
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.records import (
    Action,
    Answer,
    Balance,
    Batch,
    Committed,
    Decision,
    Domain,
    Hold,
    HoldRequest,
    Owner,
    PastUse,
    Term,
)


def hold_late(ledger: Ledger, requests: Iterable[HoldRequest], owner: Owner) -> None:
    """Open the holds that these steps were promised; one that was opened, or closed, before stays as it is."""
    for request in requests:
        with suppress(HoldClosed):
            ledger.commit(Batch(requests=(request,), owner=owner), admit_at_nothing)


def admit_at_nothing(request: HoldRequest, _balances: Sequence[Balance] = ()) -> Decision:
    """For facts: nothing is reserved, and what was spent is posted in full."""
    tiers = request.spec.tiers
    return Decision(
        action=Action.ADMIT,
        would=Action.ADMIT,
        tier=tiers[0].name if tiers else None,
        amounts={},
        reason="metered without asking the ledger: no budget is hard",
    )


class NoLedger:
    """Stands in for the ledger where only the spool is written: admits every step without a hold, keeps nothing."""

    def commit(self, batch: Batch, _choose: object) -> Committed:
        answers = tuple(Answer(decision=admit_at_nothing(request), hold=None) for request in batch.requests)
        return Committed(answers=answers, top_ups=tuple({} for _ in batch.top_ups), alerts=(), generation=0)

    def balances(self, _terms: Sequence[Term] = ()) -> tuple[Balance, ...]:
        return ()

    def open_holds(self) -> tuple[Hold, ...]:
        return ()

    def history(self, _project: str, _step: str) -> tuple[PastUse, ...]:
        return ()

    def last_sequences(self, _sampler_id: str) -> dict[Domain, int]:
        return {}

    def close(self) -> None:
        """There is nothing to release."""
