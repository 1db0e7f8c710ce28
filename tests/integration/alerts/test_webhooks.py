"""Letters to a real web server: taken, refused, too slow, redirected, and never to an address behind the wall."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

import pytest

from mlflow_green.alerts import webhook
from mlflow_green.alerts.carrier import Letter
from mlflow_green.alerts.webhook import WebhookCarrier, verify_signature
from mlflow_green.clock import SystemClock
from mlflow_green.errors import ChannelFailed
from tests.testkit.certificate import write_certificate
from tests.testkit.receiver import CLOSES, DRIPS, HANGS, receiver

SECRET = "a secret of the team"
LETTER = Letter(
    letter_id="letter-1",
    written_at=datetime(2026, 11, 21, 12, tzinfo=UTC),
    subject="budget month has spent 80%",
    text="budget month has spent 80%\n",
    data={"alert_ids": ["a1"]},
)
ANYWHERE = ("http", "private")


def carry(url, *, secret=SECRET, allow=ANYWHERE, letter=LETTER, **options):
    WebhookCarrier(url, secret, allow=allow, clock=SystemClock(), **options).carry(letter)


def failure(url, **options):
    with pytest.raises(ChannelFailed) as caught:
        carry(url, **options)
    assert "t0ken" not in str(caught.value)
    return caught.value


def test_a_letter_arrives_signed_and_its_receiver_can_check_it():
    with receiver() as server:
        carry(server.url)
    (got,) = server.received
    assert verify_signature(got.headers, got.body, SECRET, datetime.now(UTC)) == "letter-1"
    assert got.data == {"alert_ids": ["a1"]}
    assert got.headers["host"] == f"127.0.0.1:{server.server_port}"


def test_a_letter_that_is_sent_twice_is_the_same():
    with receiver([500]) as server:
        failure(server.url)
        carry(server.url)
    first, second = server.received
    assert (first.letter_id, first.body) == (second.letter_id, second.body)


def test_a_channel_without_a_secret_is_not_signed():
    with receiver() as server:
        carry(server.url, secret=None)
    assert "webhook-signature" not in server.received[0].headers


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
def test_an_error_of_the_receiver_is_a_failure_that_is_tried_again(status):
    with receiver([status]) as server:
        error = failure(server.url)
    assert str(error) == f"HTTP {status}"
    assert not error.is_final


def test_a_receiver_that_is_gone_for_good_is_not_tried_again():
    with receiver([410]) as server:
        assert failure(server.url).is_final


def test_a_receiver_may_ask_for_a_pause_in_seconds_or_by_date():
    with receiver(
        [
            (429, {"Retry-After": "7"}),
            (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
            (429, {"Retry-After": "soon"}),
        ]
    ) as server:
        assert failure(server.url).retry_after_seconds == 7
        assert failure(server.url).retry_after_seconds == 0
        assert failure(server.url).retry_after_seconds is None


def test_a_redirect_is_not_followed():
    with receiver() as other, receiver([(307, {"Location": other.url})]) as server:
        assert "redirects" in str(failure(server.url))
        assert other.received == []


@pytest.mark.parametrize("answer", [HANGS, CLOSES])
def test_a_receiver_that_does_not_answer_is_a_failure(answer):
    with receiver([answer]) as server:
        assert "no answer" in str(failure(server.url, try_seconds=0.3))


def test_a_receiver_that_answers_byte_by_byte_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(webhook, "WHOLE_SECONDS", 0.5)
    with receiver([DRIPS]) as server:
        assert "no answer" in str(failure(server.url, try_seconds=5))


def test_nobody_listening_is_a_failure():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "refused" in str(failure(f"http://127.0.0.1:{unused.getsockname()[1]}/t0ken"))


def test_plain_http_and_private_addresses_need_to_be_allowed():
    with receiver() as server:
        assert "https" in str(failure(server.url, allow=("private",)))
        assert "not public" in str(failure(server.url, allow=("http",)))
        assert "not public" in str(failure(server.url.replace("127.0.0.1", "localhost"), allow=("http",)))
    assert server.received == []


def test_a_name_that_changes_its_address_after_the_check_gains_nothing():
    """DNS rebinding: the second look-up would lead behind the wall, so there is none."""
    answers = iter(["192.0.2.1", "127.0.0.1"])
    asked = []

    def resolve(host, port, **_options):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    with receiver() as server:
        failure(f"http://hooks.example:{server.server_port}/t0ken", allow=("http",), resolve=resolve)
    assert (asked, server.received) == (["hooks.example"], [])


def test_an_encrypted_letter_arrives_where_the_certificate_is_trusted(tmp_path, monkeypatch):
    certificate = write_certificate(tmp_path / "server.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiver(tls=certificate) as server:
        carry(server.url, allow=("private",))
    assert len(server.received) == 1


@pytest.mark.parametrize("problem", ["unknown authority", "another name"])
def test_a_certificate_that_is_not_trusted_ends_the_connection(tmp_path, monkeypatch, problem):
    certificate = write_certificate(
        tmp_path / "server.pem", name="127.0.0.2" if problem == "another name" else "127.0.0.1"
    )
    if problem == "another name":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiver(tls=certificate) as server:
        assert "certificate" in str(failure(server.url, allow=("private",)))
    assert server.received == []


def test_a_message_that_is_too_long_is_not_sent():
    huge = Letter(letter_id="l", written_at=LETTER.written_at, subject="", text="", data={"alerts": "x" * 300_000})
    with receiver() as server:
        assert failure(server.url, letter=huge).is_final
    assert server.received == []


def test_a_secret_that_is_no_base64_is_said_without_it():
    with receiver() as server:
        error = failure(server.url, secret="whsec_***")
    assert "base64" in str(error)
    assert "***" not in str(error)


def test_the_url_may_have_no_path():
    with receiver() as server:
        carry(f"http://127.0.0.1:{server.server_port}")
    assert len(server.received) == 1
