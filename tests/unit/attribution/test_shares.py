from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.attribution.idle import BASELINE_WINDOWS_MIN, baseline_power_watts, idle_microjoules
from mlflow_green.attribution.shares import (
    EXACT_CLOCK_ERROR_RATIO,
    largest_remainder,
    share_by_use,
    share_idle_by_memory,
)
from mlflow_green.records import Energy, Method

JOULE = 1_000_000


@st.composite
def energies(draw) -> Energy:
    low, point, high = sorted(draw(st.tuples(*[st.integers(0, 10**12)] * 3)))
    return Energy(microjoules=point, low_microjoules=low, high_microjoules=high, method=Method.MEASURED)


cpu_seconds = st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1e5), max_size=12)


@given(energies(), st.floats(0, 1), cpu_seconds, st.floats(0, 1e6))
def test_shares_idle_and_other_sum_to_the_whole_exactly(energy, idle_ratio, used, busy_seconds):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    shares = share_by_use(energy, idle, used, busy_seconds)
    attributed = sum(share.microjoules for share in shares.consumers.values())
    assert attributed + shares.idle_microjoules + shares.other_microjoules == energy.microjoules
    assert min(shares.idle_microjoules, shares.other_microjoules) >= 0
    assert shares.consumers.keys() == used.keys()


@given(energies(), st.floats(0, 1), cpu_seconds, st.floats(0, 1e6))
def test_no_end_of_a_shares_interval_is_above_the_same_end_of_the_whole(energy, idle_ratio, used, busy_seconds):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    for share in share_by_use(energy, idle, used, busy_seconds).consumers.values():
        assert share.low_microjoules <= energy.low_microjoules
        assert share.microjoules <= energy.microjoules
        assert share.high_microjoules <= energy.high_microjoules


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), min_size=1).filter(any))
def test_largest_remainder_is_exact_and_within_one_of_each_quota(whole, weights):
    parts = largest_remainder(whole, weights)
    total = sum(weights)
    assert sum(parts) == whole
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * total - whole * weight) < total
        assert weight or not part


@st.composite
def truths(draw) -> tuple[dict[str, float], dict[str, float], float]:
    """What consumers truly used, what their clocks saw of it, and the busy time of the host, in CPU seconds."""
    milliseconds = draw(st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 10**6), min_size=1, max_size=6))
    true = {name: count / 1000 for name, count in milliseconds.items()}
    seen = {name: draw(st.just(count) | st.integers(0, count)) / 1000 for name, count in milliseconds.items()}
    return true, seen, sum(true.values()) + draw(st.integers(0, 10**6)) / 1000


@given(truths(), st.integers(0, 10**12), st.floats(0, 1), st.floats(0, 10))
def test_the_interval_covers_the_true_share_when_clocks_miss_time(truth, microjoules, idle_ratio, grain_seconds):
    true, seen, busy_seconds = truth
    idle = int(microjoules * idle_ratio)
    energy = Energy(
        microjoules=microjoules,
        low_microjoules=microjoules * 9 // 10,
        high_microjoules=microjoules * 11 // 10,
        method=Method.MEASURED,
    )
    exact = [name for name in true if true[name] <= seen[name] * (1 + EXACT_CLOCK_ERROR_RATIO)]
    shares = share_by_use(energy, idle, seen, busy_seconds, exact=exact, grain_seconds=grain_seconds)
    for name, share in shares.consumers.items():
        true_share = (microjoules - idle) * true[name] / busy_seconds if busy_seconds else 0.0
        assert share.low_microjoules - 1 <= true_share * (1 + 1e-9)
        assert share.high_microjoules + 1 >= true_share * (1 - 1e-9)


@given(truths(), st.integers(0, 10**12), st.integers(0, 10**4), st.floats(0, 1))
def test_the_high_end_of_an_exact_clock_covers_what_the_hosts_ticks_count_too_much(
    truth, microjoules, grain_milliseconds, tick_ratio
):
    true, _, busy_seconds = truth
    grain_seconds = grain_milliseconds / 1000
    energy = Energy(
        microjoules=microjoules, low_microjoules=microjoules, high_microjoules=microjoules, method=Method.MEASURED
    )
    read_seconds = busy_seconds + grain_seconds * tick_ratio
    shares = share_by_use(energy, 0, true, read_seconds, exact=list(true), grain_seconds=grain_seconds)
    for name, share in shares.consumers.items():
        true_share = microjoules * true[name] / busy_seconds if busy_seconds else 0.0
        assert share.high_microjoules + 1 >= true_share * (1 - 1e-6)


def test_an_exact_clock_makes_the_interval_sharp():
    shares = share_by_use(measured(100, 90, 110), 0, {"a": 1.0}, 4.0, exact=["a"], grain_seconds=0.01)
    assert shares.consumers["a"] == Energy(
        microjoules=25_000_000, low_microjoules=22_500_000, high_microjoules=28_600_000, method=Method.MEASURED
    )


def test_what_ticks_hide_may_be_of_those_whose_clocks_miss_time_and_of_nobody_else():
    shares = share_by_use(
        measured(100, 100, 110),
        0,
        {"exact": 1.0, "bound": 1.0},
        2.0,
        exact=["exact"],
        grain_seconds=2.0,
        hidden_microjoules=10 * JOULE,
    )
    assert shares.consumers["exact"] == measured(50, 50, 50)
    assert shares.consumers["bound"] == Energy(
        microjoules=50 * JOULE, low_microjoules=50 * JOULE, high_microjoules=82_500_000, method=Method.MEASURED
    )


def test_where_no_tick_was_seen_a_clock_that_misses_time_may_have_used_everything():
    shares = share_by_use(measured(5), 1 * JOULE, {"a": 0.0}, 0.0, grain_seconds=0.02)
    assert (shares.idle_microjoules, shares.consumers["a"]) == (5 * JOULE, measured(0, 0, 4))


@given(energies(), st.floats(0, 1), cpu_seconds, st.floats(0, 1e6), st.data())
def test_memory_moves_idle_energy_to_shares_and_the_sum_stays_the_whole(energy, idle_ratio, used, busy_seconds, data):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    before = share_by_use(energy, idle, used, busy_seconds)
    resident = data.draw(
        st.fixed_dictionaries({}, optional={name: st.none() | st.integers(0, 10**13) for name in used})
    )
    shares = share_idle_by_memory(before, energy, resident, data.draw(st.integers(1, 10**13)))
    attributed = sum(share.microjoules for share in shares.consumers.values())
    assert attributed + shares.idle_microjoules + shares.other_microjoules == energy.microjoules
    assert 0 <= shares.idle_microjoules <= before.idle_microjoules
    assert shares.other_microjoules == before.other_microjoules
    for name, share in shares.consumers.items():
        assert before.consumers[name].microjoules <= share.microjoules
        assert share.low_microjoules == before.consumers[name].low_microjoules
        assert share.high_microjoules <= energy.high_microjoules


def measured(joules: int, low: int | None = None, high: int | None = None) -> Energy:
    return Energy(
        microjoules=joules * JOULE,
        low_microjoules=(joules if low is None else low) * JOULE,
        high_microjoules=(joules if high is None else high) * JOULE,
        method=Method.MEASURED,
    )


def test_what_the_host_did_beyond_its_consumers_is_other_and_may_be_theirs():
    shares = share_by_use(measured(100, 80, 120), 0, {"a": 1.0, "b": 2.0}, 4.0)
    assert shares.other_microjoules == 25 * JOULE
    assert shares.consumers["a"] == measured(25, 20, 60)
    assert shares.consumers["b"] == measured(50, 40, 90)


def test_clocks_that_say_more_than_the_host_leave_no_other():
    shares = share_by_use(measured(90), 0, {"a": 1.0, "b": 2.0}, 1.5)
    assert (shares.consumers["b"].microjoules, shares.other_microjoules) == (60 * JOULE, 0)


def test_idle_is_taken_off_first_and_keeps_the_ratio_of_the_interval():
    shares = share_by_use(measured(30, 10, 90), 12 * JOULE, {"a": 1.0}, 1.0)
    assert shares.idle_microjoules == 12 * JOULE
    assert shares.consumers["a"] == measured(18, 6, 54)


def test_a_window_in_which_nobody_was_busy_is_all_idle():
    shares = share_by_use(measured(5), 1 * JOULE, {"a": 0.0}, 0.0)
    assert shares.idle_microjoules == 5 * JOULE
    assert shares.consumers["a"].microjoules == 0


def test_idle_memory_energy_goes_to_whose_memory_it_keeps_and_the_rest_stays_idle():
    by_use = share_by_use(measured(100, 50, 200), 80 * JOULE, {"a": 1.0, "b": 0.0}, 1.0)
    shares = share_idle_by_memory(by_use, measured(100, 50, 200), {"b": 4}, 16)
    assert shares.idle_microjoules == 60 * JOULE
    assert shares.consumers["a"] == measured(20, 10, 40)
    assert shares.consumers["b"] == measured(20, 0, 40)


def test_memory_that_could_not_be_found_may_be_all_that_is_nobodys():
    by_use = share_by_use(measured(80, 40, 160), 80 * JOULE, {"a": 0.0, "b": 0.0}, 0.0)
    shares = share_idle_by_memory(by_use, measured(80, 40, 160), {"a": None, "b": 4}, 16)
    assert shares.consumers == {"a": measured(0, 0, 120), "b": measured(20, 0, 40)}


def test_processes_that_share_more_memory_than_there_is_leave_nothing_idle():
    by_use = share_by_use(measured(80), 80 * JOULE, {"a": 0.0, "b": 0.0}, 0.0)
    shares = share_idle_by_memory(by_use, measured(80), {"a": 30, "b": 10}, 16)
    assert shares.idle_microjoules == 0
    assert [shares.consumers[name].microjoules for name in "ab"] == [60 * JOULE, 20 * JOULE]


def test_idle_is_the_sensors_own_else_the_baseline_else_nothing():
    assert idle_microjoules(9, 1.0, own_microjoules=4, baseline_power_watts=1.0) == 4
    assert idle_microjoules(9 * JOULE, 2.0, own_microjoules=None, baseline_power_watts=3.0) == 6 * JOULE
    assert idle_microjoules(9, 1.0, own_microjoules=None, baseline_power_watts=None) == 0


@given(st.integers(0, 10**12), st.floats(0, 1e4), st.none() | st.integers(0, 10**13), st.none() | st.floats(0, 1e4))
def test_idle_is_never_more_than_the_energy(energy, seconds, own, baseline):
    assert 0 <= idle_microjoules(energy, seconds, own_microjoules=own, baseline_power_watts=baseline) <= energy


def test_the_baseline_is_the_fifth_percentile_of_enough_quiet_windows():
    assert baseline_power_watts([10.0] * (BASELINE_WINDOWS_MIN - 1)) is None
    assert baseline_power_watts([float(power) for power in range(100, 0, -1)]) == 6.0
