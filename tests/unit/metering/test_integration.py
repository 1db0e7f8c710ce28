from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.metering.integration import Track, advance
from mlflow_green.records import Device, Method, Reading
from tests.testkit.metering_fakes import device, reading

JOULE = 1_000_000
WRAPPING = device(counter_range_microjoules=1_000 * JOULE - 1)  # 10 s at 100 W


def play(readings: list[Reading], of: Device | None = None):
    track, windows = Track(device=of or device()), []
    for each in readings:
        track, window = advance(track, each)
        windows.append(window)
    return windows


def test_the_first_reading_only_starts_and_the_second_gives_the_difference():
    first, second = play([reading(0, 500), reading(2, 500 + 80 * JOULE)])
    assert first is None
    energy = second.energy
    assert (energy.low_microjoules, energy.microjoules, energy.high_microjoules) == (72 * JOULE, 80 * JOULE, 88 * JOULE)
    assert (second.seconds, second.covered_seconds) == (2, 2)


def test_a_sensors_own_interval_and_idle_part_win():
    start = reading(0, 0, energy_low_microjoules=0, energy_high_microjoules=0, idle_microjoules=0)
    end = reading(1, 60, energy_low_microjoules=20, energy_high_microjoules=180, idle_microjoules=7)
    window = play([start, end])[-1]
    assert (window.energy.low_microjoules, window.energy.high_microjoules, window.idle_microjoules) == (20, 180, 7)


def test_a_possible_wrap_is_accepted():
    window = play([reading(0, 990 * JOULE), reading(1, 50 * JOULE)], WRAPPING)[-1]
    assert window.energy.microjoules == 60 * JOULE


def test_a_counter_that_restarted_is_no_wrap_and_charges_the_mean_power_so_far():
    windows = play([reading(0, 100 * JOULE), reading(1, 140 * JOULE), reading(2, 1 * JOULE)], WRAPPING)
    energy = windows[-1].energy
    assert (energy.low_microjoules, energy.microjoules, energy.high_microjoules) == (0, 40 * JOULE, 100 * JOULE)
    assert windows[-1].covered_seconds == 0


def test_counting_goes_on_after_a_reset():
    restarted = [reading(0, 0), reading(1, 40 * JOULE), reading(2, 1 * JOULE), reading(3, 31 * JOULE)]
    assert play(restarted, WRAPPING)[-1].energy.microjoules == 30 * JOULE


def test_a_time_in_which_the_counter_may_have_wrapped_twice_is_uncovered():
    window = play([reading(0, 0), reading(1, 40 * JOULE), reading(12, 41 * JOULE)], WRAPPING)[-1]
    assert (window.energy.microjoules, window.energy.high_microjoules) == (440 * JOULE, 1_100 * JOULE)


def test_a_counter_without_a_range_that_goes_back_was_reset():
    reset, after = play([reading(0, 100), reading(1, 50), reading(2, 60)])[1:]
    assert (reset.energy.low_microjoules, reset.energy.high_microjoules) == (0, 100 * JOULE)
    assert (after.energy.low_microjoules, after.energy.high_microjoules) == (0, 11)
    assert (after.covered_seconds, after.seconds) == (1, 1)


def test_a_failed_read_is_filled_with_mean_power_and_put_right_by_the_next_value():
    windows = play([reading(0, 0), reading(1, 40 * JOULE), reading(2, None), reading(3, 130 * JOULE)])
    gap, after = windows[2], windows[3]
    assert (gap.energy.low_microjoules, gap.energy.microjoules, gap.energy.high_microjoules) == (
        0,
        40 * JOULE,
        100 * JOULE,
    )
    assert (gap.covered_seconds, gap.seconds) == (0, 1)
    assert after.energy.microjoules == 50 * JOULE


def test_an_estimate_that_was_too_high_is_paid_back_by_later_windows():
    trace = [reading(0, 0), reading(1, 90 * JOULE), reading(2, None), reading(3, 100 * JOULE), reading(4, 190 * JOULE)]
    assert [each.energy.microjoules for each in play(trace)[2:]] == [90 * JOULE, 0, 10 * JOULE]


@pytest.mark.parametrize("first", [reading(0, 0), reading(0, None)])
def test_before_any_power_is_known_a_gap_is_half_of_the_greatest_power(first):
    start, gap, longer = play([first, reading(1, None), reading(3, None)])
    assert start is None
    assert (gap.energy.low_microjoules, gap.energy.microjoules, gap.energy.high_microjoules) == (
        0,
        50 * JOULE,
        100 * JOULE,
    )
    assert (gap.energy.method, gap.covered_seconds, gap.seconds) == (Method.ESTIMATED, 0, 1)
    assert (longer.energy.microjoules, longer.energy.high_microjoules) == (100 * JOULE, 200 * JOULE)


def test_a_counter_that_stands_still_for_a_second_does_not_count_and_one_that_moves_again_puts_that_right():
    readings = [reading(0, 0), reading(1, 40 * JOULE), reading(2, 40 * JOULE), reading(3, 120 * JOULE)]
    _, _, still, moved = play(readings)
    assert (still.energy.microjoules, still.energy.low_microjoules, still.covered_seconds) == (40 * JOULE, 0, 0)
    assert still.energy.method is Method.ESTIMATED
    assert moved.energy.microjoules == 40 * JOULE


def test_a_gap_of_a_model_may_hold_all_that_the_model_itself_would_have_allowed():
    model = device(method=Method.ESTIMATED, error_ratio=2.0)  # up to three times 100 W
    window = play([reading(0, 0), reading(1, None)], model)[-1]
    assert (window.energy.microjoules, window.energy.high_microjoules) == (50 * JOULE, 300 * JOULE)


def test_the_next_value_puts_a_gap_right_that_came_before_any_power_was_known():
    windows = play([reading(0, 0), reading(1, None), reading(2, 80 * JOULE)])
    assert [each.energy.microjoules for each in windows[1:]] == [50 * JOULE, 30 * JOULE]


def test_a_counter_that_is_read_for_the_first_time_late_says_nothing_of_the_time_before():
    late, next_one = play([reading(0, None), reading(1, 700 * JOULE), reading(2, 710 * JOULE)])[1:]
    assert (late.energy.low_microjoules, late.energy.microjoules, late.energy.high_microjoules) == (
        0,
        50 * JOULE,
        100 * JOULE,
    )
    assert (late.covered_seconds, next_one.covered_seconds) == (0, 1)
    assert next_one.energy.high_microjoules == 11 * JOULE


@given(st.integers(JOULE, 100 * JOULE), st.integers(1, 5), st.booleans())
def test_time_before_any_power_was_known_is_charged_the_first_power_that_is(power, seconds_unread, was_reset):
    first = reading(0, 10**12 if was_reset else None)
    unread = [reading(second, None) for second in range(1, seconds_unread)]
    read = [reading(second, second * power) for second in range(seconds_unread, 600)]
    energies = [window.energy for window in play([first, *unread, *read])[1:]]
    assert sum(each.microjoules for each in energies) == 599 * power
    assert sum(each.low_microjoules for each in energies) <= 599 * power
    assert sum(each.high_microjoules for each in energies) >= 599 * power


def test_nobody_pays_later_for_a_long_time_of_unknown_power():
    unread = [reading(second, None) for second in range(3_600)]
    windows = play([*unread, reading(3_600, 0), reading(3_601, 90 * JOULE), reading(3_602, 180 * JOULE)])[1:]
    assert sum(window.energy.microjoules for window in windows[:-2]) == 3_600 * 50 * JOULE
    assert [window.energy.microjoules for window in windows[-2:]] == [90 * JOULE, 90 * JOULE]


def test_a_window_after_a_gap_may_have_had_any_part_of_what_the_counter_gained():
    windows = play([reading(0, 0), reading(1, 90 * JOULE), reading(2, None), reading(3, 200 * JOULE)])
    energy = windows[-1].energy  # 110 J in two seconds of at most 100 W
    assert (energy.low_microjoules, energy.high_microjoules) == (0, 121 * JOULE)


def test_time_without_a_valid_read_is_estimated_also_on_a_counter():
    windows = play([reading(0, 0), reading(1, 40 * JOULE), reading(2, None)])
    assert [each.energy.method for each in windows[1:]] == [Method.MEASURED, Method.ESTIMATED]


@st.composite
def traces(draw):
    """The energies of seconds of 0 to 100 W, and a counter that wraps and shows them; some reads fail."""
    powers = draw(st.lists(st.tuples(st.integers(0, 100 * JOULE), st.booleans()), min_size=2, max_size=30))
    counter, truths, readings = 0, [], [reading(0, 0)]
    for second, (energy, failed) in enumerate(powers, start=1):
        counter += energy
        truths.append(energy)
        readings.append(reading(second, None if failed else counter % 50_000_000_000))
    return [*readings, reading(len(powers) + 1, counter % 50_000_000_000)], [*truths, 0]


@given(traces())
def test_every_window_holds_its_truth_in_its_interval_and_is_never_negative(trace):
    readings, truths = trace
    windows = play(readings, device(counter_range_microjoules=50_000_000_000 - 1))[1:]
    for window, truth in zip(windows, truths, strict=True):
        assert window.energy.microjoules >= 0
        assert window.energy.low_microjoules <= truth <= window.energy.high_microjoules


@given(traces(), st.integers(1, 29), st.integers(0, 100))
def test_a_reset_leaves_the_truth_in_the_interval(trace, reset_second, percent_before):
    """From some time within that second on, the counter shows what was drawn since; before, 40 kJ more."""
    readings, truths = trace
    lost = sum(truths[: reset_second - 1]) + sum(truths[reset_second - 1 : reset_second]) * percent_before // 100
    shown = [
        each
        if each.energy_microjoules is None
        else reading(
            each.monotonic_seconds,
            each.energy_microjoules + (40_000 * JOULE if each.monotonic_seconds < reset_second else -lost),
        )
        for each in readings
    ]
    windows = play(shown, device(counter_range_microjoules=50_000_000_000 - 1))[1:]
    assert sum(window.energy.low_microjoules for window in windows) <= sum(truths)
    assert sum(window.energy.high_microjoules for window in windows) >= sum(truths)


@given(traces())
def test_gaps_lose_no_energy_once_the_counter_has_passed_what_was_estimated(trace):
    readings, truth = trace[0], sum(trace[1])
    track, emitted = Track(device=device(counter_range_microjoules=50_000_000_000 - 1)), 0
    for each in readings:
        track, window = advance(track, each)
        emitted += window.energy.microjoules if window else 0
    assert emitted == truth + track.ahead_microjoules


@given(st.lists(st.none() | st.integers(0, 10**12), min_size=2, max_size=30))
def test_no_sequence_of_counter_values_gives_a_negative_or_impossible_energy(values):
    windows = play([reading(second, value) for second, value in enumerate(values)], WRAPPING)
    for window in filter(None, windows):
        assert window.energy.microjoules >= 0
        assert 0 <= window.covered_seconds <= window.seconds


def test_a_reading_of_the_same_moment_changes_nothing():
    assert play([reading(0, 0), reading(0, 5)])[-1] is None


@pytest.mark.parametrize("last", [reading(4, None), reading(4, 500 * JOULE)])
def test_uncovered_time_is_charged_once_for_a_long_gap_that_ends_in_a_reset(last):
    trace = [reading(0, 900 * JOULE), reading(1, 940 * JOULE), reading(2, None), reading(3, None), last]
    assert sum(each.energy.microjoules for each in play(trace, WRAPPING)[1:]) == 4 * 40 * JOULE
