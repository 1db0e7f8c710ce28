"""What every meter of the whole node promises, run against each of them."""

from __future__ import annotations

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.sensors.ipmi import IpmiMeter
from mlflow_green.sensors.redfish import RedfishMeter
from tests.testkit.fakeipmitool import put_ipmitool
from tests.testkit.fakeredfish import PASSWORD, USER, FakeRedfish


class Redfish:
    """A BMC behind Redfish that works, fails for a while, or is none."""

    def __init__(self, bmc):
        self.bmc = bmc

    def open(self):
        return RedfishMeter(self.bmc.address, user=USER, password=PASSWORD, timeout_seconds=2.0)

    def work(self, power_watts):
        self.bmc.power_watts, self.bmc.status = power_watts, None

    def fail(self):
        self.bmc.status = 500


class Ipmi:
    """The same behind ipmitool."""

    def __init__(self, folder):
        self.folder = folder

    def open(self):
        return IpmiMeter()

    def work(self, power_watts):
        put_ipmitool(self.folder, "works", power_watts=power_watts)

    def fail(self):
        put_ipmitool(self.folder, "silent")


@pytest.fixture(params=["redfish", "ipmi"])
def hardware(request, tmp_path, monkeypatch):
    if request.param == "ipmi":
        monkeypatch.setenv("PATH", str(tmp_path))
        yield Ipmi(tmp_path)
        return
    with FakeRedfish() as bmc:
        yield Redfish(bmc)


def test_a_reading_is_a_power_above_zero_and_says_what_it_does_not_know(hardware):
    hardware.work(240)
    meter = hardware.open()
    reading = meter.read()
    assert reading.power_watts == 240
    assert (reading.energy_microjoules, reading.averaging_seconds) == (None, None)
    assert meter.name in {"redfish", "ipmi"}
    meter.close()


def test_a_failed_read_is_said_and_the_next_one_may_work(hardware):
    hardware.work(240)
    meter = hardware.open()
    hardware.fail()
    with pytest.raises(SensorRetry):
        meter.read()
    hardware.work(250)
    assert meter.read().power_watts == 250


def test_power_of_zero_is_missing(hardware):
    hardware.work(240)
    meter = hardware.open()
    hardware.work(0)
    with pytest.raises((SensorRetry, SensorUnavailable)):
        meter.read()


def test_what_does_not_answer_cannot_be_opened(hardware):
    hardware.fail()
    with pytest.raises(SensorUnavailable):
        hardware.open()


def test_closing_twice_does_nothing(hardware):
    hardware.work(240)
    meter = hardware.open()
    meter.close()
    meter.close()
