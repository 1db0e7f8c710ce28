"""Exact unit conversions: the only place where one unit becomes another.

Energy in the ledger is an integer number of microjoules; people read watt-hours, programs
read microjoules. Every factor here is exact by definition (SI, 1 h = 3600 s).
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal, DecimalException
from fractions import Fraction
from functools import lru_cache

from mlflow_green.errors import QuantityError

MICROJOULES_PER_JOULE = 1_000_000
JOULES_PER_WATT_HOUR = 3_600
JOULES_PER_KWH = 3_600_000
MICROJOULES_PER_WATT_HOUR = JOULES_PER_WATT_HOUR * MICROJOULES_PER_JOULE
MICROJOULES_PER_KWH = JOULES_PER_KWH * MICROJOULES_PER_JOULE
MICROGRAMS_PER_GRAM = 1_000_000
MICROGRAMS_PER_KILOGRAM = 1_000_000_000
MICRO_UNITS_PER_UNIT = 1_000_000
NANOSECONDS_PER_SECOND = 1_000_000_000
PERCENT_PER_UNIT = 100
MILLIWATTS_PER_WATT = 1_000
MICROWATTS_PER_WATT = 1_000_000
MICROJOULES_PER_MILLIJOULE = 1_000
MILLISECONDS_PER_SECOND = 1_000
METRES_PER_KILOMETRE = 1_000
BYTES_PER_MB = 1_000_000
BYTES_PER_GIB = 2**30
SECONDS_PER_HOUR = 3_600
SECONDS_PER_YEAR = 31_557_600  # the Julian year of 365.25 days
GRAMS_PER_POUND = Fraction("453.59237")  # international avoirdupois pound, exact since 1959
KILOWATT_HOURS_PER_MWH = 1_000
SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

ENERGY_MICROJOULES = {
    "uJ": 1,
    "mJ": 1_000,
    "J": MICROJOULES_PER_JOULE,
    "kJ": 1_000 * MICROJOULES_PER_JOULE,
    "MJ": 1_000_000 * MICROJOULES_PER_JOULE,
    "uWh": MICROJOULES_PER_WATT_HOUR // 1_000_000,
    "mWh": MICROJOULES_PER_WATT_HOUR // 1_000,
    "Wh": MICROJOULES_PER_WATT_HOUR,
    "kWh": MICROJOULES_PER_KWH,
    "MWh": 1_000 * MICROJOULES_PER_KWH,
    "GWh": 1_000_000 * MICROJOULES_PER_KWH,
}
_NEARLY = (1_999, 2_000)  # 999.5, which rounds to 1000, as a part of 1000
POWER_WATTS = {"W": 1, "kW": 1_000}
CARBON_MICROGRAMS = {
    "ugCO2e": 1,
    "mgCO2e": 1_000,
    "gCO2e": MICROGRAMS_PER_GRAM,
    "kgCO2e": 1_000 * MICROGRAMS_PER_GRAM,
    "tCO2e": 1_000_000 * MICROGRAMS_PER_GRAM,
}

ENERGY_LADDER = ("uWh", "mWh", "Wh", "kWh", "MWh")
CARBON_LADDER = ("ugCO2e", "mgCO2e", "gCO2e", "kgCO2e", "tCO2e")
_ZERO = 1  # the rung in which nothing at all is told

AMOUNT_MAX = 2**63 - 1
"""The largest amount in a unit's integer scale, for databases count in 64 bits: 2.56 GWh, 9.22 MtCO2e."""

SECONDS_MAX = 36_500 * SECONDS["d"]
_NUMBER_MAX = Decimal(10) ** 30
_CURRENCY = re.compile(r"^[A-Z]{3}$")
_QUANTITY = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9_]+)?(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9].*?)\s*$")


def split_quantity(text: str) -> tuple[Decimal, str]:
    """Split ``"5 kWh"`` into ``(Decimal(5), "kWh")``.

    Raises:
        QuantityError: the text is not one non-negative number followed by a unit.
    """
    match = _QUANTITY.match(text)
    if match is None:
        raise QuantityError(f"{text!r} is not a quantity; write a number and a unit, e.g. '5 kWh'")
    try:
        number = Decimal(match[1].replace("_", ""))
    except DecimalException:
        number = Decimal("Infinity")
    if number > _NUMBER_MAX:
        raise QuantityError(f"{text!r} is too much; nothing here is that large")
    return number, match[2]


def parse_energy_microjoules(text: str) -> int:
    """Energy such as ``"5 Wh"`` in whole microjoules, at least 0."""
    return _parse(text, ENERGY_MICROJOULES, "energy")


def parse_carbon_micrograms(text: str) -> int:
    """Carbon dioxide equivalent such as ``"1.5 kgCO2e"`` in whole micrograms, at least 0."""
    return _parse(text, CARBON_MICROGRAMS, "carbon")


def parse_money_micro_units(text: str) -> tuple[int, str]:
    """Money such as ``"18_000 EUR"`` in whole millionths of the currency, at least 0, and the currency."""
    number, currency = split_quantity(text)
    if not _CURRENCY.match(currency):
        raise QuantityError(f"{currency!r} in {text!r} is not a currency; write three capitals, e.g. '20 EUR'")
    return _whole(text, number, MICRO_UNITS_PER_UNIT, AMOUNT_MAX, currency), currency


def parse_seconds(text: str) -> int:
    """A duration such as ``"30s"``, ``"5 min"`` or ``"24h"`` in whole seconds, at least 0, at most 36,500 days."""
    return _parse(text, SECONDS, "time", SECONDS_MAX)


def parse_power_watts(text: str) -> int:
    """A power such as ``"250 W"`` in whole watts, at least 0."""
    return _parse(text, POWER_WATTS, "power")


@lru_cache(maxsize=256)  # ratios and factors are few, and every sample of every step is converted by them
def exact(number: float) -> Fraction:
    """The number as it was written: 0.1 is one tenth here, not the binary number next to it."""
    return Fraction(repr(float(number)))


def rounded_quotient(numerator: int, denominator: int) -> int:
    """``numerator / denominator``, the latter > 0, to the nearest integer, half to even."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest + quotient % 2 > denominator)


def _parse(text: str, factors: dict[str, int], kind: str, most: int = AMOUNT_MAX) -> int:
    number, unit = split_quantity(text)
    if unit not in factors:
        raise QuantityError(
            f"unknown {kind} unit {unit!r} in {text!r}; known units: {', '.join(factors)}",
            unit=unit,
            known_units=tuple(factors),
        )
    return _whole(text, number, factors[unit], most, unit)


def _whole(text: str, number: Decimal, factor: int, most: int, unit: str) -> int:
    amount = number * factor
    if amount > most:
        top = most // factor if most >= 100 * factor else most / factor  # three digits never round it up
        raise QuantityError(f"{text!r} is too much; at most {three_digits(top)} {unit}")
    return int(amount.to_integral_value(ROUND_HALF_EVEN))


def microjoules(joules: float) -> int:
    """Joules to the nearest microjoule, half to even."""
    return round(Fraction(joules) * MICROJOULES_PER_JOULE)


def joules(energy_microjoules: int) -> float:
    return energy_microjoules / MICROJOULES_PER_JOULE


def watt_hours(energy_microjoules: int) -> float:
    return energy_microjoules / MICROJOULES_PER_WATT_HOUR


def kilowatt_hours(energy_microjoules: int) -> float:
    return energy_microjoules / MICROJOULES_PER_KWH


def grams(carbon_micrograms: int) -> float:
    return carbon_micrograms / MICROGRAMS_PER_GRAM


def kilograms(carbon_micrograms: int) -> float:
    return carbon_micrograms / MICROGRAMS_PER_KILOGRAM


def g_per_kwh(pounds_per_mwh: float) -> float:
    """Pounds per megawatt-hour, as the US counts emissions, in grams per kilowatt-hour."""
    return float(exact(pounds_per_mwh) * GRAMS_PER_POUND / KILOWATT_HOURS_PER_MWH)


def parse_years_seconds(text: str) -> int:
    """A lifetime such as ``"6 years"`` in whole seconds, at least 0."""
    return _parse(text, {"years": SECONDS_PER_YEAR, "year": SECONDS_PER_YEAR, "y": SECONDS_PER_YEAR}, "lifetime")


def micrograms(carbon_grams: float) -> int:
    """Grams to the nearest microgram, half to even."""
    return round(Fraction(carbon_grams) * MICROGRAMS_PER_GRAM)


def milliseconds(seconds: float) -> int:
    """Seconds to the nearest millisecond, half to even; MLflow counts time since 1970 in these."""
    return round(Fraction(seconds) * MILLISECONDS_PER_SECOND)


def megabytes(size_bytes: int) -> float:
    return size_bytes / BYTES_PER_MB


def gibibytes(size_bytes: int) -> float:
    return size_bytes / BYTES_PER_GIB


def format_energy(energy_microjoules: int | None) -> str:
    """Energy as people read it, three significant digits: ``"4.20 mWh"``; ``"-"`` when unknown."""
    return _format(energy_microjoules, ENERGY_MICROJOULES, ENERGY_LADDER)


def format_carbon(carbon_micrograms: int | None) -> str:
    """Carbon as people read it, three significant digits: ``"1.20 gCO2e"``; ``"-"`` when unknown."""
    return _format(carbon_micrograms, CARBON_MICROGRAMS, CARBON_LADDER)


def format_energy_interval(energy_microjoules: int, low_microjoules: int, high_microjoules: int) -> str:
    """A value with its interval in the unit of the value: ``"4.20 mWh [1.40, 12.6]"``."""
    unit = _unit(energy_microjoules, ENERGY_MICROJOULES, ENERGY_LADDER)
    point, low, high = (
        three_digits(amount / ENERGY_MICROJOULES[unit])
        for amount in (energy_microjoules, low_microjoules, high_microjoules)
    )
    return f"{point} {unit} [{low}, {high}]"


def format_number_of(number: int, noun: str, plural: str = "") -> str:
    """``"1 step"``, ``"3 steps"``; ``plural`` where an s is not enough."""
    return f"1 {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def format_money(cost_micro_units: int | None, currency: str | None) -> str:
    """Money as people read it: ``"1.25 EUR"``, below a hundredth three digits; ``"-"`` when unknown."""
    if cost_micro_units is None:
        return "-"
    amount = cost_micro_units / MICRO_UNITS_PER_UNIT
    text = f"{amount:.2f}" if abs(amount) >= 1 else three_digits(amount)
    return f"{text} {currency}" if currency else text


def format_amount(unit: str, amount: int | None, currency: str | None = None) -> str:
    """An amount of a budget as people read it; ``unit`` is ``"energy"``, ``"carbon"`` or ``"money"``."""
    if unit == "energy":
        return format_energy(amount)
    if unit == "carbon":
        return format_carbon(amount)
    return format_money(amount, currency)


def format_hours(hours: float) -> str:
    """A time as people read it: ``"2.50 h"``, below one hour ``"12.0 min"``, below one minute ``"5.00 s"``."""
    seconds = hours * SECONDS["h"]
    unit = "h" if hours >= 1 else "min" if seconds >= SECONDS["min"] else "s"
    return f"{three_digits(seconds / SECONDS[unit])} {unit}"


def format_kilometres(kilometres: float) -> str:
    """A distance as people read it: ``"2.50 km"``, below one kilometre ``"12.0 m"``."""
    metres = kilometres * METRES_PER_KILOMETRE
    return f"{three_digits(kilometres)} km" if kilometres >= 1 else f"{three_digits(metres)} m"


def format_count(count: float | None) -> str:
    """A count as people read it, three significant digits: ``"12.3 k"``; ``"-"`` when unknown."""
    if count is None:
        return "-"
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= factor:
            return f"{three_digits(count / factor)} {prefix}"
    return f"{count:.0f}" if count == round(count) else three_digits(count)


def format_share(ratio: float) -> str:
    """A part of a whole as people read it: ``"12%"``; what is not nothing is at least ``"<1%"``."""
    return "<1%" if 0 < ratio < 1 / PERCENT_PER_UNIT else f"{ratio:.0%}"


def format_percent(ratio: float) -> str:
    """A ratio that somebody wrote, as it was written: ``"7.5%"``."""
    return f"{ratio * PERCENT_PER_UNIT:.10g}%"


def format_bytes(size_bytes: int) -> str:
    """A size as people read it, three significant digits: ``"1.20 GB"``, ``"512 B"``."""
    text = format_count(size_bytes)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def _format(amount: int | None, factors: dict[str, int], ladder: tuple[str, ...]) -> str:
    if amount is None:
        return "-"
    unit = _unit(amount, factors, ladder)
    return f"{three_digits(amount / factors[unit])} {unit}"


def _unit(amount: int, factors: dict[str, int], ladder: tuple[str, ...]) -> str:
    unit = ladder[0] if amount else ladder[_ZERO]
    part, whole = _NEARLY
    for candidate in ladder:
        if abs(amount) * whole >= factors[candidate] * part:  # what rounds to 1000 of a unit is 1.00 of the next
            unit = candidate
    return unit


def three_digits(value: float) -> str:
    """Three significant digits: ``0.0123``, ``4.20``, ``1234``; in exponent form only below a millionth."""
    if value == 0:
        return "0"
    if abs(value) < 100:  # noqa: PLR2004 - what rounds up to 10 or 100 has a digit more before the point
        value = float(f"{value:.3g}")
    size = abs(value)
    if size >= 100:  # noqa: PLR2004 - three digits before the point already
        return f"{value:.0f}"
    if size < 1e-6:  # noqa: PLR2004 - as fixed-point numbers these are all zeros
        return f"{value:.2e}"
    digits = 2
    while size < 1:
        size *= 10
        digits += 1
    return f"{value:.{digits if abs(value) < 10 else 1}f}"  # noqa: PLR2004
