"""The Redfish meter against a BMC on 127.0.0.1 that a test can break in every way."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.sensors.redfish import RedfishMeter
from tests.testkit.fakeredfish import CHASSIS, PASSWORD, ROOT, USER, FakeRedfish, write_certificate


def meter(bmc, address=None, **changes):
    account = {"user": USER, "password": PASSWORD, "timeout_seconds": 2.0, **changes}
    return RedfishMeter(address or bmc.address, **account)


def pem_of(certificate: Path, file: Path) -> Path:
    """The certificate without its key, as ``openssl s_client | openssl x509`` saves it."""
    text = certificate.read_text()
    file.write_text(text[text.index("-----BEGIN CERTIFICATE") :])
    return file


@pytest.mark.parametrize("place", ["Power", "EnvironmentMetrics", "PowerSubsystem"])
def test_power_is_found_in_each_place_where_a_bmc_may_show_it(place):
    with FakeRedfish(250, serves=(place,)) as bmc:
        redfish = meter(bmc)
        assert redfish.read().power_watts == 250
        bmc.power_watts = 310.5
        assert redfish.read().power_watts == 310.5
        redfish.close()


def test_a_connection_is_kept_and_renewed_when_the_bmc_has_closed_it():
    with FakeRedfish() as bmc:
        redfish = meter(bmc)
        asked = bmc.requests
        redfish.read()
        assert bmc.requests == asked + 1
        bmc.hangs_up = True
        redfish.read()
        bmc.hangs_up = False
        assert redfish.read().power_watts == 200
        assert bmc.connections == 2


def test_an_energy_counter_in_joules_is_read_too():
    with FakeRedfish(250, serves=("EnvironmentMetrics",)) as bmc:
        bmc.energy_joules = 12.5
        assert meter(bmc).read().energy_microjoules == 12_500_000


def test_an_average_says_over_how_long_it_is_taken():
    with FakeRedfish() as bmc:
        metrics = {"AverageConsumedWatts": 180, "IntervalInMin": 2}
        bmc.resources[f"{CHASSIS}/Power"] = {"PowerControl": [{"PowerConsumedWatts": None, "PowerMetrics": metrics}]}
        reading = meter(bmc).read()
        assert (reading.power_watts, reading.averaging_seconds) == (180, 120)


def test_a_bmc_without_basic_authentication_gets_a_session_that_is_closed_in_the_end():
    with FakeRedfish() as bmc:
        bmc.takes_basic = False
        redfish = meter(bmc)
        assert redfish.read().power_watts == 200
        assert bmc.sessions == 1
        redfish.close()
        assert bmc.sessions == 0


def test_a_wrong_password_names_the_settings_and_never_the_password():
    with FakeRedfish() as bmc, pytest.raises(SensorUnavailable, match="MLFLOW_GREEN_BMC_PASSWORD") as raised:
        meter(bmc, password="guess-me")
    assert "guess-me" not in str(raised.value)


def test_a_self_signed_certificate_is_refused_before_the_password_is_sent(tmp_path):
    with FakeRedfish(certificate=write_certificate(tmp_path / "bmc.pem")) as bmc:
        with pytest.raises(SensorUnavailable, match="openssl s_client"):
            meter(bmc)
        assert bmc.requests == 0


def test_a_saved_certificate_is_trusted_whatever_name_it_has_and_no_other(tmp_path):
    own = write_certificate(tmp_path / "bmc.pem")
    other = pem_of(write_certificate(tmp_path / "other.pem"), tmp_path / "saved-other.pem")
    with FakeRedfish(certificate=own) as bmc:
        assert meter(bmc, certificate=pem_of(own, tmp_path / "saved.pem")).read().power_watts == 200
        asked = bmc.requests
        with pytest.raises(SensorUnavailable, match="not the one in MLFLOW_GREEN_BMC_CERTIFICATE"):
            meter(bmc, certificate=other)
        assert bmc.requests == asked
    with pytest.raises(SensorUnavailable, match="no certificate"):
        RedfishMeter("https://127.0.0.1:1", certificate=tmp_path / "missing.pem")


def test_plain_http_is_for_this_machine_only():
    for address in ("http://ana:s3cret@bmc7.example", "ftp://ana:s3cret@bmc7", "https://", "https://bmc7:s3cret"):
        with pytest.raises(SensorUnavailable, match="MLFLOW_GREEN_BMC") as raised:
            RedfishMeter(address)
        assert "s3cret" not in str(raised.value)


def test_nobody_there_says_so():
    with FakeRedfish() as bmc:
        address = bmc.address
    with pytest.raises(SensorUnavailable, match=r"127\.0\.0\.1 cannot be reached"):
        RedfishMeter(address, timeout_seconds=2.0)


def test_a_machine_without_a_redfish_service_says_so():
    with FakeRedfish() as bmc:
        bmc.resources[ROOT] = None
        with pytest.raises(SensorUnavailable, match="is this a BMC"):
            meter(bmc)


def test_a_chassis_without_a_meter_says_so():
    with FakeRedfish(serves=()) as bmc, pytest.raises(SensorUnavailable, match="no chassis with a power reading"):
        meter(bmc)


def test_a_link_that_leads_nowhere_is_no_meter():
    with FakeRedfish(serves=("EnvironmentMetrics", "Power")) as bmc:
        bmc.resources[f"{CHASSIS}/EnvironmentMetrics"] = None
        assert meter(bmc).read().power_watts == 200


def test_a_resource_with_an_impossible_name_is_garbage():
    with FakeRedfish() as bmc:
        for path in ("/redfish/v1/Chassis/Gehäuse\u2028", "/redfish/v1/\r\nHost: x", "https://elsewhere.example/"):
            bmc.resources[CHASSIS] = {"Power": {"@odata.id": path}}
            with pytest.raises(SensorUnavailable):
                meter(bmc)


def test_of_several_chassis_with_a_meter_one_must_be_named():
    with FakeRedfish() as bmc:
        blade = f"{ROOT}/Chassis/Blade7"
        bmc.resources[f"{ROOT}/Chassis"] = {"Members": [{"@odata.id": CHASSIS}, {"@odata.id": blade}]}
        bmc.resources[blade] = {"Power": {"@odata.id": f"{blade}/Power"}}
        bmc.resources[f"{blade}/Power"] = {"PowerControl": [{"PowerConsumedWatts": 90}]}
        with pytest.raises(SensorUnavailable, match="Blade7"):
            meter(bmc)
        assert meter(bmc, bmc.address + blade).read().power_watts == 90


@pytest.mark.parametrize("watts", [0, -5, None, "200", True, float("nan"), float("inf"), 10**400])
def test_a_value_that_is_no_power_is_missing_and_not_zero(watts):
    with FakeRedfish() as bmc:
        redfish = meter(bmc)
        bmc.power_watts = watts
        with pytest.raises(SensorRetry, match="no power reading"):
            redfish.read()


@pytest.mark.parametrize(
    "garbage", [b"", b"<html>busy</html>", b"[1, 2]", b'{"PowerControl": "x"}', b"\xff\xfe", b"[" * 100_000]
)
def test_garbage_is_a_failed_read_and_the_next_one_works(garbage):
    with FakeRedfish() as bmc:
        redfish = meter(bmc)
        bmc.garbage = garbage
        with pytest.raises(SensorRetry):
            redfish.read()
        bmc.garbage = None
        assert redfish.read().power_watts == 200


def test_a_busy_bmc_is_a_failed_read_and_the_next_one_works():
    with FakeRedfish() as bmc:
        redfish = meter(bmc)
        bmc.status = 503
        with pytest.raises(SensorRetry, match="503"):
            redfish.read()
        bmc.status = None
        assert redfish.read().power_watts == 200


def test_a_slow_bmc_is_not_waited_for():
    with FakeRedfish() as bmc:
        redfish = meter(bmc, timeout_seconds=0.2)
        bmc.delay_seconds = 1.0
        with pytest.raises(SensorRetry, match=r"within 0\.2 s"):
            redfish.read()
