"""Random policies and workflows, each the same for the same seed, and the history that goes with them.

Four seeds share a policy, for reading one takes longer than playing a workflow.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from math import ceil

from mlflow_green.errors import PolicyError
from mlflow_green.policy.document import Policy, parse_policy
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.recorder.ticket import Book
from mlflow_green.records import (
    Batch,
    Closing,
    ClosingKind,
    Domain,
    Hold,
    Intensity,
    PlannedStep,
    Site,
    Step,
    StepSpec,
    Tier,
    Workload,
)
from tests.testkit.ledger_samples import OWNER, energy, entry, request, term

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
WH = 3_600_000_000
BOOK = Book(
    project="demo",
    user="ana",
    host="node1",
    site=Site(intensity=Intensity(g_per_kwh=50.0, g_per_kwh_high=75.0, source="a test")),
    sampler_id=None,
    power_watts_max=120.0,
)
_TIERS = ((), (("full", 1.0), ("half", 0.5)), (("full", 1.0), ("half", 0.5), ("tiny", 0.1)))


@dataclass(frozen=True)
class Case:
    """``durations`` are by rule, in seconds; ``past`` is what earlier runs of a rule used, each time the same."""

    policy: Policy
    workload: Workload
    durations: dict[str, float]
    past: dict[str, tuple[str | None, int]]

    @property
    def entries(self):
        """Twenty runs of each rule with a history: enough for every quantile to be what they used."""
        return [
            _past_entry(rule, tier, used, self.durations[rule], number)
            for rule, (tier, used) in self.past.items()
            for number in range(20)
        ]

    @property
    def timed(self):
        """An entry of each rule, for what only its duration is known of."""
        return [_past_entry(rule, None, 1, seconds, 0) for rule, seconds in self.durations.items()]

    def uses(self, step: Step, spec: StepSpec, tier: str | None) -> int:
        """What the step uses as that tier, in microjoules: exactly what is known of it."""
        return scaled(self.past[step.name][1] if step.name in self.past else spec.energy_microjoules, spec, tier)

    def fill(self, ledger) -> None:
        closings = tuple(Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=each) for each in self.entries)
        ledger.commit(Batch(closings=closings), admit_at_nothing)


def scaled(amount: int, spec: StepSpec, tier: str | None) -> int:
    """What a tier needs where the dearest needs ``amount``."""
    ratios = {each.name: Fraction(str(each.energy_ratio)) for each in spec.tiers}
    return ceil(amount * ratios.get(tier, 1))


def _past_entry(rule, tier, used, seconds, number):
    asked = request(rule, 0, term())
    hold = Hold.of_nothing(asked, admit_at_nothing(asked), OWNER, hold_id=f"past-{rule}-{number}")
    return entry(
        hold,
        used,
        entry_id=f"past-{rule}-{number}",
        hold_id=None,
        tier=tier,
        energy={Domain.CPU: energy(used)},
        duration_seconds=seconds,
        ended_at=START - timedelta(days=1),
        started_at=START - timedelta(days=1, seconds=seconds),
    )


def case(seed: int, *, knows_all: bool = True) -> Case:
    """``knows_all``: of every rule it is known what it uses, from its history or as it is declared."""
    dice = random.Random(seed)
    rules = [f"r{index}" for index in range(dice.randint(1, 5))]
    specs, past, durations = {"all": StepSpec()}, {}, {"all": 1.0}
    for rule in rules:
        tiers = tuple(Tier(name=name, energy_ratio=ratio) for name, ratio in dice.choice(_TIERS))
        need = dice.randint(1, 40) * WH // 10
        knows = dice.choice(("declared", "history", "history") if knows_all else ("declared", "history", "nothing"))
        specs[rule] = StepSpec(tiers=tiers, energy_microjoules=need if knows == "declared" else None)
        if knows == "history":
            past[rule] = (tiers[0].name if tiers else None, need)
        durations[rule] = dice.choice((1.0, 7.0, 60.0, 600.0, 3_600.0, 40_000.0)) * dice.choice((1, 1.5, 3))
    return Case(_policy(seed // 4), _workload(dice, rules, specs), durations, past)


def _workload(dice, rules, specs) -> Workload:
    steps = []
    cores = dice.randint(1, 4)
    for index in range(dice.randint(1, 14)):
        rule = dice.choice(rules)
        after = tuple(sorted(dice.sample(range(index), min(index, dice.choice((0, 0, 1, 2))))))
        steps.append(
            PlannedStep(
                step=Step(workflow_run="run", name=rule, wildcards=f"i={index}"),
                spec=specs[rule],
                after=after,
                resources={"_cores": dice.randint(1, cores)},
                priority=dice.choice((0, 0, 0, 5)),
            )
        )
        if dice.random() < 0.3 and index and not after:  # a pipe: this step starts together with the one before
            before = steps[-2]
            if before.group is None and before.priority == steps[-1].priority:
                group = f"g{index}"
                steps[-2] = replace(before, group=group)
                steps[-1] = replace(steps[-1], group=group, resources={})
    last = PlannedStep(
        step=Step(workflow_run="run", name="all"),
        spec=specs["all"],
        after=(len(steps) - 1,),
        resources={"_cores": 1},
        needs_nothing=True,
    )
    return Workload(
        steps=(*steps, last),
        resources={"_cores": cores},
        look_ahead=16,
    )


@cache
def _policy(seed: int) -> Policy:
    dice = random.Random(seed)
    while True:
        budgets = [_budget(dice, number) for number in range(dice.randint(1, 3))]
        zone = dice.choice(("UTC", "Europe/Paris"))
        text = (
            "version: 1\nproject: demo\ntimezone: "
            + zone
            + "\nsite: {carbon_intensity: 50 g/kWh, source: t}\nbudgets:\n"
        )
        try:
            return parse_policy((text + "".join(f"  - {budget}\n" for budget in budgets)).encode())
        except PolicyError:
            continue


def _budget(dice, number: int) -> str:
    limits = [f"{dice.randint(5, 300) / 10} Wh"]
    if dice.random() < 0.3:
        limits.append(f"{dice.randint(50, 3000)} mgCO2e")
    rules = []
    if dice.random() < 0.5:
        rules.append(f"{{at: {dice.randint(10, 95)}%, of: {dice.choice(('spent', 'committed'))}, do: downgrade}}")
    if dice.random() < 0.5:
        patience = dice.choice(("", ", for: 90s", ", for: 2h", ", for: 3d"))
        rules.append(f"{{at: {dice.randint(50, 120)}%, of: {dice.choice(('spent', 'committed'))}, do: wait{patience}}}")
    if dice.random() < 0.25:
        rules.append(f"{{at: {dice.randint(60, 120)}%, of: {dice.choice(('spent', 'committed'))}, do: refuse}}")
    if dice.random() < 0.25:
        rules.append(f"{{at: {dice.randint(80, 130)}%, do: halt}}")
    scope = dice.choice(("", "scope: {project: demo}, ", "scope: {user: '*'}, "))
    return (
        f"{{name: b{number}, {scope}limit: [{', '.join(limits)}], "
        f"period: {dice.choice(('workflow', 'day', 'week', 'month', 'quarter', 'year', 'total'))}, "
        f"mode: {dice.choice(('hard', 'hard', 'hard', 'soft', 'observe'))}, "
        f"reserve: {dice.choice(('declared', 'p50', 'p95', 'max'))}, "
        f"unknown_step: {dice.choice(('admit', 'wait', 'refuse'))}, "
        f"overrun: {dice.choice(('halt', 'finish'))}, "
        f"max_wait: {dice.choice(('0s', '30s', '1h', '13h', '24h', '9d'))}, "
        f"rules: [{', '.join(rules)}]}}"
    )
