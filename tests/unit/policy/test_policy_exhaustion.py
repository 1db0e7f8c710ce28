"""The forecast of a budget: when it speaks, that it repeats itself, and how often its interval holds."""

from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.policy.exhaustion import daily_spends, exhaustion

NOW = datetime(2026, 11, 21, tzinfo=UTC)
END = NOW + timedelta(days=10)
days = st.lists(st.integers(0, 1000), min_size=7, max_size=28).filter(lambda found: sum(map(bool, found)) >= 5)


def forecast(known, *, spent=0, limit=10_000, end=END, now=NOW):
    return exhaustion(known, spent=spent, limit=limit, now=now, end=end)


@pytest.mark.parametrize("known", [[], [5] * 6, [5] * 4 + [0] * 20])
def test_too_few_days_give_no_forecast(known):
    assert forecast(known) is None


@given(days, st.integers(0, 10_000), st.integers(1, 20_000))
def test_the_ends_are_in_order_and_the_same_days_give_the_same_answer(known, spent, limit):
    found = forecast(known, spent=spent, limit=limit)
    assert spent <= found.spent_low <= found.spent_point <= found.spent_high <= spent + 10 * max(known)
    moments = [
        moment or END + timedelta(days=1) for moment in (found.used_up_first, found.used_up_middle, found.used_up_last)
    ]
    assert moments == sorted(moments)
    assert found == forecast(known, spent=spent, limit=limit)


def test_a_steady_spend_is_foreseen_exactly():
    found = forecast([100] * 14, spent=500, limit=1_200)
    assert (found.spent_low, found.spent_point, found.spent_high, found.daily) == (1_500, 1_500, 1_500, 100)
    assert found.used_up_first == found.used_up_last == NOW + timedelta(days=7)
    assert (found.is_sure_of(1_200), found.is_sure_of(1_501)) == (True, False)


def test_the_last_day_counts_for_the_part_that_is_left():
    assert forecast([100] * 14, end=NOW + timedelta(days=1.5)).spent_point == 150


def test_a_budget_without_an_end_has_a_date_and_no_sum():
    found = forecast([100] * 14, limit=3_000, end=None)
    assert (found.spent_point, found.used_up_middle) == (None, NOW + timedelta(days=30))
    assert forecast([100] * 14, limit=10**9, end=None).used_up_middle is None


def test_a_period_that_has_ended_adds_nothing():
    assert forecast([100] * 14, spent=500, end=NOW).spent_high == 500


def test_a_day_is_that_of_the_policy_and_today_does_not_count():
    paris = ZoneInfo("Europe/Paris")
    late = datetime(2026, 11, 18, 23, 30, tzinfo=UTC)  # the 19th in Paris
    spends = [(late, 5), (late + timedelta(minutes=1), 6), (NOW, 7)]
    assert daily_spends(spends, now=NOW, zone=paris) == (11, 0)
    assert daily_spends(spends, now=NOW, zone=UTC) == (11, 0, 0)


def test_at_most_28_days_are_looked_at():
    spends = [(NOW - timedelta(days=age), age) for age in range(1, 60)]
    assert daily_spends(spends, now=NOW, zone=UTC) == tuple(range(28, 0, -1))


@pytest.mark.parametrize("kind", ["even", "bursts", "weekdays"])
def test_the_interval_of_90_percent_holds_the_truth_about_as_often(kind):
    """Of 150 histories each, spent at random; how often is printed (run with -s)."""
    chance, trials, held = Random(1), 150, 0

    def day(number):
        if kind == "weekdays" and number % 7 >= 5:
            return 0
        if kind == "bursts" and chance.random() < 0.5:
            return 0
        return int(chance.expovariate(1 / 1000)) + 1

    for _ in range(trials):
        found = forecast([day(number) for number in range(28)], end=NOW + timedelta(days=14), limit=10**9)
        truth = sum(day(number) for number in range(28, 42))
        held += found.spent_low <= truth <= found.spent_high
    print(f"{kind}: {held} of {trials}")
    assert held >= 0.8 * trials
