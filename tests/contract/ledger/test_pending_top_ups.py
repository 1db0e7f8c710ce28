"""What a running step asked for and did not get is kept for it; the oldest step comes first."""

from __future__ import annotations

import pytest

from mlflow_green.errors import LedgerError
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, Mode, TopUp, Unit
from tests.testkit.ledger_samples import (
    OWNER,
    admit_anything,
    admit_what_fits,
    lose,
    request,
    settle,
    term,
    void,
)

MONTH = term()
YEAR = term("year", limit=1000)
CARBON = term(unit=Unit.CARBON, limit=50)


@pytest.fixture(autouse=True)
def the_books_close_whatever_a_test_did(ledger):
    yield
    assert [f for f in verify(ledger, lambda _owner: True) if "windows attributed" not in f] == []


@pytest.fixture
def hold(ledger, clock):
    def open_hold(name, amount, *terms, choose=admit_what_fits):
        """Each hold is a second younger than the one before."""
        clock.move(1)
        batch = Batch(requests=(request(name, amount, *(terms or (MONTH,))),), owner=OWNER)
        return ledger.commit(batch, choose).answers[0].hold

    return open_hold


def ask_for(hold, amount, **more):
    amounts = {Unit.ENERGY: amount} if isinstance(amount, int) else amount
    return TopUp(hold_id=hold.hold_id, amounts=amounts, **more)


def top_up(ledger, *asked):
    granted = ledger.commit(Batch(top_ups=asked), admit_what_fits).top_ups
    return [amounts[Unit.ENERGY] for amounts in granted]


def pending(ledger, *terms):
    return [balance.pending for balance in ledger.balances(terms or (MONTH,))]


def open_hold_of(ledger, hold):
    return next(each for each in ledger.open_holds() if each.hold_id == hold.hold_id)


def test_what_a_top_up_lacks_is_pending_in_every_hard_budget_of_the_hold(ledger, hold):
    first = hold("train", 60, MONTH, YEAR)
    hold("other", 30)
    assert top_up(ledger, ask_for(first, 25)) == [10]
    assert pending(ledger, MONTH, YEAR) == [15, 15]
    assert open_hold_of(ledger, first).wanted == {Unit.ENERGY: 15}
    assert {balance.term.budget: balance.pending for balance in ledger.balances()} == {"month": 15, "year": 15}


def test_all_units_that_a_top_up_lacks_are_pending(ledger, hold):
    first = hold("train", {Unit.ENERGY: 10, Unit.CARBON: 40}, MONTH, CARBON)
    top_up(ledger, ask_for(first, {Unit.ENERGY: 30, Unit.CARBON: 20}))
    assert open_hold_of(ledger, first).amounts == {Unit.ENERGY: 25, Unit.CARBON: 50}
    assert pending(ledger, MONTH, CARBON) == [15, 10]


def test_a_new_hold_does_not_take_what_is_pending(ledger, hold):
    first, other = hold("train", 60), hold("other", 40)
    top_up(ledger, ask_for(first, 25))
    ledger.commit(Batch(closings=(settle(other, 0),)), admit_what_fits)
    assert hold("small", 15) is not None
    assert hold("next", 1) is None
    assert ledger.decisions()[-1].decision.available == 0
    assert ledger.decisions()[-1].balances[0].pending == 25


def test_no_policy_can_hold_what_is_pending(ledger, hold):
    first, other = hold("train", 60), hold("other", 40)
    top_up(ledger, ask_for(first, 25))
    ledger.commit(Batch(closings=(void(other),)), admit_what_fits)
    with pytest.raises(LedgerError, match="impossible"):
        hold("greedy", 16, choose=admit_anything)
    assert pending(ledger) == [25]


def test_the_next_top_up_takes_the_place_of_the_one_before(ledger, hold):
    first, other = hold("train", 60), hold("other", 40)
    top_up(ledger, ask_for(first, 25))
    assert top_up(ledger, ask_for(first, 5)) == [0]
    assert pending(ledger) == [5]
    ledger.commit(Batch(closings=(settle(other, 0),)), admit_what_fits)
    assert top_up(ledger, ask_for(first, 30)) == [30]
    assert pending(ledger) == [0]


@pytest.mark.parametrize("ending", [void, lambda hold: settle(hold, 3), lambda hold: lose(hold, 3, 9)])
def test_nothing_is_pending_for_a_step_that_has_ended(ledger, hold, ending):
    first, other = hold("train", 60), hold("other", 40)
    top_up(ledger, ask_for(first, 25))
    ledger.commit(Batch(closings=(ending(first), settle(other, 0))), admit_what_fits)
    assert pending(ledger) == [0]
    assert hold("next", 80) is not None


def test_a_younger_step_gets_only_what_an_older_one_does_not_wait_for(ledger, hold):
    old, young, other = hold("old", 30), hold("young", 30), hold("other", 40)
    assert top_up(ledger, ask_for(old, 25)) == [0]
    ledger.commit(Batch(closings=(settle(other, 5),)), admit_what_fits)
    assert top_up(ledger, ask_for(young, 25)) == [10]
    assert top_up(ledger, ask_for(old, 25)) == [25]
    assert pending(ledger) == [15]


def test_an_older_step_is_not_kept_back_by_what_a_younger_one_waits_for(ledger, hold):
    old, young, other = hold("old", 30), hold("young", 30), hold("other", 40)
    assert top_up(ledger, ask_for(young, 25)) == [0]
    ledger.commit(Batch(closings=(settle(other, 5),)), admit_what_fits)
    assert top_up(ledger, ask_for(old, 25)) == [25]


def test_of_several_top_ups_in_one_batch_the_oldest_hold_is_served_first(ledger, hold):
    old, young = hold("old", 30), hold("young", 40)
    closed = hold("closed", 1)
    ledger.commit(Batch(closings=(void(closed),)), admit_what_fits)
    stranger = TopUp(hold_id="stranger", amounts={Unit.ENERGY: 9})
    asked = (ask_for(young, 20), stranger, ask_for(old, 25), ask_for(closed, 5))
    assert top_up(ledger, *asked) == [5, 0, 25, 0]
    assert pending(ledger) == [15]


def test_a_step_that_may_finish_without_more_keeps_nobody_waiting(ledger, hold):
    first = hold("train", 60)
    assert top_up(ledger, ask_for(first, 45, may_finish=True)) == [40]
    assert pending(ledger) == [0]
    top_up(ledger, ask_for(first, 5))
    assert pending(ledger) == [5]
    top_up(ledger, ask_for(first, 5, may_finish=True))
    assert pending(ledger) == [0]


def test_a_budget_that_is_not_hard_keeps_nothing_for_a_running_step(ledger, hold):
    soft = term("soft", mode=Mode.SOFT, limit=10)
    first = hold("train", 60, MONTH, soft)
    top_up(ledger, ask_for(first, 45))
    assert pending(ledger, MONTH, soft) == [5, 0]
    assert hold("next", 0, term(mode=Mode.SOFT)) is not None
    assert [balance.pending for balance in ledger.balances()] == [0, 0], "the month is soft now"


def test_what_is_pending_is_not_committed(ledger, hold):
    first = hold("train", 60)
    top_up(ledger, ask_for(first, 45))
    (balance,) = ledger.balances((MONTH,))
    assert (balance.committed, balance.available) == (100, -5)


def test_a_balance_that_only_waits_for_more_counts_as_changed(ledger, hold):
    first = hold("train", 100)
    before = ledger.commit(Batch(), admit_what_fits).generation
    asked = Batch(top_ups=(ask_for(first, 5),))
    assert ledger.commit(asked, admit_what_fits).generation == before + 1
    assert ledger.commit(asked, admit_what_fits).generation == before + 1
