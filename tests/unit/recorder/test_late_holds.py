"""Steps that ran without a hold: their hold and their charge reach the ledger together or not at all."""

from __future__ import annotations

import threading

from mlflow_green.clock import SystemClock
from mlflow_green.errors import LedgerError
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.ticket import entry_of
from mlflow_green.records import Closing, ClosingKind, Outcome
from tests.testkit.ledger_samples import NOON, usage, window
from tests.testkit.recorder_parts import BOOK, FailingLedger, SimplePlanner, bookkeeper, down, ticket

SECONDS = 10


class OftenFailing(FailingLedger):
    """Raises each of ``problems`` once, in their order, then works."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[Exception | None] = []
        self.is_entered = threading.Event()

    def commit(self, batch, choose):
        self.is_entered.set()
        self.is_free.wait()
        if self.problems and (problem := self.problems.pop(0)) is not None:
            raise problem
        return super().commit(batch, choose)


def freely_admitted(keeper, ledger, name="train"):
    step = ticket(name)
    ledger.problem = down()
    keeper.ask([step])
    keeper.flush(SECONDS)
    ledger.problem = None
    assert step.late_request is not None
    step.began_at = NOON
    step.usage = usage(7)
    return step


def settle(keeper, step) -> None:
    entry = entry_of(step, Outcome.SUCCEEDED, BOOK, NOON)
    keeper.settle(step, Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry))


def test_a_charge_is_not_posted_without_its_hold_when_the_work_is_split() -> None:
    ledger, said = OftenFailing(), []
    keeper = bookkeeper(ledger, SimplePlanner(enforces=False), said)
    step = freely_admitted(keeper, ledger)
    ledger.is_free.clear()
    ledger.is_entered.clear()
    keeper.post([window(1, 7)])
    assert ledger.is_entered.wait(SECONDS)  # and it is busy while the rest comes in
    ledger.problems = [None, RuntimeError("an impossible piece"), down()]
    settle(keeper, step)
    keeper.post([window(2, 7)])
    ledger.is_free.set()
    keeper.flush(SECONDS)
    keeper.flush(SECONDS)
    assert keeper.flush(SECONDS)
    assert [balance.spent for balance in ledger.balances()] == [7]
    assert ledger.open_holds() == ()
    assert [finding for finding in verify(ledger, lambda owner: True) if "windows attributed" not in finding] == []


def test_a_charge_whose_hold_is_rejected_keeps_the_spool() -> None:
    ledger, said = OftenFailing(), []
    keeper = bookkeeper(ledger, SimplePlanner(enforces=False), said)
    step = freely_admitted(keeper, ledger)
    ledger.problems = [LedgerError("impossible")] * 2
    settle(keeper, step)
    assert not keeper.flush(SECONDS)
    assert not keeper.flush(SECONDS), "the spool is the only place where it is left"


def test_a_step_is_held_under_the_id_that_its_ticket_had_before() -> None:
    policy = parse_policy(
        b"version: 1\nproject: demo\nbudgets:\n  - {name: b, limit: 1 kWh, period: total, unknown_step: admit}\n"
    )
    ledger, step = MemoryLedger(SystemClock()), ticket("train")
    keeper, before = bookkeeper(ledger, Planner(policy, BOOK, "run1"), []), step.hold_id
    keeper.ask([step])
    assert keeper.flush(SECONDS)
    assert step.hold.hold_id == step.hold_id == before
    assert [hold.hold_id for hold in ledger.open_holds()] == [before]
