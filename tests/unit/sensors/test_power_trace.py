from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.sensors.power_trace import POLL_SECONDS_MIN, UPDATE_SECONDS_MAX, PowerTrace

POWER_WATTS_MAX = 350.0


def power_at(trace: list[tuple[float, float]], seconds: float) -> float:
    return next(watts for start, watts in reversed(trace) if start <= seconds)


def integral_joules(trace: list[tuple[float, float]], until_seconds: float) -> float:
    ends = [*(start for start, _ in trace[1:]), float("inf")]
    return sum(
        watts * max(0.0, min(end, until_seconds) - start) for (start, watts), end in zip(trace, ends, strict=True)
    )


@st.composite
def traces(draw) -> list[tuple[float, float]]:
    """A step function of power whose levels last at least 0.1 s, as the update period of a slow GPU."""
    lengths = draw(st.lists(st.floats(0.101, 1.0), min_size=1, max_size=12))
    levels = draw(st.lists(st.floats(0, POWER_WATTS_MAX), min_size=len(lengths), max_size=len(lengths)))
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return list(zip(starts, levels, strict=True))


@pytest.mark.parametrize("update_seconds", [0.020, 0.100])
@given(trace=traces(), jitter=st.lists(st.floats(0.5, 1.5), min_size=7, max_size=7), reads=st.integers(1, 4))
def test_the_bounds_of_every_window_cover_the_exact_integral(update_seconds, trace, jitter, reads):
    polled = PowerTrace(POWER_WATTS_MAX)
    seconds, polls, begin = 0.0, 0, (0.0, 0.0, 0.0, 0.0)
    polled.poll(0.0, trace[0][1])
    for read in range(reads):
        while seconds < (read + 1) * 1.0:
            seconds += polled.poll_seconds * jitter[polls % len(jitter)]
            polls += 1
            updated = seconds // update_seconds * update_seconds
            polled.poll(seconds, power_at(trace, updated))
        polled.read()
        end = (integral_joules(trace, seconds), polled.low_joules, polled.energy_joules, polled.high_joules)
        true, low, point, high = (after - before for before, after in zip(begin, end, strict=True))
        assert low - 1e-6 <= true <= high + 1e-6
        assert low - 1e-6 <= point <= high + 1e-6
        begin = end


def polled_every(poll_seconds: float, update_seconds: float, duration_seconds: float) -> PowerTrace:
    """A power that is another at each update, as a working GPU's is."""
    trace = PowerTrace(POWER_WATTS_MAX)
    for poll in range(round(duration_seconds / poll_seconds) + 1):
        update = int(poll * poll_seconds / update_seconds + 1e-9)
        trace.poll(poll * poll_seconds, 300.0 + update % 2)
    return trace


@pytest.mark.parametrize("update_seconds", [0.020, 0.040, 0.080])
def test_the_update_period_is_learnt_from_the_changes_and_never_taken_too_short(update_seconds):
    learnt = polled_every(0.010, update_seconds, 2.0)
    assert update_seconds <= learnt.update_seconds <= min(UPDATE_SECONDS_MAX, update_seconds + 0.011)
    assert learnt.poll_seconds <= update_seconds


def test_a_steady_power_is_polled_as_seldom_as_the_slowest_gpu_needs_until_it_changes():
    trace = polled_every(0.010, 1000.0, 1.0)
    assert trace.poll_seconds == UPDATE_SECONDS_MAX / 2
    trace.poll(1.01, 200.0)
    assert trace.poll_seconds == POLL_SECONDS_MIN


def test_a_steady_power_has_sharp_bounds_but_for_the_last_update_period():
    trace = polled_every(0.010, 1000.0, 10.0)
    trace.read()
    assert trace.energy_joules == pytest.approx(3000)
    assert trace.low_joules == pytest.approx(3000 - 300 * UPDATE_SECONDS_MAX, rel=0.002)
    assert trace.high_joules == pytest.approx(3000 + 50 * UPDATE_SECONDS_MAX, rel=0.002)


def test_a_time_without_polls_may_have_had_any_power():
    trace = PowerTrace(POWER_WATTS_MAX)
    for seconds in (0.0, 3.0, 3.01, 3.2):
        trace.poll(seconds, 100.0)
    assert trace.low_joules == pytest.approx(1.0)
    assert trace.high_joules == pytest.approx(3 * POWER_WATTS_MAX + 1.0)
    assert trace.energy_joules == pytest.approx(320.0)
    assert trace.polled_seconds == 3.2


def test_a_poll_at_the_same_time_changes_nothing():
    trace = PowerTrace(POWER_WATTS_MAX)
    trace.poll(1.0, 100.0)
    trace.poll(1.0, 300.0)
    trace.poll(2.0, 100.0)
    assert trace.energy_joules == pytest.approx(100.0)
