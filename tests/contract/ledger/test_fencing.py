"""A hold that somebody takes over is no longer the business of who had it before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.errors import LedgerError
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, TopUp, Unit
from tests.testkit.ledger_samples import (
    OWNER,
    admit_what_fits,
    lose,
    request,
    settle,
    term,
    void,
)

MONTH = term()
HEIR = replace(OWNER, pid=43)
RIVAL = replace(OWNER, pid=44)


@pytest.fixture(autouse=True)
def the_books_close_whatever_a_test_did(ledger):
    yield
    assert [f for f in verify(ledger, lambda _owner: True) if "windows attributed" not in f] == []


@pytest.fixture
def hold(ledger):
    batch = Batch(requests=(request("train", 40, MONTH),), owner=OWNER)
    return ledger.commit(batch, admit_what_fits).answers[0].hold


def adopt(ledger, hold, owner=HEIR):
    (adopted,) = ledger.commit(Batch(adoptions=(hold.hold_id,), owner=owner), admit_what_fits).adopted
    return adopted


def close(ledger, *closings):
    return ledger.commit(Batch(closings=closings), admit_what_fits)


def at(epoch, closing):
    return replace(closing, epoch=epoch)


def spent(ledger):
    return ledger.balances((MONTH,))[0].spent


def test_who_takes_a_hold_over_owns_it_in_the_next_epoch(ledger, hold):
    adopted = adopt(ledger, hold)
    assert adopted == replace(hold, owner=HEIR, epoch=2)
    assert ledger.open_holds() == (adopted,)
    assert adopt(ledger, hold, RIVAL).epoch == 3


def test_a_hold_taken_over_twice_by_the_same_owner_is_taken_over_once(ledger, hold):
    assert adopt(ledger, hold) == adopt(ledger, hold)


def test_a_hold_that_is_not_open_cannot_be_taken_over(ledger, hold):
    close(ledger, settle(hold, 3))
    batch = Batch(adoptions=(hold.hold_id, "stranger"), owner=HEIR)
    assert ledger.commit(batch, admit_what_fits).adopted == (None, None)


def test_nobody_takes_over_without_a_name(ledger, hold):
    with pytest.raises(LedgerError, match="names its owner"):
        ledger.commit(Batch(adoptions=(hold.hold_id,)), admit_what_fits)
    assert ledger.open_holds() == (hold,)


def test_the_old_owner_gets_no_more(ledger, hold):
    adopted = adopt(ledger, hold)
    asked = [TopUp(hold_id=hold.hold_id, amounts={Unit.ENERGY: 70}, epoch=epoch) for epoch in (1, 2)]
    assert ledger.commit(Batch(top_ups=(asked[0],)), admit_what_fits).top_ups == ({Unit.ENERGY: 0},)
    assert ledger.open_holds() == (adopted,), "and nothing is kept for it either"
    assert ledger.commit(Batch(top_ups=(asked[1],)), admit_what_fits).top_ups == ({Unit.ENERGY: 60},)


@pytest.mark.parametrize("closing", [void, lambda hold: settle(hold, 3), lambda hold: lose(hold, 3, 9)])
def test_the_old_owner_closes_nothing_and_is_told_so(ledger, hold, closing):
    adopted = adopt(ledger, hold)
    assert close(ledger, at(1, closing(hold))).fenced == (hold.hold_id,)
    assert (ledger.open_holds(), ledger.entries(), spent(ledger)) == ((adopted,), (), 0)
    assert close(ledger, at(2, closing(hold))).fenced == ()
    assert ledger.open_holds() == ()


def test_what_the_old_owner_read_corrects_what_the_new_one_charged(ledger, hold):
    adopt(ledger, hold)
    close(ledger, at(2, lose(hold, used=3, charged=90)))
    late = at(1, settle(hold, 35))
    assert close(ledger, late, late).fenced == ()
    assert spent(ledger) == 35
    assert [row.kind for row in ledger.journal()] == ["hold", "lost", "adjust"]


def test_of_two_that_take_a_hold_over_only_the_last_can_close_it(ledger, hold):
    adopt(ledger, hold)
    adopt(ledger, hold, RIVAL)
    close(ledger, at(2, lose(hold, used=3, charged=90)))
    close(ledger, at(3, lose(hold, used=3, charged=50)))
    close(ledger, at(2, lose(hold, used=3, charged=90)))
    assert spent(ledger) == 50


def test_a_message_without_an_epoch_is_nobodys_in_particular(ledger, hold):
    adopt(ledger, hold)
    close(ledger, settle(hold, 35))
    assert spent(ledger) == 35


def test_a_hold_is_taken_over_before_it_is_closed_in_one_batch(ledger, hold):
    batch = Batch(adoptions=(hold.hold_id,), closings=(at(1, settle(hold, 3)),), owner=HEIR)
    committed = ledger.commit(batch, admit_what_fits)
    assert (committed.adopted[0].epoch, committed.fenced) == (2, (hold.hold_id,))


def test_taking_over_moves_no_balance(ledger, hold):
    before = ledger.commit(Batch(), admit_what_fits).generation
    adopt(ledger, hold)
    assert ledger.commit(Batch(), admit_what_fits).generation == before
    assert [row.kind for row in ledger.journal()] == ["hold"]
