"""A step that ran without a hold gets one of nothing when it is settled, so that its budgets are charged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from mlflow_green.errors import HoldClosed, LedgerError, LedgerUnavailable
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.records import (
    Action,
    Balance,
    Batch,
    Decision,
    Hold,
    HoldRequest,
    Owner,
)


def hold_late(ledger: Ledger, requests: Iterable[HoldRequest], owner: Owner) -> None:
    """Open the holds that these steps were promised; one that was opened, or closed, before stays as it is."""
    for request in requests:
        with suppress(HoldClosed):
            ledger.commit(Batch(requests=(request,), owner=owner), admit_at_nothing)


def promised_hold(request: HoldRequest, owner: Owner) -> Hold:
    """The hold that this step will get when it is settled."""
    return Hold.of_nothing(request, admit_at_nothing(request), owner, hold_id=request.hold_id or request.step.key)


def admit_at_nothing(request: HoldRequest, _balances: Sequence[Balance] = ()) -> Decision:
    """For facts: nothing is reserved, and what was spent is posted in full."""
    tiers = request.spec.tiers
    return Decision(
        action=Action.ADMIT,
        would=Action.ADMIT,
        tier=tiers[0].name if tiers else None,
        amounts={},
        reason="metered without asking the ledger",
    )


def admit_without_need(request: HoldRequest, _balances: Sequence[Balance] = ()) -> Decision:
    """For a step that runs no program."""
    return replace(admit_at_nothing(request), reason=f"{request.step.label} runs no program, so it needs nothing")


@contextmanager
def told_if_refused(say: Callable[[str], None], subject: str) -> Iterator[None]:
    """What the ledger does not take is said and passed over: it must not keep every later run from starting."""
    try:
        yield
    except LedgerUnavailable:
        raise
    except LedgerError as error:
        say(f"the ledger did not take {subject}: {error}; please report it")
