"""The values of ``green.yaml``: from what people write to typed numbers, or to the error that says what was meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from decimal import Decimal, DecimalException
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from mlflow_green.errors import GreenError, QuantityError
from mlflow_green.policy.source import close_name
from mlflow_green.records import Tier, Unit
from mlflow_green.units import (
    CARBON_MICROGRAMS,
    ENERGY_MICROJOULES,
    parse_carbon_micrograms,
    parse_energy_microjoules,
    parse_money_micro_units,
    parse_seconds,
    split_quantity,
)

INTENSITY_UNITS = ("g/kWh", "gCO2e/kWh")
PERCENT_MAX = 10_000
"""A hundredfold; more is a slip."""

FACTOR_MAX = 1_000_000
"""More grams or money per kWh is a slip, and would not fit into 64 bits."""

TIER_NAME = re.compile("[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How much of one unit a budget has, > 0, in the unit's integer scale; ``currency`` for money only."""

    unit: Unit
    amount: int
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What electricity costs, per kWh, >= 0."""

    per_kwh: float
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietHours:
    """A part of every day, by the clock on the wall, in which no message is sent; ``ends_at`` may be the next day's."""

    starts_at: time
    ends_at: time

    def end_after(self, moment: datetime, zone: tzinfo) -> datetime | None:
        """When the quiet that ``moment``, an aware time, falls in is over, in UTC; ``None`` outside of it."""
        here = moment.astimezone(zone)
        now = here.time()
        if self.starts_at < self.ends_at:
            if not self.starts_at <= now < self.ends_at:
                return None
            day = here.date()
        else:
            if self.ends_at <= now < self.starts_at:
                return None
            day = here.date() + timedelta(days=now >= self.starts_at)
        # An hour that the clocks repeat ends in the repetition that the moment is in.
        return datetime.combine(day, self.ends_at.replace(fold=here.fold), tzinfo=zone).astimezone(UTC)


def wrong(message: str, suggestion: str | None = None) -> PydanticCustomError:
    return PydanticCustomError("green", "{message}", {"message": message, "suggestion": suggestion})


def as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def quantity(parse: Callable[[str], Any], example: str) -> Callable[[object], Any]:
    def validate(value: object) -> Any:
        if value is None:
            raise wrong("has no value")
        if not isinstance(value, str):
            raise wrong(f"{value!r} has no unit; write e.g. '{example}'")
        try:
            return parse(value)
        except QuantityError as error:
            raise wrong(str(error), close_name(error.unit, error.known_units)) from None

    return validate


def limit_of(text: str) -> Limit:
    """One limit, told apart by its unit."""
    unit = split_quantity(text)[1]
    known = (*ENERGY_MICROJOULES, *CARBON_MICROGRAMS)
    currency: str | None = None
    if unit in CARBON_MICROGRAMS:
        kind, amount = Unit.CARBON, parse_carbon_micrograms(text)
    elif unit in ENERGY_MICROJOULES:
        kind, amount = Unit.ENERGY, parse_energy_microjoules(text)
    elif len(unit) == 3 and unit.isupper() and unit.lower() not in {name.lower() for name in known}:  # noqa: PLR2004
        kind, (amount, currency) = Unit.MONEY, parse_money_micro_units(text)
    else:
        raise QuantityError(
            f"unknown unit {unit!r} in {text!r}; a limit is an energy, a carbon or a money amount, "
            "e.g. '5 kWh', '1.5 kgCO2e' or '20 EUR'",
            unit=unit,
            known_units=known,
        )
    if amount == 0:
        raise QuantityError(f"{text!r} is nothing; a limit must be more than 0")
    return Limit(unit=kind, amount=amount, currency=currency)


def percent(value: object) -> Decimal:
    """``"80%"`` as a ratio, exactly."""
    if value is None:
        raise wrong("has no value")
    if isinstance(value, int | float) and not isinstance(value, bool):
        meant = f"{value * 100:g}%" if 0 < value <= 1 else f"{value:g}%" if abs(value) <= PERCENT_MAX else None
        raise wrong(f"{value} is not a percentage; write it with its sign", meant)
    try:
        ratio = Decimal(str(value).removesuffix("%").strip()) / 100
    except DecimalException:
        ratio = Decimal("NaN")
    if not ratio.is_finite():  # it is no number to compare with
        raise wrong(f"{value!r} is not a percentage; write e.g. '80%'")
    if not str(value).endswith("%"):
        raise wrong(f"{value!r} is not a percentage; write it with its sign", f"{value}%")
    if not 0 < ratio <= PERCENT_MAX / 100:
        raise wrong(f"{value!r} is out of range; a percentage is more than 0% and at most 10000%")
    return ratio


def tiers_of(value: object) -> tuple[Tier, ...]:
    """``"full:1,half:0.5"``: dearest first, each with its energy as a part of the dearest tier's."""
    example = "write e.g. 'full:1,half:0.5', dearest first"
    if not isinstance(value, str) or not value.strip():
        raise wrong(f"{value!r} is not a list of tiers; {example}, in quotes")
    tiers = tuple(_tier(part.strip(), example) for part in value.split(","))
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise wrong(f"a tier is named twice in {value!r}")
    ratios = [tier.energy_ratio for tier in tiers]
    if ratios[0] != 1:
        raise wrong(f"the first tier is the dearest, so its ratio is 1, not {ratios[0]:g}; {example}")
    if ratios != sorted(ratios, reverse=True):
        raise wrong(f"the tiers in {value!r} do not get cheaper; {example}")
    return tiers


def _tier(text: str, example: str) -> Tier:
    name, colon, ratio_text = (part.strip() for part in text.partition(":"))
    try:
        ratio = float(ratio_text)
    except ValueError:
        ratio = -1.0
    if not TIER_NAME.fullmatch(name) or not colon:
        raise wrong(f"tier {text!r} is not 'name:ratio'; {example}")
    if not 0 < ratio <= 1:
        raise wrong(f"the energy ratio of tier {name!r} is {ratio_text!r}, not a number in (0, 1]; {example}")
    return Tier(name=name, energy_ratio=ratio)


def quiet_hours_of(value: object) -> QuietHours:
    """``"22:00-07:00"``, by the clock of the policy's time zone."""
    if value is None:
        raise wrong("has no value")
    found = re.fullmatch(r"(\d?\d:\d\d)\s*-\s*(\d?\d:\d\d)", str(value))
    try:
        starts_at, ends_at = (time.fromisoformat(text.zfill(5)) for text in found.groups()) if found else (None, None)
    except ValueError:
        starts_at = ends_at = None
    if starts_at is None or ends_at is None or starts_at == ends_at:
        raise wrong(f"{value!r} are no quiet hours; write when they begin and end each day, e.g. '22:00-07:00'")
    return QuietHours(starts_at=starts_at, ends_at=ends_at)


def at_most_all(value: Decimal) -> Decimal:
    if value > 1:
        raise wrong(f"{(100 * value).normalize():f}% is more than all of it; write at most '100%'")
    return value


def intensity_of(text: str) -> float:
    number, unit = split_quantity(text)
    if unit not in INTENSITY_UNITS:
        raise QuantityError(
            f"unknown unit {unit!r} in {text!r}; write e.g. '56 g/kWh'", unit=unit, known_units=INTENSITY_UNITS
        )
    return _not_too_much(text, number, "56 g/kWh")


def price_of(text: str) -> Price:
    number, unit = split_quantity(text)
    currency, _, per = unit.partition("/")
    if per != "kWh" or not re.fullmatch("[A-Z]{3}", currency):
        raise QuantityError(f"{text!r} is not a price; write e.g. '0.21 EUR/kWh'")
    return Price(per_kwh=_not_too_much(text, number, "0.21 EUR/kWh"), currency=currency)


def _not_too_much(text: str, number: Decimal, example: str) -> float:
    if number > FACTOR_MAX:
        raise QuantityError(f"{text!r} is too much; write e.g. '{example}'")
    return float(number)


def timezone_of(value: str) -> str:
    try:
        zone(value)
    except (KeyError, OSError, ValueError):
        raise wrong(f"unknown time zone {value!r}; write e.g. 'Europe/Paris' or 'UTC'", _zone_meant(value)) from None
    return value


def _zone_meant(value: str) -> str | None:
    """A zone of that name, or of that city: ``Paris`` means ``Europe/Paris``."""
    zones = sorted(available_timezones())
    by_city = {name.rpartition("/")[2]: name for name in zones if "/" in name}
    return close_name(value, zones) or by_city.get(close_name(value, by_city) or "")


def zone(name: str) -> tzinfo:
    """The time zone of that name. ``UTC`` needs no time zone database."""
    return UTC if name == "UTC" else ZoneInfo(name)


def country_of(value: str, info: ValidationInfo) -> str:
    known: Collection[str] | None = (info.context or {}).get("known_countries")
    if known is None:
        if not re.fullmatch("[A-Z]{3}", value):
            raise wrong(f"{value!r} is not a country code; write three capitals (ISO 3166-1 alpha-3), e.g. 'FRA'")
        return value
    if value not in known:
        meant = _country_meant(value, known)
        message = f"no carbon intensity is known for country {value!r}; write three capitals such as 'FRA', or "
        raise wrong(message + "'carbon_intensity: 56 g/kWh' with its source", meant)
    return value


def _country_meant(value: str, known: Collection[str]) -> str | None:
    """``fra`` and ``France`` mean FRA by their start; else the nearest code."""
    codes = sorted(known)
    start = value.upper()[:3]
    return next((code for code in codes if code.startswith(start)), None) or close_name(value, codes)


def looked_up(value: str, info: ValidationInfo) -> str:
    """``value``, if whoever loads the policy finds what it names."""
    look_up = (info.context or {}).get("look_up", {}).get(info.field_name)
    if look_up is not None:
        try:
            look_up(value)
        except GreenError as error:
            raise wrong(str(error)) from None
    return value


def above_nothing(value: int) -> int:
    if value == 0:
        raise wrong("must be more than 0; leave it out where it is not known")
    return value


def tracking_of(value: object) -> object:
    return {"jobs": value} if isinstance(value, str) else value


def secret_of(value: str) -> str:
    if not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*", value):
        raise wrong("a secret does not belong in a file; write 'env:NAME' and set that environment variable")
    return value


def webhook_of(value: str) -> str:
    if value.startswith("https://") and "@" not in value:
        return value
    if value.startswith("env:"):
        return secret_of(value)
    raise wrong("this is neither an https:// address without a password nor 'env:NAME'")


def organisation_of(value: str) -> str:
    if value == "*":
        raise wrong("only a project or a user can be '*'; name the organisation")
    return value


def approver_of(value: str) -> str:
    kind, colon, name = value.partition(":")
    if kind not in {"user", "group"} or not colon or not name:
        meant = None if colon else f"user:{value}"
        raise wrong(f"{value!r} is not an approver; write e.g. 'user:ana' or 'group:leads'", meant)
    return value


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(as_list), Field(min_length=1)]
Ratio = Annotated[Decimal, BeforeValidator(percent)]
Part = Annotated[Decimal, BeforeValidator(percent), AfterValidator(at_most_all)]
Seconds = Annotated[int, BeforeValidator(quantity(parse_seconds, "30s"))]
Secret = Annotated[str, AfterValidator(secret_of)]
AtLeastOne = Annotated[float, Field(ge=1, le=10, strict=True, allow_inf_nan=False)]
