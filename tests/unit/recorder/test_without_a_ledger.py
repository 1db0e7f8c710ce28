"""What happens to a step while the ledger cannot be reached, as its budgets' ``ledger_down`` says."""

from __future__ import annotations

import pytest

from mlflow_green.ledger.verify import verify
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.bookkeeper import Bookkeeper
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.ticket import entry_of
from mlflow_green.records import Action, Closing, ClosingKind, Outcome, Unit
from tests.testkit.ledger_samples import NOON, OWNER, SetClock, usage
from tests.testkit.recorder_parts import BOOK, FailingLedger, down, ticket

SECONDS = 10
POLICY = """
version: 1
project: demo
budgets:
  - {name: month, limit: 100 J, period: month, mode: hard, ledger_down: ANSWER, max_wait: 2h}
steps:
  train: {energy: 10 J}
"""


class Outage:
    """A bookkeeper with the real planner, and a ledger that can be taken away."""

    def __init__(self, answer: str) -> None:
        policy = parse_policy(POLICY.replace("ANSWER", answer).encode())
        self.clock, self.ledger, self.said = SetClock(), FailingLedger(), list[str]()
        self.planner = Planner(policy, BOOK, "run1")
        self.keeper = Bookkeeper(
            self.ledger, self.planner, BOOK, OWNER, self.clock, wake=lambda: None, say=self.said.append
        )
        self.keeper.start()

    def ask(self, name: str = "train"):
        asked = ticket(name)
        self.keeper.ask([asked])
        self.keeper.flush(SECONDS)
        return asked

    def recheck(self) -> None:
        self.keeper.recheck()
        self.keeper.flush(SECONDS)

    def settle(self, step, used: int) -> None:
        step.began_at, step.usage = NOON, usage(used)
        entry = entry_of(step, Outcome.SUCCEEDED, BOOK, NOON)
        self.keeper.settle(step, Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry))
        self.keeper.flush(SECONDS)


def test_refuse_starts_nothing_under_a_ledger_that_is_down() -> None:
    outage = Outage("refuse")
    outage.ledger.problem = down()
    step = outage.ask()
    assert step.refused
    assert "disk full" in step.decision.reason
    assert "no step may start" in outage.said[0]


def test_wait_asks_again_until_the_ledger_is_back() -> None:
    outage = Outage("wait")
    outage.ledger.problem = down()
    step = outage.ask()
    outage.clock.move(3_600)
    outage.recheck()
    assert step.decision.action is Action.WAIT
    assert [text for text in outage.said if "waits" in text] == [f"train waits: {step.decision.reason}"], "said once"
    outage.ledger.problem = None
    outage.recheck()
    assert step.admitted
    assert step.granted[Unit.ENERGY] > 0
    assert outage.ledger.open_holds() == (step.hold,)


def test_wait_refuses_once_patience_is_over() -> None:
    outage = Outage("wait")
    outage.ledger.problem = down()
    step = outage.ask()
    outage.clock.move(7_199)
    outage.recheck()
    assert step.decision.action is Action.WAIT
    outage.clock.move(1)
    outage.recheck()
    assert step.refused


def test_admit_starts_the_step_without_a_hold_and_its_budget_pays_when_the_ledger_is_back() -> None:
    outage = Outage("admit")
    outage.ledger.problem = down()
    step, other = outage.ask(), outage.ask("other")
    assert step.admitted
    assert other.admitted
    assert len(outage.said) == 1
    assert "metered to the spool" in outage.said[0]
    outage.settle(step, 7)
    assert outage.ledger.entries() == ()
    outage.ledger.problem = None
    assert outage.keeper.flush(SECONDS)
    assert [balance.spent for balance in outage.ledger.balances()] == [7]
    assert verify(outage.ledger, lambda owner: True) == ()
    assert outage.ask("later").admitted
    assert {hold.step.name for hold in outage.ledger.open_holds()} == {"later"}


@pytest.mark.parametrize(("answer", "refused"), [("admit", False), ("wait", True), ("refuse", True)])
def test_a_running_step_goes_beyond_its_hold_without_the_ledger_only_where_the_policy_admits(answer, refused) -> None:
    outage = Outage(answer)
    step = outage.ask()
    outage.ledger.problem = down()
    outage.keeper.top_up(step, {Unit.ENERGY: 20})
    outage.keeper.flush(SECONDS)
    assert (step.top_up_refused, step.top_up_pending) == (refused, False)


@pytest.mark.parametrize(("answer", "halts"), [("admit", False), ("refuse", True)])
def test_a_ledger_that_is_silent_for_long_halts_a_step_over_its_grant_unless_the_policy_admits(answer, halts) -> None:
    outage = Outage(answer)
    step = outage.ask()
    step.usage = usage(150_000_000)
    step.top_up_pending = step.top_up_refused = True  # as after 5 s without an answer
    verdict = outage.planner.judge(step, ())
    assert (verdict.halt_reason is not None) == halts


@pytest.mark.parametrize("answer", ["admit", "wait"])
def test_a_bug_is_no_outage_and_a_hard_budget_refuses(answer) -> None:
    outage = Outage(answer)
    outage.ledger.problem = RuntimeError("a bug")
    assert outage.ask().refused
