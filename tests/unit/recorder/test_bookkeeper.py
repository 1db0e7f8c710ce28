from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.ledger.verify import verify
from mlflow_green.recorder.ticket import Ticket, entry_of
from mlflow_green.records import Action, AlertRule, Batch, Closing, ClosingKind, Outcome, Unit
from tests.testkit.ledger_samples import NOON, OWNER, admit_what_fits, lose, usage, window
from tests.testkit.recorder_parts import BOOK, FailingLedger, SimplePlanner, bookkeeper, down, ticket

SECONDS = 10


def settle(keeper, step: Ticket, used: int) -> Closing:
    step.began_at = NOON
    step.usage = usage(used)
    entry = entry_of(step, Outcome.SUCCEEDED, BOOK, NOON)
    closing = Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry)
    keeper.settle(step, closing)
    return closing


def spent(ledger) -> int:
    return sum(balance.spent for balance in ledger.balances())


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def ledger() -> FailingLedger:
    return FailingLedger()


def test_what_was_used_while_the_ledger_was_down_is_posted_once_when_it_is_back(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=True), said), ticket("train")
    keeper.ask([step])
    assert keeper.flush(SECONDS)
    ledger.problem = down()
    settle(keeper, step, 7)
    keeper.post([window(1, 7)])
    assert not keeper.flush(SECONDS)
    assert not keeper.flush(SECONDS)
    ledger.problem = None
    assert keeper.flush(SECONDS)
    assert keeper.flush(SECONDS)
    assert (spent(ledger), len(ledger.entries()), len(ledger.node_windows())) == (7, 1, 1)
    assert ledger.open_holds() == ()
    assert len(said) == 1, "an outage is said once"


def test_where_no_budget_applies_nobody_waits_for_a_ledger_that_is_busy(ledger, said) -> None:
    planner = SimplePlanner(enforces=False)
    planner.limits = False
    ledger.is_free.clear()
    keeper, busy, step = bookkeeper(ledger, planner, said), ticket("before"), ticket("train")
    keeper.post([window(1, 7)])
    keeper.ask([busy, step])
    assert step.admitted
    assert step.hold is not None
    ledger.is_free.set()
    assert keeper.flush(SECONDS)


def test_a_step_that_runs_no_program_needs_neither_room_nor_the_ledger(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=True, limit=0), said), ticket("all", needs_nothing=True)
    ledger.problem = down()
    keeper.ask([step])
    assert step.admitted
    assert (step.hold, said) == (None, [])
    ledger.problem = None
    settle(keeper, step, 7)
    assert keeper.flush(SECONDS)
    assert spent(ledger) == 7, "what it used is charged all the same"


@pytest.mark.parametrize("problem", [down(), RuntimeError("a bug")])
def test_without_a_ledger_a_hard_budget_refuses_and_observe_admits(said, problem) -> None:
    for enforces, action in ((True, Action.REFUSE), (False, Action.ADMIT)):
        ledger = FailingLedger()
        ledger.problem = problem
        keeper, step = bookkeeper(ledger, SimplePlanner(enforces=enforces), said), ticket("train")
        keeper.ask([step])
        keeper.flush(SECONDS)
        assert step.decision.action is action
        ledger.problem = None
        later = ticket("later")
        keeper.ask([later])
        keeper.flush(SECONDS)
        keeper.ask([last := ticket("last")])
        keeper.flush(SECONDS)
        assert last.admitted, "the ledger thread lives on"


def test_a_step_that_ran_without_a_hold_is_charged_to_its_budgets(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=False), said), ticket("train")
    ledger.problem = down()
    keeper.ask([step])
    keeper.flush(SECONDS)
    settle(keeper, step, 7)
    keeper.flush(SECONDS)
    ledger.problem = None
    assert keeper.flush(SECONDS)
    assert (spent(ledger), len(ledger.entries())) == (7, 1)
    assert ledger.entries()[0].hold_id == step.hold_id
    assert verify(ledger, lambda owner: True) == ()


def test_one_impossible_record_does_not_keep_the_others_from_being_posted(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=True), said), ticket("train")
    keeper.ask([step])
    keeper.flush(SECONDS)
    settle(keeper, step, 7)
    keeper.settle(ticket("impossible"), Closing(kind=ClosingKind.SETTLE, hold_id="x", entry=None))
    assert not keeper.flush(SECONDS), "the spool must stay"
    assert spent(ledger) == 7
    assert ledger.open_holds() == ()


def test_a_closed_key_asked_again_does_not_refuse_its_neighbours(ledger, said) -> None:
    keeper, first = bookkeeper(ledger, SimplePlanner(enforces=True), said), ticket("train")
    keeper.ask([first])
    keeper.flush(SECONDS)
    settle(keeper, first, 7)
    again, neighbour = ticket("train"), ticket("other")
    keeper.ask([again, neighbour])
    keeper.flush(SECONDS)
    assert (again.refused, neighbour.admitted) == (True, True)


def test_a_question_that_was_never_answered_leaves_no_hold(ledger, said) -> None:
    ready: list[bool] = []
    keeper = bookkeeper(ledger, SimplePlanner(enforces=True), said, ready=lambda: bool(ready))
    step = ticket("train")
    keeper.ask([step])
    keeper.flush(SECONDS)
    assert step.decision is None
    keeper.void([step], "the workflow ended")
    ready.append(True)
    assert keeper.flush(SECONDS)
    assert ledger.open_holds() == ()
    assert ledger.journal() == ()


def test_an_unused_hold_is_void_and_a_waiting_step_gets_its_room(ledger, said) -> None:
    keeper = bookkeeper(ledger, SimplePlanner(enforces=True, amount=60), said)
    first, second = ticket("first"), ticket("second")
    keeper.ask([first, second])
    keeper.flush(SECONDS)
    assert (first.admitted, second.decision.action) == (True, Action.WAIT)
    keeper.void([first], "not needed")
    keeper.flush(SECONDS)
    assert second.admitted
    assert [hold.step.name for hold in ledger.open_holds()] == ["second"]


def test_a_top_up_without_a_ledger_counts_as_refused_until_one_is_granted(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=True, limit=50), said), ticket("train")
    keeper.ask([step])
    keeper.flush(SECONDS)
    ledger.problem = down()
    keeper.top_up(step, {Unit.ENERGY: 20})
    keeper.flush(SECONDS)
    assert (step.top_up_refused, step.top_up_pending) == (True, False)
    ledger.problem = None
    keeper.top_up(step, {Unit.ENERGY: 20})
    keeper.flush(SECONDS)
    assert (step.top_up_refused, step.granted[Unit.ENERGY]) == (False, 30)
    keeper.top_up(step, {Unit.ENERGY: 40})
    keeper.flush(SECONDS)
    assert (step.top_up_refused, step.granted[Unit.ENERGY]) == (True, 50), "a part is granted, and it is refused more"


def test_the_entry_of_a_refused_step_is_posted_before_the_flush_returns(ledger, said) -> None:
    class Refuser(SimplePlanner):
        def choose(self, request, balances):
            from dataclasses import replace

            decision = SimplePlanner.choose(request, balances)
            return decision if decision.admitted else replace(decision, action=Action.REFUSE)

    keeper, step = bookkeeper(ledger, Refuser(enforces=True, amount=101), said), ticket("train")
    keeper.ask([step])
    assert keeper.flush(SECONDS)
    assert step.refused
    assert [entry.outcome for entry in ledger.entries()] == [Outcome.REFUSED]


def test_where_no_budget_applies_a_step_starts_without_the_ledger_and_is_posted_in_the_end(ledger, said) -> None:
    planner = SimplePlanner(enforces=False)
    planner.limits = False
    keeper, step = bookkeeper(ledger, planner, said), ticket("train")
    ledger.problem = down()
    keeper.ask([step])
    keeper.flush(SECONDS)
    assert step.admitted
    ledger.problem = None
    settle(keeper, step, 7)
    assert keeper.flush(SECONDS)
    assert [entry.energy_charged_microjoules for entry in ledger.entries()] == [7]
    assert verify(ledger, lambda owner: True) == ()


def test_a_planner_that_fails_loses_no_question_and_no_fact(ledger, said) -> None:
    planner = SimplePlanner(enforces=True)
    keeper, first, second = bookkeeper(ledger, planner, said), ticket("first"), ticket("second")
    keeper.ask([first])
    keeper.flush(SECONDS)
    planner.amount = None  # breaks every request
    keeper.ask([second])
    settle(keeper, first, 7)
    keeper.flush(SECONDS)
    assert second.refused
    assert spent(ledger) == 7


def test_what_was_read_of_a_hold_that_was_taken_over_corrects_what_its_new_owner_charges(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=True), said), ticket("train")
    keeper.ask([step])
    assert keeper.flush(SECONDS)
    adoption = Batch(adoptions=(step.hold_id,), owner=replace(OWNER, pid=43))
    (adopted,) = ledger.commit(adoption, admit_what_fits).adopted
    keeper.top_up(step, {Unit.ENERGY: 20})
    settle(keeper, step, 7)
    assert not keeper.flush(SECONDS), "the spool must stay"
    assert (step.granted[Unit.ENERGY], step.top_up_refused) == (10, True)
    assert ledger.open_holds() == (adopted,)
    charged = replace(lose(adopted, used=0, charged=90), epoch=adopted.epoch)
    ledger.commit(Batch(closings=(charged,)), admit_what_fits)
    assert keeper.flush(SECONDS)
    assert (spent(ledger), len(ledger.entries())) == (7, 1)
    assert len([text for text in said if "taken over" in text]) == 1
    assert verify(ledger, lambda owner: True) == ()


def test_an_unused_hold_that_was_taken_over_is_left_to_its_new_owner(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=True), said), ticket("train")
    keeper.ask([step])
    assert keeper.flush(SECONDS)
    ledger.commit(Batch(adoptions=(step.hold_id,), owner=replace(OWNER, pid=43)), admit_what_fits)
    keeper.void([step], "not needed")
    assert keeper.flush(SECONDS), "it has nothing to tell"
    assert len(ledger.open_holds()) == 1


def test_room_is_kept_for_a_step_that_asks_for_more_unless_it_may_finish_without(ledger, said) -> None:
    keeper, step = bookkeeper(ledger, SimplePlanner(enforces=True, limit=50), said), ticket("train")
    keeper.ask([step])
    keeper.flush(SECONDS)
    keeper.top_up(step, {Unit.ENERGY: 45})
    keeper.flush(SECONDS)
    assert [balance.pending for balance in ledger.balances()] == [5]
    keeper.top_up(step, {Unit.ENERGY: 5}, may_finish=True)
    keeper.flush(SECONDS)
    assert [balance.pending for balance in ledger.balances()] == [0]


def test_a_threshold_that_is_crossed_to_and_fro_is_said_once(ledger, said) -> None:
    planner = SimplePlanner(enforces=True, amount=60)
    planner.term = replace(planner.term, alerts=(AlertRule(at_ratio=0.5, of_committed=True, to=("team",)),))
    keeper = bookkeeper(ledger, planner, said)
    for name in ("first", "second", "third"):
        keeper.ask([step := ticket(name)])
        keeper.flush(SECONDS)
        settle(keeper, step, 0)
        keeper.flush(SECONDS)
    assert ledger.count("alert") == 3
    assert len(said) == 1
    assert "is past 50% committed" in said[0]
