"""Webhooks are signed as the Standard Webhooks specification says, and receivers can check that."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.alerts.webhook import signature, verify_signature
from mlflow_green.errors import SignatureWrong

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, TIMESTAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
NOW = datetime.fromtimestamp(TIMESTAMP, UTC)


def signed(letter_id=ID, timestamp=TIMESTAMP, body=BODY, secret=SECRET):
    return {
        "Webhook-Id": letter_id,
        "Webhook-Timestamp": str(timestamp),
        "Webhook-Signature": signature(secret, letter_id, timestamp, body),
    }


def test_the_signature_is_that_of_the_published_example():
    # The example of the reference implementations' tests, github.com/standard-webhooks/standard-webhooks
    assert signature(SECRET, ID, TIMESTAMP, BODY) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.text(min_size=1).filter(lambda text: not text.startswith("whsec_")), st.binary())
def test_what_is_signed_with_a_secret_is_accepted_with_it(secret, body):
    assert verify_signature(signed(body=body, secret=secret), body, secret, NOW) == ID


@pytest.mark.parametrize("minutes", [-5, 0, 5])
def test_a_webhook_is_accepted_for_five_minutes(minutes):
    assert verify_signature(signed(), BODY, SECRET, NOW + timedelta(minutes=minutes)) == ID


@pytest.mark.parametrize("minutes", [-5.1, 5.1, 1e6])
def test_a_replayed_webhook_is_refused(minutes):
    with pytest.raises(SignatureWrong, match="5 minutes"):
        verify_signature(signed(), BODY, SECRET, NOW + timedelta(minutes=minutes))


@pytest.mark.parametrize(
    "change",
    [
        {"Webhook-Id": "another"},
        {"Webhook-Timestamp": str(TIMESTAMP + 1)},
        {"Webhook-Signature": "v1,AAAA"},
        {"Webhook-Signature": "é"},
        {"Webhook-Signature": ""},
    ],
)
def test_whatever_is_changed_on_the_way_is_refused(change):
    with pytest.raises(SignatureWrong, match="secret"):
        verify_signature(signed() | change, BODY, SECRET, NOW)


def test_a_changed_body_and_another_secret_are_refused():
    with pytest.raises(SignatureWrong):
        verify_signature(signed(), BODY + b" ", SECRET, NOW)
    with pytest.raises(SignatureWrong):
        verify_signature(signed(), BODY, "another secret", NOW)


@pytest.mark.parametrize("timestamp", ["", "soon", "1e9", "9" * 5000, "²"])
def test_a_request_that_is_not_a_webhook_is_refused(timestamp):
    with pytest.raises(SignatureWrong, match="not a signed webhook"):
        verify_signature(signed() | {"Webhook-Timestamp": timestamp}, BODY, SECRET, NOW)


def test_one_of_several_signatures_is_enough():
    headers = signed()
    headers["Webhook-Signature"] = f"v1,AAAA {headers['Webhook-Signature']}"
    assert verify_signature(headers, BODY, SECRET, NOW) == ID
