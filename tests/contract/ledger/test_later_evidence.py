"""A hold that was given up as lost and whose readings turn up later; and what recovery asks the ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.ledger.verify import verify
from mlflow_green.records import AlertRule, Batch, Domain, Unit
from tests.testkit.ledger_samples import (
    OWNER,
    admit_anything,
    admit_what_fits,
    lose,
    request,
    settle,
    term,
    void,
    window,
)

MONTH, CARBON = term(limit=1000), term(unit=Unit.CARBON, limit=1000)


@pytest.fixture
def lost(ledger):
    """A hold in two budgets, closed as lost and charged 40 of energy, of which 30 were read."""
    batch = Batch(requests=(request("train", {Unit.ENERGY: 40, Unit.CARBON: 8}, MONTH, CARBON),), owner=OWNER)
    (answer,) = ledger.commit(batch, admit_what_fits).answers
    close(ledger, lose(answer.hold, used=30, charged=40))
    return answer.hold


def close(ledger, *closings):
    return ledger.commit(Batch(closings=closings), admit_what_fits)


def spent(ledger):
    return [balance.spent for balance in ledger.balances((MONTH, CARBON))]


@pytest.mark.parametrize("used", [500, 7])
def test_a_settling_after_a_loss_posts_the_difference_once(ledger, lost, used):
    late = settle(lost, used, operational_micrograms_co2e=9)
    close(ledger, late, late)
    close(ledger, late)
    assert spent(ledger) == [used, 9]
    assert [row.kind for row in ledger.journal()].count("adjust") == 2
    assert [finding for finding in verify(ledger, lambda owner: True) if "windows attributed" not in finding] == []


def test_a_settling_in_the_same_batch_as_the_loss_counts_too(ledger):
    batch = Batch(requests=(request("train", 40, MONTH),), owner=OWNER)
    (answer,) = ledger.commit(batch, admit_what_fits).answers
    close(ledger, lose(answer.hold, used=0, charged=40), settle(answer.hold, 50))
    assert spent(ledger)[0] == 50


def test_a_second_loss_that_read_no_more_never_refunds_and_charges_no_other_silence(ledger, lost):
    close(ledger, lose(lost, used=20, charged=35), lose(lost, used=30, charged=900))
    assert spent(ledger)[0] == 40, "the first recovery counts"


def test_a_second_loss_that_read_more_is_charged_in_full(ledger, lost):
    """The step ran on after somebody took its owner for dead; then that died, and there was another silence."""
    later = lose(lost, used=35, charged=90)
    close(ledger, later, later)
    close(ledger, later)
    assert spent(ledger)[0] == 90


def test_a_correction_that_crosses_a_threshold_is_told(ledger, lost):
    watched = replace(MONTH, alerts=(AlertRule(at_ratio=0.09, of_committed=False, to=("log",)),))
    ledger.commit(Batch(requests=(request("next", 1, watched),), owner=OWNER), admit_what_fits)
    (alert,) = close(ledger, settle(lost, 95)).alerts
    assert "past 9% spent" in alert


@pytest.mark.parametrize("used", [0, 7])
def test_what_a_step_used_whose_hold_was_given_back_by_somebody_who_took_its_owner_for_dead_is_charged(ledger, used):
    batch = Batch(requests=(request("train", 40, MONTH),), owner=OWNER)
    (answer,) = ledger.commit(batch, admit_what_fits).answers
    close(ledger, void(answer.hold))
    late = settle(answer.hold, used)
    close(ledger, late, late)
    close(ledger, late)
    assert spent(ledger)[0] == used
    assert [finding for finding in verify(ledger, lambda owner: True) if "windows attributed" not in finding] == []


def test_a_settling_that_nobody_metered_is_no_evidence(ledger, lost):
    close(ledger, settle(lost, 0, energy={}))
    assert spent(ledger)[0] == 40


@pytest.mark.parametrize("late", [settle, lambda hold, used: lose(hold, 30, used)])
def test_a_step_that_ran_though_its_hold_was_void_is_charged_and_posted_once(ledger, late):
    batch = Batch(requests=(request("train", {Unit.ENERGY: 40, Unit.CARBON: 8}, MONTH, CARBON),), owner=OWNER)
    (answer,) = ledger.commit(batch, admit_what_fits).answers
    close(ledger, void(answer.hold))
    closing = late(answer.hold, 50)
    close(ledger, closing, closing)
    close(ledger, closing, void(answer.hold))
    assert spent(ledger) == [50, 0]
    assert [entry.charged[Unit.ENERGY] for entry in ledger.entries()] == [50]
    assert [row.kind for row in ledger.journal()] == ["hold", "hold", "void", "void", "adjust"]
    assert [finding for finding in verify(ledger, lambda owner: True) if "windows attributed" not in finding] == []


def test_a_void_hold_under_which_nothing_was_used_gets_its_entry(ledger):
    batch = Batch(requests=(request("train", 40, MONTH),), owner=OWNER)
    (answer,) = ledger.commit(batch, admit_what_fits).answers
    close(ledger, void(answer.hold), settle(answer.hold, 0))
    assert len(ledger.entries()) == 1
    assert [finding for finding in verify(ledger, lambda owner: True) if "windows attributed" not in finding] == []


def test_what_was_metered_of_a_void_hold_is_corrected_by_its_settlement(ledger):
    batch = Batch(requests=(request("train", 40, MONTH),), owner=OWNER)
    (answer,) = ledger.commit(batch, admit_what_fits).answers
    close(ledger, void(answer.hold), lose(answer.hold, used=30, charged=90), settle(answer.hold, 35))
    assert spent(ledger)[0] == 35


def test_the_last_tick_of_a_sampler_is_known_by_domain(ledger):
    windows = (window(1, 5, last=4), window(5, 5, last=9), window(1, 5, last=7, domain=Domain.GPU))
    ledger.commit(Batch(windows=(*windows, window(1, 5, last=99, sampler_id="other"))), admit_what_fits)
    posted = ledger.posted_sequences("sampler1")
    assert {domain: ranges[-1][1] for domain, ranges in posted.items()} == {Domain.CPU: 9, Domain.GPU: 7}
    assert ledger.posted_sequences("unknown") == {}


def test_an_alert_about_money_is_told_in_money(ledger):
    budget = term(unit=Unit.MONEY, limit=20_000_000, alerts=(AlertRule(at_ratio=0.5, of_committed=True, to=("log",)),))
    batch = Batch(requests=(request("train", {Unit.MONEY: 12_500_000}, budget),), owner=OWNER)
    (alert,) = ledger.commit(batch, admit_anything).alerts
    assert "12.50 of 20.00 money" in alert


def test_an_open_hold_says_where_the_readings_of_its_owner_are(ledger):
    owner = replace(OWNER, spool_dir="/projects/a/.green/spool")
    ledger.commit(Batch(requests=(request("train", 5, MONTH),), owner=owner), admit_what_fits)
    assert [hold.owner for hold in ledger.open_holds()] == [owner]
