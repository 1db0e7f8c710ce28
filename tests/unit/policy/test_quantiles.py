"""What a sample says about the next use: quantiles with halted uses in them, and prediction intervals."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.policy.quantiles import LEVEL, prediction_interval, quantile_of

USES = st.lists(st.integers(0, 10**12), min_size=1, max_size=60)
RATIOS = st.fractions(Fraction(1, 100), 1)


@given(USES, RATIOS)
def test_without_halted_uses_a_quantile_is_an_order_statistic(uses, ratio):
    found = quantile_of(uses, [], ratio)
    assert sum(use <= found for use in uses) >= ratio * len(uses)
    assert sum(use < found for use in uses) < ratio * len(uses)


@given(USES, st.lists(st.integers(0, 10**12), max_size=20), RATIOS, RATIOS)
def test_a_quantile_is_monotone_and_one_of_the_uses(completed, halted, first, second):
    low, high = (quantile_of(completed, halted, ratio) for ratio in sorted((first, second)))
    assert low <= high
    assert {low, high} <= {*completed, *halted}


@given(USES, st.lists(st.integers(0, 10**12), max_size=20), RATIOS)
def test_a_halted_use_never_makes_a_quantile_smaller_than_if_it_had_been_complete(completed, halted, ratio):
    assert quantile_of(completed, halted, ratio) >= quantile_of([*completed, *halted], [], ratio)


def test_the_product_limit_estimator_gives_the_published_survival_of_the_remission_times():
    """6-MP arm of E. J. Freireich et al., Blood 21 (1963), the textbook example: S(t) = 0.857, 0.807, ..., 0.448."""
    relapsed = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    in_remission = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    survival = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for week, remaining in survival.items():
        ratio = Fraction(str(round(1 - remaining - 0.001, 3)))
        assert quantile_of(relapsed, in_remission, ratio) == week
        if week != 23:
            assert quantile_of(relapsed, in_remission, ratio + Fraction(2, 1000)) > week
    assert quantile_of(relapsed, in_remission, Fraction(95, 100)) == 35, "never reached: the largest of all"


def test_one_use_has_no_range_and_few_have_a_wide_one_that_says_how_little_it_covers():
    assert prediction_interval([5], []) is None
    assert prediction_interval([5, 9], []) == (5, 9, Fraction(1, 3))
    assert prediction_interval([5, 7, 9], []) == (5, 9, Fraction(1, 2))
    assert prediction_interval(range(1, 20), []) == (1, 19, LEVEL)
    assert prediction_interval(range(1, 40), []) == (2, 38, LEVEL)


def test_a_halted_use_leaves_the_high_end_open_where_it_may_have_gone_beyond_it():
    assert prediction_interval([5, 9], [7]) == (5, None, Fraction(1, 2))
    assert prediction_interval(range(2, 40), [3]) == (3, 39, LEVEL)


@pytest.mark.parametrize("count", [3, 19, 50])
def test_the_interval_covers_as_often_as_it_says_whatever_the_distribution(count):
    chance = random.Random(count)
    covered = 0
    for _ in range(2_000):
        *uses, last = (round(10**6 * chance.lognormvariate(0, 1.5)) for _ in range(count + 1))
        low, high, level = prediction_interval(uses, [])
        covered += low <= last <= high
    assert abs(covered / 2_000 - float(level)) < 0.035
    assert level >= LEVEL or count < 19
