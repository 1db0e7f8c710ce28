"""A real mail server that keeps what it takes."""

from __future__ import annotations

import asyncio
import email
import email.policy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage

from aiosmtpd.smtp import SMTP, AuthResult


class Mailbox:
    """``refusals`` are answered to the next recipients, in turn."""

    def __init__(self, refusals: tuple[str, ...] = ()) -> None:
        self.mails: list[EmailMessage] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.refusals = list(refusals)
        self.port = 0

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):  # noqa: N802 - aiosmtpd's name
        if self.refusals:
            return self.refusals.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        return "250 taken"

    def login(self, server, session, envelope, mechanism, data):
        self.logins.append((data.login, data.password))
        return AuthResult(success=True)


@contextmanager
def mail_server(*refusals: str, **options) -> Iterator[Mailbox]:
    mailbox = Mailbox(refusals)
    if options.pop("asks_who", False):
        options |= {"authenticator": mailbox.login, "auth_required": True, "auth_require_tls": False}
    loop = asyncio.new_event_loop()
    opening = loop.create_server(lambda: SMTP(mailbox, hostname="mail.example", loop=loop, **options), "127.0.0.1", 0)
    server = loop.run_until_complete(opening)
    mailbox.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
