"""``mlflow-green estimate``: the footprint of a study or a plan, from watts and hours; nothing is measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from fractions import Fraction
from typing import Any

import click

from mlflow_green.cli.output import json_option, print_json
from mlflow_green.emissions import equivalents
from mlflow_green.emissions.embodied import DEVICES
from mlflow_green.emissions.footprint import ONE, Footprint, Workload, footprint
from mlflow_green.emissions.intensity import HOURLY_MARGIN_RATIO, cloud_intensity, country_intensity
from mlflow_green.errors import IntensityUnknown
from mlflow_green.records import Boundary, Intensity
from mlflow_green.units import MICRO_UNITS_PER_UNIT, grams, kilograms, kilowatt_hours, three_digits

DIGITS_MAX = 40
STATED = "stated on the command line"
ASSUMED = "not stated: counts as this"
DEVICE_HINT = "--embodied-kg with --lifetime-years, or --embodied-device"
MARGIN = f"x {HOURLY_MARGIN_RATIO:g}"
PLACE_HINT = "--country FRA, --region aws:eu-west-3 or --intensity 56"


def _number_type(low: int, high: int, *, above: bool = False) -> Callable[[Any], Fraction]:
    """What reads a decimal number exactly as it was written; ``above``: ``low`` itself is out of range."""

    def number(value: Any) -> Fraction:
        if isinstance(value, Fraction):
            return value
        try:
            read = Decimal(value.replace("_", ""))
        except DecimalException:
            read = Decimal("NaN")
        if read.is_nan() or (read and read.adjusted() < -DIGITS_MAX) or len(value) > DIGITS_MAX:
            raise click.BadParameter(f"{value[:DIGITS_MAX]!r} is not a number; write e.g. 280 or 0.6")
        if not low <= read <= high or (above and read == low):
            least = f"more than {low}" if above else f"at least {low}"
            raise click.BadParameter(f"{value} is out of range; write a number of {least} and at most {high:,}")
        return Fraction(read)

    return number


_POSITIVE = _number_type(0, 10**12, above=True)
_NOT_NEGATIVE = _number_type(0, 10**12)
_FACTOR = _number_type(1, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One number that the result depends on, and who says so."""

    name: str
    value: Fraction | int
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The intensity that counts; ``None`` where the place is not known."""

    g_per_kwh: Fraction | None = None
    low: Fraction | None = None
    high: Fraction | None = None
    source: str = ""


@click.command()
@click.option("--device-watts", type=_POSITIVE, required=True, help="Power of one device, in watts.")
@click.option("--hours", type=_POSITIVE, required=True, help="Hours that each device runs.")
@click.option("--devices", type=click.IntRange(1, 10**9), help="How many devices.")
@click.option("--utilisation", type=_number_type(0, 1, above=True), help="Mean power / --device-watts, in (0, 1].")
@click.option("--node-overhead", type=_FACTOR, help="The node's power / the devices' power.")
@click.option("--pue", type=_FACTOR, help="The facility's power / the computers' power.")
@click.option("--carbon-free", type=_number_type(0, 1), help="Part of the electricity whose carbon counts as 0.")
@click.option("--intensity", type=_number_type(0, 10_000), help="Carbon intensity in g CO2e/kWh.")
@click.option("--country", help="Country of the grid instead, such as FRA.")
@click.option("--region", help="Cloud region instead, such as aws:eu-west-3 or gcp:europe-west9.")
@click.option("--source", help="Where the number of --intensity comes from.")
@click.option("--price-per-hour", type=_NOT_NEGATIVE, help="Price of one device for one hour.")
@click.option("--price-per-kwh", type=_NOT_NEGATIVE, help="Price of electricity.")
@click.option("--currency", default="USD", help="Currency of the prices, three capitals.")
@click.option("--embodied-kg", type=_POSITIVE, help="kg CO2e of making one device.")
@click.option("--lifetime-years", type=_POSITIVE, help="Years for which one device is used.")
@click.option("--embodied-device", type=click.Choice(sorted(DEVICES)), help="A published figure for such a device.")
@json_option
def estimate(as_json: bool, **given: Any) -> None:
    """Energy, carbon and money of devices that run for some hours: exact arithmetic, every factor named."""
    if not re.fullmatch("[A-Z]{3}", given["currency"]):
        message = f"{given['currency']!r} is not a currency; write three capitals, e.g. EUR"
        raise click.BadParameter(message, param_hint="'--currency'")
    place = _place(given["intensity"], given["country"], given["region"], given["source"])
    embodied_kg, lifetime_years, embodied_source = _embodied(given)
    work = Workload(
        device_watts=given["device_watts"],
        hours=given["hours"],
        devices=given["devices"] or 1,
        utilisation=given["utilisation"] or ONE,
        node_overhead=given["node_overhead"] or ONE,
        pue=given["pue"] or ONE,
        carbon_free=given["carbon_free"] or Fraction(0),
        g_per_kwh=place.g_per_kwh,
        g_per_kwh_low=place.low,
        g_per_kwh_high=place.high,
        embodied_kilograms=embodied_kg,
        lifetime_years=lifetime_years,
        price_per_hour=given["price_per_hour"],
        price_per_kwh=given["price_per_kwh"],
    )
    result = footprint(work)
    boundary = _boundary(given)
    factors = _factors(work, given, place.source, embodied_source)
    if as_json:
        print_json(_json(result, boundary, factors, given["currency"]))
    else:
        _print(result, boundary, factors, given["currency"])


# --- from options to factors ------------------------------------------------------------------------


def _place(intensity: Fraction | None, country: str | None, region: str | None, source: str | None) -> _Place:
    if sum(value is not None for value in (intensity, country, region)) > 1:
        raise click.UsageError("give one place: --intensity, --country or --region")
    if source is not None and intensity is None:
        raise click.UsageError("--source says where the number of --intensity comes from, but there is none")
    if intensity is not None:
        return _Place(g_per_kwh=intensity, source=source or STATED)
    try:
        if country is not None:
            return _of_table(country_intensity(country), country.strip().upper())
        if region is not None:
            return _of_table(cloud_intensity(region))
    except IntensityUnknown as error:
        raise click.UsageError(f"{error.problem}; else give --intensity in g/kWh") from None
    return _Place()


def _of_table(found: Intensity, name: str = "") -> _Place:
    """A yearly mean, with an interval that reaches as far below it as above it, as a ratio."""
    mean, high = Fraction(repr(found.g_per_kwh)), Fraction(repr(found.g_per_kwh_high))
    source = f"{name}: {found.source}" if name else found.source
    return _Place(g_per_kwh=mean, low=mean * mean / high, high=high, source=f"yearly mean, {source}")


def _embodied(given: dict[str, Any]) -> tuple[Fraction | None, Fraction | None, str]:
    kilograms_co2e, years, device = given["embodied_kg"], given["lifetime_years"], given["embodied_device"]
    if device is not None:
        if kilograms_co2e is not None:
            raise click.UsageError("give --embodied-kg or --embodied-device, not both")
        known = DEVICES[device]
        return Fraction(known.kilograms_co2e), years or Fraction(known.lifetime_years), known.source
    if (kilograms_co2e is None) != (years is None):
        raise click.UsageError("embodied carbon needs both --embodied-kg and --lifetime-years")
    return kilograms_co2e, years, STATED


def _boundary(given: dict[str, Any]) -> Boundary:
    if given["pue"] is not None:
        return Boundary.FACILITY
    return Boundary.COMPONENT if given["node_overhead"] is None else Boundary.NODE


def _factors(work: Workload, given: dict[str, Any], place: str, embodied: str) -> list[Factor]:
    def said(option: str) -> str:
        return ASSUMED if given[option] is None else STATED

    currency = given["currency"]
    factors: Sequence[tuple[str, Fraction | int | None, str, str]] = (
        ("power of a device", work.device_watts, "W", STATED),
        ("devices", work.devices, "", said("devices")),
        ("time of each", work.hours, "h", STATED),
        ("utilisation", work.utilisation, "", said("utilisation")),
        ("node overhead", work.node_overhead, "", said("node_overhead")),
        ("PUE", work.pue, "", said("pue")),
        ("carbon-free part", work.carbon_free, "", said("carbon_free")),
        ("carbon intensity", work.g_per_kwh, "g/kWh", place),
        ("embodied carbon", work.embodied_kilograms, "kg a device", embodied),
        ("lifetime", work.lifetime_years, "years", STATED if given["lifetime_years"] is not None else embodied),
        ("price", work.price_per_hour, f"{currency} a device-hour", STATED),
        ("electricity", work.price_per_kwh, f"{currency}/kWh", STATED),
    )
    return [
        Factor(name=name, value=value, unit=unit, source=source)
        for name, value, unit, source in factors
        if value is not None
    ]


# --- what is shown ----------------------------------------------------------------------------------

_BOUNDARIES = {
    Boundary.COMPONENT: "the devices alone: not the rest of their nodes, not the building (--node-overhead, --pue)",
    Boundary.NODE: "whole nodes, without the building (--pue), the network and storage",
    Boundary.FACILITY: "the facility: devices x node overhead x PUE, without the network and storage elsewhere",
}


def _print(result: Footprint, boundary: Boundary, factors: Sequence[Factor], currency: str) -> None:
    devices, facility = kilowatt_hours(result.devices_microjoules), kilowatt_hours(result.facility_microjoules)
    click.echo("An estimate from the factors below; nothing was measured.\n")
    at = {Boundary.COMPONENT: "of the devices", Boundary.NODE: "of the nodes", Boundary.FACILITY: "at the facility"}
    own = f"; the devices {_number(devices)} kWh" if result.facility_microjoules != result.devices_microjoules else ""
    _line("Energy", f"{_number(facility)} kWh {at[boundary]}{own}")
    _line("Operational", _operational_text(result))
    embodied = result.embodied_micrograms
    _line("Embodied", f"not known ({DEVICE_HINT})" if embodied is None else f"{_number(kilograms(embodied))} kg CO2e")
    cost = "not known (--price-per-hour, --price-per-kwh)"
    if result.cost_micro_units is not None:
        cost = _money(result.cost_micro_units, currency)
    _line("Money", cost)
    _line("Boundary", _BOUNDARIES[boundary])
    click.echo("\nFactors")
    for factor in factors:
        click.echo(f"  {factor.name:<18}{_plain(factor.value) + ' ' + factor.unit:<24}{factor.source}")
    click.echo("\nLike")
    for name, amount, unit, source in _equivalents(result):
        click.echo(f"  {name:<18}{_number(amount) + ' ' + unit:<24}{source}")


def _line(name: str, text: str) -> None:
    click.echo(f"{name:<13}{text}")


def _operational_text(result: Footprint) -> str:
    if result.operational_micrograms is None:
        return f"not known ({PLACE_HINT})"
    text = f"{_number(kilograms(result.operational_micrograms))} kg CO2e"
    if result.operational_low_micrograms is None or result.operational_high_micrograms is None:
        return text
    low, high = map(kilograms, (result.operational_low_micrograms, result.operational_high_micrograms))
    return f"{text} [{_number(low)}, {_number(high)}]: hours differ from the yearly mean by up to {MARGIN}, we assume"


def _number(value: float) -> str:
    """Two decimals, and below one three significant digits: ``14,762.69``, ``0.0123``."""
    return f"{value:,.2f}" if value >= 1 else three_digits(value)


def _plain(value: Fraction | int) -> str:
    return f"{float(value):,.10g}"


def _money(cost_micro_units: int, currency: str) -> str:
    amount = cost_micro_units / MICRO_UNITS_PER_UNIT
    return f"{amount:,.0f} {currency}" if amount >= 1_000 else f"{_number(amount)} {currency}"  # noqa: PLR2004 - thousands


def _equivalents(result: Footprint) -> list[tuple[str, float, str, str]]:
    hours = equivalents.lamp_hours(result.facility_microjoules)
    found = [("the energy", hours, "h of light", equivalents.LAMP_SOURCE)]
    if result.operational_micrograms is not None:
        kilometres = equivalents.car_km(result.operational_micrograms)
        found.append(("the carbon", kilometres, "km by car", equivalents.CAR_SOURCE))
    return found


def _json(result: Footprint, boundary: Boundary, factors: Sequence[Factor], currency: str) -> dict[str, Any]:
    def of(convert: Callable[[int], float], amount: int | None) -> float | None:
        return None if amount is None else convert(amount)

    cost = result.cost_micro_units
    return {
        "method": "estimated",
        "boundary": boundary.value,
        "energy_devices_microjoules": result.devices_microjoules,
        "energy_microjoules": result.facility_microjoules,
        "energy_kwh": kilowatt_hours(result.facility_microjoules),
        "operational_g_co2e": of(grams, result.operational_micrograms),
        "operational_low_g_co2e": of(grams, result.operational_low_micrograms),
        "operational_high_g_co2e": of(grams, result.operational_high_micrograms),
        "embodied_g_co2e": of(grams, result.embodied_micrograms),
        "cost": None if cost is None else cost / MICRO_UNITS_PER_UNIT,
        "currency": None if cost is None else currency,
        "factors": [
            {"name": each.name, "value": float(each.value), "unit": each.unit, "source": each.source}
            for each in factors
        ],
        "equivalents": [
            {"of": name, "value": value, "unit": unit, "source": source}
            for name, value, unit, source in _equivalents(result)
        ],
    }
