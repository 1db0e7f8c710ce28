"""``green.yaml`` as typed records: the policy file's schema, and all its problems in one error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from decimal import Decimal, DecimalException
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from mlflow_green.errors import GreenError, PolicyError, QuantityError
from mlflow_green.policy.checks import cross_checks
from mlflow_green.policy.source import KeyPath, Problem, Source, close_name, decoded, read_bytes
from mlflow_green.records import EmbodiedShare, Mode, StepSpec, Tier, Unit
from mlflow_green.units import (
    CARBON_MICROGRAMS,
    ENERGY_MICROJOULES,
    parse_carbon_micrograms,
    parse_energy_microjoules,
    parse_money_micro_units,
    parse_seconds,
    parse_years_seconds,
    split_quantity,
)

GRACE_SECONDS = 30
INTENSITY_UNITS = ("g/kWh", "gCO2e/kWh")
ONE_DAY = 86_400
THREE_DAYS = 259_200


class Period(StrEnum):
    """How long a budget lasts before it starts afresh."""

    WORKFLOW = "workflow"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"
    TOTAL = "total"


class Reserve(StrEnum):
    """Which number of a step's history is reserved for it."""

    DECLARED = "declared"
    P50 = "p50"
    P95 = "p95"
    MAX = "max"


class Verb(StrEnum):
    """What a rule does when its threshold is crossed."""

    NOTIFY = "notify"
    DOWNGRADE = "downgrade"
    WAIT = "wait"
    REFUSE = "refuse"
    HALT = "halt"


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


# --- values -------------------------------------------------------------------------------------


def _wrong(message: str, suggestion: str | None = None) -> PydanticCustomError:
    return PydanticCustomError("green", "{message}", {"message": message, "suggestion": suggestion})


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _quantity(parse: Callable[[str], Any], example: str) -> Callable[[object], Any]:
    def validate(value: object) -> Any:
        if value is None:
            raise _wrong("has no value")
        if not isinstance(value, str):
            raise _wrong(f"{value!r} has no unit; write e.g. '{example}'")
        try:
            return parse(value)
        except QuantityError as error:
            raise _wrong(str(error), close_name(error.unit, error.known_units)) from None

    return validate


def _limit(text: str) -> Limit:
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


def _percent(value: object) -> Decimal:
    """``"80%"`` as a ratio, exactly."""
    if value is None:
        raise _wrong("has no value")
    if isinstance(value, int | float) and not isinstance(value, bool):
        meant = f"{value * 100:g}%" if 0 < value <= 1 else f"{value:g}%"
        raise _wrong(f"{value} is not a percentage; write it with its sign", meant)
    try:
        ratio = Decimal(str(value).removesuffix("%").strip()) / 100
    except DecimalException:
        raise _wrong(f"{value!r} is not a percentage; write e.g. '80%'") from None
    if not str(value).endswith("%"):
        raise _wrong(f"{value!r} is not a percentage; write it with its sign", f"{value}%")
    if not 0 < ratio <= 100:  # noqa: PLR2004 - a hundredfold; more is a slip
        raise _wrong(f"{value!r} is out of range; a percentage is more than 0% and at most 10000%")
    return ratio


def _tiers(value: object) -> tuple[Tier, ...]:
    """``"full:1,half:0.5"``: dearest first, each with its energy as a part of the dearest tier's."""
    example = "write e.g. 'full:1,half:0.5', dearest first"
    if not isinstance(value, str) or not value.strip():
        raise _wrong(f"{value!r} is not a list of tiers; {example}, in quotes")
    tiers = tuple(_tier(part.strip(), example) for part in value.split(","))
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise _wrong(f"a tier is named twice in {value!r}")
    ratios = [tier.energy_ratio for tier in tiers]
    if ratios[0] != 1:
        raise _wrong(f"the first tier is the dearest, so its ratio is 1, not {ratios[0]:g}; {example}")
    if ratios != sorted(ratios, reverse=True):
        raise _wrong(f"the tiers in {value!r} do not get cheaper; {example}")
    return tiers


def _tier(text: str, example: str) -> Tier:
    name, colon, ratio_text = (part.strip() for part in text.partition(":"))
    try:
        ratio = float(ratio_text)
    except ValueError:
        ratio = -1.0
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not colon:
        raise _wrong(f"tier {text!r} is not 'name:ratio'; {example}")
    if not 0 < ratio <= 1:
        raise _wrong(f"the energy ratio of tier {name!r} is {ratio_text!r}, not a number in (0, 1]; {example}")
    return Tier(name=name, energy_ratio=ratio)


def _intensity(text: str) -> float:
    number, unit = split_quantity(text)
    if unit not in INTENSITY_UNITS:
        raise QuantityError(
            f"unknown unit {unit!r} in {text!r}; write e.g. '56 g/kWh'", unit=unit, known_units=INTENSITY_UNITS
        )
    return float(number)


def _price(text: str) -> Price:
    number, unit = split_quantity(text)
    currency, _, per = unit.partition("/")
    if per != "kWh" or not re.fullmatch("[A-Z]{3}", currency):
        raise QuantityError(f"{text!r} is not a price; write e.g. '0.21 EUR/kWh'")
    return Price(per_kwh=float(number), currency=currency)


def _timezone(value: str) -> str:
    try:
        zone(value)
    except (KeyError, OSError, ValueError):
        raise _wrong(f"unknown time zone {value!r}; write e.g. 'Europe/Paris' or 'UTC'", _zone_meant(value)) from None
    return value


def _zone_meant(value: str) -> str | None:
    """A zone of that name, or of that city: ``Paris`` means ``Europe/Paris``."""
    zones = sorted(available_timezones())
    by_city = {name.rpartition("/")[2]: name for name in zones if "/" in name}
    return close_name(value, zones) or by_city.get(close_name(value, by_city) or "")


def zone(name: str) -> tzinfo:
    """The time zone of that name. ``UTC`` needs no time zone database."""
    return UTC if name == "UTC" else ZoneInfo(name)


def _country(value: str, info: ValidationInfo) -> str:
    known: Collection[str] | None = (info.context or {}).get("known_countries")
    if known is None:
        if not re.fullmatch("[A-Z]{3}", value):
            raise _wrong(f"{value!r} is not a country code; write three capitals (ISO 3166-1 alpha-3), e.g. 'FRA'")
        return value
    if value not in known:
        meant = _country_meant(value, known)
        message = f"no carbon intensity is known for country {value!r}; write three capitals such as 'FRA', or "
        raise _wrong(message + "'carbon_intensity: 56 g/kWh' with its source", meant)
    return value


def _country_meant(value: str, known: Collection[str]) -> str | None:
    """``fra`` and ``France`` mean FRA by their start; else the nearest code."""
    codes = sorted(known)
    start = value.upper()[:3]
    return next((code for code in codes if code.startswith(start)), None) or close_name(value, codes)


def _looked_up(value: str, info: ValidationInfo) -> str:
    """``value``, if whoever loads the policy finds what it names."""
    look_up = (info.context or {}).get("look_up", {}).get(info.field_name)
    if look_up is not None:
        try:
            look_up(value)
        except GreenError as error:
            raise _wrong(str(error)) from None
    return value


def _above_nothing(value: int) -> int:
    if value == 0:
        raise _wrong("must be more than 0; leave it out where it is not known")
    return value


def _tracking(value: object) -> object:
    return {"jobs": value} if isinstance(value, str) else value


def _secret(value: str) -> str:
    if not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*", value):
        raise _wrong("a secret does not belong in a file; write 'env:NAME' and set that environment variable")
    return value


def _webhook(value: str) -> str:
    if value.startswith("https://") and "@" not in value:
        return value
    if value.startswith("env:"):
        return _secret(value)
    raise _wrong(f"{value!r} is neither an https:// address without a password nor 'env:NAME'")


def _organisation(value: str) -> str:
    if value == "*":
        raise _wrong("only a project or a user can be '*'; name the organisation")
    return value


def _approver(value: str) -> str:
    kind, colon, name = value.partition(":")
    if kind not in {"user", "group"} or not colon or not name:
        raise _wrong(f"{value!r} is not an approver; write e.g. 'user:ana' or 'group:leads'")
    return value


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_list), Field(min_length=1)]
Ratio = Annotated[Decimal, BeforeValidator(_percent)]
Seconds = Annotated[int, BeforeValidator(_quantity(parse_seconds, "30s"))]
Secret = Annotated[str, AfterValidator(_secret)]
AtLeastOne = Annotated[float, Field(ge=1, le=10, strict=True, allow_inf_nan=False)]


# --- the document -------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class EmbodiedDocument(_Model):
    """What making one node emitted, and the time of use over which that is spread."""

    carbon_micrograms: Annotated[
        int,
        BeforeValidator(_quantity(parse_carbon_micrograms, "1300 kgCO2e")),
        AfterValidator(_above_nothing),
        Field(alias="carbon"),
    ]
    lifetime_seconds: Annotated[
        int,
        BeforeValidator(_quantity(parse_years_seconds, "5 years")),
        AfterValidator(_above_nothing),
        Field(alias="lifetime"),
    ]
    source: Name
    share: EmbodiedShare = EmbodiedShare.CORES


class SiteDocument(_Model):
    """Where the energy is used: what turns joules into carbon and money."""

    country: Annotated[str, AfterValidator(_country)] | None = None
    cloud: Annotated[str, AfterValidator(_looked_up)] | None = None
    intensity_series: Annotated[Name, AfterValidator(_looked_up)] | None = None
    carbon_intensity_g_per_kwh: Annotated[
        float | None, BeforeValidator(_quantity(_intensity, "56 g/kWh")), Field(alias="carbon_intensity")
    ] = None
    source: Name | None = None
    pue: AtLeastOne = 1.0
    node_overhead: AtLeastOne = 1.0
    price: Annotated[Price | None, BeforeValidator(_quantity(_price, "0.21 EUR/kWh"))] = None
    embodied: EmbodiedDocument | None = None


class Tracking(_Model):
    """Which jobs get a run of their own in MLflow."""

    jobs: Literal["all", "notable", "none"] = "notable"


class Scope(_Model):
    """Whom a budget is for; ``"*"`` is one budget for each project or user."""

    org: Annotated[Name, AfterValidator(_organisation)] | None = None
    project: Name | None = None
    user: Name | None = None


class Rule(_Model):
    """What happens at a part of the limit. ``at`` is a ratio, > 0."""

    at: Ratio
    do: Verb
    of: Literal["spent", "committed", "forecast"] | None = None
    to: Names = ()
    for_seconds: Annotated[Seconds | None, Field(alias="for")] = None
    then: Literal["refuse"] = "refuse"
    grace_seconds: Annotated[Seconds, Field(alias="grace")] = GRACE_SECONDS

    @property
    def base(self) -> str:
        """What is compared: ``committed`` unless the rule says otherwise; a halt looks at ``spent``."""
        return self.of or ("spent" if self.do is Verb.HALT else "committed")

    def threshold(self, limit: int) -> int:
        """The amount at which the rule fires, in the scale of ``limit``, rounded down."""
        return int(self.at * limit)


class Override(_Model):
    """Who may raise the limit, how far, for how long."""

    approvers: tuple[Annotated[str, AfterValidator(_approver)], ...] = Field(min_length=1)
    max_extra: Ratio
    expires_seconds: Annotated[Seconds, Field(alias="expires")] = THREE_DAYS
    reason: Literal["required", "optional"] = "required"


class Budget(_Model):
    """How much a scope may use in a period, and what happens on the way there."""

    name: Name
    limit: Annotated[
        tuple[Annotated[Limit, BeforeValidator(_quantity(_limit, "5 kWh"))], ...],
        BeforeValidator(_as_list),
        Field(min_length=1),
    ]
    period: Period
    scope: Scope = Scope()
    mode: Mode = Mode.OBSERVE
    reserve: Reserve = Reserve.P95
    unknown_step: Literal["admit", "wait", "refuse"] = "admit"
    overrun: Literal["halt", "finish"] = "halt"
    enforce: Literal["low", "point", "high"] = "low"
    max_wait_seconds: Annotated[Seconds, Field(alias="max_wait")] = ONE_DAY
    rules: tuple[Rule, ...] = ()
    override: Override | None = None

    def rules_that(self, verb: Verb) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.do == verb)

    @property
    def currency(self) -> str:
        """The currency of its money limit, empty without one."""
        return next((limit.currency for limit in self.limit if limit.currency), "")


class Quality(_Model):
    """The metric that says how good a step's result is."""

    metric: Name
    goal: Literal["min", "max"] = "min"


class StepDocument(_Model):
    """What is declared about a step."""

    tiers: Annotated[tuple[Tier, ...], BeforeValidator(_tiers)] = ()
    energy_microjoules: Annotated[
        int | None, BeforeValidator(_quantity(parse_energy_microjoules, "5 Wh")), Field(alias="energy")
    ] = None
    phase: Literal["data", "experimentation", "training", "inference"] | None = None
    checkpoint: Name | None = None
    quality: Quality | None = None

    @property
    def spec(self) -> StepSpec:
        return StepSpec(
            tiers=self.tiers,
            energy_microjoules=self.energy_microjoules,
            phase=self.phase,
            checkpoint=self.checkpoint,
            quality_metric=self.quality.metric if self.quality else None,
        )


class Channel(_Model):
    """Where messages go. Checked here, used by the alerts."""

    webhook: Annotated[str, AfterValidator(_webhook)] | None = None
    secret: Secret | None = None
    email: Names = ()
    apprise: Annotated[tuple[Secret, ...], BeforeValidator(_as_list)] = ()
    quiet_seconds: Annotated[Seconds, Field(alias="quiet")] = 3_600
    digest_seconds: Annotated[Seconds | None, Field(alias="digest")] = None


class Policy(_Model):
    """A checked ``green.yaml``; its ``sha256`` lets a decision name the policy it came from."""

    version: Literal[1]
    project: Name
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    site: SiteDocument = SiteDocument()
    tracking: Annotated[Tracking, BeforeValidator(_tracking)] = Tracking()
    budgets: tuple[Budget, ...] = ()
    step_documents: Annotated[dict[str, StepDocument], Field(alias="steps")] = {}
    channels: dict[str, Channel] = {}
    _sha256: str = PrivateAttr("")

    def model_post_init(self, context: Any) -> None:
        self._sha256 = (context or {}).get("sha256", "")

    @property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return self._sha256

    @property
    def zone(self) -> tzinfo:
        return zone(self.timezone)

    @cached_property
    def steps(self) -> dict[str, StepSpec]:
        """What is declared under ``steps:``, by rule name."""
        return {name: document.spec for name, document in self.step_documents.items()}

    def budget(self, name: str) -> Budget:
        """The budget of that name; ``KeyError`` where this policy has none."""
        for budget in self.budgets:
            if budget.name == name:
                return budget
        raise KeyError(f"policy {self.sha256[:12]} has no budget {name!r}")


# --- loading ------------------------------------------------------------------------------------


LookUps = Mapping[str, Callable[[str], object]]
"""By key of ``site``: finds what its value names, or raises the ``GreenError`` that says why not."""


def load_policy(
    path: Path, *, known_countries: Collection[str] | None = None, look_up: LookUps | None = None
) -> Policy:
    """The policy in a file; see ``parse_policy``.

    Raises:
        PolicyError: also when the file cannot be read.
    """
    return parse_policy(read_bytes(path), name=str(path), known_countries=known_countries, look_up=look_up)


def parse_policy(
    raw: bytes,
    *,
    name: str = "green.yaml",
    known_countries: Collection[str] | None = None,
    look_up: LookUps | None = None,
) -> Policy:
    """The policy in the bytes of a file called ``name``.

    ``known_countries`` are the ISO 3166-1 alpha-3 codes that have a carbon intensity, ``look_up`` checks the ``cloud``
    and the ``intensity_series`` of the site; ``None`` checks the form only.

    Raises:
        PolicyError: with every problem of the file, each as ``file:line:column: error: ...``, its line and a caret.
    """
    source = Source(name, decoded(raw, name))
    problems = list(source.problems)
    context = {
        "known_countries": known_countries,
        "look_up": look_up or {},
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    policy: Policy | None = None
    if isinstance(source.data, dict):
        problems += cross_checks(source.data)
        try:
            policy = Policy.model_validate(source.data, context=context)
        except ValidationError as error:
            problems += [_problem(details) for details in error.errors()]
    elif not problems:
        problems.append(Problem(message="a policy is a mapping that starts with 'version: 1'"))
    if problems or policy is None:
        raise source.error(problems)
    return policy


def default_policy(project: str = "default", timezone: str = "UTC") -> Policy:
    """What holds without a ``green.yaml``: everything is observed, nothing is limited."""
    data = {"version": 1, "project": project, "timezone": timezone}
    return Policy.model_validate(data, context={"sha256": hashlib.sha256(b"").hexdigest()})


def parse_step_spec(mapping: Mapping[str, object], *, where: str = "params: green") -> StepSpec:
    """What a rule declares about itself, e.g. ``dict(tiers="full:1,half:0.5", energy="5 Wh", phase="training")``.

    Raises:
        PolicyError: with every problem; ``where`` starts each line.
    """
    if not isinstance(mapping, Mapping):
        raise PolicyError((f"{where}: {mapping!r} is not a dict; write e.g. dict(energy='5 Wh', phase='training')",))
    try:
        return StepDocument.model_validate(dict(mapping)).spec
    except ValidationError as error:
        problems = [_problem(details, prefix=("steps", "")) for details in error.errors()]
        raise PolicyError(tuple(_step_line(where, problem) for problem in problems)) from None


def _step_line(where: str, problem: Problem) -> str:
    path = ".".join(str(part) for part in problem.path[2:])
    meant = f"; did you mean {problem.suggestion!r}?" if problem.suggestion else ""
    return f"{where}: {path}: {problem.message}{meant}"


# --- pydantic's errors in our words -----------------------------------------------------------------

_MODELS: dict[tuple[str, ...], type[_Model]] = {
    (): Policy,
    ("site",): SiteDocument,
    ("site", "embodied"): EmbodiedDocument,
    ("tracking",): Tracking,
    ("budgets", "*"): Budget,
    ("budgets", "*", "scope"): Scope,
    ("budgets", "*", "rules", "*"): Rule,
    ("budgets", "*", "override"): Override,
    ("steps", "*"): StepDocument,
    ("steps", "*", "quality"): Quality,
    ("channels", "*"): Channel,
}
_NAMED_SECTIONS = {"steps", "channels"}
_FORMER_WORDS = {"hold": "wait", "deny": "refuse", "kill": "halt", "stop": "halt", "warn": "notify", "alert": "notify"}
_KINDS = {"string": "text", "model": "a mapping", "dict": "a mapping", "list": "a list", "tuple": "a list"}


def _shape(path: KeyPath) -> tuple[str, ...]:
    """The path with names and numbers as ``*``, to look up the model that it leads to."""
    return tuple(
        "*" if isinstance(part, int) or (index == 1 and path[0] in _NAMED_SECTIONS) else part
        for index, part in enumerate(path)
    )


def known_keys(path: KeyPath) -> tuple[str, ...]:
    """The keys that a mapping at ``path`` may have, as people write them."""
    model = _MODELS.get(_shape(path))
    names = [field.alias or name for name, field in model.model_fields.items()] if model else []
    return tuple(name for name in names if not name.startswith("<"))


def _problem(details: ErrorDetails, prefix: KeyPath = ()) -> Problem:
    path: KeyPath = (*prefix, *details["loc"])
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return Problem(path=path, on_key=True, message=f"{path[-1]!r} is missing{_missing_hint(str(path[-1]))}")
    if kind == "green":
        return Problem(path=path, message=context["message"], suggestion=context["suggestion"])
    if kind in {"literal_error", "enum"}:
        return _not_allowed(path, value, re.findall(r"'([^']*)'", str(context["expected"])))
    return Problem(path=path, message=_type_message(kind, value, details["msg"]))


def _unknown_key(path: KeyPath) -> Problem:
    known = known_keys(path[:-1])
    meant = close_name(path[-1], known)
    allowed = "" if meant else f"; known keys: {', '.join(known)}"
    if ":" in str(path[-1]) and "tiers" in known:
        allowed = '; put the tiers in quotes, e.g. tiers: "full:1,half:0.5"'
    return Problem(path=path, on_key=True, message=f"unknown key {path[-1]!r}{allowed}", suggestion=meant)


def _not_allowed(path: KeyPath, value: object, allowed: list[str]) -> Problem:
    if path == ("version",):
        return Problem(path=path, message=f"version {value!r} is not known here; this mlflow-green reads 'version: 1'")
    former = _FORMER_WORDS.get(str(value))
    meant = former if former in allowed else close_name(value, allowed)
    return Problem(
        path=path, message=f"{value!r} is not allowed here; write one of {', '.join(allowed)}", suggestion=meant
    )


def _missing_hint(key: str) -> str:
    hints = {
        "version": "; write 'version: 1'",
        "project": "; write 'project: NAME'",
        "period": f"; write one of {', '.join(Period)}",
        "limit": "; write e.g. 'limit: [5 kWh]'",
        "at": "; write e.g. 'at: 80%'",
        "do": f"; write one of {', '.join(Verb)}",
        "carbon": "; write e.g. 'carbon: 1300 kgCO2e'",
        "lifetime": "; write e.g. 'lifetime: 5 years'",
        "source": "; say where the number comes from, e.g. 'source: data sheet of the maker, 2024'",
    }
    return hints.get(key, "")


def _type_message(kind: str, value: object, message: str) -> str:
    if value is None:
        return "has no value"
    wanted = _KINDS.get(kind.removesuffix("_type"))
    if wanted == "text":
        return f"{value!r} must be text; put it in quotes"
    if wanted:
        return f"{value!r} must be {wanted}"
    return f"{value!r} is wrong: {message[0].lower()}{message[1:]}"
