"""Earlier uses scaled by the size of the input, and only where the history shows that this helps."""

import random
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlflow_green.policy.forecast import estimate
from mlflow_green.policy.sizes import RUNS_MIN, scaled_to, size_law
from mlflow_green.records import PastUse, StepSpec, Unit

MB = 1_000_000
SIZES = [MB * 2**n for n in range(10)]


def use(energy, size, *, censored=False):
    return PastUse(
        step="align", wildcards="", tier=None, energy_microjoules=round(energy), censored=censored, input_bytes=size
    )


def asked(past, size, quantile="p95"):
    (found,) = estimate(past, "align", "", StepSpec(), quantile=quantile, input_bytes=size)
    return found


def scattered(law, sizes, spread=0.1, seed=1):
    chance = random.Random(seed)
    return [use(law(size) * chance.lognormvariate(0, spread), size) for size in sizes]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.8])
def test_a_power_law_is_found_with_its_exponent(exponent):
    law = size_law(scattered(lambda size: 50 * size**exponent, SIZES * 2), 4 * MB)
    assert law.name == "power law" if exponent != 1.0 else law.name in {"power law", "linear"}
    assert law.exponent == pytest.approx(exponent, abs=0.08)


def test_a_fixed_part_makes_a_straight_line_the_better_law():
    law = size_law([use(4e9 + 100 * size, size) for size in SIZES], 4 * MB)
    assert law.name == "linear"
    assert law.energy_microjoules(0) == pytest.approx(4e9)
    assert law.slope == pytest.approx(100)


def test_the_estimate_says_that_it_is_scaled_by_which_law_and_with_which_exponent():
    found = asked([use(100 * size, size) for size in SIZES], 2_000 * MB)
    assert found.amounts[Unit.ENERGY] == pytest.approx(1.3 * 100 * 2_000 * MB, rel=1e-6)
    assert found.source.startswith("maximum of 10 runs of align, scaled to 2.00 GB of input (")
    assert "exponent 1.00" in found.source
    assert found.basis == "maximum x 1.3, scaled by input size"


def test_a_scaled_p95_holds_little_for_a_small_input_and_enough_for_a_large_one():
    past = scattered(lambda size: 100 * size, SIZES * 4)
    small, large = asked(past, MB), asked(past, 512 * MB)
    assert 100 * MB < small.amounts[Unit.ENERGY] < 200 * MB
    assert 51_200 * MB < large.amounts[Unit.ENERGY] < 80_000 * MB
    assert small.low_microjoules < 100 * MB < small.high_microjoules < small.low_microjoules * 2
    assert small.level_ratio >= 0.9


@pytest.mark.parametrize("seed", range(20))
def test_a_step_whose_energy_has_nothing_to_do_with_its_input_is_not_scaled(seed):
    past = scattered(lambda _size: 5e9, SIZES * 2, spread=0.5, seed=seed)
    assert size_law(past, 4 * MB) is None
    assert asked(past, 4 * MB) == asked(past, None)


def test_too_few_runs_too_similar_sizes_and_sizes_far_away_are_not_scaled():
    assert size_law([use(100 * size, size) for size in SIZES[: RUNS_MIN - 1]], MB) is None
    assert size_law([use(100 * size, size) for size in range(10 * MB, 14 * MB, MB // 4)], 12 * MB) is None
    past = [use(100 * size, size) for size in SIZES]
    assert size_law(past, SIZES[-1] * 4) is not None
    assert size_law(past, SIZES[-1] * 4 + 1) is None
    assert size_law(past, SIZES[0] // 4 - 1) is None
    assert size_law(past, None) is None
    assert size_law(past, 0) is None


def test_energy_that_falls_with_the_size_is_chance_and_not_scaled():
    assert size_law([use(1e18 / size, size) for size in SIZES], 4 * MB) is None


def test_runs_of_unknown_size_do_not_count_but_what_was_not_enough_does():
    past = [use(100 * size, size) for size in SIZES]
    assert size_law([*past, *(use(10**15, None) for _ in range(5))], MB) == size_law(past, MB)
    scaled = scaled_to([*past, use(10**15, None), use(7, None, censored=True)], size_law(past, MB), MB)
    assert [each.energy_microjoules for each in scaled if each.censored] == [7]
    assert len(scaled) == len(past) + 1


@st.composite
def histories(draw):
    sizes = draw(st.lists(st.integers(1, 10**12), min_size=RUNS_MIN, max_size=25))
    exponent = draw(st.floats(0.2, 2.5))
    noise = st.floats(0.9, 1.1)
    return [use(1 + 10**3 * size**exponent * draw(noise), size) for size in sizes]


@given(histories(), st.integers(1, 10**12), st.sampled_from(["p50", "p95", "max"]))
def test_an_estimate_is_a_whole_number_above_nothing_and_grows_with_the_quantile_and_the_size(past, size, quantile):
    found = asked(past, size, quantile).amounts[Unit.ENERGY]
    assert isinstance(found, int)
    assert found > 0
    assert asked(past, size, "p50").amounts[Unit.ENERGY] <= found <= asked(past, size, "max").amounts[Unit.ENERGY]
    law = size_law(past, size)
    assume(law is not None)
    if size_law(past, size + 1) is not None:
        assert found <= asked(past, size + 1, quantile).amounts[Unit.ENERGY]


@given(histories(), st.integers(1, 10**15), st.data())
def test_a_retry_with_the_same_or_a_larger_input_asks_for_half_as_much_again_as_was_halted(past, halted, data):
    size = data.draw(st.sampled_from([each.input_bytes for each in past]))
    larger = data.draw(st.integers(size, 2 * size))
    again = [*past, use(halted, size, censored=True)]
    assert asked(again, size).amounts[Unit.ENERGY] >= Fraction(3, 2) * halted
    assert asked(again, larger).amounts[Unit.ENERGY] >= Fraction(3, 2) * halted


@given(histories())
def test_an_input_of_the_same_size_is_scaled_by_exactly_one(past):
    law = size_law(past, past[0].input_bytes)
    assume(law is not None)
    assert scaled_to(past[:1], law, past[0].input_bytes) == past[:1]
