"""A message for every crossing of a threshold, with who crossed it; and the tree of accounts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.policy.leash import halted_text
from mlflow_green.records import Action, AlertRule, Batch, LetterState, Mode, Outcome, TopUp, Unit
from tests.testkit.ledger_samples import (
    NOON,
    OWNER,
    SetClock,
    admit_anything,
    admit_what_fits,
    request,
    settle,
    term,
    void,
)

HALF = AlertRule(at_ratio=0.5, of_committed=True, to=("team",))
SPENT = AlertRule(at_ratio=0.8, of_committed=False, to=("team",))
WATCHED = term(alerts=(HALF,))


def hold(ledger, name, amount, watched=WATCHED, **more):
    def choose(asked, balances):
        return replace(admit_what_fits(asked, balances), policy_sha256="abc")

    batch = Batch(requests=(request(name, amount, watched, **more),), owner=OWNER)
    return ledger.commit(batch, choose).answers[0].hold


def close(ledger, *closings):
    return ledger.commit(Batch(closings=closings), admit_what_fits).alerts


def alerts(ledger):
    return [row.payload for row in ledger.pending("alert", NOON)]


def test_a_threshold_that_is_crossed_again_after_falling_back_is_a_new_message(ledger):
    first = hold(ledger, "a", 60)
    assert close(ledger, void(first)) == ()
    hold(ledger, "b", 70)
    one, two = alerts(ledger)
    assert (one["step"], one["after"], two["step"], two["after"]) == ("a", 60, "b", 70)
    assert one["generation"] < two["generation"]


def refuse(ledger, *names, watched=WATCHED):
    def choose(asked, balances):
        return replace(admit_what_fits(asked, balances), action=Action.REFUSE, would=Action.REFUSE, policy_sha256="abc")

    ledger.commit(Batch(requests=tuple(request(name, 500, watched) for name in names), owner=OWNER), choose)


def test_a_refused_step_is_told_with_who_asked_for_what_and_what_was_left(ledger):
    hold(ledger, "a", 30)
    refuse(ledger, "train")
    (told,) = alerts(ledger)
    about = {"of": "refused", "budget": "month", "step": "train", "user": "ana", "workflow_run": "run1", "to": ["team"]}
    assert about.items() <= told.items()
    assert (told["needed"], told["available"], told["limit"]) == (500, 70, 100)
    assert told["reason"] == "needs 500 of 70"


def test_many_refusals_of_a_run_are_one_message_until_a_sender_takes_it(ledger):
    refuse(ledger, *(f"a{n}" for n in range(20)))
    for n in range(20):
        refuse(ledger, f"b{n}")
    (first,) = ledger.rows("alert", LetterState.PENDING)
    assert ledger.replace([first.outbox_id], "notice", {"a notice": {}})
    assert ledger.rows("alert", LetterState.PENDING) == ()
    refuse(ledger, "c", "d")
    (second,) = ledger.rows("alert", LetterState.PENDING)
    assert (first.payload["step"], second.payload["step"]) == ("a0", "c")
    assert [row.outbox_id for row in ledger.rows("alert", LetterState.DELIVERED)] == [first.outbox_id]


def test_a_halted_step_is_told_to_the_channels_of_the_budget_that_halted_it(ledger):
    other = term("week", alerts=(SPENT, replace(HALF, to=("leads", "team"))), limit=1000)
    asked = Batch(requests=(request("train", 30, WATCHED, other),), owner=OWNER)
    held = ledger.commit(asked, admit_what_fits).answers[0].hold
    ledger.commit(Batch(top_ups=(TopUp(hold_id=held.hold_id, amounts={Unit.ENERGY: 90}),)), admit_what_fits)
    reason = halted_text("week", "train", "used energy 121 uJ (low) of 120 uJ granted", 3)
    close(ledger, settle(held, 121, outcome=Outcome.HALTED, reason=reason))
    (told,) = [row for row in alerts(ledger) if row["of"] == "halted"]
    about = {"budget": "week", "step": "train", "user": "ana", "hold_id": held.hold_id, "reason": reason}
    assert about.items() <= told.items()
    assert (told["needed"], told["to"]) == (20, ["team", "leads"])


def test_nobody_is_told_of_a_refusal_that_no_rule_sends_anywhere(ledger):
    refuse(ledger, "train", watched=replace(WATCHED, alerts=()))
    assert alerts(ledger) == []


def test_a_level_is_never_an_alert(ledger):
    hold(ledger, "a", 60)
    second = hold(ledger, "b", 10)
    close(ledger, settle(second, 5))
    assert len(alerts(ledger)) == 1


def test_to_and_fro_in_one_batch_is_no_crossing(ledger):
    first = hold(ledger, "a", 60)
    batch = Batch(closings=(void(first),), requests=(request("b", 55, WATCHED),), owner=OWNER)
    assert ledger.commit(batch, admit_what_fits).alerts == ()


def test_an_alert_says_what_happened_who_did_it_and_under_which_policy(ledger):
    watched = term(alerts=(SPENT,))
    first, second = hold(ledger, "a", 30, watched), hold(ledger, "b", 60, watched, user="ben")
    close(ledger, settle(first, 30), settle(second, 55))
    (told,) = alerts(ledger)
    assert told.pop("generation") > 0
    assert told.pop("text").startswith("budget month (project:demo, 2026-11) is past 80% spent: ")
    assert told == {
        "budget": "month",
        "account": "project:demo",
        "unit": "energy",
        "period": "2026-11",
        "at_ratio": 0.8,
        "of": "spent",
        "to": ["team"],
        "amount": 85,
        "limit": 100,
        "before": 0,
        "after": 85,
        "spent": 85,
        "held": 0,
        "hold_id": second.hold_id,
        "step": "b",
        "user": "ben",
        "project": "demo",
        "policy_sha256": "abc",
    }


def test_the_step_that_crossed_is_the_one_whose_row_brought_the_balance_there(ledger):
    first = hold(ledger, "a", 40)
    ledger.commit(Batch(top_ups=(TopUp(hold_id=first.hold_id, amounts={Unit.ENERGY: 20}),)), admit_what_fits)
    (told,) = alerts(ledger)
    assert (told["step"], told["before"], told["after"]) == ("a", 40, 60)


def test_a_correction_that_crosses_names_the_step_that_it_corrects(ledger):
    watched = term(alerts=(SPENT,))
    first = hold(ledger, "a", 40, watched)
    close(ledger, settle(first, 40))
    ledger.adjust(first.hold_id, {Unit.ENERGY: 50}, "node meter")
    assert [(told["step"], told["after"]) for told in alerts(ledger)] == [("a", 90)]


def test_a_limit_that_is_lowered_crosses_without_a_step(ledger):
    hold(ledger, "a", 40)
    hold(ledger, "b", 0, term(limit=80, alerts=(HALF,)))
    (told,) = alerts(ledger)
    assert (told["limit"], told["before"], told["after"]) == (80, 40, 40)
    assert [told[name] for name in ("hold_id", "step", "user", "project", "policy_sha256")] == [None] * 5


def test_two_rules_for_one_threshold_tell_their_own_channels(ledger):
    hold(ledger, "a", 60, term(alerts=(HALF, replace(HALF, to=("leads",)))))
    assert [told["to"] for told in alerts(ledger)] == [["team"], ["leads"]]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves=st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=12))
def test_there_is_one_message_for_each_time_that_the_balance_rises_past_the_threshold(moves):
    ledger, held, committed, crossed = MemoryLedger(SetClock()), [], 0, 0
    watched = term(alerts=(HALF,), mode=Mode.SOFT)
    for number, (opens, amount) in enumerate(moves):
        before = committed
        if opens:
            batch = Batch(requests=(request(f"s{number}", amount, watched),), owner=OWNER)
            held.append(ledger.commit(batch, admit_anything).answers[0].hold)
            committed += amount
        elif held:
            committed -= held[0].amounts[Unit.ENERGY]
            close(ledger, void(held.pop(0)))
        crossed += before < 50 <= committed
    assert ledger.count("alert") == crossed


def test_an_account_has_a_row_for_each_level_of_its_path(ledger):
    for account in ("org:lab/project:vision/user:ana", "org:lab/project:vision/user:a%2Fb", "project:demo"):
        hold(ledger, account, 1, term(account=account))
    assert ledger.accounts() == {
        "org:lab": None,
        "org:lab/project:vision": "org:lab",
        "org:lab/project:vision/user:ana": "org:lab/project:vision",
        "org:lab/project:vision/user:a%2Fb": "org:lab/project:vision",
        "project:demo": None,
    }
    assert len(ledger.balances()) == 3, "a level has a balance only where a budget says so"
    assert verify(ledger, lambda _owner: True) == ()
