"""What an alert says, whatever is known of its budget."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.alerts.message import Consumer, Notice, Standing, bucket_of, write_message
from mlflow_green.alerts.webhook import BODY_BYTES_MAX
from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.exhaustion import exhaustion
from mlflow_green.records import Balance, Energy, Method, Unit
from tests.testkit.alert_samples import WH, notify, policy
from tests.testkit.ledger_samples import NOON, term

PARIS = ZoneInfo("Europe/Paris")
RULES = policy(
    notify(80) + ", {at: 90%, do: downgrade}", mode="hard", override='{approvers: ["user:lead"], max_extra: 20%}'
)
PAYLOAD = {
    "budget": "month",
    "account": "project:demo",
    "unit": "energy",
    "period": "2026-11",
    "at_ratio": 0.8,
    "of": "spent",
    "amount": 82 * WH,
    "limit": 100 * WH,
    "to": ["team"],
    "text": "budget month is past 80%",
    "before": 78 * WH,
    "after": 82 * WH,
    "step": "train[model=mlp]",
    "user": "ana",
    "project": "demo",
    "policy_sha256": "abcdef0123456789",
}


def notice(number=1, **changes):
    return Notice(alert_id=f"a{number}", at=NOON, payload={**PAYLOAD, **changes})


def standing(**changes):
    days = [2 * WH, 6 * WH] * 7
    end = datetime(2026, 12, 1, tzinfo=UTC)
    values = {
        "balance": Balance(term=term("month", limit=100 * WH), spent=82 * WH, held=3 * WH),
        "budget": RULES.budget("month"),
        "consumers": (Consumer(name="train (ana)", amount=60 * WH), Consumer(name="eval (bo)", amount=22 * WH)),
        "forecast": exhaustion(days, spent=82 * WH, limit=100 * WH, now=NOON, end=end),
        "metered": Energy(
            microjoules=82 * WH, low_microjoules=70 * WH, high_microjoules=95 * WH, method=Method.ESTIMATED
        ),
        "last_use_at": NOON - timedelta(minutes=4),
        "period_end": end,
    } | changes
    return Standing(**values)


def message(*notices, **standings):
    known = {bucket_of(PAYLOAD): standing(**standings)}
    return write_message(notices, known, policy_sha256="0" * 64, now=NOON, zone=PARIS)


@pytest.mark.parametrize(
    "said",
    [
        "budget month has spent 80% of its energy limit (82.0 Wh of 100 Wh, 2026-11)",
        "user ana, project demo, step train[model=mlp]",
        "78.0 Wh (78%) before -> 82.0 Wh (82%) after",
        "82.0 Wh (82%) spent, 3.00 Wh (3%) held, of 100 Wh",
        "estimated, 90 % interval: two-stage bootstrap of the daily spends of the last 14 days, 14 of them active",
        "1. train (ana): 60.0 Wh (73%) of it",
        "downgrade at 90% committed, no new hold past 100%",
        "mlflow-green budget override month 20% --until 72h --reason '...'   (approved by user:lead)",
        "or wait: the period ends 2026-12-01 01:00 CET",
        "mlflow-green explain 'train[model=mlp]'",
        "the last use was posted 4.00 min ago",
        "the metered energy behind it is 82.0 Wh [70.0, 95.0], estimated",
        "sha256 abcdef012345",
        "a1, 2026-11-21 13:00 CET",
    ],
)
def test_an_alert_says_what_happened_who_did_it_and_what_to_do(said):
    assert said in message(notice()).text


def test_the_subject_of_one_alert_is_what_happened_and_of_several_their_number():
    assert message(notice()).subject.startswith("mlflow-green: budget month has spent 80%")
    assert message(notice(1), notice(2)).subject.startswith("mlflow-green: 2 alerts; first: budget month has spent 80%")


def test_several_alerts_of_a_budget_tell_its_state_once():
    both = message(notice(1), notice(2, at_ratio=0.9))
    assert both.text.count("Most used") == 1
    assert both.text.count("before ->") == 2


def test_a_row_of_an_older_version_makes_an_alert_too():
    old = {
        name: PAYLOAD[name]
        for name in ("budget", "account", "unit", "period", "at_ratio", "of", "amount", "limit", "to", "text")
    }
    told = message(Notice(alert_id="a1", at=NOON, payload=old)).text
    assert "82.0 Wh (82%)" in told
    assert "no single step; the account is project:demo" in told


def test_money_is_told_in_its_currency():
    priced = parse_policy(
        b"""
version: 1
project: demo
site: {price: 0.2 EUR/kWh}
budgets: [{name: month, limit: 20 EUR, period: month}]
"""
    ).budget("month")
    limit = 20_000_000
    balance = Balance(term=term("month", unit=Unit.MONEY, limit=limit), spent=16_000_000, held=0)
    about = notice(unit="money", limit=limit, before=0, after=16_000_000)
    known = {bucket_of(about.payload): standing(balance=balance, budget=priced, consumers=(), forecast=None)}
    text = write_message([about], known, policy_sha256="0" * 64, now=NOON, zone=PARIS).text
    assert text.count("16.00 EUR") == 3
    assert "16.00 " not in text.replace("16.00 EUR", "")


def test_an_alert_that_is_only_a_sentence_says_that_sentence():
    told = message(Notice(alert_id="a1", at=NOON, payload={"budget": "month", "text": "ana raised the limit"}))
    assert told.subject == "mlflow-green: ana raised the limit"


REFUSED = {
    "of": "refused",
    "at_ratio": None,
    "before": None,
    "after": None,
    "workflow_run": "run1",
    "needed": 30 * WH,
    "available": 15 * WH,
    "reason": "month: energy 30.0 Wh needed, 15.0 Wh available of 100 Wh; train[model=mlp] is refused",
}


def test_a_refusal_says_who_asked_for_what_how_much_was_left_and_what_to_do():
    told = message(notice(**REFUSED))
    assert told.subject == "mlflow-green: budget month refused train[model=mlp]: 30.0 Wh needed, 15.0 Wh left"
    said = (
        "user ana, project demo, step train[model=mlp]",
        f"Why       {REFUSED['reason']}",
        "mlflow-green explain 'train[model=mlp]'",
        "steps are stopped or refused now",
        "mlflow-green budget override month 20% --until 72h",
    )
    assert all(each in told.text for each in said)
    assert "before ->" not in told.text


def test_many_refusals_of_a_run_are_one_alert_with_their_number():
    told = message(*(notice(n, **REFUSED) for n in range(3)), stopped={("refused", "run1"): 5000})
    assert "month refused 5000 steps, first train[model=mlp]: 30.0 Wh needed" in told.subject
    assert told.text.count("Why ") == 1
    assert [alert["steps"] for alert in told.data["alerts"]] == [5000]
    assert told.data["alert_ids"] == ["a0", "a1", "a2"]


def test_a_refusal_and_a_halting_are_two_alerts():
    halted = notice(2, **{**REFUSED, "of": "halted", "needed": None})
    assert "2 alerts; first: budget month refused" in message(notice(1, **REFUSED), halted).subject
    assert "steps are stopped or refused now" in message(halted, notice(3)).text
    assert "month halted train[model=mlp]: it asked for nothing more, 15.0 Wh left" in message(halted).subject


def test_what_is_not_known_is_said_and_not_guessed():
    told = message(notice(), forecast=None, metered=None, consumers=(), last_use_at=None, period_end=None).text
    assert "none: fewer than 7 days" in told
    assert "no use is posted yet" in told
    gone = write_message([notice()], {}, policy_sha256="0" * 64, now=NOON, zone=PARIS).text
    assert "is not known" in gone


def test_a_forecast_that_lies_on_both_sides_of_the_limit_says_that_it_cannot_tell():
    unsure = exhaustion([0, 0, 10 * WH] * 7, spent=60 * WH, limit=100 * WH, now=NOON, end=NOON + timedelta(days=12))
    assert unsure.is_sure_of(100 * WH) is None
    balance = Balance(term=term("month", limit=100 * WH), spent=60 * WH, held=0)
    assert "too uncertain to say" in message(notice(), forecast=unsure, balance=balance).text


@given(st.text(), st.integers(1, 60))
def test_no_name_breaks_a_subject_or_makes_a_message_too_long(name, count):
    wild = [notice(n, step=name * 1000, user=name, budget=name, text=name) for n in range(count)]
    told = write_message(wild, {}, policy_sha256="0" * 64, now=NOON, zone=PARIS)
    assert len(told.subject.splitlines()) == 1
    assert len(json.dumps(told.data)) < BODY_BYTES_MAX
    assert len(told.data["alert_ids"]) == count
