"""What the world of a seed is like: its budgets, its site, its steps and what goes wrong how often.

Every seed draws which things may go wrong at all, so that some worlds are calm and some are wild in one way only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from mlflow_green.policy.document import Policy
from mlflow_green.records import Intensity, Mode, Site, StepSpec, Tier

POLICIES = 120

STARTS = (
    datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC),
    datetime(2026, 11, 30, 22, 59, 52, tzinfo=UTC),  # in Paris 8 s before the end of a day and a month
    datetime(2026, 3, 28, 22, 59, 55, tzinfo=UTC),  # the day that begins has 23 hours there
    datetime(2026, 10, 25, 22, 59, 50, tzinfo=UTC),  # the day that ends had 25
    datetime(2026, 12, 31, 22, 59, 54, tzinfo=UTC),
)

PLAIN = Site()
PRICED = Site(
    intensity=Intensity(g_per_kwh=100.0, g_per_kwh_high=150.0, source="the simulation"),
    pue=1.2,
    price_per_kwh=0.25,
    currency="EUR",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Chances are in [0, 1], for each message, client or step; times in milliseconds, powers in milliwatts."""

    starts_at: datetime
    policy: Policy
    site: Site
    power_milliwatts_max: int
    clients: int
    steps_max: int
    period_ms: int
    latency_ms: int
    timeout_ms: int
    loses: float  # a message or an answer
    doubles: float
    kills: float
    is_thought_dead: float
    voids: float
    overruns: float
    groups: float
    raises: float  # a limit is raised, for a while or for good
    reading_error: float  # half-width of the meter's band, as a part of the reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a step declares, and the truth about it: ``power_milliwatts`` for ``duration_ms`` as its dearest tier."""

    spec: StepSpec
    power_milliwatts: int
    duration_ms: int


def scenario_of(dice: random.Random) -> Scenario:
    """A world, drawn with these dice."""

    is_wild = dice.random() < 0.15

    def sometimes(chance: float, value: float) -> float:
        """In a wild world everything goes wrong, and more often."""
        return value * (1 + is_wild) if dice.random() < chance or is_wild else 0.0

    is_crowded = dice.random() < 0.15
    number = dice.choice(tight_policies()) if is_crowded else dice.randrange(POLICIES)
    return Scenario(
        starts_at=dice.choice(STARTS),
        policy=policy(number),
        site=PRICED if has_price(number) else PLAIN,
        power_milliwatts_max=dice.choice((50_000, 100_000)),
        clients=dice.choice((1, 2, 2)),
        steps_max=6 if is_crowded else dice.choice((2, 3)),
        period_ms=dice.choice((1000, 1500, 2000, 3000)),
        latency_ms=dice.choice((5, 50, 400)),
        timeout_ms=dice.choice((500, 1500)),
        loses=sometimes(0.5, 0.2),
        doubles=sometimes(0.5, 0.2),
        kills=sometimes(0.6, 0.5),
        is_thought_dead=sometimes(0.3, 0.6),
        voids=sometimes(0.4, 0.15),
        overruns=dice.choice((0.4, 0.6, 0.9)),
        groups=sometimes(0.25, 0.5),
        raises=sometimes(0.3, 0.5),
        reading_error=sometimes(0.3, 0.1),
    )


def need_of(dice: random.Random, scenario: Scenario) -> Need:
    """A step: what it declares is too little as often as the scenario says."""
    power_milliwatts = dice.randrange(scenario.power_milliwatts_max // 4, scenario.power_milliwatts_max + 1)
    duration_ms = dice.randrange(300, 6000)
    ratio = dice.uniform(1.1, 4.0) if dice.random() < scenario.overruns else dice.uniform(0.3, 0.95)
    tiers = (Tier(name="full", energy_ratio=1.0), Tier(name="half", energy_ratio=0.5))
    is_known = dice.random() < 0.85
    spec = StepSpec(
        tiers=tiers if is_known and dice.random() < 0.4 else (),
        energy_microjoules=int(power_milliwatts * duration_ms / ratio) if is_known else None,
    )
    return Need(spec=spec, power_milliwatts=power_milliwatts, duration_ms=duration_ms)


# --- policies ---------------------------------------------------------------------------------------


def has_price(number: int) -> bool:
    """Whether the policy of this number also limits carbon and money."""
    return number % 3 == 0


@cache
def policy(number: int) -> Policy:
    """One of ``POLICIES`` policies, in time zone Europe/Paris: every fifth only observes."""
    dice = random.Random(f"policy {number}")
    scopes = [{"org": "lab"}, {"project": "demo"}, {"project": "demo", "user": "*"}]
    names = dice.sample(range(len(scopes)), dice.choice((1, 2, 2, 3) if not has_price(number) else (1, 1, 2)))
    budgets = [
        _budget(dice, f"budget{index}", scopes[index], only_observes=number % 5 == 0, priced=has_price(number))
        for index in sorted(names)
    ]
    document = {"version": 1, "project": "demo", "timezone": "Europe/Paris", "budgets": budgets}
    return Policy.model_validate(document, context={"sha256": f"{number:064x}"})


@cache
def tight_policies() -> tuple[int, ...]:
    """The numbers of those whose budgets are all hard, end what overruns, and have room for a step or two."""
    return tuple(
        number
        for number in range(POLICIES)
        if not has_price(number)
        and all(
            budget.mode is Mode.HARD and budget.overrun == "halt" and budget.limit[0].amount <= 600_000_000
            for budget in policy(number).budgets
        )
    )


def _budget(dice: random.Random, name: str, scope: dict, *, only_observes: bool, priced: bool) -> dict:
    joules = dice.choice((150, 250, 400, 600, 1200))
    limits = [f"{joules} J"]
    if priced:
        limits += [
            f"{joules * dice.choice((30, 60)) / 1000:g} mgCO2e",
            f"{joules * dice.choice((6, 12)) / 1e8:.8f} EUR",
        ]
    hard = {"mode": Mode.HARD.value, "overrun": dice.choice(("halt", "halt", "finish"))}
    mode = (
        {"mode": "observe"}
        if only_observes
        else dice.choice((hard, hard, hard, hard, {"mode": "soft"}, {"mode": "observe"}))
    )
    period = dice.choice(("day", "day", "month", "total", "workflow"))
    rolls_over = period in {"day", "month"} and dice.random() < 0.6
    rollover = {"unused": f"{dice.choice((25, 100))}%", "cap": "50%", "overspend": dice.choice(("carry", "forgive"))}
    return {
        **({"rollover": rollover} if rolls_over else {}),
        "name": name,
        "scope": scope,
        "limit": limits,
        "period": period,
        "enforce": dice.choice(("low", "point", "high")),
        "unknown_step": dice.choice(("admit", "admit", "admit", "wait", "refuse")),
        "max_wait": dice.choice(("2s", "10s", "40s")),
        "rules": _rules(dice, mode["mode"]),
        **mode,
    }


def _rules(dice: random.Random, mode: str) -> list[dict]:
    rules: list[dict] = [{"at": f"{dice.choice((30, 50))}%", "of": "spent", "do": "notify", "to": ["team"]}]
    if dice.random() < 0.7:
        rules.append({"at": "80%", "of": "committed", "do": "notify", "to": ["team"]})
    if dice.random() < 0.3:
        rules.append({"at": "60%", "do": "downgrade"})
    if dice.random() < 0.3:
        rules.append({"at": "90%", "do": "wait", "for": "5s"})
    if mode == "hard" and dice.random() < 0.4:
        rules.append({"at": f"{dice.choice((105, 130))}%", "of": "spent", "do": "halt", "grace": "2s"})
    return rules
