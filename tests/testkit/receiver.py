"""A web server that takes webhooks, and answers each as it is told."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HANGS, CLOSES, DRIPS = "hangs", "closes", "drips"
"""It never answers; it closes the connection; it sends a byte every now and then."""


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    answer: int | str

    @property
    def letter_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict:
        return json.loads(self.body)["data"]


class Receiver(ThreadingHTTPServer):
    """``answers`` are given in turn, then 200. One with headers is a pair, e.g. ``(429, {"Retry-After": "7"})``.

    ``on_request`` is called with the number of each request after it was read and before it is answered.
    """

    daemon_threads = True

    def __init__(self, answers: Sequence = (), tls: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[Received] = []
        self.answers = iter(answers)
        self.lock = threading.Lock()
        self.on_request: Callable[[int], None] = lambda _count: None
        self.is_over = threading.Event()
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/hook?token=t0ken-in-the-url"

    @property
    def taken(self) -> list[Received]:
        """What it answered with success."""
        return [each for each in self.received if each.answer == 200]

    def handle_error(self, request, client_address) -> None:
        """Those who hang up are expected here."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if len(body) < int(self.headers["content-length"]):  # whoever sent it was killed
            return
        with self.server.lock:
            told = next(self.server.answers, 200)
            answer, headers = told if isinstance(told, tuple) else (told, {})
            given = {name.lower(): value for name, value in self.headers.items()}
            self.server.received.append(Received(self.path, given, body, time.time(), answer))
        self.server.on_request(len(self.server.received))
        if answer == HANGS:
            self.server.is_over.wait(30)
        elif answer == DRIPS:
            with suppress(OSError):
                while not self.server.is_over.wait(0.05):
                    self.wfile.write(b"H")
        elif answer != CLOSES:
            self.send_response(answer)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    def log_message(self, *_args) -> None:
        pass


@contextmanager
def receiver(answers: Sequence = (), tls: Path | None = None) -> Iterator[Receiver]:
    server = Receiver(answers, tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_over.set()
        server.shutdown()
        server.server_close()
