"""A fake BMC that answers Redfish over HTTP or HTTPS on 127.0.0.1, with one chassis whose power a test sets by hand.

    with FakeRedfish(power_watts=250) as bmc:
        bmc.power_watts = 300
        bmc.resources[f"{CHASSIS}/Power"] = {}      # what one path answers; None: there is no such member

Basic authentication and sessions for admin:password; the root needs no login, as the standard says.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

USER, PASSWORD = "admin", "password"
ROOT = "/redfish/v1"
CHASSIS = f"{ROOT}/Chassis/1"
SESSIONS = f"{ROOT}/SessionService/Sessions"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
TOKEN = "a-session-token"


class FakeRedfish:
    """``power_watts`` is a number or a function that is asked at each request; ``serves`` names what the chassis has."""

    def __init__(
        self,
        power_watts: float | Callable[[], float] = 200.0,
        *,
        serves: tuple[str, ...] = ("Power",),
        certificate: Path | None = None,
    ) -> None:
        self.power_watts = power_watts
        self.energy_joules: float | None = None
        self.serves = serves
        self.status: int | None = None  # of every answer
        self.garbage: bytes | None = None  # in place of every body
        self.delay_seconds = 0.0
        self.takes_basic = True
        self.resources: dict[str, dict[str, Any] | None] = {}
        self.sessions = 0  # now open
        self.hangs_up = False  # after each answer, without saying so
        self.requests = 0
        self.connections = 0
        self._server = _Quiet(("127.0.0.1", 0), _handler_of(self))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "https" if certificate else "http"

    @property
    def address(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> dict[str, Any] | None:
        return self.resources[path] if path in self.resources else self._chassis_of_the_moment().get(path)

    def _chassis_of_the_moment(self) -> dict[str, dict[str, Any]]:
        watts = self.power_watts() if callable(self.power_watts) else self.power_watts
        links = {name: {"@odata.id": f"{CHASSIS}/{name}"} for name in self.serves}
        average = {"IntervalInMin": 1, "AverageConsumedWatts": watts}
        environment: dict[str, Any] = {"PowerWatts": {"Reading": watts}}
        if self.energy_joules is not None:
            environment["EnergyJoules"] = {"Reading": self.energy_joules}
        supply = f"{CHASSIS}/PowerSubsystem/PowerSupplies/1"
        return {
            ROOT: {"RedfishVersion": "1.15.0", "Chassis": {"@odata.id": f"{ROOT}/Chassis"}},
            f"{ROOT}/Chassis": {"Members": [{"@odata.id": CHASSIS}]},
            CHASSIS: {"@odata.id": CHASSIS, "ChassisType": "RackMount", **links},
            f"{CHASSIS}/Power": {"PowerControl": [{"PowerConsumedWatts": watts, "PowerMetrics": average}]},
            f"{CHASSIS}/EnvironmentMetrics": environment,
            f"{CHASSIS}/PowerSubsystem": {"PowerSupplies": {"@odata.id": supply.removesuffix("/1")}},
            supply.removesuffix("/1"): {"Members": [{"@odata.id": supply}]},
            supply: {"Metrics": {"@odata.id": f"{supply}/Metrics"}},
            f"{supply}/Metrics": {"InputPowerWatts": {"Reading": watts}},
        }


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up, or does not trust us, is what the tests are about."""


def _handler_of(bmc: FakeRedfish) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def setup(self) -> None:
            super().setup()
            bmc.connections += 1

        def do_GET(self) -> None:
            path = self.path.rstrip("/")
            body = bmc.answer(path)
            login = self.headers.get("Authorization")
            is_known = (login == BASIC and bmc.takes_basic) or self.headers.get("X-Auth-Token") == TOKEN
            self._send(401 if path != ROOT and not is_known else 200 if body is not None else 404, body or {})

        def do_POST(self) -> None:
            account = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_known = account == {"UserName": USER, "Password": PASSWORD} and self.path == SESSIONS
            bmc.sessions += is_known
            login = {"X-Auth-Token": TOKEN, "Location": f"{SESSIONS}/1"} if is_known else {}
            self._send(201 if is_known else 401, {}, login)

        def do_DELETE(self) -> None:
            bmc.sessions -= self.path == f"{SESSIONS}/1"
            self._send(200, {})

        def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            bmc.requests += 1
            time.sleep(bmc.delay_seconds)
            payload = bmc.garbage if bmc.garbage is not None else json.dumps(body).encode()
            self.send_response(bmc.status or status)
            for name, value in {**(headers or {}), "Content-Length": str(len(payload))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.close_connection = self.close_connection or bmc.hangs_up  # before the client knows and changes it
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            """Silent."""

    return Handler


def write_certificate(file: Path, name: str = "idrac-0815") -> Path:
    """A key and a self-signed certificate for ``name`` in one PEM file, as a BMC has it from the factory."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file
