"""Power of the node by Redfish: what its BMC says over HTTPS (DMTF DSP0266 and the schemas of DSP2046).

A BMC shows the power of a chassis in one or more of three places: ``EnvironmentMetrics`` (the newest), ``Power``
(deprecated, and the most common), and the supplies of ``PowerSubsystem``, which take a request each.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.sensors.node_meter import NodeReading
from mlflow_green.units import SECONDS, microjoules

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 1_000_000
MEMBERS_MAX = 64
_NUMBER_MAX = 1e18  # also above the joules that any counter has seen
_ROOT = "/redfish/v1/"
_SESSIONS = "/redfish/v1/SessionService/Sessions"
_LOCAL_HOSTS = {"127.0.0.1", "::1", "localhost"}
_HEADERS = {"Accept": "application/json", "Content-Type": "application/json"}
_NO_SUCH_WAY_IN = {400, 404, 405, 501}
_Json = Mapping[str, Any]


class RedfishMeter:
    """The power of one chassis, and its energy counter where it has one in joules.

    ``address`` is ``https://HOST[:PORT]``, with the path of a chassis (``/redfish/v1/Chassis/ID``) where several have a
    meter; plain ``http`` is taken only for this machine itself, the end of a tunnel. The certificate must be one that
    this machine trusts, or the very one in the file ``certificate`` (PEM), whatever name that has.

    Raises:
        SensorUnavailable: not reached, not trusted, not let in, or no chassis, or several, that have a meter.
    """

    name = "redfish"

    def __init__(
        self,
        address: str,
        *,
        user: str | None = None,
        password: str | None = None,
        certificate: Path | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._host, self._port, self._is_plain, path = _place(address)
        self._certificate = None if certificate is None else _pinned(certificate)
        self._timeout_seconds = timeout_seconds
        self._user, self._password = user, password
        self._login = _basic(user, password)
        self._session: str | None = None
        self._connection: http.client.HTTPConnection | None = None
        try:
            self._chassis = self._find(path)
        except SensorRetry as error:
            self.close()
            raise SensorUnavailable(str(error)) from error
        except SensorUnavailable:
            self.close()
            raise

    def read(self) -> NodeReading:
        reading = self._reading(self._chassis)
        if reading is None:
            raise SensorRetry(f"{self._host} gave no power reading for {self._chassis['@odata.id']}")
        return reading

    def close(self) -> None:
        """Log out and hang up."""
        try:
            if self._session is not None:
                self._ask("DELETE", self._session)
        except (SensorRetry, SensorUnavailable):
            pass  # the BMC ends the session by itself after a while
        finally:
            self._session = None
            self._hang_up()

    # --- which chassis, and where its power is ------------------------------------------------------

    def _find(self, path: str) -> _Json:
        if "/Chassis/" in path:
            chassis = {"@odata.id": path, **self._get(path)}
            if self._reading(chassis) is None:
                raise SensorUnavailable(f"{self._host}: {path} has no power reading")
            return chassis
        collection = self._get(_link(self._get(_ROOT), "Chassis") or "/redfish/v1/Chassis")
        metered = [chassis for chassis in self._members(collection) if self._reading(chassis) is not None]
        if not metered:
            raise SensorUnavailable(f"{self._host} has no chassis with a power reading; try IPMI")
        if len(metered) > 1:
            names = " or ".join(str(chassis["@odata.id"]) for chassis in metered)
            raise SensorUnavailable(
                f"{self._host} has several chassis with a power reading; add the node's own to the address: {names}"
            )
        return metered[0]

    def _members(self, collection: _Json) -> Iterator[_Json]:
        members = collection.get("Members")
        for member in members[:MEMBERS_MAX] if isinstance(members, list) else []:
            path = member.get("@odata.id") if isinstance(member, dict) else None
            if isinstance(path, str):
                yield {"@odata.id": path, **self._get(path)}

    def _reading(self, chassis: _Json) -> NodeReading | None:
        return self._of_environment(chassis) or self._of_power(chassis) or self._of_supplies(chassis)

    def _of_environment(self, chassis: _Json) -> NodeReading | None:
        metrics = self._linked(chassis, "EnvironmentMetrics")
        power_watts = _positive(metrics, "PowerWatts", "Reading")
        if power_watts is None:
            return None
        # EnergykWh is not taken: its steps are too coarse for minutes.
        joules = _positive(metrics, "EnergyJoules", "Reading")
        return NodeReading(power_watts=power_watts, energy_microjoules=None if joules is None else microjoules(joules))

    def _of_power(self, chassis: _Json) -> NodeReading | None:
        controls = self._linked(chassis, "Power").get("PowerControl")
        whole = controls[0] if isinstance(controls, list) and controls else None  # further ones are parts of the first
        power_watts = _positive(whole, "PowerConsumedWatts")
        if power_watts is not None:
            return NodeReading(power_watts=power_watts)
        power_watts, minutes = (
            _positive(whole, "PowerMetrics", key) for key in ("AverageConsumedWatts", "IntervalInMin")
        )
        if power_watts is None or minutes is None:
            return None
        return NodeReading(power_watts=power_watts, averaging_seconds=minutes * SECONDS["min"])

    def _of_supplies(self, chassis: _Json) -> NodeReading | None:
        subsystem = self._linked(chassis, "PowerSubsystem")
        metrics = [
            self._linked(supply, "Metrics") for supply in self._members(self._linked(subsystem, "PowerSupplies"))
        ]
        inputs = [_number(_at(each, "InputPowerWatts", "Reading")) for each in metrics]
        known_watts = [power_watts for power_watts in inputs if power_watts is not None]
        if len(known_watts) < len(inputs) or sum(known_watts) <= 0:
            return None
        return NodeReading(power_watts=sum(known_watts))

    def _linked(self, resource: _Json, name: str) -> _Json:
        """A linked resource; empty where there is none, or where the link leads nowhere."""
        path = _link(resource, name)
        status, body = (HTTPStatus.NOT_FOUND, {}) if path is None else self._ask("GET", path)
        if status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
            raise SensorRetry(f"{self._host} answered {status} to {path}")
        return body

    # --- HTTP ---------------------------------------------------------------------------------------

    def _get(self, path: str) -> _Json:
        status, body = self._ask("GET", path)
        if status == HTTPStatus.NOT_FOUND:
            raise SensorUnavailable(f"{self._host} has no {path}; is this a BMC with Redfish?")
        if status != HTTPStatus.OK:
            raise SensorRetry(f"{self._host} answered {status} to {path}")
        return body

    def _ask(self, method: str, path: str) -> tuple[int, _Json]:
        status, _, body = self._send(method, path)
        if status == HTTPStatus.UNAUTHORIZED and self._session is None and self._user is not None:
            self._begin_session()
            status, _, body = self._send(method, path)
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise SensorUnavailable(
                f"{self._host} lets this user in no further than {path} ({status}); check MLFLOW_GREEN_BMC_USER and"
                " MLFLOW_GREEN_BMC_PASSWORD, a user who may only read is enough"
            )
        return status, body

    def _begin_session(self) -> None:
        """Log in where basic authentication is switched off."""
        account = json.dumps({"UserName": self._user, "Password": self._password or ""})
        status, headers, _ = self._send("POST", _SESSIONS, account)
        token, location = headers.get("X-Auth-Token"), headers.get("Location")
        if status in {HTTPStatus.OK, HTTPStatus.CREATED} and token:
            self._login = {"X-Auth-Token": token}
            self._session = urlsplit(location).path if location else None
        elif status not in {*_NO_SUCH_WAY_IN, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise SensorRetry(f"{self._host} answered {status} to a login")

    def _send(self, method: str, path: str, body: str | None = None) -> tuple[int, HTTPMessage, _Json]:
        """Ask once, or again where a kept connection turned out to be closed; the body of a refusal is empty."""
        deadline = time.monotonic() + self._timeout_seconds
        is_new = self._connection is None
        try:
            connection = self._connected()
            connection.request(method, path, body, {**_HEADERS, **self._login})
            answer = connection.getresponse()
            text = b""
            while chunk := answer.read1(ANSWER_BYTES_MAX):
                text += chunk
                if len(text) > ANSWER_BYTES_MAX or time.monotonic() > deadline:
                    raise TimeoutError  # noqa: TRY301 - too long in either sense
            answer.close()  # after read1 it does not know that it was read to its end
        except ssl.SSLCertVerificationError as error:
            raise SensorUnavailable(self._untrusted(error.verify_message)) from error
        except TimeoutError:
            self._hang_up()
            raise SensorRetry(f"{self._host} did not answer within {self._timeout_seconds:g} s") from None
        except UnicodeError:
            raise SensorRetry(f"{self._host} names a resource by {path!r}, which is no path") from None
        except (OSError, http.client.HTTPException) as error:
            self._hang_up()
            if not is_new:  # BMCs hang up after a while
                return self._send(method, path, body)
            raise SensorRetry(f"{self._host} cannot be reached: {error or type(error).__name__}") from error
        return answer.status, answer.headers, self._parsed(text, path) if answer.status == HTTPStatus.OK else {}

    def _parsed(self, text: bytes, path: str) -> _Json:
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise SensorRetry(f"{self._host} answered {path} with something that is not Redfish")
        return body

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is not None:
            return self._connection
        if self._is_plain:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)
            return self._connection
        context = ssl.create_default_context()
        if self._certificate is not None:  # compared below, before anything is sent
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        secure = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_seconds, context=context)
        secure.connect()
        if self._certificate is not None and secure.sock.getpeercert(binary_form=True) != self._certificate:
            secure.close()
            raise SensorUnavailable(self._untrusted("it is not the one in MLFLOW_GREEN_BMC_CERTIFICATE"))
        self._connection = secure
        return secure

    def _untrusted(self, why: str) -> str:
        port = self._port or http.client.HTTPS_PORT
        return (
            f"the certificate of {self._host} is not trusted: {why}. If it is the BMC's own (compare its fingerprint"
            f" there), save it: openssl s_client -connect {self._host}:{port} </dev/null | openssl x509 >bmc.pem, and"
            " set MLFLOW_GREEN_BMC_CERTIFICATE=bmc.pem"
        )

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _place(address: str) -> tuple[str, int | None, bool, str]:
    """Host, port, whether it is plain HTTP, and path. An address may hold a password, so no message repeats it."""
    try:
        parts = urlsplit(address if "//" in address else f"https://{address}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise SensorUnavailable("MLFLOW_GREEN_BMC is no address; write e.g. https://bmc7.example") from None
    is_tunnel = parts.scheme == "http" and host in _LOCAL_HOSTS
    if not host or not (parts.scheme == "https" or is_tunnel):
        raise SensorUnavailable(
            "MLFLOW_GREEN_BMC must begin with https:// for Redfish; http would show the password to the network"
        )
    return host, port, is_tunnel, parts.path.rstrip("/")


def _pinned(file: Path) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise SensorUnavailable(f"MLFLOW_GREEN_BMC_CERTIFICATE: {file} holds no certificate in PEM: {error}") from error


def _basic(user: str | None, password: str | None) -> Mapping[str, str]:
    if user is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode("ascii")}


def _link(resource: _Json, name: str) -> str | None:
    path = _at(resource, name, "@odata.id")
    return path if isinstance(path, str) else None


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: object) -> float | None:
    """A finite number >= 0; nothing else, however it is written."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < _NUMBER_MAX else None


def _positive(value: object, *keys: str) -> float | None:
    """A number above 0: a BMC without a value often writes 0, and a node that runs draws more."""
    return _number(_at(value, *keys)) or None
