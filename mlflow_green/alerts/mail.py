"""Letters by mail: text with a plain HTML twin, over a connection that is encrypted unless the server is local."""

from __future__ import annotations

import html
import platform
import re
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import format_datetime

from mlflow_green.alerts.carrier import TRY_SECONDS, Letter
from mlflow_green.errors import ChannelFailed
from mlflow_green.settings import SmtpSettings, secret

_ADDRESS = re.compile(r"[^\s<>,;:\"@\\]+@[^\s<>,;:\"@\\]+")
_PERMANENT = 500  # RFC 5321, 4.2.1: a reply of 5yz will be the same next time


class MailCarrier:
    """Sends letters to one address through the server of ``settings``. Its secrets are read from ``environ``."""

    def __init__(
        self,
        settings: SmtpSettings,
        recipient: str,
        environ: Mapping[str, str],
        *,
        try_seconds: float = TRY_SECONDS,
    ) -> None:
        self._settings = settings
        self._recipient = recipient
        self._environ = environ
        self._try_seconds = try_seconds

    def carry(self, letter: Letter) -> None:
        if self._settings.host is None:
            raise ChannelFailed("no mail server is set; export MLFLOW_GREEN_SMTP, e.g. smtp://mail.example:587")
        if not _ADDRESS.fullmatch(self._recipient):
            raise ChannelFailed("it is not one mail address; correct it in green.yaml", is_final=True)
        message = mail(letter, self._settings.sender, self._recipient)
        try:
            with self._connection(self._settings.host) as server:
                server.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            code = next(iter(error.recipients.values()))[0]
            raise ChannelFailed(f"the mail server refuses it ({code})", is_final=code >= _PERMANENT) from None
        except smtplib.SMTPDataError as error:
            raise ChannelFailed(f"SMTP {error.smtp_code}", is_final=error.smtp_code >= _PERMANENT) from None
        except smtplib.SMTPNotSupportedError:
            raise ChannelFailed(
                "the mail server offers no STARTTLS or no login; a server that is to be used without TLS is"
                " smtp://HOST?tls=none"
            ) from None
        except smtplib.SMTPAuthenticationError as error:
            raise ChannelFailed(f"the mail server does not let us in ({error.smtp_code})") from None
        except smtplib.SMTPResponseException as error:
            raise ChannelFailed(f"SMTP {error.smtp_code}") from None
        except (OSError, smtplib.SMTPException) as error:
            text = getattr(error, "strerror", None) or type(error).__name__
            raise ChannelFailed(f"the mail server does not answer: {text}") from None

    def _connection(self, host: str) -> smtplib.SMTP:
        settings, name = self._settings, platform.node() or "localhost"
        context = ssl.create_default_context()
        if settings.tls == "always":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, settings.port, name, timeout=self._try_seconds, context=context
            )
        else:
            server = smtplib.SMTP(host, settings.port, name, timeout=self._try_seconds)
        try:
            if settings.tls == "starttls":
                server.starttls(context=context)
            if settings.user is not None:
                server.login(settings.user, self._password())
        except BaseException:
            server.close()
            raise
        return server

    def _password(self) -> str:
        kept_in = self._settings.password
        return "" if kept_in is None else secret("MLFLOW_GREEN_SMTP_PASSWORD", kept_in, self._environ)


def mail(letter: Letter, sender: str, recipient: str) -> EmailMessage:
    """The letter as a mail; its ``Message-ID`` and ``Date`` are the same however often it is sent."""
    message = EmailMessage()
    message["Subject"] = " ".join(letter.subject.split())
    message["From"] = sender
    message["To"] = recipient
    message["Date"] = format_datetime(letter.written_at)
    message["Message-ID"] = f"<{letter.letter_id}@{sender.rpartition('@')[2] or 'mlflow-green'}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    message.set_content(letter.text)
    message.add_alternative(f"<html><body><pre>{html.escape(letter.text)}</pre></body></html>", subtype="html")
    return message
