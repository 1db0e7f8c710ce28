"""``mlflow-green estimate``: what people see, what programs get, and what is said about a wrong option."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from mlflow_green.cli.main import cli
from mlflow_green.emissions.intensity import country_intensity

STUDY = "--device-watts 280 --hours 47499 --pue 1.11 --carbon-free 0.6 --intensity 410 --price-per-hour 4.95"
SMALL = "--device-watts 280 --hours 10"


def run(*options):
    return CliRunner().invoke(cli, ["estimate", *" ".join(options).split()], catch_exceptions=False)


def told(*options):
    result = run(*options, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_a_published_study_is_reproduced():
    screen = run(STUDY).output
    for line in (
        "Energy       14,762.69 kWh at the facility; the devices 13,299.72 kWh",
        "Operational  2,421.08 kg CO2e\n",
        "Money        235,120 USD\n",
        "Embodied     not known (--embodied-kg with --lifetime-years, or --embodied-device)",
        "nothing was measured",
    ):
        assert line in screen
    assert told(STUDY)["energy_microjoules"] == 53_145_681_120_000_000
    assert told(STUDY)["operational_g_co2e"] == 2_421_081.0288
    assert told(STUDY)["cost"] == 235_120.05


def test_every_factor_is_shown_with_who_says_so():
    factors = {each["name"]: each for each in told(SMALL, "--country fra", "--embodied-device gpu")["factors"]}
    assert factors["carbon intensity"]["source"] == f"yearly mean, FRA: {country_intensity('FRA').source}"
    assert factors["PUE"] == {"name": "PUE", "value": 1.0, "unit": "", "source": "not stated: counts as this"}
    assert "JMLR 24(253), CC BY 4.0" in factors["embodied carbon"]["source"]
    screen = run(SMALL, "--country fra", "--embodied-device gpu").output
    assert all(name in screen and each["source"] in screen for name, each in factors.items())


def test_the_boundary_is_named_by_what_was_stated():
    assert told(SMALL)["boundary"] == "component"
    assert told(SMALL, "--node-overhead 1.2")["boundary"] == "node"
    assert told(SMALL, "--node-overhead 1.2", "--pue 1")["boundary"] == "facility"


def test_a_yearly_mean_has_an_interval_and_a_stated_number_has_none():
    yearly = told(SMALL, "--region aws:eu-west-3")
    low, high = yearly["operational_low_g_co2e"], yearly["operational_high_g_co2e"]
    assert (low, high) == pytest.approx((yearly["operational_g_co2e"] / 1.5, yearly["operational_g_co2e"] * 1.5))
    assert told(SMALL, "--intensity 56")["operational_low_g_co2e"] is None


def test_an_unknown_place_and_price_are_null_and_not_zero():
    bare = told(SMALL)
    assert bare["operational_g_co2e"] is bare["embodied_g_co2e"] is bare["cost"] is bare["currency"] is None
    assert "Operational  not known (--country FRA" in run(SMALL).output


def test_devices_utilisation_and_lifetime_count():
    two = told(SMALL, "--devices 2", "--utilisation 0.5", "--embodied-kg 100", "--lifetime-years 1")
    assert two["energy_microjoules"] == told(SMALL)["energy_microjoules"]
    assert two["embodied_g_co2e"] == pytest.approx(100_000 * 20 / 8766)


WRONG = {
    "no number": ("--pue x", "'x' is not a number"),
    "not a number": ("--pue nan", "'nan' is not a number"),
    "endlessly large": ("--hours 1e999999999", "out of range"),
    "endlessly small": ("--pue 1 --hours 1e-999999999", "is not a number"),
    "infinite": ("--hours inf", "out of range"),
    "source of nothing": ("--source me", "but there is none"),
    "pue below one": ("--pue 0.9", "0.9 is out of range; write a number of at least 1"),
    "all is used twice": ("--utilisation 1.1", "at most 1"),
    "nothing is used": ("--utilisation 0", "more than 0"),
    "two places": ("--intensity 5 --country FRA", "give one place"),
    "unknown country": ("--country Frnace", r"did you mean FRA \(France\)"),
    "unknown region": ("--region aws:eu-west3", "did you mean aws:eu-west-3"),
    "currency": ("--currency euro", "'euro' is not a currency"),
    "no lifetime": ("--embodied-kg 5", "needs both"),
    "no carbon": ("--lifetime-years 5", "needs both"),
    "two devices": ("--embodied-kg 5 --lifetime-years 5 --embodied-device gpu", "not both"),
    "unknown device": ("--embodied-device tpu", "'gpu', 'server'"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_gets_a_sentence_and_status_2(options, message):
    result = run(SMALL, options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.search(message, result.stderr)
