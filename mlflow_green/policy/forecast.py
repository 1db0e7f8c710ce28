"""What a step is expected to need, from what it needed before; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Literal

from mlflow_green.policy.document import Reserve
from mlflow_green.records import Estimate, PastUse, StepSpec, Tier, Unit
from mlflow_green.units import format_energy

Quantile = Reserve | Literal["declared", "p50", "p95", "max"]
ToAmounts = Callable[[int], Mapping[Unit, int]]
"""Component energy in microjoules to the amount of every unit that can be known, rounded up for holds."""

SAMPLES_ENOUGH = 20
FEW_SAMPLES_FACTOR = Fraction(13, 10)
CENSORED_FACTOR = Fraction(3, 2)
_RATIOS = {"p50": Fraction(50, 100), "p95": Fraction(95, 100), "declared": Fraction(1), "max": Fraction(1)}


def energy_only(energy_microjoules: int) -> Mapping[Unit, int]:
    """The conversion of a place where neither carbon intensity nor price is known."""
    return {Unit.ENERGY: energy_microjoules}


def estimate(
    past: Sequence[PastUse],
    step: str,
    wildcards: str,
    spec: StepSpec,
    *,
    quantile: Quantile,
    to_amounts: ToAmounts = energy_only,
) -> tuple[Estimate, ...]:
    """One estimate a tier, the dearest first; one with tier ``None`` for a step without tiers.

    The first source that says something is used: this step with these wildcards, this step with any, another tier's
    history scaled by the declared energy ratios, the declared energy. Otherwise ``amounts`` is ``None``. With
    ``quantile="declared"`` a declared energy goes first. Below 20 samples an estimate is the maximum x 1.3; a halted
    use shows only that more is needed, so the estimate is at least 1.5 x the largest of them.
    """
    own = [use for use in past if use.step == step]
    tiers: tuple[Tier | None, ...] = spec.tiers or (None,)
    return tuple(_of_tier(own, step, wildcards, spec, tier, quantile, to_amounts) for tier in tiers)


def _of_tier(
    past: Sequence[PastUse],
    step: str,
    wildcards: str,
    spec: StepSpec,
    tier: Tier | None,
    quantile: Quantile,
    to_amounts: ToAmounts,
) -> Estimate:
    name = tier.name if tier else None
    declared = _declared(spec, tier)
    uses, words = _history(past, step, wildcards, spec, tier)
    completed = [use.energy_microjoules for use in uses if not use.censored]
    halted = [use.energy_microjoules for use in uses if use.censored]
    if declared is not None and (quantile == "declared" or not completed):
        need, source = declared, f"declared {format_energy(declared)}"
    elif completed:
        need, source = _expected(completed, words, quantile)
    elif halted:
        need, source = 0, ""
    else:
        return Estimate(tier=name, amounts=None, source="nothing known: no history and no declared energy")
    floor = ceil(CENSORED_FACTOR * max(halted, default=0))
    if floor > need:
        need, source = floor, f"largest halted run of {words} x 1.5"
    return Estimate(tier=name, amounts=to_amounts(need), source=source)


def _history(
    past: Sequence[PastUse], step: str, wildcards: str, spec: StepSpec, tier: Tier | None
) -> tuple[list[PastUse], str]:
    """The nearest history that there is, with its name in words."""
    name = tier.name if tier else None
    exact = [use for use in past if use.wildcards == wildcards]
    here = f"{step}[{wildcards}]" if wildcards else step
    suffix = f" as {name}" if name else ""
    for pool, label in ((exact, here), (past, step)):
        uses = [use for use in pool if use.tier == name]
        if uses:
            return uses, label + suffix
    for pool, label in ((exact, here), (past, step)):
        for other in spec.tiers:
            uses = [_scaled(use, tier, other) for use in pool if use.tier == other.name]
            if uses and tier is not None:
                return uses, f"{label} as {other.name}, scaled to {name}"
    return [], step


def _scaled(use: PastUse, tier: Tier | None, other: Tier) -> PastUse:
    ratio = _exact(tier) / _exact(other)
    return PastUse(
        step=use.step,
        wildcards=use.wildcards,
        tier=tier.name if tier else None,
        energy_microjoules=ceil(use.energy_microjoules * ratio),
        censored=use.censored,
    )


def _declared(spec: StepSpec, tier: Tier | None) -> int | None:
    """The declared energy is that of the dearest tier; the others are parts of it."""
    if spec.energy_microjoules is None:
        return None
    return ceil(spec.energy_microjoules * _exact(tier))


def _exact(tier: Tier | None) -> Fraction:
    """The ratio as it was written: 0.05 is one twentieth, not the binary number next to it."""
    return Fraction(str(tier.energy_ratio)) if tier else Fraction(1)


def _expected(completed: Sequence[int], words: str, quantile: Quantile) -> tuple[int, str]:
    runs = f"{len(completed)} run{'s' if len(completed) > 1 else ''} of {words}"
    if len(completed) < SAMPLES_ENOUGH:
        return ceil(FEW_SAMPLES_FACTOR * max(completed)), f"maximum of {runs} x 1.3"
    rank = ceil(_RATIOS[quantile] * len(completed))
    name = "maximum" if _RATIOS[quantile] == 1 else quantile
    return sorted(completed)[rank - 1], f"{name} of {runs}"
