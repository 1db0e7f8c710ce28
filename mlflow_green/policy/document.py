"""``green.yaml`` as typed records: the policy file's schema, and all its problems in one error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from datetime import tzinfo
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from mlflow_green.errors import PolicyError
from mlflow_green.policy.checks import cross_checks
from mlflow_green.policy.mistakes import problem_of
from mlflow_green.policy.problem import Problem
from mlflow_green.policy.source import Source, decoded, read_bytes
from mlflow_green.policy.values import (
    AtLeastOne,
    Limit,
    Name,
    Names,
    Part,
    Price,
    QuietHours,
    Ratio,
    Seconds,
    Secret,
    above_nothing,
    approver_of,
    as_list,
    country_of,
    intensity_of,
    limit_of,
    looked_up,
    organisation_of,
    price_of,
    quantity,
    quiet_hours_of,
    tiers_of,
    timezone_of,
    tracking_of,
    webhook_of,
    zone,
)
from mlflow_green.records import EmbodiedShare, Mode, StepSpec, Tier
from mlflow_green.units import (
    parse_carbon_micrograms,
    parse_energy_microjoules,
    parse_power_watts,
    parse_years_seconds,
)

GRACE_SECONDS = 30
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


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class EmbodiedDocument(_Model):
    """What making one node emitted, and the time of use over which that is spread."""

    carbon_micrograms: Annotated[
        int,
        BeforeValidator(quantity(parse_carbon_micrograms, "1300 kgCO2e")),
        AfterValidator(above_nothing),
        Field(alias="carbon"),
    ]
    lifetime_seconds: Annotated[
        int,
        BeforeValidator(quantity(parse_years_seconds, "5 years")),
        AfterValidator(above_nothing),
        Field(alias="lifetime"),
    ]
    source: Name
    share: EmbodiedShare = EmbodiedShare.CORES


class SiteDocument(_Model):
    """Where the energy is used: what turns joules into carbon and money."""

    country: Annotated[str, AfterValidator(country_of)] | None = None
    cloud: Annotated[str, AfterValidator(looked_up)] | None = None
    intensity_series: Annotated[Name, AfterValidator(looked_up)] | None = None
    carbon_intensity_g_per_kwh: Annotated[
        float | None, BeforeValidator(quantity(intensity_of, "56 g/kWh")), Field(alias="carbon_intensity")
    ] = None
    source: Name | None = None
    pue: AtLeastOne = 1.0
    node_overhead: AtLeastOne = 1.0
    price: Annotated[Price | None, BeforeValidator(quantity(price_of, "0.21 EUR/kWh"))] = None
    embodied: EmbodiedDocument | None = None


class Tracking(_Model):
    """Which jobs get a run of their own in MLflow."""

    jobs: Literal["all", "notable", "none"] = "notable"


class Scope(_Model):
    """Whom a budget is for; ``"*"`` is one budget for each project or user."""

    org: Annotated[Name, AfterValidator(organisation_of)] | None = None
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

    approvers: Annotated[
        tuple[Annotated[str, AfterValidator(approver_of)], ...], BeforeValidator(as_list), Field(min_length=1)
    ]
    max_extra: Ratio
    expires_seconds: Annotated[Seconds, Field(alias="expires")] = THREE_DAYS
    reason: Literal["required", "optional"] = "required"


class RolloverDocument(_Model):
    """What a period inherits from the one before: a part of what was left, and what was spent beyond the limit.

    ``unused`` is a part of what was left, ``None`` for nothing of it; ``cap`` bounds it, as a part of the limit.
    """

    unused: Part | None = None
    cap: Part = Decimal(1)
    overspend: Literal["carry", "forgive"] = "carry"


class Budget(_Model):
    """How much a scope may use in a period, and what happens on the way there."""

    name: Name
    limit: Annotated[
        tuple[Annotated[Limit, BeforeValidator(quantity(limit_of, "5 kWh"))], ...],
        BeforeValidator(as_list),
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
    ledger_down: Literal["admit", "wait", "refuse"] | None = None
    rollover: RolloverDocument | None = None
    rules: tuple[Rule, ...] = ()
    override: Override | None = None

    @property
    def without_ledger(self) -> Literal["admit", "wait", "refuse"]:
        """What happens to a step while the ledger cannot be reached: what the policy says, else closed if hard."""
        return self.ledger_down or ("refuse" if self.mode is Mode.HARD else "admit")

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

    tiers: Annotated[tuple[Tier, ...], BeforeValidator(tiers_of)] = ()
    energy_microjoules: Annotated[
        int | None, BeforeValidator(quantity(parse_energy_microjoules, "5 Wh")), Field(alias="energy")
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


class TierDocument(_Model):
    """What a job that was granted this tier is told: its environment, and the power that it promises to stay below."""

    note: Name | None = None
    env: dict[str, str] = {}
    power_cap_watts: Annotated[
        int | None,
        BeforeValidator(quantity(parse_power_watts, "250 W")),
        AfterValidator(above_nothing),
        Field(alias="power_cap"),
    ] = None

    @property
    def environment(self) -> dict[str, str]:
        cap = {} if self.power_cap_watts is None else {"GREEN_POWER_CAP_WATTS": str(self.power_cap_watts)}
        return {**self.env, **cap}


class Channel(_Model):
    """Where messages go. ``allow`` opens what a webhook may not do else: plain http, addresses that are not public."""

    webhook: Annotated[str, AfterValidator(webhook_of)] | None = None
    allow: Annotated[tuple[Literal["http", "private"], ...], BeforeValidator(as_list)] = ()
    secret: Secret | None = None
    email: Names = ()
    apprise: Annotated[tuple[Secret, ...], BeforeValidator(as_list)] = ()
    quiet_seconds: Annotated[Seconds, Field(alias="quiet")] = 3_600
    quiet_hours: Annotated[QuietHours | None, BeforeValidator(quiet_hours_of)] = None
    digest_seconds: Annotated[Seconds | None, Field(alias="digest")] = None


class Policy(_Model):
    """A checked ``green.yaml``; its ``sha256`` lets a decision name the policy it came from."""

    version: Literal[1]
    project: Name
    timezone: Annotated[str, AfterValidator(timezone_of)] = "UTC"
    site: SiteDocument = SiteDocument()
    tracking: Annotated[Tracking, BeforeValidator(tracking_of)] = Tracking()
    budgets: tuple[Budget, ...] = ()
    step_documents: Annotated[dict[str, StepDocument], Field(alias="steps")] = {}
    tiers: dict[str, TierDocument] = {}
    channels: dict[str, Channel] = {}
    _sha256: str = PrivateAttr("")
    _text: str = PrivateAttr("")

    def model_post_init(self, context: Any) -> None:
        self._sha256 = (context or {}).get("sha256", "")
        self._text = (context or {}).get("text", "")

    @property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return self._sha256

    @property
    def text(self) -> str:
        """The file as it is: secrets are named in it only, but for an address of a webhook that is one itself."""
        return self._text

    @property
    def zone(self) -> tzinfo:
        return zone(self.timezone)

    @cached_property
    def steps(self) -> dict[str, StepSpec]:
        """What is declared under ``steps:``, by rule name."""
        return {name: document.spec for name, document in self.step_documents.items()}

    @cached_property
    def tier_environments(self) -> dict[str, dict[str, str]]:
        """The environment of a job that was granted a tier, by the tier's name."""
        return {name: tier.environment for name, tier in self.tiers.items()}

    def power_watts_max(self, tier: str | None, node_watts_max: float) -> float:
        """The most that a step draws as this tier: what the node can, or what the tier promises if that is less."""
        promised = self.tiers[tier].power_cap_watts if tier in self.tiers else None
        return node_watts_max if promised is None else min(node_watts_max, float(promised))

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
    text = decoded(raw, name)
    source = Source(name, text)
    problems = list(source.problems)
    context = {
        "known_countries": known_countries,
        "look_up": look_up or {},
        "sha256": hashlib.sha256(raw).hexdigest(),
        "text": text,
    }
    policy: Policy | None = None
    if isinstance(source.data, dict):
        problems += cross_checks(source.data)
        try:
            policy = Policy.model_validate(source.data, context=context)
        except ValidationError as error:
            problems += [problem_of(details, Policy) for details in error.errors()]
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
        problems = [problem_of(details, Policy, prefix=("steps", "")) for details in error.errors()]
        raise PolicyError(tuple(_step_line(where, problem) for problem in problems)) from None


def _step_line(where: str, problem: Problem) -> str:
    path = ".".join(str(part) for part in problem.path[2:])
    meant = f"; did you mean {problem.suggestion!r}?" if problem.suggestion else ""
    return f"{where}: {path}: {problem.message}{meant}"
