"""The footprint of hardware by what is known of it beforehand: watts, hours and factors; exact and pure.

    energy_devices   = device_watts x utilisation x devices x hours
    energy_facility  = energy_devices x node_overhead x pue
    operational      = energy_facility x (1 - carbon_free) x intensity
    embodied         = kilograms x devices x hours / lifetime
    cost             = devices x hours x price_per_hour + energy_facility x price_per_kwh

This is how studies of training state theirs (Strubell et al. 2019; Patterson et al. 2021, arXiv:2104.10350, for
``pue`` and carbon-free energy). Nothing is measured: every result is as good as its factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mlflow_green.emissions.embodied import device_micrograms
from mlflow_green.units import (
    MICRO_UNITS_PER_UNIT,
    MICROGRAMS_PER_GRAM,
    MICROJOULES_PER_KWH,
    MICROJOULES_PER_WATT_HOUR,
    SECONDS_PER_HOUR,
)

ONE = Fraction(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Devices that run for ``hours`` each, > 0, and what is known about where they do.

    ``utilisation`` is mean power / ``device_watts``, in (0, 1]; ``node_overhead`` and ``pue`` are >= 1;
    ``carbon_free`` is the part of the electricity, in [0, 1], whose carbon counts as 0. Intensities are in g CO2e/kWh;
    a run of some hours at a yearly mean can lie between ``..._low`` and ``..._high``. ``None`` is not known.
    """

    device_watts: Fraction
    hours: Fraction
    devices: int = 1
    utilisation: Fraction = ONE
    node_overhead: Fraction = ONE
    pue: Fraction = ONE
    carbon_free: Fraction = Fraction(0)
    g_per_kwh: Fraction | None = None
    g_per_kwh_low: Fraction | None = None
    g_per_kwh_high: Fraction | None = None
    embodied_kilograms: Fraction | None = None
    lifetime_years: Fraction | None = None
    price_per_hour: Fraction | None = None
    price_per_kwh: Fraction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a workload costs, each >= 0 and rounded once; ``None`` where a factor is not known."""

    devices_microjoules: int
    facility_microjoules: int
    operational_micrograms: int | None
    operational_low_micrograms: int | None
    operational_high_micrograms: int | None
    embodied_micrograms: int | None
    cost_micro_units: int | None


def footprint(work: Workload) -> Footprint:
    """The footprint of a workload."""
    device_hours = work.devices * work.hours
    devices = work.device_watts * work.utilisation * device_hours * MICROJOULES_PER_WATT_HOUR
    facility = devices * work.node_overhead * work.pue
    facility_kwh = facility / MICROJOULES_PER_KWH
    counted_kwh = facility_kwh * (1 - work.carbon_free)
    return Footprint(
        devices_microjoules=round(devices),
        facility_microjoules=round(facility),
        operational_micrograms=_micrograms(counted_kwh, work.g_per_kwh),
        operational_low_micrograms=_micrograms(counted_kwh, work.g_per_kwh_low),
        operational_high_micrograms=_micrograms(counted_kwh, work.g_per_kwh_high),
        embodied_micrograms=_embodied(work, device_hours),
        cost_micro_units=_cost(work, device_hours, facility_kwh),
    )


def _micrograms(energy_kwh: Fraction, g_per_kwh: Fraction | None) -> int | None:
    return None if g_per_kwh is None else round(energy_kwh * g_per_kwh * MICROGRAMS_PER_GRAM)


def _embodied(work: Workload, device_hours: Fraction) -> int | None:
    if work.embodied_kilograms is None or work.lifetime_years is None:
        return None
    return device_micrograms(work.embodied_kilograms, work.lifetime_years, device_hours * SECONDS_PER_HOUR)


def _cost(work: Workload, device_hours: Fraction, facility_kwh: Fraction) -> int | None:
    parts = [
        amount * price
        for amount, price in ((device_hours, work.price_per_hour), (facility_kwh, work.price_per_kwh))
        if price is not None
    ]
    return round(sum(parts) * MICRO_UNITS_PER_UNIT) if parts else None
