"""A job that the batch system began again: one hold, one entry for each start, and all of them are charged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.errors import LedgerError
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, Closing, ClosingKind, Domain, Unit
from tests.testkit.ledger_samples import OWNER, admit_what_fits, entry, lose, request, settle, term, void, window

MONTH, CARBON = term(limit=1000), term(unit=Unit.CARBON, limit=1000)


@pytest.fixture
def hold(ledger):
    batch = Batch(requests=(request("train", {Unit.ENERGY: 40, Unit.CARBON: 8}, MONTH, CARBON),), owner=OWNER)
    return ledger.commit(batch, admit_what_fits).answers[0].hold


def begun_before(hold, *used, **more):
    return tuple(entry(hold, amount, entry_id=f"start-{n}", **more) for n, amount in enumerate(used))


def close(ledger, *closings):
    ledger.commit(Batch(closings=closings), admit_what_fits)


def spent(ledger):
    return [balance.spent for balance in ledger.balances((MONTH, CARBON))]


def findings(ledger):
    return [text for text in verify(ledger, lambda _owner: True) if "windows attributed" not in text]


@pytest.mark.parametrize("ending", [settle, lambda hold, used: lose(hold, used=used, charged=used)])
def test_a_closing_charges_every_start_and_posts_each_as_an_entry(ledger, hold, ending):
    earlier = begun_before(hold, 11, 7, operational_micrograms_co2e=2)
    close(ledger, replace(ending(hold, 30), earlier=earlier))
    assert spent(ledger) == [48, 4]
    assert [(posted.entry_id, posted.energy_charged_microjoules) for posted in ledger.entries()] == [
        ("start-0", 11),
        ("start-1", 7),
        (f"entry-{hold.hold_id}", 30),
    ]
    assert ledger.count("mlflow") == 3
    assert findings(ledger) == []


def test_a_second_closing_posts_and_charges_nothing_more(ledger, hold):
    closing = replace(settle(hold, 30), earlier=begun_before(hold, 11))
    close(ledger, closing, closing)
    close(ledger, closing, replace(closing, earlier=begun_before(hold, 11, 99)))
    assert spent(ledger)[0] == 41
    assert len(ledger.entries()) == 2


def test_readings_of_a_lost_hold_that_turn_up_later_are_charged_with_those_of_earlier_starts(ledger, hold):
    close(ledger, lose(hold, used=30, charged=40))
    late = replace(settle(hold, 35), earlier=begun_before(hold, 11))
    close(ledger, late, late)
    assert spent(ledger)[0] == 46
    assert findings(ledger) == []


def test_a_second_loss_with_earlier_starts_charges_what_was_metered_of_all_of_them(ledger, hold):
    close(ledger, lose(hold, used=30, charged=40))
    close(ledger, replace(lose(hold, used=30, charged=900), earlier=begun_before(hold, 5)))
    assert spent(ledger)[0] == 40
    close(ledger, replace(lose(hold, used=30, charged=900), earlier=begun_before(hold, 25)))
    assert spent(ledger)[0] == 55


def test_starts_of_a_hold_that_the_ledger_never_saw_are_posted_all_the_same(ledger, hold):
    stranger = replace(hold, hold_id="stranger")
    close(ledger, replace(settle(stranger, 30), earlier=begun_before(stranger, 11)))
    assert {posted.entry_id for posted in ledger.entries()} == {"start-0", "entry-stranger"}


def test_a_void_has_no_earlier_starts_and_all_belong_to_one_hold(ledger, hold):
    with pytest.raises(LedgerError, match="a void has no entry"):
        close(ledger, replace(void(hold), earlier=begun_before(hold, 11)))
    with pytest.raises(LedgerError, match="belongs to another hold"):
        close(ledger, replace(settle(hold, 3), earlier=begun_before(replace(hold, hold_id="other"), 11)))
    assert ledger.open_holds() == (hold,)


def test_one_entry_cannot_be_two_starts(ledger, hold):
    twice = begun_before(hold, 11) * 2
    closing = Closing(kind=ClosingKind.SETTLE, hold_id=hold.hold_id, entry=entry(hold, 3), earlier=twice)
    with pytest.raises(LedgerError, match="was posted before"):
        close(ledger, closing)
    assert (ledger.open_holds(), ledger.entries()) == ((hold,), ())


def test_the_ticks_that_were_posted_are_told_as_ranges(ledger):
    ticks = [window(5, 1, last=9), window(1, 1, last=4), window(12, 1), window(14, 1, last=20)]
    ticks.append(window(3, 1, domain=Domain.GPU))
    ledger.commit(Batch(windows=(*ticks, window(1, 1, last=99, sampler_id="other"))), admit_what_fits)
    assert ledger.posted_sequences("sampler1") == {
        Domain.CPU: ((1, 9), (12, 12), (14, 20)),
        Domain.GPU: ((3, 3),),
    }
    assert ledger.posted_sequences("unknown") == {}
