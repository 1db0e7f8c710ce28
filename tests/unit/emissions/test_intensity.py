"""The intensity of a country, and what is said where there is none."""

from __future__ import annotations

import pytest

from mlflow_green.emissions.intensity import HOURLY_MARGIN_RATIO, country_intensity, known_countries
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
