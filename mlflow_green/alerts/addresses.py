"""The addresses of a policy's channels, and what carries letters to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from mlflow_green.alerts.address import is_literally_private
from mlflow_green.alerts.apprise_door import AppriseCarrier
from mlflow_green.alerts.carrier import TRY_SECONDS, Carrier, Letter
from mlflow_green.alerts.mail import MailCarrier
from mlflow_green.alerts.webhook import WebhookCarrier
from mlflow_green.clock import Clock
from mlflow_green.errors import ChannelFailed, GreenError
from mlflow_green.policy.document import Channel
from mlflow_green.settings import SmtpSettings

_ENV = "env:"
_SECRET_LENGTH_MIN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One address of a channel: ``webhook``, ``email:ana@lab.example`` or ``apprise:NAME``, without its secrets."""

    channel: str
    route: str

    def __str__(self) -> str:
        return f"{self.channel} {self.route}".rstrip()


def addresses(name: str, channel: Channel) -> tuple[Address, ...]:
    """Each address gets its own copy of a message, so that one that fails repeats nothing to the others."""
    routes = ["webhook"] if channel.webhook else []
    routes += [f"email:{recipient}" for recipient in channel.email]
    routes += [f"apprise:{kept_in.removeprefix(_ENV)}" for kept_in in channel.apprise]
    return tuple(Address(channel=name, route=route) for route in dict.fromkeys(routes))


def lacks(channel: Channel, smtp: SmtpSettings, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the addresses of a channel need that is not here now, as can be told without trying them."""
    kept = [name for name in (channel.webhook, channel.secret, *channel.apprise) if name and name.startswith(_ENV)]
    names = [name.removeprefix(_ENV) for name in dict.fromkeys(kept)]
    found = [f"there is no variable {name} here" for name in names if not environ.get(name)]
    if channel.email and smtp.host is None:
        found.append("MLFLOW_GREEN_SMTP is not set here, e.g. to smtp://mail.example:587")
    if channel.apprise and find_spec("apprise") is None:
        found.append("Apprise is not installed here: pip install 'mlflow-green[apprise]'")
    host = urlsplit(channel.webhook).hostname if channel.webhook and not channel.webhook.startswith(_ENV) else None
    if host and "private" not in channel.allow and is_literally_private(host):
        found.append("its address is not public; if that is meant, write 'allow: [private]' under it")
    return tuple(found)


class Carriers:
    """Opens the carrier of an address. Secrets are read from ``environ`` for each letter, and kept nowhere."""

    def __init__(
        self,
        channels: Mapping[str, Channel],
        smtp: SmtpSettings,
        environ: Mapping[str, str],
        clock: Clock,
        *,
        try_seconds: float = TRY_SECONDS,
    ) -> None:
        self._channels = channels
        self._smtp = smtp
        self._environ = environ
        self._clock = clock
        self._try_seconds = try_seconds

    def carry(self, address: Address, letter: Letter) -> None:
        """Hand the letter over.

        Raises:
            ChannelFailed: it was not taken, or the address is not in the policy any more; no secret is in the text.
        """
        channel = self._channels.get(address.channel)
        if channel is None or address not in addresses(address.channel, channel):
            raise ChannelFailed(f"green.yaml has no {address} any more", is_final=True)
        try:
            self._open(address, channel).carry(letter)
        except ChannelFailed as error:
            raise ChannelFailed(
                self._without_secrets(str(error), channel),
                retry_after_seconds=error.retry_after_seconds,
                is_final=error.is_final,
            ) from None
        except GreenError as error:
            raise ChannelFailed(self._without_secrets(str(error), channel)) from None
        except Exception as error:  # noqa: BLE001 - a host: no channel may keep the others from their letters
            raise ChannelFailed(f"an unexpected error: {type(error).__name__}") from None

    def _open(self, address: Address, channel: Channel) -> Carrier:
        kind, _, rest = address.route.partition(":")
        if kind == "email":
            return MailCarrier(self._smtp, rest, self._environ, try_seconds=self._try_seconds)
        if kind == "apprise":
            return AppriseCarrier(self._value(f"{_ENV}{rest}"))
        assert channel.webhook is not None
        key = None if channel.secret is None else self._value(channel.secret)
        url, seconds = self._value(channel.webhook), self._try_seconds
        return WebhookCarrier(url, key, allow=channel.allow, clock=self._clock, try_seconds=seconds)

    def _value(self, text: str) -> str:
        """What the environment has under ``env:NAME``; any other text is what it is."""
        if not text.startswith(_ENV):
            return text
        name = text.removeprefix(_ENV)
        if not self._environ.get(name):
            raise ChannelFailed(f"there is no variable {name}; export it where 'alerts send' runs, e.g. in the crontab")
        return self._environ[name]

    def _without_secrets(self, text: str, channel: Channel) -> str:
        """The last line of defence: no carrier puts a secret into its message."""
        names = [channel.webhook, channel.secret, *channel.apprise, self._smtp.password]
        for kept_in in [name for name in names if name and name.startswith(_ENV)]:
            value = self._environ.get(kept_in.removeprefix(_ENV), "")
            if len(value) >= _SECRET_LENGTH_MIN:
                text = text.replace(value, kept_in)
        return text
