"""Component sum against node meter: what is fitted must be what the synthetic node was made of."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_green.metering.alignment import ComponentSample, NodeSample
from mlflow_green.metering.calibration import WALL_METER_LAG_SECONDS, Comparison, calibrate
from mlflow_green.records import Method
from mlflow_green.sensors.node_meter import NodeReading
from mlflow_green.units import microjoules
from tests.testkit.metering_fakes import START

PHASE_SECONDS = 40


def comparison(levels_watts, node_watts, *, method=Method.MEASURED, coverage_ratio=1.0):
    """A node whose components draw each level for a phase, read every second, while its meter shows ``node_watts(t)``."""
    seconds = range(PHASE_SECONDS * len(levels_watts) + 1)
    used = [0.0]
    for second in seconds[:-1]:
        used.append(used[-1] + levels_watts[second // PHASE_SECONDS])
    components = tuple(
        ComponentSample(seconds=second, energy_microjoules=microjoules(joules))
        for second, joules in zip(seconds, used, strict=True)
    )
    node = tuple(NodeSample(seconds=second, reading=NodeReading(power_watts=node_watts(second))) for second in seconds)
    return Comparison(started_at=START, components=components, node=node, method=method, coverage_ratio=coverage_ratio)


def level_at(levels_watts, second):
    return levels_watts[min(len(levels_watts) - 1, max(0, int(second // PHASE_SECONDS)))]


def energy_between(compared, start_seconds, end_seconds):
    of = {sample.seconds: sample.energy_microjoules for sample in compared.components}
    return of[end_seconds] - of[start_seconds]


steps = st.lists(st.integers(20, 400), min_size=4, max_size=8).filter(lambda levels: max(levels) > 1.3 * min(levels))


@settings(max_examples=40, deadline=None)
@given(levels=steps, scale=st.floats(1.02, 2.0), offset=st.floats(1, 300), lag=st.integers(0, 15))
def test_scale_offset_and_lag_of_a_quiet_meter_are_found(levels, scale, offset, lag):
    found = calibrate(comparison(levels, lambda second: offset + scale * level_at(levels, second - lag - 0.5)))
    assert found.findings == ()
    # The meter's line between two readings of an edge is half a second early or late.
    assert abs(found.lag_seconds - lag) <= 1
    assert found.scale.point == pytest.approx(scale, rel=0.02)
    assert found.offset_watts.point == pytest.approx(offset, abs=0.03 * max(levels) * scale)
    assert found.scale.low <= scale <= found.scale.high
    assert found.offset_watts.low <= offset + 1e-6
    assert found.offset_watts.high >= offset - 1e-6


@settings(max_examples=40, deadline=None)
@given(
    levels=st.permutations([30, 60, 90, 120, 150, 180]),
    scale=st.floats(1.02, 1.5),
    offset=st.floats(20, 200),
    seed=st.integers(0, 10**6),
)
def test_noise_and_single_wild_readings_do_not_move_the_line(levels, scale, offset, seed):
    rng = random.Random(seed)

    def shown(second):
        if second % 7 == seed % 7:  # most windows have one, none two in a row
            return rng.choice([1.0, 2_000.0])
        return (offset + scale * level_at(levels, second)) * rng.gauss(1, 0.02)

    found = calibrate(comparison(levels, shown))
    assert found.findings == ()
    assert found.scale.point == pytest.approx(scale, rel=0.1)
    assert found.scale.low <= scale <= found.scale.high


@settings(max_examples=50, deadline=None)
@given(levels=steps, factor=st.floats(0.5, 3.0), offset=st.floats(0, 100))
def test_the_overhead_is_the_ratio_of_the_energies_and_the_gap_what_is_missing(levels, factor, offset):
    found = calibrate(comparison(levels, lambda second: offset + factor * level_at(levels, second)), lag_seconds=0)
    node = found.node_watts_mean
    assert found.node_overhead.point == pytest.approx(node / found.component_watts_mean)
    assert found.gap_ratio.point == pytest.approx((node - found.component_watts_mean) / node)
    for value in (found.node_overhead, found.gap_ratio, found.scale, found.offset_watts):
        assert value.low <= value.point <= value.high
    assert found.findings or found.node_overhead.point >= 1
    assert found.component_watts_min <= found.component_watts_mean <= found.component_watts_max


def test_components_above_the_node_are_a_finding_and_not_clipped():
    compared = comparison([100, 200] * 3, lambda second: 0.8 * level_at([100, 200] * 3, second - 0.5))
    found = calibrate(compared)
    assert found.node_overhead.point == pytest.approx(0.8, rel=0.01)
    assert found.gap_ratio.point == pytest.approx(-0.25, rel=0.05)
    assert "counters read too high" in found.findings[0]
    assert "model is set too high" in calibrate(replace(compared, method=Method.ESTIMATED)).findings[0]


def test_a_scale_below_one_is_a_finding_even_when_the_sum_is_possible():
    levels = [100, 200] * 3
    (finding,) = calibrate(comparison(levels, lambda second: 150 + 0.6 * level_at(levels, second))).findings
    assert "one more watt of the components is only 0.6" in finding


def test_a_node_that_would_draw_less_than_nothing_beside_its_components_is_a_finding():
    levels = [10.0, 100.0] * 10
    found = calibrate(comparison(levels, lambda second: 5 * level_at(levels, second) - 30), lag_seconds=0)
    assert found.offset_watts.high < 0
    assert any(finding.startswith("impossible: beside its components") for finding in found.findings)


def test_a_load_that_does_not_vary_gives_no_line():
    found = calibrate(comparison([100, 104, 100, 104], lambda second: 160.0))
    assert (found.scale, found.offset_watts) == (None, None)
    assert found.overhead_at(100) is None
    assert "too little variation" in found.findings[0]
    assert found.node_overhead.point == pytest.approx(160 / 102, rel=0.01)


def test_less_than_a_minute_is_too_short():
    found = calibrate(comparison([50], lambda second: 100.0))
    assert "too short" in found.findings[0]


def test_a_meter_that_never_answered_is_no_comparison():
    assert calibrate(replace(comparison([50, 90], lambda second: 1.0), node=())) is None


def test_a_meter_that_shows_nothing_is_no_comparison_and_one_that_shows_tenfold_is_a_finding():
    levels = [40, 160] * 4
    assert calibrate(comparison(levels, lambda second: 0.0)) is None
    found = calibrate(comparison(levels, lambda second: 12 * level_at(levels, second - 0.5)))
    assert "12 times what its components show" in found.findings[0]


def test_a_meter_of_another_machine_is_recognised():
    rng = random.Random(7)
    levels = [40, 160] * 4
    found = calibrate(comparison(levels, lambda second: rng.uniform(80, 300)), lag_seconds=0)
    assert "another machine" in found.findings[0]


def test_readings_of_the_components_that_are_mostly_estimates_are_not_relied_upon():
    levels = [40, 160] * 4
    found = calibrate(comparison(levels, lambda second: 50 + level_at(levels, second), coverage_ratio=0.5))
    assert "only 50% of the time" in found.findings[0]


def test_an_average_is_compared_with_the_same_average_of_the_components():
    levels = [40, 160] * 6
    plain = comparison(levels, lambda second: 1.0)
    averages = tuple(
        NodeSample(
            seconds=second,
            reading=NodeReading(
                power_watts=50 + 1.2 * energy_between(plain, second - 60, second) / 60 / 1e6, averaging_seconds=60
            ),
        )
        for second in range(60, len(plain.components))
    )
    found = calibrate(replace(plain, node=averages))
    assert found.findings == ()
    assert found.lag_seconds == 0
    assert found.scale.point == pytest.approx(1.2, rel=1e-6)
    assert found.offset_watts.point == pytest.approx(50, rel=1e-6)


@pytest.mark.parametrize("step_microjoules", [1, 300_000_000])
def test_an_energy_counter_is_read_by_its_steps_however_coarse(step_microjoules):
    levels = [40, 160] * 20
    plain = comparison(levels, lambda second: 1.0)
    counter = [
        NodeSample(
            seconds=each.seconds,
            reading=NodeReading(
                power_watts=999.0,
                energy_microjoules=int(1.5 * each.energy_microjoules) // step_microjoules * step_microjoules,
            ),
        )
        for each in plain.components
    ]
    found = calibrate(replace(plain, node=tuple(counter)))
    assert found.findings == ()
    assert found.node_overhead.point == pytest.approx(1.5, rel=0.01)


def test_a_wall_meter_whose_clock_is_wrong_is_shifted_into_place():
    levels = [40, 160, 90, 160, 40, 120]
    shown = comparison(levels, lambda second: 30 + 1.3 * level_at(levels, second + 23 - 0.5))
    found = calibrate(shown, lag_range_seconds=WALL_METER_LAG_SECONDS)
    assert found.lag_seconds == pytest.approx(-23, abs=1)
    assert found.scale.point == pytest.approx(1.3, rel=0.02)


def test_a_meter_that_was_away_for_a_while_is_not_bridged():
    levels = [40, 160] * 4
    whole = comparison(levels, lambda second: 50 + 1.2 * level_at(levels, second - 0.5))
    holed = replace(whole, node=tuple(each for each in whole.node if not 100 <= each.seconds < 200))
    found = calibrate(holed)
    assert found.seconds < calibrate(whole).seconds - 90
    assert found.scale.point == pytest.approx(1.2, rel=0.02)
