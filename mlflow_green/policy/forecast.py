"""What a step is expected to need, from what it needed before; pure.

``sizes`` scales earlier uses to another input, ``quantiles`` says what a sample of uses tells of the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Literal

from mlflow_green.policy.document import Reserve
from mlflow_green.policy.quantiles import prediction_interval, quantile_of
from mlflow_green.policy.sizes import scaled_to, size_law
from mlflow_green.records import Estimate, PastUse, StepSpec, Tier, Unit
from mlflow_green.units import exact, format_bytes, format_energy, format_number_of

Quantile = Reserve | Literal["declared", "p50", "p95", "max"]
ToAmounts = Callable[[int], Mapping[Unit, int]]
"""Component energy in microjoules to the amount of every unit that can be known; a hold is at the upper intensity."""

SAMPLES_ENOUGH = 20
FEW_SAMPLES_FACTOR = Fraction(13, 10)
CENSORED_FACTOR = Fraction(3, 2)
DECLARED = "declared"
_RATIOS = {"p50": Fraction(50, 100), "p95": Fraction(95, 100), "declared": Fraction(1), "max": Fraction(1)}


def energy_only(energy_microjoules: int) -> Mapping[Unit, int]:
    """The conversion of a place where neither carbon intensity nor price is known."""
    return {Unit.ENERGY: energy_microjoules}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What a tier is to hold, in microjoules, with where it comes from in words and by kind."""

    energy_microjoules: int
    source: str
    basis: str


def estimate(
    past: Sequence[PastUse],
    step: str,
    wildcards: str,
    spec: StepSpec,
    *,
    quantile: Quantile,
    to_amounts: ToAmounts = energy_only,
    input_bytes: int | None = None,
) -> tuple[Estimate, ...]:
    """One estimate a tier, the dearest first; one with tier ``None`` for a step without tiers.

    The first source that says something is used: this step with these wildcards, this step with any, another tier's
    history scaled by the declared energy ratios, the declared energy. Otherwise ``amounts`` is ``None``. With
    ``quantile="declared"`` a declared energy goes first. Where the history shows that the energy grows with the size
    of the input, every use is scaled to ``input_bytes``. Below 20 samples an estimate is the maximum x 1.3; a halted
    use shows only that more is needed, so the estimate is at least 1.5 x the largest of them.
    """
    own = [use for use in past if use.step == step]
    tiers: tuple[Tier | None, ...] = spec.tiers or (None,)
    return tuple(_of_tier(own, step, wildcards, spec, tier, quantile, to_amounts, input_bytes) for tier in tiers)


def _of_tier(
    past: Sequence[PastUse],
    step: str,
    wildcards: str,
    spec: StepSpec,
    tier: Tier | None,
    quantile: Quantile,
    to_amounts: ToAmounts,
    input_bytes: int | None,
) -> Estimate:
    name = tier.name if tier else None
    uses, words = _history(past, step, wildcards, spec, tier)
    law = size_law(uses, input_bytes)
    if law is not None and input_bytes is not None:
        uses = scaled_to(uses, law, input_bytes)
        words += f", scaled to {format_bytes(input_bytes)} of input ({law.text})"
    completed = [use.energy_microjoules for use in uses if not use.censored]
    halted = [use.energy_microjoules for use in uses if use.censored]
    need = _need(completed, halted, words, _declared(spec, tier), quantile)
    if need is None:
        return Estimate(tier=name, amounts=None, source="nothing known: no history and no declared energy")
    next_use = prediction_interval(completed, halted)
    return Estimate(
        tier=name,
        amounts=to_amounts(need.energy_microjoules),
        source=need.source,
        basis=f"{need.basis}, scaled by input size" if law and need.basis != DECLARED else need.basis,
        low_microjoules=next_use.low if next_use else None,
        high_microjoules=next_use.high if next_use else None,
        level_ratio=float(next_use.level) if next_use else None,
    )


def _need(
    completed: Sequence[int], halted: Sequence[int], words: str, declared: int | None, quantile: Quantile
) -> _Need | None:
    need: _Need | None = None
    if declared is not None and (quantile == "declared" or not completed):
        need = _Need(energy_microjoules=declared, source=f"declared {format_energy(declared)}", basis=DECLARED)
    elif completed:
        need = _expected(completed, halted, words, quantile)
    floor = ceil(CENSORED_FACTOR * max(halted, default=0))
    if floor > (need.energy_microjoules if need else 0):
        return _Need(energy_microjoules=floor, source=f"largest halted run of {words} x 1.5", basis="halted x 1.5")
    return need


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
    ratio = _ratio(tier) / _ratio(other)
    name = tier.name if tier else None
    return replace(use, tier=name, energy_microjoules=ceil(use.energy_microjoules * ratio))


def _declared(spec: StepSpec, tier: Tier | None) -> int | None:
    """The declared energy is that of the dearest tier; the others are parts of it."""
    if spec.energy_microjoules is None:
        return None
    return ceil(spec.energy_microjoules * _ratio(tier))


def _ratio(tier: Tier | None) -> Fraction:
    return exact(tier.energy_ratio) if tier else Fraction(1)


def _expected(completed: Sequence[int], halted: Sequence[int], words: str, quantile: Quantile) -> _Need:
    runs = f"{format_number_of(len(completed), 'run')} of {words}"
    if len(completed) < SAMPLES_ENOUGH:
        most = ceil(FEW_SAMPLES_FACTOR * max(completed))
        return _Need(energy_microjoules=most, source=f"maximum of {runs} x 1.3", basis="maximum x 1.3")
    name = "maximum" if _RATIOS[quantile] == 1 else str(quantile)
    cut_short = f" and {len(halted)} that were halted" if halted else ""
    use = quantile_of(completed, halted, _RATIOS[quantile])
    return _Need(energy_microjoules=use, source=f"{name} of {runs}{cut_short}", basis=name)
