"""What happens to a step that runs past what it was granted."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.enforce import grace_seconds, halt_due, overrun_text, top_up_need
from mlflow_green.policy.leash import Interval
from mlflow_green.records import Action, Balance, Hold, Mode, Owner, Step, StepSpec, Term, Unit, Usage

WH = 3_600_000_000
USAGE = Usage(energy={}, duration_seconds=12.0, cpu_seconds=1.0, cpu_clock=None, coverage_ratio=1.0)


def policy_of(keys="", *, mode="hard"):
    return parse_policy(
        f"version: 1\nproject: x\nbudgets:\n  - {{name: b, mode: {mode}, period: total, limit: 100 Wh{keys}}}".encode()
    )


def due(policy, used, *, granted=10 * WH, spent=0):
    budget = policy.budgets[0]
    term = Term(budget="b", account="project:x", unit=Unit.ENERGY, period="total", limit=100 * WH, mode=budget.mode)
    balances = (Balance(term=term, spent=spent, held=granted),)
    amounts = {} if used is None else {Unit.ENERGY: Interval(*used)}
    return halt_due(policy, hold_of(term), USAGE, amounts, balances, {Unit.ENERGY: granted}, amounts_charged=amounts)


def hold_of(*terms):
    return Hold(
        hold_id="h",
        step=Step(workflow_run="w", name="train"),
        project="x",
        user="ana",
        spec=StepSpec(),
        tier=None,
        decision=Action.ADMIT,
        would_decision=Action.ADMIT,
        amounts={},
        terms=terms,
        owner=Owner(host="h", boot_id="b", pid=1, started_ticks=1),
        opened_at=datetime(2026, 11, 21, tzinfo=UTC),
    )


def test_a_step_over_its_grant_is_halted_with_the_numbers():
    assert due(policy_of(), (11 * WH, 12 * WH, 13 * WH)) == (
        "b: train used energy 11.0 Wh (low) of 10.0 Wh granted, after 12 s; it is halted"
    )


def test_a_step_at_its_grant_goes_on():
    assert due(policy_of(), (10 * WH, 12 * WH, 13 * WH)) is None


def test_the_end_of_the_interval_that_counts_is_the_policys():
    used = (9 * WH, 10 * WH, 11 * WH)
    assert due(policy_of(), used) is None
    assert due(policy_of(", enforce: point"), used) is None
    assert due(policy_of(", enforce: high"), used) is not None


def test_overrun_finish_lets_a_step_end():
    assert due(policy_of(", overrun: finish"), (50 * WH,) * 3) is None


def overrun(policy, point, *, granted=10 * WH):
    mode = policy.budgets[0].mode
    term = Term(budget="b", account="project:x", unit=Unit.ENERGY, period="total", limit=100 * WH, mode=mode)
    return overrun_text(policy, hold_of(term), {Unit.ENERGY: point}, {Unit.ENERGY: granted})


def test_a_step_past_its_grant_by_the_point_value_is_told_and_not_passed_over():
    assert overrun(policy_of(), 12 * WH) == (
        "b: train has used energy 12.0 Wh of 10.0 Wh granted; "
        "it is halted once its interval's low end has passed that (enforce: low)"
    )
    assert "it may finish" in overrun(policy_of(", overrun: finish"), 12 * WH)


def test_nothing_is_told_of_a_step_within_its_grant_or_without_a_hard_budget():
    assert overrun(policy_of(), 10 * WH) is None
    assert overrun(policy_of(mode="soft"), 12 * WH) is None


def test_a_crossed_halt_rule_ends_a_step_inside_its_grant():
    policy = policy_of(", overrun: finish, rules: [{at: 105%, do: halt}]")
    assert due(policy, (4 * WH,) * 3, spent=100 * WH) is None
    assert "brings energy spent to 105 Wh, past 105% of 100 Wh" in due(policy, (5 * WH,) * 3, spent=100 * WH)


def test_only_hard_budgets_halt():
    assert due(policy_of(mode="soft"), (99 * WH,) * 3) is None
    assert due(policy_of(mode="observe"), (99 * WH,) * 3) is None


def test_what_is_not_known_halts_nothing():
    assert due(policy_of(), None) is None


def needs(used, **changes):
    facts = {
        "granted": {Unit.ENERGY: 100},
        "expected": {Unit.ENERGY: 150},
        "power_watts_max": 1e-6,
        "period_seconds": 2.0,
    }
    return top_up_need(used={Unit.ENERGY: used}, **(facts | changes))


def test_a_step_asks_for_more_from_80_percent_of_its_grant_on():
    assert needs(79) == {}
    assert needs(80) == {Unit.ENERGY: 70}


def test_a_step_asks_for_at_least_three_sampling_periods():
    assert needs(149) == {Unit.ENERGY: 6}
    assert needs(90, expected=None) == {Unit.ENERGY: 6}


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**15))
def test_a_top_up_is_never_negative(used, granted, expected):
    asked = needs(used, granted={Unit.ENERGY: granted}, expected={Unit.ENERGY: expected})
    assert all(amount > 0 for amount in asked.values())


def test_grace_is_the_shortest_that_a_hard_budget_says_else_thirty_seconds():
    term = Term(budget="b", account="a", unit=Unit.ENERGY, period="total", limit=1, mode=Mode.HARD)
    rules = ", rules: [{at: 105%, do: halt, grace: 2min}, {at: 110%, do: halt, grace: 10s}]"
    assert grace_seconds(policy_of(rules), hold_of(term)) == 10
    assert grace_seconds(policy_of(), hold_of(term)) == 30
    assert grace_seconds(policy_of(), hold_of()) == 30
