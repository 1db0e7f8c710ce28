"""Power of the node by IPMI: the DCMI reading of its BMC, asked for with ``ipmitool``.

``ipmitool`` speaks to the machine's own BMC through ``/dev/ipmi0``, which only root may open as it comes, and to a BMC
on the network with a user name and a password, which needs no right on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from mlflow_green.errors import SensorError, SensorRetry, SensorUnavailable
from mlflow_green.sensors.node_meter import NodeReading

TIMEOUT_SECONDS = 10.0
_POWER = re.compile(r"^\s*Instantaneous power reading:\s*(\d+) Watts", re.MULTILINE)
_IS_ACTIVE = re.compile(r"^\s*Power reading state is:\s*activated", re.MULTILINE)
_LOCAL = ("ipmitool", "dcmi", "power", "reading")

OPEN_DEVICE = (
    'only root may read /dev/ipmi0 as it comes; for good: echo \'KERNEL=="ipmi*", GROUP="ipmi", MODE="0660"\' | '
    "sudo tee /etc/udev/rules.d/60-ipmi.rules, and add yourself to a group ipmi. Whoever may open it controls the BMC;"
    " a BMC user with the role Operator or less, set in MLFLOW_GREEN_BMC, is safer"
)


class IpmiMeter:
    """The DCMI power reading of the machine's own BMC, or of the one at ``host``, in whole watts.

    ``password`` is handed over in the environment of ``ipmitool``, never on its command line. The BMC's own average
    is not used: over how long it is taken is the BMC's choice.

    Raises:
        SensorUnavailable: there is no ``ipmitool``, no BMC, no right to ask it, or it has no power reading.
    """

    name = "ipmi"

    def __init__(
        self,
        host: str | None = None,
        *,
        port: int | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        if shutil.which("ipmitool") is None:
            raise SensorUnavailable("ipmitool is not installed; install it, e.g. 'sudo apt install ipmitool'")
        self._host = host
        self._environment = {**os.environ, "LC_ALL": "C"}
        self._command = list(_LOCAL)
        self._timeout_seconds = timeout_seconds
        if host is not None:
            remote = [
                "-I",
                "lanplus",
                "-H",
                host,
                *(["-p", str(port)] if port else []),
                "-N",
                "1",
                "-R",
                "2",
                "-L",
                "USER",
            ]
            self._command[1:1] = [*remote, *(["-U", user] if user else []), "-E"]
            self._environment["IPMI_PASSWORD"] = password or ""
        try:
            self.read()
        except SensorRetry as error:
            raise SensorUnavailable(str(error)) from error

    def read(self) -> NodeReading:
        try:
            done = subprocess.run(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SensorRetry(f"the BMC{self._at()} did not answer within {self._timeout_seconds:g} s") from None
        except OSError as error:
            raise SensorUnavailable(f"ipmitool cannot be started: {error.strerror}") from error
        power = _POWER.search(done.stdout)
        if done.returncode != 0 or power is None:
            raise self._error(done.stdout + done.stderr)
        if not _IS_ACTIVE.search(done.stdout):
            raise SensorUnavailable(
                f"the BMC{self._at()} has its power reading switched off; 'ipmitool dcmi power activate' switches it on"
            )
        if int(power[1]) == 0:
            raise SensorRetry(f"the BMC{self._at()} shows 0 W, which no machine that runs draws; try Redfish")
        return NodeReading(power_watts=float(power[1]))

    def close(self) -> None:
        pass

    def _at(self) -> str:
        return f" at {self._host}" if self._host else " of this machine"

    def _error(self, said: str) -> SensorError:
        if "Could not open device" in said:
            if os.path.exists("/dev/ipmi0"):  # noqa: PTH110 - no Path for one look
                return SensorUnavailable(OPEN_DEVICE)
            return SensorUnavailable("this machine has no BMC, or its driver is not loaded: sudo modprobe ipmi_devintf")
        if "Unable to establish" in said:
            return SensorRetry(
                f"the BMC{self._at()} lets nobody in: it cannot be reached, IPMI over LAN is switched off there, or"
                " MLFLOW_GREEN_BMC_USER and MLFLOW_GREEN_BMC_PASSWORD are wrong"
            )
        if "Invalid command" in said:
            return SensorUnavailable(f"the BMC{self._at()} has no DCMI power reading; try Redfish")
        words = " ".join(line.strip() for line in said.splitlines() if line.strip() and "PEN registry" not in line)
        return SensorRetry(f"the BMC{self._at()} gave no power reading: {words[:200] or 'ipmitool said nothing'}")
