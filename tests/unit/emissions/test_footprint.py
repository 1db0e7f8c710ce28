"""The footprint of a study, from watts and hours."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.emissions.footprint import Workload, footprint
from mlflow_green.emissions.operational import cost_micro_units, operational_micrograms
from mlflow_green.records import Intensity, Site

STUDY = Workload(
    device_watts=Fraction(280),
    hours=Fraction(47_499),
    pue=Fraction("1.11"),
    carbon_free=Fraction("0.6"),
    g_per_kwh=Fraction(410),
    price_per_hour=Fraction("4.95"),
)


def test_a_published_study_comes_out_to_the_last_digit():
    result = footprint(STUDY)
    assert Fraction(result.devices_microjoules, 3_600_000_000_000) == Fraction("13299.72")
    assert Fraction(result.facility_microjoules, 3_600_000_000_000) == Fraction("14762.6892")
    assert result.operational_micrograms == 2_421_081_028_800  # 2,421.0810288 kg
    assert result.cost_micro_units == 235_120_050_000


def test_what_is_not_stated_is_none_and_not_zero():
    bare = footprint(Workload(device_watts=Fraction(1), hours=Fraction(1)))
    assert bare.operational_micrograms is bare.embodied_micrograms is bare.cost_micro_units is None
    assert bare.devices_microjoules == bare.facility_microjoules == 3_600_000_000


def test_both_prices_add_up():
    both = replace(STUDY, price_per_kwh=Fraction("0.1"))
    assert footprint(both).cost_micro_units == 235_120_050_000 + 1_476_268_920


decimals = st.decimals(1, 10, places=3).map(Fraction)


@given(decimals, decimals, decimals, decimals)
def test_it_agrees_with_what_metered_energy_is_charged(overhead, pue, g_per_kwh, price):
    work = replace(STUDY, node_overhead=overhead, pue=pue, carbon_free=Fraction(0), g_per_kwh=g_per_kwh)
    work = replace(work, price_per_hour=None, price_per_kwh=price)
    site = Site(
        intensity=Intensity(g_per_kwh=float(g_per_kwh), g_per_kwh_high=99.0, source="test"),
        pue=float(pue),
        node_overhead=float(overhead),
        price_per_kwh=float(price),
    )
    result = footprint(work)
    assert result.operational_micrograms == operational_micrograms(result.devices_microjoules, site)
    assert result.cost_micro_units == cost_micro_units(result.devices_microjoules, site)


@given(st.integers(1, 1_000), decimals)
def test_ten_devices_are_ten_times_one(devices, hours):
    work = replace(STUDY, hours=hours, embodied_kilograms=Fraction(150), lifetime_years=Fraction(6))
    one, many = footprint(work), footprint(replace(work, devices=devices))
    for name in ("devices_microjoules", "facility_microjoules", "operational_micrograms", "embodied_micrograms"):
        assert abs(getattr(many, name) - devices * getattr(one, name)) <= devices
