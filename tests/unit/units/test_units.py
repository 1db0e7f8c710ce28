from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green import units
from mlflow_green.errors import QuantityError
from mlflow_green.records import Unit
from mlflow_green.units import (
    AMOUNT_MAX,
    SECONDS_MAX,
    format_amount,
    format_carbon,
    format_count,
    format_energy,
    format_energy_interval,
    format_hours,
    format_kilometres,
    format_money,
    format_percent,
    format_share,
    microjoules,
    milliseconds,
    parse_carbon_micrograms,
    parse_energy_microjoules,
    parse_money_micro_units,
    parse_seconds,
    three_digits,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("1 J", 10**6), ("5 Wh", 18 * 10**9), ("0.5 kWh", 18 * 10**11), ("1_000 mWh", 36 * 10**8), ("2e3 kJ", 2 * 10**12)],
)
def test_energies_are_read_exactly(text, amount) -> None:
    assert parse_energy_microjoules(text) == amount


def test_the_other_quantities_are_read_exactly() -> None:
    assert parse_carbon_micrograms("1.5 kgCO2e") == 1_500_000_000
    assert parse_money_micro_units("0.21 EUR") == (210_000, "EUR")
    assert parse_seconds("24h") == 86_400


@pytest.mark.parametrize("text", ["", "Wh", "5", "-1 Wh", "5 wh", "1 2 Wh", "nan Wh"])
def test_what_is_no_energy_is_refused_with_the_text_in_the_message(text) -> None:
    with pytest.raises(QuantityError, match=r"known units|number and a unit"):
        parse_energy_microjoules(text)


@given(st.integers(0, 2 * 10**9))
def test_a_whole_number_of_watt_hours_survives_its_text(watt_hours) -> None:
    assert parse_energy_microjoules(f"{watt_hours} Wh") == watt_hours * 3_600_000_000


@given(st.integers(0, 10**15))
def test_joules_of_a_whole_microjoule_come_back(amount) -> None:
    assert abs(microjoules(amount / 1e6) - amount) <= max(1, amount * 2**-52)


def test_people_read_three_digits_in_a_fitting_unit() -> None:
    assert format_energy(15_120_000) == "4.20 mWh"
    assert format_energy(18 * 10**11) == "500 Wh"
    assert format_carbon(1_200_000) == "1.20 gCO2e"
    assert format_energy_interval(15_120_000, 5_040_000, 45_360_000) == "4.20 mWh [1.40, 12.6]"
    assert format_money(1_250_000, "EUR") == "1.25 EUR"
    assert format_count(12_345) == "12.3 k"


def test_what_is_missing_is_a_dash_and_never_a_zero() -> None:
    assert {format_energy(None), format_carbon(None), format_money(None, "EUR"), format_count(None)} == {"-"}
    assert format_energy(0) == "0 mWh"


AMOUNTS = st.one_of(st.integers(1, 10_000), st.integers(1, AMOUNT_MAX))


@given(AMOUNTS, st.sampled_from(["", "-"]))
def test_only_zero_reads_as_zero_and_what_is_read_is_within_half_a_percent(amount, sign) -> None:
    for text, factors in ((format_energy, units.ENERGY_MICROJOULES), (format_carbon, units.CARBON_MICROGRAMS)):
        number, unit = text(int(f"{sign}{amount}")).split()
        assert float(number) * factors[unit] == pytest.approx(int(f"{sign}{amount}"), rel=0.005)
    number, _ = format_money(int(f"{sign}{amount}"), "EUR").split()
    assert float(number) * units.MICRO_UNITS_PER_UNIT == pytest.approx(int(f"{sign}{amount}"), rel=0.005)


@given(st.floats(1e-300, 1e15), st.integers(1, 10**15))
def test_no_number_beside_a_unit_reads_as_zero_but_zero(value, amount) -> None:
    assert float(three_digits(value)) == pytest.approx(value, rel=0.005)
    assert float(format_count(value).rstrip(" kMGT")) > 0
    assert float(format_energy_interval(amount, 0, 1).rpartition(", ")[2].rstrip("]")) > 0
    assert format_share(value).strip("<%") != "0"
    assert (three_digits(0), format_share(0), format_count(0)) == ("0", "0%", "0")


@pytest.mark.parametrize("amount", [1, 999, 1_440, 3_600, 123_456])
def test_a_small_amount_is_read_in_a_small_unit(amount) -> None:
    number, unit = format_energy(amount).split()
    assert unit == "uWh"
    assert parse_energy_microjoules(f"{number} {unit}") == pytest.approx(amount, rel=0.005)
    assert format_carbon(amount).endswith("ugCO2e") == (amount < 1_000 * 0.9995)


def test_a_part_that_somebody_wrote_is_read_as_written() -> None:
    assert [format_percent(ratio) for ratio in (0.8, 0.075, 0.004, 1.05, 0.07)] == ["80%", "7.5%", "0.4%", "105%", "7%"]


@pytest.mark.parametrize(
    ("unit", "text"), [(Unit.ENERGY, "417 mWh"), (Unit.CARBON, "1500 gCO2e"), (Unit.MONEY, "1500.00 EUR")]
)
def test_an_amount_of_a_budget_is_read_in_its_unit(unit, text) -> None:
    assert format_amount(unit, 1_500_000_000, "EUR").replace("1.50 kg", "1500 g") == text
    assert format_amount(unit, None, "EUR") == "-"


def test_small_times_and_distances_have_a_smaller_unit() -> None:
    assert (format_hours(2.5), format_hours(0.2), format_hours(0.001)) == ("2.50 h", "12.0 min", "3.60 s")
    assert (format_kilometres(2.5), format_kilometres(0.012)) == ("2.50 km", "12.0 m")


@given(st.integers(0, 10**13))
def test_milliseconds_of_a_whole_millisecond_come_back(amount) -> None:
    assert milliseconds(amount / 1_000) == amount


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_energy_microjoules, "1e400 kWh"),
        (parse_energy_microjoules, "3 GWh"),
        (parse_energy_microjoules, "1e99999999999999999999 J"),
        (parse_carbon_micrograms, "1e14 tCO2e"),
        (parse_money_micro_units, "1e13 EUR"),
        (parse_seconds, "99999999999d"),
    ],
)
def test_what_does_not_fit_into_a_ledger_is_too_much(parse, text):
    with pytest.raises(QuantityError, match="is too much"):
        parse(text)


def test_the_most_that_fits_is_read():
    assert parse_energy_microjoules("2.56 GWh") <= AMOUNT_MAX
    assert parse_seconds("36500d") == SECONDS_MAX


def test_what_rounds_to_a_thousand_is_one_of_the_next_unit():
    assert units.format_energy(units.ENERGY_MICROJOULES["kWh"] - 1) == "1.00 kWh"
    assert units.format_energy(-units.ENERGY_MICROJOULES["Wh"] + 1) == "-1.00 Wh"
    assert units.format_energy(round(999.4 * units.ENERGY_MICROJOULES["Wh"])) == "999 Wh"
    assert [units.three_digits(value) for value in (9.999, 99.99, 0.9999)] == ["10.0", "100", "1.00"]


@given(st.integers(-(10**20), 10**20), st.integers(1, 10**20) | st.integers(1, 12))
def test_a_quotient_is_rounded_as_python_rounds_the_fraction(numerator, denominator):
    assert units.rounded_quotient(numerator, denominator) == round(Fraction(numerator, denominator))
