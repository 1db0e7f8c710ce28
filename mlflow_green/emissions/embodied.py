"""Carbon from making hardware, as a job's part of it; pure.

    embodied = carbon x busy_seconds / lifetime_seconds

The Software Carbon Intensity specification (ISO/IEC 21031:2024) calls this M = TE x TS x RS: total embodied emissions,
times the part of the lifetime, times the part of the resources that were reserved. ``busy_seconds`` is TS x RS in
seconds of the whole node. For a shared node it is CPU time / cores of the node, so the parts of all jobs never sum to
more than the node's; what nobody used is nobody's, as idle energy is. For a node that a job has alone it is the
duration. Embodied carbon stands beside operational carbon and is in no carbon budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mlflow_green.records import Embodied, EmbodiedShare
from mlflow_green.units import MICROGRAMS_PER_KILOGRAM, SECONDS_PER_YEAR

_BLOOM = "Luccioni, Viguier, Ligozat 2023, JMLR 24(253), CC BY 4.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbodiedDevice:
    """A kind of device, with the kg CO2e of making one and the years of use that its source takes."""

    kilograms_co2e: int
    lifetime_years: int
    source: str


DEVICES = {
    "gpu": EmbodiedDevice(kilograms_co2e=150, lifetime_years=6, source=f"one data-centre GPU card, {_BLOOM}"),
    "server": EmbodiedDevice(kilograms_co2e=2_500, lifetime_years=6, source=f"one server without its GPUs, {_BLOOM}"),
}
"""Orders of magnitude for when a maker states nothing; a maker's own product carbon footprint is better."""


def embodied_micrograms(embodied: Embodied, busy_seconds: Fraction) -> int:
    """Micrograms CO2e, >= 0, of a node that was kept busy for this long, >= 0."""
    return round(embodied.micrograms_co2e * busy_seconds / embodied.lifetime_seconds)


def busy_seconds(
    embodied: Embodied, *, duration_seconds: float, cpu_seconds: float | None, cores: int | None
) -> Fraction | None:
    """For how long a job kept the whole node busy, >= 0 and at most its duration; ``None`` where that is not known."""
    duration = Fraction(duration_seconds)
    if embodied.share is EmbodiedShare.NODE:
        return duration
    if cpu_seconds is None or not cores:
        return None
    return min(Fraction(cpu_seconds) / cores, duration)


def device_micrograms(kilograms_co2e: Fraction, lifetime_years: Fraction, busy_seconds: Fraction) -> int:
    """Micrograms CO2e, >= 0, of a device of this carbon and lifetime, > 0, in this busy time, >= 0."""
    return round(kilograms_co2e * MICROGRAMS_PER_KILOGRAM * busy_seconds / (lifetime_years * SECONDS_PER_YEAR))
