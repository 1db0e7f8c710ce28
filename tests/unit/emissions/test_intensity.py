"""The intensity of a country, and what is said where there is none."""

from __future__ import annotations

import pytest

from mlflow_green.emissions.intensity import (
    HOURLY_MARGIN_RATIO,
    cloud_intensity,
    country_intensity,
    known_countries,
    known_regions,
)
from mlflow_green.errors import IntensityUnknown


def test_a_country_has_its_intensity_with_source_year_and_licence():
    france = country_intensity("FRA")
    assert 10 < france.g_per_kwh < 150
    assert france.g_per_kwh_high == france.g_per_kwh * HOURLY_MARGIN_RATIO
    for part in ("Our World in Data", ", 20", "CC BY 4.0", "via CodeCarbon ", "(MIT)"):
        assert part in france.source


def test_the_case_of_a_code_does_not_matter():
    assert country_intensity(" fra ") == country_intensity("FRA")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("UK", "GBR"), ("FR", "FRA"), ("DE", "DEU"), ("Germany", "DEU"), ("Frnace", "FRA"), ("FRAN", "FRA")],
)
def test_an_unknown_country_is_an_error_that_suggests_what_was_meant_and_says_what_to_do(written, meant):
    with pytest.raises(
        IntensityUnknown, match=rf"'{written}'; did you mean .*{meant}.*site\.country.*carbon_intensity"
    ):
        country_intensity(written)


@pytest.mark.parametrize("written", ["", "??", "Atlantis and other sunken lands"])
def test_a_country_that_is_like_no_other_gets_no_default(written):
    with pytest.raises(IntensityUnknown, match=r"no carbon intensity for country .*site\.carbon_intensity"):
        country_intensity(written)


def test_an_intensity_of_zero_in_the_table_means_not_known():
    with pytest.raises(IntensityUnknown, match="Central African Republic"):
        country_intensity("CAF")


def test_known_countries_have_names():
    assert known_countries()["FRA"] == "France"
    assert len(known_countries()) > 150


# --- cloud regions ------------------------------------------------------------------------------------


def test_a_region_in_a_country_has_the_countrys_intensity_and_says_so():
    paris = cloud_intensity("aws:eu-west-3")
    assert (paris.g_per_kwh, paris.g_per_kwh_high) == (
        country_intensity("FRA").g_per_kwh,
        country_intensity("FRA").g_per_kwh_high,
    )
    assert paris.source == f"aws:eu-west-3: France, {country_intensity('FRA').source}"


def test_a_region_of_google_has_what_google_publishes():
    assert cloud_intensity("gcp:europe-west9").g_per_kwh == 34
    assert "Google Cloud region data, 2023, operational" in cloud_intensity("gcp:europe-west9").source


def test_a_region_in_the_united_states_has_the_intensity_of_its_state():
    virginia = cloud_intensity("aws:us-east-1")
    assert virginia.g_per_kwh == pytest.approx(539.599 * 0.45359237)
    assert "Virginia, EPA eGRID2023" in virginia.source


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("aws:eu-west3", "aws:eu-west-3"),
        ("eu-west-3", "aws:eu-west-3"),
        ("google:europe-west9", "gcp:europe-west9"),
        ("azure:frankcentral", "azure:francecentral"),
    ],
)
def test_an_unknown_region_is_an_error_that_suggests_what_was_meant(written, meant):
    with pytest.raises(IntensityUnknown, match=rf"'{written}'; did you mean .*{meant}.*site\.cloud"):
        cloud_intensity(written)


@pytest.mark.parametrize("written", ["", ":", "aws:", "the cloud"])
def test_a_region_that_is_like_no_other_gets_no_default(written):
    with pytest.raises(IntensityUnknown, match="no carbon intensity for cloud region"):
        cloud_intensity(written)


def test_every_known_region_has_an_intensity_or_a_reason():
    without = {}
    for name in known_regions():
        try:
            assert cloud_intensity(name).g_per_kwh > 0
        except IntensityUnknown as error:
            without[name] = error.problem
    assert without
    assert all("is in Canada" in problem for problem in without.values())
