"""The IPMI meter: against what ipmitool was seen to print, and against the real ipmitool where there is one."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.sensors.ipmi import IpmiMeter
from tests.testkit import fakebmc
from tests.testkit.fakeipmitool import put_ipmitool
from tests.testkit.services import lacks
from tests.testkit.waiting import comes_true


@pytest.fixture
def ipmitool(tmp_path, monkeypatch):
    """Change what the only ipmitool on PATH does."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return lambda state, **changes: put_ipmitool(tmp_path, state, **changes)


def test_the_power_of_this_machine_needs_no_address(ipmitool, tmp_path):
    ipmitool("works", power_watts=317)
    reading = IpmiMeter().read()
    assert (reading.power_watts, reading.energy_microjoules) == (317.0, None)
    assert set((tmp_path / "calls").read_text().splitlines()) == {"dcmi power reading IPMI_PASSWORD="}


def test_the_password_of_a_bmc_is_never_on_a_command_line(ipmitool, tmp_path):
    ipmitool("works")
    IpmiMeter("bmc7", port=6230, user="ana", password="s3cret").close()
    call = (tmp_path / "calls").read_text().strip()
    assert call == ("-I lanplus -H bmc7 -p 6230 -N 1 -R 2 -L USER -U ana -E dcmi power reading IPMI_PASSWORD=s3cret")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("deactivated", "switched off; 'ipmitool dcmi power activate'"),
        ("no device", "modprobe ipmi_devintf"),
        ("no session", "MLFLOW_GREEN_BMC_USER"),
        ("no DCMI", "no DCMI power reading; try Redfish"),
        ("silent", "Unable to get DCMI information"),
        ("garbage", "gave no power reading"),
    ],
)
def test_each_way_to_fail_says_what_to_do(ipmitool, state, words):
    ipmitool(state)
    with pytest.raises(SensorUnavailable, match=words):
        IpmiMeter()


def test_a_machine_without_ipmitool_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SensorUnavailable, match="apt install ipmitool"):
        IpmiMeter()


def test_an_opened_meter_survives_a_bmc_that_is_silent_for_a_while(ipmitool):
    ipmitool("works", power_watts=100)
    meter = IpmiMeter()
    ipmitool("silent")
    with pytest.raises(SensorRetry):
        meter.read()
    ipmitool("works", power_watts=120)
    assert meter.read().power_watts == 120


def test_an_ipmitool_that_hangs_is_not_waited_for(ipmitool):
    ipmitool("works", delay_seconds=30)
    with pytest.raises(SensorUnavailable, match=r"within 0\.3 s"):
        IpmiMeter(timeout_seconds=0.3)


def test_the_real_ipmitool_reads_a_bmc_over_the_network_and_a_wrong_password_is_named():
    if shutil.which("ipmitool") is None or importlib.util.find_spec("pyghmi") is None:
        lacks("ipmitool (Debian: ipmitool) and pyghmi (PyPI), to ask a BMC over the network: not installed")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bmc = subprocess.Popen([sys.executable, str(Path(fakebmc.__file__)), str(port), "250"])
    try:
        account = {"port": port, "user": fakebmc.USER, "password": fakebmc.PASSWORD}
        assert comes_true(lambda: _answers(account), limit_seconds=20), "the fake BMC did not come up"
        assert IpmiMeter("127.0.0.1", **account).read().power_watts == 250
        with pytest.raises(SensorUnavailable, match="MLFLOW_GREEN_BMC_PASSWORD"):
            IpmiMeter("127.0.0.1", **{**account, "password": "wrong"})
    finally:
        bmc.kill()
        bmc.wait()


def _answers(account):
    try:
        IpmiMeter("127.0.0.1", **account)
    except SensorUnavailable:
        return False
    return True
