"""Joules to grams and money, by exact arithmetic; pure.

    operational_g_co2e = energy_kwh x node_overhead x pue x intensity_g_per_kwh
    cost               = energy_kwh x node_overhead x pue x price_per_kwh

``energy`` is what the components used (RAPL and GPU), ``node_overhead`` >= 1 (no unit) adds power supply, fans and
boards, ``pue`` >= 1 (no unit) is the facility's power usage effectiveness (ISO/IEC 30134-2). This is the
operational part (location-based, GHG Protocol scope 2); embodied emissions are not in it. Factors count as the
decimal numbers that a person wrote (1.2 is 6/5), the result is rounded once, half to even.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache

from mlflow_green.records import Site, Unit
from mlflow_green.units import MICRO_UNITS_PER_UNIT, MICROGRAMS_PER_GRAM, MICROJOULES_PER_KWH, exact, rounded_quotient


def operational_micrograms(energy_microjoules: int, site: Site) -> int | None:
    """Micrograms CO2e, >= 0, of component energy at the site's mean intensity; ``None`` where that is unknown."""
    if site.intensity is None:
        return None
    return _per_kwh(energy_microjoules, site, site.intensity.g_per_kwh, MICROGRAMS_PER_GRAM)


def cost_micro_units(energy_microjoules: int, site: Site) -> int | None:
    """Millionths of the site's currency, >= 0, of component energy; ``None`` where the price is unknown."""
    if site.price_per_kwh is None:
        return None
    return _per_kwh(energy_microjoules, site, site.price_per_kwh, MICRO_UNITS_PER_UNIT)


def charged_amounts(energy_microjoules: int, site: Site) -> Mapping[Unit, int]:
    """What a step that used this is charged, in every unit that the site knows; carbon at the mean intensity.

    Energy budgets count component energy, without overhead and PUE.
    """
    amounts = {
        Unit.ENERGY: energy_microjoules,
        Unit.CARBON: operational_micrograms(energy_microjoules, site),
        Unit.MONEY: cost_micro_units(energy_microjoules, site),
    }
    return {unit: amount for unit, amount in amounts.items() if amount is not None}


def hold_amounts(energy_microjoules: int, site: Site) -> Mapping[Unit, int]:
    """What to reserve for a step, as ``charged_amounts`` but with carbon at the upper intensity."""
    amounts = dict(charged_amounts(energy_microjoules, site))
    if site.intensity is not None:
        amounts[Unit.CARBON] = _per_kwh(energy_microjoules, site, site.intensity.g_per_kwh_high, MICROGRAMS_PER_GRAM)
    return amounts


def _per_kwh(energy_microjoules: int, site: Site, factor_per_kwh: float, scale: int) -> int:
    factor = _per_microjoule(site.node_overhead, site.pue, factor_per_kwh, scale)
    return rounded_quotient(energy_microjoules * factor.numerator, factor.denominator)


@lru_cache(maxsize=256)  # a site has few factors, and every sample of every step is converted
def _per_microjoule(node_overhead: float, pue: float, factor_per_kwh: float, scale: int) -> Fraction:
    return exact(node_overhead) * exact(pue) * exact(factor_per_kwh) * scale / MICROJOULES_PER_KWH
