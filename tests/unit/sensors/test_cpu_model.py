from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.sensors.cpu_info import CpuInfo, normalised
from mlflow_green.sensors.cpu_model import (
    HIGH_CURVE,
    LOADS,
    LOW_CURVE,
    RATED_CURVE,
    WIDE_HIGH_CURVE,
    cpu_model,
    power_watts,
)
from mlflow_green.sensors.cpu_series import CLOUD_CPUS, SERIES

PUBLISHED = Path(__file__).parents[2] / "testkit" / "published"
EPYC = CpuInfo(
    name="AMD EPYC 7763 64-Core Processor",
    vendor="AuthenticAMD",
    family=25,
    model=1,
    stepping=1,
    threads=8,
    sockets=1,
    virtual=False,
)
VIRTUAL = replace(EPYC, name="AMD EPYC", virtual=True)


def published(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_known_server_cpu_has_teads_curve_of_its_rated_power_for_each_socket():
    cpu = cpu_model(replace(EPYC, sockets=2), 280.0)
    assert cpu.watts == pytest.approx((67.2, 179.2, 420.0, 571.2))
    assert "rated at 280 W" in cpu.source


def test_a_known_server_cpu_is_uncertain_by_a_little_over_a_third_at_full_load():
    cpu = cpu_model(EPYC, 280.0)
    assert (cpu.high_watts[-1] - cpu.low_watts[-1]) / 2 / cpu.power_watts_max == pytest.approx(0.35, abs=0.01)


def test_a_desktop_cpu_may_draw_its_turbo_power_for_good():
    cpu = cpu_model(replace(EPYC, name="13th Gen Intel(R) Core(TM) i9-13900K"), 125.0)
    assert cpu.high_watts[-1] > 253 > cpu.watts[-1]


def test_a_cpu_in_no_table_is_a_guess_from_a_third_to_three_times_the_value():
    cpu = cpu_model(replace(EPYC, name="AMD EPYC 776", model=254), None)
    assert cpu.watts[-1] == pytest.approx(4 * 8 * 1.02)
    assert (cpu.low_watts[-1] * 3, cpu.high_watts[-1] / 3) == pytest.approx((cpu.watts[-1],) * 2)
    assert "guess" in cpu.source


def test_a_cpu_that_names_itself_in_part_is_no_cpu_of_that_name():
    assert cpu_model(VIRTUAL, None) == cpu_model(replace(VIRTUAL, name="AMD EPYC"), None)
    assert "7763" not in cpu_model(replace(VIRTUAL, name="AMD EPYC 776"), None).source


def test_a_virtual_machine_has_the_part_of_a_known_cpu_that_its_vcpus_are():
    cpu = cpu_model(replace(EPYC, virtual=True), 280.0)
    assert cpu.watts[-1] == pytest.approx(280 * 8 / 128 * 1.02)
    assert "assumed: a vCPU is a thread" in cpu.source


def test_what_is_known_less_has_a_wider_interval():
    named = cpu_model(EPYC, 280.0)
    part_of_a_named_one = cpu_model(replace(EPYC, virtual=True), 280.0)
    of_a_series = cpu_model(VIRTUAL, None)
    guess = cpu_model(replace(VIRTUAL, model=254), None)
    widths = [
        round(cpu.high_watts[-1] / cpu.low_watts[-1], 3) for cpu in (named, part_of_a_named_one, of_a_series, guess)
    ]
    assert widths == sorted(widths)
    assert widths[1] < 9 / 2  # a guess goes from a third to three times


def test_a_cpu_of_unknown_name_but_known_series_on_bare_metal_is_taken_by_its_threads():
    cpu = cpu_model(replace(EPYC, name="AMD Eng Sample", threads=128), None)
    assert cpu.low_watts[-1] < 280 * LOW_CURVE[-1] < cpu.watts[-1] < 280 * HIGH_CURVE[-1] < cpu.high_watts[-1]


@pytest.mark.parametrize("row", published("teads_packages.csv"), ids=lambda row: row["cpu"])
def test_every_package_power_that_teads_measured_lies_in_the_interval(row):
    cpu = cpu_model(replace(EPYC, name=row["cpu"], sockets=int(row["sockets"])), float(row["rated_watts"]))
    measured = [float(row[f"package_watts_{load:.0f}"]) for load in (0, 10, 50, 100)]
    for low, watts, high in zip(cpu.low_watts, measured, cpu.high_watts, strict=True):
        assert low <= watts <= high


def test_the_interval_holds_the_cpus_part_of_published_server_power_in_nine_of_ten_results():
    rows = published("specpower_servers.csv")
    inside = 0
    for row in rows:
        sockets, memory_gb = int(row["sockets"]), float(row["memory_gb"])
        cpu = cpu_model(replace(EPYC, name=row["cpu"], sockets=sockets), float(row["rated_watts"]))
        wall_idle, wall_full = float(row["wall_watts_idle"]), float(row["wall_watts_full"])
        assert cpu.low_watts[0] <= wall_idle  # a CPU never draws more than its server
        assert cpu.low_watts[-1] <= wall_full
        beside_watts = 0.2 * memory_gb + 15 * sockets
        at_rest, full = 0.94 * wall_idle - beside_watts, 0.94 * wall_full - beside_watts
        inside += at_rest <= cpu.high_watts[0] and cpu.low_watts[-1] <= full <= cpu.high_watts[-1]
    assert inside >= 0.9 * len(rows)


def test_each_series_goes_from_its_leanest_to_its_hungriest_cpu():
    for series in SERIES:
        each = [rated.power_watts_per_thread for rated in (series.leanest, series.typical, series.hungriest)]
        assert each == sorted(each)


def test_no_two_series_claim_the_same_cpu():
    claims = [(each.vendor, each.family, each.model, stepping) for each in SERIES for stepping in each.steppings]
    assert len(claims) == len(set(claims))


def test_cloud_cpus_are_listed_by_the_names_that_are_looked_up():
    assert all(normalised(name) == name for name in CLOUD_CPUS)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_load_never_draws_less_and_low_value_and_high_keep_their_order(one, other):
    less, more = sorted((one, other))
    for curve in (LOW_CURVE, RATED_CURVE, HIGH_CURVE, WIDE_HIGH_CURVE):
        assert power_watts(curve, less) <= power_watts(curve, more) + 1e-12
    powers = [power_watts(curve, one) for curve in (LOW_CURVE, RATED_CURVE, HIGH_CURVE, WIDE_HIGH_CURVE)]
    assert powers == sorted(powers)


def test_a_curve_goes_through_its_points_and_ends_there():
    assert [power_watts(RATED_CURVE, load) for load in LOADS] == pytest.approx(list(RATED_CURVE))
    assert (power_watts(RATED_CURVE, -1), power_watts(RATED_CURVE, 7)) == pytest.approx((0.12, 1.02))
    assert power_watts(RATED_CURVE, 0.3) == pytest.approx((0.32 + 0.75) / 2)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", "intel core i7-8700k"),
        ("12th Gen Intel(R) Core(TM) i7-1260P", "intel core i7-1260p"),
        ("AMD Ryzen 7 5800X 8-Core Processor", "amd ryzen 7 5800x"),
        ("AMD Ryzen 7 PRO 4750U with Radeon Graphics", "amd ryzen 7 pro 4750u"),
    ],
)
def test_names_are_compared_without_marks_frequency_and_cores(said, meant):
    assert normalised(said) == meant
