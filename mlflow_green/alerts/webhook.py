"""Signed webhooks, as the Standard Webhooks specification says (standardwebhooks.com, version 1.0, 2023).

The signature is HMAC-SHA256 of ``id.timestamp.body``; a receiver checks it with ``verify_signature``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from mlflow_green.alerts.address import Resolve, connect, is_literally_private
from mlflow_green.alerts.carrier import TRY_SECONDS, Letter
from mlflow_green.clock import Clock
from mlflow_green.errors import ChannelFailed, SignatureWrong

REPLAY_WINDOW_SECONDS = 300
WHOLE_SECONDS = 30.0
"""How long one delivery may take, however slowly the other side answers."""

BODY_BYTES_MAX = 256_000
_GONE = 410
_PREFIX = "whsec_"


def signature(secret: str, letter_id: str, timestamp: int, body: bytes) -> str:
    """``v1,BASE64``: what ``webhook-signature`` says. ``timestamp`` is in seconds since 1970.

    A secret that starts with ``whsec_`` is base64, any other is taken as it is.

    Raises:
        ValueError: what follows ``whsec_`` is not base64.
    """
    key = secret.encode()
    if secret.startswith(_PREFIX):
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    signed = f"{letter_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def verify_signature(headers: Mapping[str, str], body: bytes, secret: str, now: datetime) -> str:
    """For receivers: the id of a webhook that its sender signed less than five minutes ago.

    A message may come more than once, always with the same id: keep the ids and pass over those that are known.
    ``headers`` are those of the request, in any case of letters; ``body`` its bytes, not parsed; ``now`` is aware.

    Raises:
        SignatureWrong: it is not signed, not with this secret, or too old or too new; do not act on it.
    """
    given = {name.lower(): value for name, value in headers.items()}
    letter_id, timestamp = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not letter_id or not re.fullmatch("[0-9]{1,12}", timestamp):
        raise SignatureWrong("the request has no webhook-id or webhook-timestamp; it is not a signed webhook")
    if abs(now.timestamp() - int(timestamp)) > REPLAY_WINDOW_SECONDS:
        raise SignatureWrong("the webhook was not signed within 5 minutes; check both clocks, else it is a replay")
    expected = signature(secret, letter_id, int(timestamp), body).encode()
    found = [one.encode() for one in given.get("webhook-signature", "").split()]
    if not any([hmac.compare_digest(one, expected) for one in found]):  # noqa: C419 - every one takes its time
        raise SignatureWrong("no signature of the webhook is that of this secret; check the secret on both sides")
    return letter_id


class WebhookCarrier:
    """Posts letters as JSON to ``url``; redirects are not followed and proxies not used.

    ``allow`` may have ``http`` (no encryption) and ``private`` (addresses that are not public).
    """

    def __init__(
        self,
        url: str,
        secret: str | None,
        *,
        allow: Collection[str],
        clock: Clock,
        try_seconds: float = TRY_SECONDS,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        self._url = url
        self._secret = secret
        self._allow = allow
        self._clock = clock
        self._try_seconds = try_seconds
        self._resolve = resolve

    def carry(self, letter: Letter) -> None:
        body = _body(letter)
        headers = {"content-type": "application/json", "user-agent": "mlflow-green", **self._signed(letter, body)}
        try:
            status, retry_after = self._post(body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The text of an error may repeat the address, and that may be a secret.
            raise ChannelFailed(f"no answer: {_kind_of(error)}") from None
        if not 200 <= status < 300:  # noqa: PLR2004 - the successes of HTTP
            raise ChannelFailed(
                _answer_text(status),
                retry_after_seconds=_seconds_until(retry_after, self._clock.now()),
                is_final=status == _GONE,
            )

    def _signed(self, letter: Letter, body: bytes) -> dict[str, str]:
        timestamp = int(self._clock.now().timestamp())
        headers = {"webhook-id": letter.letter_id, "webhook-timestamp": str(timestamp)}
        if self._secret is not None:
            try:
                headers["webhook-signature"] = signature(self._secret, letter.letter_id, timestamp, body)
            except (binascii.Error, ValueError):
                raise ChannelFailed("its secret starts with whsec_ and what follows is not base64") from None
        return headers

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, str | None]:
        """The status of the answer and its ``Retry-After``."""
        target = urlsplit(self._url)
        is_secure = target.scheme == "https"
        if target.hostname is None or not (is_secure or (target.scheme == "http" and "http" in self._allow)):
            both = "private" not in self._allow and is_literally_private(target.hostname or "")
            needs = (
                "'allow: [http, private]' under the channel, for it is not public"
                if both
                else "'allow: [http]' under the channel"
            )
            raise ChannelFailed(f"its address does not begin with https://; plain http needs {needs}")
        port = target.port or (443 if is_secure else 80)
        raw = connect(
            target.hostname,
            port,
            allows_private="private" in self._allow,
            timeout_seconds=self._try_seconds,
            resolve=self._resolve,
        )
        with closing(_secured(raw, target.hostname) if is_secure else raw) as stream, _at_most(WHOLE_SECONDS, stream):
            if isinstance(stream, ssl.SSLSocket):
                stream.do_handshake()
            connection = http.client.HTTPConnection(target.hostname, port)
            connection.sock = stream
            path = (target.path or "/") + (f"?{target.query}" if target.query else "")
            connection.request("POST", path, body, {"host": target.netloc.rpartition("@")[2], **headers})
            answer = connection.getresponse()  # its body is never read
            return answer.status, answer.getheader("retry-after")


def _body(letter: Letter) -> bytes:
    message = {"type": "mlflow_green.alert", "timestamp": letter.written_at.isoformat(), "data": dict(letter.data)}
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > BODY_BYTES_MAX:  # one that was written is bounded; this is the last line of defence
        raise ChannelFailed(f"the message has {len(body)} bytes, more than {BODY_BYTES_MAX}", is_final=True)
    return body


def _secured(raw: socket.socket, host: str) -> ssl.SSLSocket:
    """TLS with the system's authorities; the certificate must be that of ``host``."""
    return ssl.create_default_context().wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)


@contextmanager
def _at_most(seconds: float, stream: socket.socket) -> Iterator[None]:
    """End the connection after so long: a peer that sends a byte now and then never runs into a time-out."""

    def end() -> None:
        with suppress(OSError):
            socket.socket.shutdown(stream, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kind_of(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _answer_text(status: int) -> str:
    if 300 <= status < 400:  # noqa: PLR2004 - the redirections of HTTP
        return f"HTTP {status}: it redirects, which is not followed; give the final address"
    return f"HTTP {status}"


def _seconds_until(retry_after: str | None, now: datetime) -> float | None:
    """``Retry-After`` in seconds from ``now``, >= 0; it is a number of seconds or a date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return None
    if re.fullmatch("[0-9]{1,12}", retry_after):
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
