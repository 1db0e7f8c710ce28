"""What every ledger does, whatever keeps it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlflow_green.errors import HoldClosed, LedgerError
from mlflow_green.ledger.verify import verify
from mlflow_green.records import (
    Action,
    AlertRule,
    Balance,
    Batch,
    Closing,
    ClosingKind,
    Decision,
    Domain,
    Fact,
    Mode,
    Outcome,
    TopUp,
    Unit,
)
from tests.testkit.ledger_samples import (
    NOON,
    OWNER,
    admit_anything,
    admit_what_fits,
    energy,
    entry,
    lose,
    request,
    settle,
    term,
    void,
    window,
)

MONTH = term()
YEAR = term("year", limit=1000, account="org:lab")
CARBON = term("month", unit=Unit.CARBON, limit=50)


def ask(ledger, *requests, choose=admit_what_fits):
    return ledger.commit(Batch(requests=requests, owner=OWNER), choose).answers


def hold(ledger, name, amount, *terms):
    (answer,) = ask(ledger, request(name, amount, *(terms or (MONTH,))))
    assert answer.hold is not None, answer.decision.reason
    return answer.hold


def close(ledger, *closings):
    return ledger.commit(Batch(closings=closings), admit_what_fits)


def sums(ledger, *terms):
    return [(balance.spent, balance.held) for balance in ledger.balances(terms or (MONTH,))]


def alive(_owner):
    return True


@pytest.fixture(autouse=True)
def the_books_close_whatever_a_test_did(ledger):
    yield
    assert [f for f in verify(ledger, alive) if "windows attributed" not in f] == []


def test_a_hold_takes_room_in_every_budget_it_falls_under(ledger):
    hold(ledger, "train", 40, MONTH, YEAR)
    assert sums(ledger, MONTH, YEAR) == [(0, 40), (0, 40)]


def test_settling_less_than_the_hold_releases_the_rest(ledger):
    held = hold(ledger, "train", 40, MONTH, YEAR)
    close(ledger, settle(held, 15))
    assert sums(ledger, MONTH, YEAR) == [(15, 0), (15, 0)]
    assert ledger.open_holds() == ()


def test_settling_more_than_the_hold_is_booked_in_full_even_past_the_limit(ledger):
    held = hold(ledger, "train", 40)
    close(ledger, settle(held, 170))
    assert sums(ledger) == [(170, 0)]
    assert ledger.balances()[0].available == -70


def test_a_void_releases_the_hold_and_posts_nothing(ledger):
    held = hold(ledger, "train", 40)
    close(ledger, void(held))
    assert sums(ledger) == [(0, 0)]
    assert ledger.entries() == ()
    assert [row.kind for row in ledger.journal()] == ["hold", "void"]


def test_a_lost_hold_is_charged_its_worst_case_without_clipping_to_the_hold(ledger):
    held = hold(ledger, "train", 40)
    close(ledger, lose(held, used=35, charged=60))
    assert sums(ledger) == [(60, 0)]
    assert ledger.journal()[-1].kind == "lost"


def test_later_evidence_corrects_a_lost_hold_once_in_every_budget(ledger):
    held = hold(ledger, "train", 40, MONTH, YEAR)
    close(ledger, lose(held, used=35, charged=60))
    assert ledger.adjust(held.hold_id, {Unit.ENERGY: -22}, "cgroup counter") is True
    assert ledger.adjust(held.hold_id, {Unit.ENERGY: -22}, "cgroup counter") is False
    assert sums(ledger, MONTH, YEAR) == [(38, 0), (38, 0)]


def test_an_open_hold_cannot_be_corrected(ledger):
    held = hold(ledger, "train", 40)
    with pytest.raises(LedgerError, match="settle it first"):
        ledger.adjust(held.hold_id, {Unit.ENERGY: 1}, "early")


def test_a_second_closing_of_the_same_hold_changes_nothing(ledger):
    held = hold(ledger, "train", 40)
    first = close(ledger, settle(held, 15))
    again = close(ledger, settle(held, 99, entry_id="other"), void(held))
    assert sums(ledger) == [(15, 0)]
    assert len(ledger.entries()) == 1
    assert again.generation == first.generation


def test_one_hold_closed_twice_in_one_batch_is_closed_once(ledger):
    held = hold(ledger, "train", 40)
    close(ledger, settle(held, 15), settle(held, 15))
    assert sums(ledger) == [(15, 0)]
    assert len(ledger.entries()) == 1


def test_a_repeated_request_gets_the_same_hold_and_no_more_room(ledger):
    first = hold(ledger, "train", 40)
    (again,) = ask(ledger, request("train", 40, MONTH))
    assert again.hold == first
    assert again.decision.admitted
    assert sums(ledger) == [(0, 40)]
    assert len(ledger.decisions()) == 1


def test_the_same_request_twice_in_one_batch_gets_one_hold(ledger):
    one, two = ask(ledger, request("train", 40, MONTH), request("train", 40, MONTH))
    assert one.hold == two.hold
    assert sums(ledger) == [(0, 40)]


def test_a_retry_is_paid_for(ledger):
    one, two = ask(ledger, request("train", 40, MONTH), request("train", 40, MONTH, attempt=2))
    assert one.hold.hold_id != two.hold.hold_id
    assert sums(ledger) == [(0, 80)]


def test_a_request_for_a_closed_hold_is_an_error_and_writes_nothing(ledger):
    closed, other = hold(ledger, "train", 40), hold(ledger, "other", 10)
    close(ledger, settle(closed, 15))
    batch = Batch(
        closings=(settle(other, 9),), requests=(request("new", 1, MONTH), request("train", 40, MONTH)), owner=OWNER
    )
    with pytest.raises(HoldClosed, match=r"train .*settled.*next attempt"):
        ledger.commit(batch, admit_what_fits)
    assert sums(ledger) == [(15, 10)]
    assert ledger.open_holds() == (other,)


def test_what_does_not_fit_gets_its_reason_and_no_hold(ledger):
    hold(ledger, "train", 80)
    (answer,) = ask(ledger, request("sweep", 30, MONTH))
    assert answer.hold is None
    assert (answer.decision.action, answer.decision.needed, answer.decision.available) == (Action.WAIT, 30, 20)
    assert sums(ledger) == [(0, 80)]


def test_requests_see_what_came_before_them_in_the_batch(ledger):
    held = hold(ledger, "first", 90)
    batch = Batch(
        closings=(settle(held, 50),),
        requests=(request("a", 30, MONTH), request("b", 30, MONTH), request("c", 20, MONTH)),
        owner=OWNER,
    )
    answers = ledger.commit(batch, admit_what_fits).answers
    assert [answer.hold is not None for answer in answers] == [True, False, True]
    assert sums(ledger) == [(50, 50)]


def test_no_policy_can_hold_over_a_hard_limit(ledger):
    hold(ledger, "train", 80)
    with pytest.raises(LedgerError, match="impossible"):
        ask(ledger, request("small", 5, MONTH), request("sweep", 30, MONTH), choose=admit_anything)
    assert sums(ledger) == [(0, 80)]
    assert len(ledger.open_holds()) == 1


@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.OBSERVE])
def test_soft_and_observed_budgets_can_be_held_over_their_limit(ledger, mode):
    soft = term(mode=mode)
    ask(ledger, request("sweep", 130, soft), choose=admit_anything)
    assert sums(ledger, soft) == [(0, 130)]


def test_a_hard_limit_in_one_unit_is_enough_to_refuse_all(ledger):
    amounts = {Unit.ENERGY: 10, Unit.CARBON: 60}
    (answer,) = ask(ledger, request("train", amounts, MONTH, CARBON))
    assert answer.decision.unit is Unit.CARBON
    assert sums(ledger, MONTH, CARBON) == [(0, 0), (0, 0)]


def test_each_unit_is_charged_to_its_own_budgets(ledger):
    held = hold(ledger, "train", {Unit.ENERGY: 10, Unit.CARBON: 20}, MONTH, CARBON)
    close(ledger, settle(held, 12, operational_micrograms_co2e=7))
    assert sums(ledger, MONTH, CARBON) == [(12, 0), (7, 0)]


def test_a_unit_that_was_not_charged_adds_nothing(ledger):
    held = hold(ledger, "train", {Unit.ENERGY: 10, Unit.CARBON: 20}, MONTH, CARBON)
    close(ledger, settle(held, 12))
    assert sums(ledger, MONTH, CARBON) == [(12, 0), (0, 0)]


def test_a_lower_limit_of_a_budget_counts_at_once(ledger):
    hold(ledger, "train", 80)
    (answer,) = ask(ledger, request("sweep", 15, term(limit=90)))
    assert answer.hold is None
    assert ledger.balances() == (Balance(term=term(limit=90), spent=0, held=80),)


def test_a_step_without_budgets_is_held_and_settled_too(ledger):
    (answer,) = ask(ledger, request("free", {}))
    close(ledger, settle(answer.hold, 12))
    assert len(ledger.entries()) == 1
    assert ledger.open_holds() == ()


def test_a_refused_step_has_an_entry_and_no_hold_and_is_posted_once(ledger):
    held = hold(ledger, "train", 1)
    refused = entry(
        held, 0, entry_id="refused-1", hold_id=None, outcome=Outcome.REFUSED, energy={}, decision=Action.REFUSE
    )
    closing = Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=refused)
    close(ledger, closing)
    close(ledger, closing)
    assert ledger.entries() == (refused,)
    assert ledger.count("mlflow") == 1


def test_a_closing_of_an_unknown_hold_keeps_the_fact(ledger):
    elsewhere = hold(ledger, "train", 1)
    stray = Closing(
        kind=ClosingKind.SETTLE, hold_id="elsewhere", entry=entry(elsewhere, 5, entry_id="stray", hold_id="elsewhere")
    )
    close(ledger, stray)
    assert [posted.entry_id for posted in ledger.entries()] == ["stray"]


@pytest.mark.parametrize("kind", [ClosingKind.SETTLE, ClosingKind.LOST])
def test_a_settlement_without_an_entry_is_an_error(ledger, kind):
    held = hold(ledger, "train", 40)
    with pytest.raises(LedgerError):
        close(ledger, Closing(kind=kind, hold_id=held.hold_id, entry=None))
    assert sums(ledger) == [(0, 40)]


def test_an_entry_comes_back_as_it_was_posted(ledger):
    held = hold(ledger, "train", 40)
    posted = entry(
        held,
        15,
        energy={Domain.CPU: energy(10), Domain.GPU: energy(5)},
        operational_micrograms_co2e=3,
        coverage_ratio=0.25,
    )
    close(ledger, Closing(kind=ClosingKind.SETTLE, hold_id=held.hold_id, entry=posted))
    assert ledger.entries() == (posted,)
    assert ledger.entries(workflow_run="run1") == (posted,)
    assert ledger.entries(workflow_run="other") == ()


def test_an_open_hold_comes_back_as_it_was_answered(ledger):
    rule = AlertRule(at_ratio=0.8, of_committed=True, to=("team",))
    held = hold(ledger, "train", 40, term(alerts=(rule,)))
    assert ledger.open_holds() == (held,)
    assert held.owner == OWNER


# --- groups --------------------------------------------------------------------------------------


def test_members_of_a_pipe_all_start(ledger):
    answers = ask(ledger, request("a", 40, MONTH, group="pipe"), request("b", 40, MONTH, group="pipe"))
    assert all(answer.hold for answer in answers)
    assert sums(ledger) == [(0, 80)]


def test_members_of_a_pipe_wait_together(ledger):
    answers = ask(
        ledger,
        request("a", 40, MONTH, group="pipe"),
        request("alone", 30, MONTH),
        request("b", 70, MONTH, group="pipe"),
        request("c", 1, MONTH, group="pipe"),
    )
    assert [answer.hold is not None for answer in answers] == [False, True, False, False]
    assert {answer.decision.action for answer in answers if answer.hold is None} == {Action.WAIT}
    assert "together with b: needs 70" in answers[0].decision.reason
    assert sums(ledger) == [(0, 30)]
    assert len(ledger.decisions()) == 4


# --- top-ups -------------------------------------------------------------------------------------


def top_up(ledger, held, **amounts):
    asked = {Unit(unit): amount for unit, amount in amounts.items()}
    (granted,) = ledger.commit(Batch(top_ups=(TopUp(hold_id=held.hold_id, amounts=asked),)), admit_what_fits).top_ups
    return {unit.value: amount for unit, amount in granted.items()}


def test_a_top_up_is_granted_as_far_as_there_is_room(ledger):
    held = hold(ledger, "train", 40)
    hold(ledger, "other", 35)
    assert top_up(ledger, held, energy=20) == {"energy": 20}
    assert top_up(ledger, held, energy=20) == {"energy": 5}
    assert top_up(ledger, held, energy=20) == {"energy": 0}
    assert sums(ledger) == [(0, 100)]
    assert ledger.open_holds()[0].amounts == {Unit.ENERGY: 65}


def test_a_top_up_shrinks_every_unit_by_the_same_factor(ledger):
    held = hold(ledger, "train", {Unit.ENERGY: 40, Unit.CARBON: 40}, MONTH, CARBON)
    assert top_up(ledger, held, energy=31, carbon=20) == {"energy": 15, "carbon": 10}
    assert sums(ledger, MONTH, CARBON) == [(0, 55), (0, 50)]


def test_a_top_up_under_an_overspent_budget_is_nothing_not_less(ledger):
    held, overrun = hold(ledger, "train", 40), hold(ledger, "other", 10)
    close(ledger, settle(overrun, 500))
    assert top_up(ledger, held, energy=20) == {"energy": 0}
    assert sums(ledger) == [(500, 40)]


def test_a_soft_budget_does_not_shrink_a_top_up(ledger):
    soft = term("soft", mode=Mode.SOFT, limit=10)
    held = hold(ledger, "train", 40, MONTH, soft)
    assert top_up(ledger, held, energy=60) == {"energy": 60}
    assert sums(ledger, MONTH, soft) == [(0, 100), (0, 100)]


def test_a_closed_hold_gets_no_top_up(ledger):
    held = hold(ledger, "train", 40)
    close(ledger, void(held))
    assert top_up(ledger, held, energy=20) == {"energy": 0}


def test_settling_after_a_top_up_releases_all_of_it(ledger):
    held = hold(ledger, "train", 40)
    top_up(ledger, held, energy=20)
    close(ledger, settle(held, 55))
    assert sums(ledger) == [(55, 0)]


# --- windows, facts, decisions -------------------------------------------------------------------


def test_a_window_is_posted_once(ledger):
    windows = (window(1, 5), window(2, 6), window(1, 5, domain=Domain.GPU))
    ledger.commit(Batch(windows=windows), admit_what_fits)
    ledger.commit(Batch(windows=(window(2, 6), window(3, 7), window(3, 7))), admit_what_fits)
    assert ledger.node_windows() == (*windows, window(3, 7))


def test_the_last_fact_told_counts(ledger):
    told = (Fact(hold_id="h", name="quality/mape", value=2.0), Fact(hold_id="h", name="quality/mape", value=1.5))
    ledger.commit(Batch(facts=told), admit_what_fits)
    ledger.commit(Batch(facts=(Fact(hold_id="h", name="mlflow/run_id", value="abc"),)), admit_what_fits)
    assert ledger.facts() == {"h": {"quality/mape": 1.5, "mlflow/run_id": "abc"}}


def test_a_decision_is_kept_with_the_balances_it_saw(ledger):
    hold(ledger, "train", 80)
    (answer,) = ask(ledger, request("sweep", 30, MONTH))
    row = ledger.decisions()[-1]
    assert row.decision == answer.decision
    assert row.balances == (Balance(term=MONTH, spent=0, held=80),)
    assert row.hold_id is None
    assert ledger.decisions()[0].hold_id == ledger.open_holds()[0].hold_id


def test_the_same_answer_again_is_one_row(ledger):
    hold(ledger, "train", 80)
    for _ in range(3):
        ask(ledger, request("sweep", 30, MONTH))
    assert len(ledger.decisions()) == 2


def test_another_reason_is_another_row(ledger):
    hold(ledger, "train", 80)
    ask(ledger, request("sweep", 30, MONTH))
    hold(ledger, "more", 5)
    ask(ledger, request("sweep", 30, MONTH))
    assert [row.decision.reason for row in ledger.decisions()] == ["fits", "needs 30 of 20", "fits", "needs 30 of 15"]


def test_every_field_of_a_decision_survives(ledger):
    told = Decision(
        action=Action.REFUSE,
        would=Action.REFUSE,
        tier=None,
        amounts={},
        reason="no",
        estimate_source="declared",
        policy_sha256="ab",
        budget="month",
        unit=Unit.CARBON,
        needed=3,
        available=-1,
    )
    ask(ledger, request("train", 3, MONTH), choose=lambda _request, _balances: told)
    assert ledger.decisions()[0].decision == told


# --- generation, alerts, outbox ------------------------------------------------------------------


def test_the_generation_grows_only_when_a_balance_changed(ledger):
    def generation(**batch):
        return ledger.commit(Batch(owner=OWNER, **batch), admit_what_fits).generation

    start = generation()
    held = ledger.commit(Batch(requests=(request("train", 80, MONTH),), owner=OWNER), admit_what_fits).answers[0].hold
    after_hold = generation()
    assert after_hold == start + 1
    assert generation(requests=(request("sweep", 30, MONTH),)) == after_hold
    assert generation(windows=(window(1, 0),)) == after_hold
    assert generation(closings=(settle(held, 80),)) == after_hold + 1


def test_an_alert_is_told_once_when_its_threshold_is_reached(ledger):
    rule = AlertRule(at_ratio=0.8, of_committed=False, to=("team",))
    watched = term(alerts=(rule,))
    first, second = hold(ledger, "a", 79, watched), hold(ledger, "b", 21, watched)
    assert close(ledger, settle(first, 79)).alerts == ()
    (text,) = close(ledger, settle(second, 1)).alerts
    assert "month" in text
    assert "80%" in text
    third = hold(ledger, "c", 10, watched)
    assert close(ledger, settle(third, 10)).alerts == ()
    (row,) = ledger.pending("alert", NOON + timedelta(seconds=1))
    assert (row.payload["amount"], row.payload["limit"], row.payload["to"]) == (80, 100, ["team"])


def test_an_alert_on_what_is_committed_is_told_at_the_hold_and_not_at_the_settlement(ledger):
    rule = AlertRule(at_ratio=0.5, of_committed=True, to=())
    watched = term(alerts=(rule,))
    told = ledger.commit(Batch(requests=(request("a", 50, watched),), owner=OWNER), admit_what_fits)
    assert len(told.alerts) == 1
    assert close(ledger, settle(told.answers[0].hold, 50)).alerts == ()


def test_an_alert_is_a_crossing_and_not_a_level(ledger):
    hold(ledger, "a", 60)
    watched = term(alerts=(AlertRule(at_ratio=0.5, of_committed=True, to=()),))
    assert ledger.commit(Batch(requests=(request("b", 1, watched),), owner=OWNER), admit_what_fits).alerts == ()


def test_lowering_a_limit_crosses_its_thresholds(ledger):
    rule = AlertRule(at_ratio=0.5, of_committed=True, to=())
    hold(ledger, "a", 40, term(alerts=(rule,)))
    lowered = term(limit=80, alerts=(rule,))
    assert len(ledger.commit(Batch(requests=(request("b", 0, lowered),), owner=OWNER), admit_what_fits).alerts) == 1


def test_a_posted_entry_is_promised_to_mlflow(ledger):
    held = hold(ledger, "train", 40)
    close(ledger, settle(held, 15))
    (row,) = ledger.pending("mlflow", NOON)
    assert row.payload == {"entry_id": f"entry-{held.hold_id}"}
    assert ledger.count("mlflow") == 1


def test_a_message_is_due_again_when_its_delivery_failed(ledger):
    ledger.put("alert", "a", {"n": 1})
    ledger.put("alert", "a", {"n": 2})
    (row,) = ledger.pending("alert", NOON)
    later = NOON + timedelta(minutes=5)
    ledger.failed(row.outbox_id, later, "no route")
    assert ledger.pending("alert", NOON) == ()
    (again,) = ledger.pending("alert", later)
    assert (again.tries, again.payload) == (1, {"n": 1})


def test_a_delivered_message_is_gone_and_what_was_learnt_is_kept(ledger):
    ledger.put("mlflow", "a", {})
    ledger.put("mlflow", "b", {})
    first, second = ledger.pending("mlflow", NOON)
    assert ledger.pending("mlflow", NOON, limit=1) == (first,)
    ledger.delivered(first.outbox_id, [Fact(hold_id="h", name="mlflow/run_id", value="r1")])
    assert ledger.pending("mlflow", NOON) == (second,)
    assert ledger.count("mlflow") == 1
    assert ledger.facts() == {"h": {"mlflow/run_id": "r1"}}


# --- history -------------------------------------------------------------------------------------


def test_history_knows_finished_and_halted_steps_of_the_project(ledger):
    outcomes = [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.HALTED, Outcome.LOST, Outcome.CANCELLED]
    for used, outcome in enumerate(outcomes, start=1):
        (answer,) = ask(ledger, request("train", 10, MONTH, attempt=used))
        close(ledger, settle(answer.hold, used, outcome=outcome))
    (other,) = ask(ledger, request("train", 10, MONTH, attempt=9, project="other"))
    close(ledger, settle(other.hold, 9))
    assert [(use.energy_microjoules, use.censored) for use in ledger.history("demo", "train")] == [
        (1, False),
        (3, True),
    ]
    assert ledger.history("demo", "nothing") == ()


def test_history_is_of_metered_energy_and_leaves_out_what_was_not_metered(ledger):
    one, two = ask(ledger, request("train", 10, MONTH), request("train", 10, MONTH, attempt=2))
    close(ledger, settle(one.hold, 5, energy_charged_microjoules=9), settle(two.hold, 7, energy={}))
    assert [use.energy_microjoules for use in ledger.history("demo", "train")] == [5]


def test_history_is_the_newest_two_hundred_oldest_first(ledger):
    free = tuple(request("train", {}, attempt=n) for n in range(205))
    answers = ask(ledger, *free)
    close(ledger, *(settle(answer.hold, n) for n, answer in enumerate(answers)))
    assert [use.energy_microjoules for use in ledger.history("demo", "train")] == list(range(5, 205))


def test_balances_of_an_unknown_budget_are_zero(ledger):
    assert ledger.balances([YEAR]) == (Balance(term=YEAR, spent=0, held=0),)
    assert ledger.balances() == ()


def test_a_request_without_an_owner_is_an_error(ledger):
    with pytest.raises(LedgerError, match="owner"):
        ledger.commit(Batch(requests=(request("train", 1, MONTH),)), admit_what_fits)
    assert ledger.open_holds() == ()


def test_a_decision_that_is_posted_later_has_the_time_at_which_it_was_asked_for(ledger, clock):
    asked = NOON - timedelta(hours=2)
    ledger.commit(Batch(requests=(request("early", 1, term(), requested_at=asked),), owner=OWNER), admit_what_fits)
    assert ledger.decisions()[-1].at == asked
