"""Joules to grams and money."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.emissions.equivalents import car_km, lamp_hours
from mlflow_green.emissions.operational import charged_amounts, cost_micro_units, hold_amounts, operational_micrograms
from mlflow_green.records import Intensity, Site, Unit
from mlflow_green.units import MICROJOULES_PER_KWH, MICROJOULES_PER_WATT_HOUR, parse_carbon_micrograms

FRANCE = Intensity(g_per_kwh=56.0, g_per_kwh_high=84.0, source="test")
HOUSE = Site(intensity=FRANCE, pue=1.2, node_overhead=1.1, price_per_kwh=0.21, currency="EUR")

energies = st.integers(min_value=0, max_value=10**18)


def test_one_kwh_is_overhead_times_pue_times_intensity_to_the_microgram():
    assert operational_micrograms(MICROJOULES_PER_KWH, HOUSE) == 73_920_000  # 1.1 x 1.2 x 56 g


def test_one_kwh_costs_overhead_times_pue_times_price_to_the_micro_unit():
    assert cost_micro_units(MICROJOULES_PER_KWH, HOUSE) == 277_200  # 1.1 x 1.2 x 0.21 EUR


def test_a_site_without_intensity_or_price_has_no_grams_and_no_cost_not_zero():
    assert operational_micrograms(MICROJOULES_PER_KWH, Site()) is None
    assert cost_micro_units(MICROJOULES_PER_KWH, Site()) is None
    assert hold_amounts(7, Site()) == charged_amounts(7, Site()) == {Unit.ENERGY: 7}


def test_a_hold_reserves_energy_without_overhead_and_carbon_at_the_upper_intensity():
    assert hold_amounts(MICROJOULES_PER_KWH, HOUSE) == {
        Unit.ENERGY: MICROJOULES_PER_KWH,
        Unit.CARBON: 110_880_000,
        Unit.MONEY: 277_200,
    }


@given(energies)
def test_what_is_charged_is_what_an_entry_says(energy_microjoules):
    assert charged_amounts(energy_microjoules, HOUSE) == {
        Unit.ENERGY: energy_microjoules,
        Unit.CARBON: operational_micrograms(energy_microjoules, HOUSE),
        Unit.MONEY: cost_micro_units(energy_microjoules, HOUSE),
    }


@given(energies)
def test_a_hold_is_never_smaller_than_what_the_same_energy_is_charged(energy_microjoules):
    held = hold_amounts(energy_microjoules, HOUSE)
    assert held[Unit.CARBON] >= operational_micrograms(energy_microjoules, HOUSE)
    assert held[Unit.MONEY] >= cost_micro_units(energy_microjoules, HOUSE)


@given(energies, energies)
def test_grams_of_a_sum_are_the_sum_of_grams_up_to_one_rounding_each(first, second):
    apart = operational_micrograms(first, HOUSE) + operational_micrograms(second, HOUSE)
    assert abs(operational_micrograms(first + second, HOUSE) - apart) <= 1


def test_equivalents_are_of_the_right_size():
    assert round(car_km(parse_carbon_micrograms("1.081 kgCO2e")), 6) == 10
    assert lamp_hours(25 * MICROJOULES_PER_WATT_HOUR) == 2.5
