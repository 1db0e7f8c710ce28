"""Letters to a real mail server, and to Apprise."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest

from mlflow_green.alerts.apprise_door import AppriseCarrier
from mlflow_green.alerts.carrier import Letter
from mlflow_green.alerts.mail import MailCarrier, mail
from mlflow_green.errors import ChannelFailed
from mlflow_green.settings import SmtpSettings
from tests.testkit.certificate import write_certificate
from tests.testkit.mail_server import mail_server
from tests.testkit.receiver import receiver

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH")  # of the mail server, which asks without TLS here

LETTER = Letter(
    letter_id="letter-1",
    written_at=datetime(2026, 11, 21, 12, tzinfo=UTC),
    subject="budget month\r\nBcc: everybody@lab.example",
    text="budget <month> & more\n",
    data={},
)


def carry(mailbox, recipient="ana@lab.example", *, environ=None, letter=LETTER, **settings):
    smtp = SmtpSettings(**{"host": "127.0.0.1", "port": mailbox.port, "tls": "none"} | settings)
    MailCarrier(smtp, recipient, environ or {}, try_seconds=5).carry(letter)


def failure(*arguments, **options):
    with pytest.raises(ChannelFailed) as caught:
        carry(*arguments, **options)
    return caught.value


def test_a_letter_arrives_as_text_and_html():
    with mail_server() as mailbox:
        carry(mailbox, sender="green@lab.example")
    (got,) = mailbox.mails
    assert got["To"] == "ana@lab.example"
    assert got["Message-ID"] == "<letter-1@lab.example>"
    assert got.get_body(("plain",)).get_content().strip() == "budget <month> & more"
    assert "budget &lt;month&gt; &amp; more" in got.get_body(("html",)).get_content()


def test_a_subject_cannot_add_a_header():
    with mail_server() as mailbox:
        carry(mailbox)
    (got,) = mailbox.mails
    assert got["Bcc"] is None
    assert got["Subject"] == "budget month Bcc: everybody@lab.example"


def test_a_letter_that_is_sent_twice_has_the_same_id_and_date():
    with mail_server() as mailbox:
        carry(mailbox)
        carry(mailbox)
    first, second = mailbox.mails
    assert (first["Message-ID"], first["Date"]) == (second["Message-ID"], second["Date"])


@pytest.mark.parametrize("recipient", ["ana", "ana@x, bo@x", "ana@x\r\nDATA", "<ana@x>", "a b@x", ""])
def test_what_is_not_one_address_is_not_sent_to(recipient):
    with mail_server() as mailbox:
        assert failure(mailbox, recipient).is_final
    assert mailbox.mails == []


def test_a_refused_recipient_is_final_only_where_the_server_says_so():
    with mail_server("450 try later", "550 nobody of that name") as mailbox:
        assert not failure(mailbox).is_final
        assert failure(mailbox).is_final


def test_a_server_without_encryption_is_not_used_unless_the_setting_says_so():
    with mail_server() as mailbox:
        assert "tls=none" in str(failure(mailbox, tls="starttls"))
        carry(mailbox, tls="none")
    assert len(mailbox.mails) == 1


def test_the_connection_is_encrypted_before_the_letter_is_handed_over(tmp_path, monkeypatch):
    certificate = write_certificate(tmp_path / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with mail_server(tls_context=context, require_starttls=True) as mailbox:
        assert "does not answer" in str(failure(mailbox, tls="starttls"))  # nobody vouches for the certificate
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        carry(mailbox, tls="starttls")
    assert len(mailbox.mails) == 1


def test_the_password_comes_from_the_environment():
    with mail_server(asks_who=True) as mailbox:
        carry(mailbox, user="green", password="env:PW", environ={"PW": "s3cret"})
    assert mailbox.logins == [(b"green", b"s3cret")]


def test_without_a_mail_server_it_is_said_how_to_set_one():
    with mail_server() as mailbox:
        assert "MLFLOW_GREEN_SMTP" in str(failure(mailbox, host=None))


@pytest.mark.parametrize("name", ["Überhöhung ⚡", "x" * 500])
def test_any_subject_makes_a_mail(name):
    letter = Letter(letter_id="l", written_at=LETTER.written_at, subject=name, text=name, data={})
    assert mail(letter, "green@lab.example", "ana@lab.example")["Subject"] == name


def test_apprise_brings_letters_too():
    with receiver() as server:
        AppriseCarrier(f"json://127.0.0.1:{server.server_port}/").carry(LETTER)
    assert b"letter-1" in server.received[0].body


def test_apprise_that_fails_is_tried_again_and_tells_no_address(caplog):
    with receiver([500]) as server, pytest.raises(ChannelFailed, match="did not take it"):
        AppriseCarrier(f"json://user:s3cret@127.0.0.1:{server.server_port}/").carry(LETTER)
    with pytest.raises(ChannelFailed, match="does not know"):
        AppriseCarrier("s3cret").carry(LETTER)
    assert "s3cret" not in caplog.text
