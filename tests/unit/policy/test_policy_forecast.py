"""What a step is expected to need, from its history and its declaration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.policy.document import parse_step_spec
from mlflow_green.policy.forecast import estimate
from mlflow_green.records import PastUse, StepSpec, Unit

NOTHING = StepSpec()
TIERS = parse_step_spec({"tiers": "full:1,half:0.5,tiny:0.05"})
DECLARED = parse_step_spec({"tiers": "full:1,half:0.5,tiny:0.05", "energy": "5 J"})


def use(energy, *, wildcards="m=a", tier=None, censored=False, step="train"):
    return PastUse(step=step, wildcards=wildcards, tier=tier, energy_microjoules=energy, censored=censored)


def need(past, spec=NOTHING, *, quantile="p95", tier=None):
    found = {each.tier: each for each in estimate(past, "train", "m=a", spec, quantile=quantile)}[tier]
    return (found.amounts[Unit.ENERGY] if found.amounts is not None else None), found.source


def test_few_runs_count_with_their_maximum_and_a_margin():
    assert need([use(100), use(200)]) == (260, "maximum of 2 runs of train[m=a] x 1.3")


@pytest.mark.parametrize(
    ("quantile", "energy", "word"), [("p50", 10, "p50"), ("p95", 19, "p95"), ("max", 20, "maximum")]
)
def test_from_twenty_runs_on_the_quantile_is_taken(quantile, energy, word):
    past = [use(energy) for energy in range(1, 21)]
    assert need(past, quantile=quantile) == (energy, f"{word} of 20 runs of train[m=a]")
    assert need(past[1:], quantile=quantile)[0] == 26


def test_the_same_wildcards_go_before_any_wildcards():
    assert need([use(100), use(900, wildcards="m=b")])[0] == 130
    assert need([use(900, wildcards="m=b")]) == (1170, "maximum of 1 run of train x 1.3")


def test_other_steps_teach_nothing():
    assert need([use(100, step="sweep")])[0] is None


def test_without_anything_known_there_are_no_amounts_rather_than_zero():
    assert need([]) == (None, "nothing known: no history and no declared energy")


def test_the_declared_energy_is_that_of_the_dearest_tier():
    assert need([], DECLARED, tier="full") == (5_000_000, "declared 1.39 mWh")
    assert need([], DECLARED, tier="tiny")[0] == 250_000


def test_history_goes_before_the_declaration_unless_the_policy_reserves_what_is_declared():
    past = [use(100, tier="full")]
    assert need(past, DECLARED, tier="full")[0] == 130
    assert need(past, DECLARED, tier="full", quantile="declared")[0] == 5_000_000
    assert need(past, TIERS, tier="full", quantile="declared")[0] == 130


def test_another_tier_is_scaled_by_the_declared_ratios():
    past = [use(1_000, tier="half")]
    assert need(past, DECLARED, tier="full") == (2_600, "maximum of 1 run of train[m=a] as half, scaled to full x 1.3")
    assert need(past, DECLARED, tier="tiny")[0] == 130


def test_any_wildcards_of_the_same_tier_go_before_another_tier():
    past = [use(1_000, tier="half"), use(7_000, tier="full", wildcards="m=b")]
    assert need(past, TIERS, tier="full")[0] == 9_100


def test_a_halted_run_shows_only_that_more_is_needed():
    assert need([use(100), use(200, censored=True)]) == (300, "largest halted run of train[m=a] x 1.5")
    assert need([use(1_000), use(200, censored=True)])[0] == 1_300
    assert need([use(200, censored=True)])[0] == 300


def test_a_halted_run_raises_a_declaration_that_was_too_small():
    assert need([use(8_000_000, tier="full", censored=True)], DECLARED, tier="full")[0] == 12_000_000
    assert need([use(10, tier="full", censored=True)], DECLARED, tier="full")[0] == 5_000_000


def test_other_units_come_from_the_place():
    found = estimate(
        [use(100)], "train", "m=a", StepSpec(), quantile="max", to_amounts=lambda uj: {Unit.CARBON: uj * 2}
    )
    assert found[0].amounts == {Unit.CARBON: 260}


def test_a_halted_run_among_many_counts_as_one_of_unknown_need():
    past = [use(energy) for energy in range(101, 121)]
    assert need(past)[0] == 119
    halted = [use(50, censored=True)] * 4
    assert need([*past, *halted]) == (119, "p95 of 20 runs of train[m=a] and 4 that were halted")
    late = [use(110, censored=True)] * 6
    assert need([*past, *late], quantile="p50") == (165, "largest halted run of train[m=a] x 1.5")
    cheap = [use(70, censored=True)] * 18
    assert need([*past, *cheap], quantile="p50")[0] == 110, "those halted below every other say nothing of the middle"


def test_an_estimate_says_of_which_kind_it_is():
    twenty = [use(energy) for energy in range(101, 121)]
    cases = {
        "maximum x 1.3": ([use(1)], NOTHING, "p95"),
        "p95": (twenty, NOTHING, "p95"),
        "p50": (twenty, NOTHING, "p50"),
        "maximum": (twenty, NOTHING, "max"),
        "declared": ([], parse_step_spec({"energy": "5 J"}), "p95"),
        "halted x 1.5": ([use(1, censored=True)], NOTHING, "p95"),
        "": ([], NOTHING, "p95"),
    }
    for basis, (past, spec, quantile) in cases.items():
        (found,) = estimate(past, "train", "m=a", spec, quantile=quantile)
        assert found.basis == basis


def test_an_estimate_has_the_range_of_the_next_run_with_how_often_that_holds():
    (few,) = estimate([use(100), use(200), use(300)], "train", "m=a", NOTHING, quantile="p95")
    assert (few.low_microjoules, few.high_microjoules, few.level_ratio) == (100, 300, 0.5)
    (many,) = estimate([use(energy) for energy in range(1, 20)], "train", "m=a", NOTHING, quantile="p95")
    assert (many.low_microjoules, many.high_microjoules, many.level_ratio) == (1, 19, 0.9)
    (open_end,) = estimate([use(100), use(200, censored=True)], "train", "m=a", NOTHING, quantile="p95")
    assert (open_end.low_microjoules, open_end.high_microjoules) == (100, None)
    for past in ([], [use(100)]):
        (nothing,) = estimate(past, "train", "m=a", DECLARED, quantile="p95")[:1]
        assert (nothing.low_microjoules, nothing.high_microjoules, nothing.level_ratio) == (None, None, None)
    full, half, _tiny = estimate([use(100, tier="full"), use(300, tier="full")], "train", "m=a", TIERS, quantile="p95")
    assert (half.low_microjoules, half.high_microjoules) == (full.low_microjoules // 2, full.high_microjoules // 2)


USES = st.lists(st.tuples(st.integers(0, 10**15), st.booleans()), min_size=1, max_size=60)


@given(USES)
def test_an_estimate_is_a_whole_number_never_negative_and_grows_with_the_quantile(uses):
    past = [use(energy, censored=censored) for energy, censored in uses]
    needs = [need(past, quantile=quantile)[0] for quantile in ("p50", "p95", "max")]
    known = [each for each in needs if each is not None]
    assert known == sorted(known)
    assert all(isinstance(each, int) and each >= 0 for each in known)
    assert known or all(energy == 0 for energy, _censored in uses)


@given(st.lists(st.integers(1, 10**15), min_size=1, max_size=40), st.integers(1, 10**15), st.sampled_from(["p50", "p95", "max", "declared"]))  # fmt: skip
def test_retries_of_a_halted_step_always_ask_for_half_as_much_again(energies, halted, quantile):
    past = [use(energy) for energy in energies] + [use(halted, censored=True)]
    assert need(past, quantile=quantile)[0] * 2 >= halted * 3


@given(st.integers(1, 10**15), st.sampled_from(["full", "half", "tiny"]))
def test_one_tiers_history_orders_all_tiers_by_their_ratios(energy, tier):
    needs = [
        each.amounts[Unit.ENERGY] for each in estimate([use(energy, tier=tier)], "train", "m=a", TIERS, quantile="max")
    ]
    assert needs == sorted(needs, reverse=True)
