"""What happens to a step that asks to start: cases in the words of the design, and its laws."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_green.policy.decide import decide
from mlflow_green.policy.document import parse_policy
from mlflow_green.records import Action, Balance, Estimate, HoldRequest, Mode, Step, StepSpec, Term, Unit

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
STEP = Step(workflow_run="w", name="train", wildcards="model=mlp")
WH = 3_600_000_000
ONE_WATT_MINUTE = 60_000_000


def policy_of(*budgets: str):
    head = "version: 1\nproject: x\nsite: {country: FRA}\n"
    return parse_policy(f"{head}budgets: [{', '.join(budgets)}]\n".encode())


def flow(name="b", *, mode="hard", period="month", limit="[100 Wh]", rules="", **more):
    extra = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{{name: {name}, mode: {mode}, period: {period}, limit: {limit}, rules: [{rules}]{extra}}}"


def balances_of(policy, spent=0, held=0, *, carbon=(0, 0)):
    amounts = {Unit.ENERGY: (round(spent * WH), round(held * WH)), Unit.CARBON: carbon}
    return tuple(
        Balance(
            term=Term(budget=budget.name, account="project:x", unit=limit.unit, period="p", limit=limit.amount, mode=budget.mode),
            spent=amounts[limit.unit][0],
            held=amounts[limit.unit][1],
        )
        for budget in policy.budgets
        for limit in budget.limit
    )  # fmt: skip


def asks(*needs, waiting=None, carbon=None):
    """A request: one need in Wh for each tier, ``None`` for a need that nothing is known about."""
    names = (None,) if len(needs) == 1 else ("full", "half", "tiny")

    def amounts(need):
        return {Unit.ENERGY: round(need * WH)} | ({} if carbon is None else {Unit.CARBON: carbon})

    estimates = tuple(
        Estimate(tier=name, amounts=None if need is None else amounts(need), source="a test")
        for name, need in zip(names, needs, strict=False)
    )
    since = None if waiting is None else NOW - waiting
    return HoldRequest(
        step=STEP, project="x", user="ana", spec=StepSpec(), estimates=estimates, terms=(), requested_at=NOW, waiting_since=since
    )  # fmt: skip


def answer(policy, request, *, spent=0, held=0, watts=100.0, now=NOW, **more):
    return decide(policy, request, balances_of(policy, spent, held, **more), now=now, power_watts_max=watts)


# --- the order: admit, downgrade, wait, refuse --------------------------------------------------------------


def test_what_fits_is_admitted_and_holds_its_estimate():
    decision = answer(policy_of(flow()), asks(10), spent=40, held=50)
    assert (decision.action, decision.would, decision.amounts) == (Action.ADMIT, Action.ADMIT, {Unit.ENERGY: 10 * WH})


def test_a_refusal_says_which_limit_counts_and_which_green_yaml_says():
    policy = policy_of(flow(limit="[100 Wh]", max_wait="1s"))
    (told,) = balances_of(policy)
    approved = replace(told, term=replace(told.term, limit=told.term.limit // 2), extra=told.term.limit // 10)
    decision = decide(policy, asks(70 * WH), (approved,), now=NOW, power_watts_max=100.0)
    assert decision.action is Action.REFUSE
    assert "60.0 Wh available of 60.0 Wh (green.yaml says 100 Wh, 50.0 Wh counts until" in decision.reason
    assert "counts until" not in answer(policy, asks(170 * WH)).reason


def test_a_cheaper_tier_that_fits_is_taken_and_the_reason_gives_the_numbers():
    decision = answer(policy_of(flow("project-month", limit="[1.2 Wh]")), asks(0.9, 0.45, 0.1), spent=0.7)
    assert (decision.action, decision.tier, decision.amounts) == (
        Action.DOWNGRADE,
        "half",
        {Unit.ENERGY: round(0.45 * WH)},
    )
    assert decision.reason == (
        "project-month: energy 900 mWh needed, 500 mWh available of 1.20 Wh; train[model=mlp] runs as tier half"
    )


def test_a_tier_without_an_estimate_is_passed_over():
    assert answer(policy_of(flow()), asks(50, None, 5), spent=90).tier == "tiny"


def test_a_step_waits_while_an_open_hold_may_make_room():
    decision = answer(policy_of(flow(period="total")), asks(30), spent=60, held=20)
    assert decision.action is Action.WAIT
    assert (decision.budget, decision.unit, decision.needed, decision.available) == ("b", Unit.ENERGY, 30 * WH, 20 * WH)
    assert decision.amounts == {}
    assert "waits until other steps settle" in decision.reason


def test_a_step_with_tiers_waits_for_the_cheapest_which_fits_first():
    decision = answer(policy_of(flow(period="total")), asks(35, 30, 25), spent=60, held=20)
    assert (decision.action, decision.tier, decision.needed) == (Action.WAIT, "tiny", 25 * WH)


def test_a_step_does_not_wait_for_holds_that_cannot_make_enough_room():
    decision = answer(policy_of(flow(period="total")), asks(50), spent=60, held=20)
    assert decision.action is Action.REFUSE
    assert decision.reason == "b: energy 50.0 Wh needed, 20.0 Wh available of 100 Wh; train[model=mlp] is refused"


def test_a_step_waits_for_a_period_that_ends_soon_enough():
    policy = policy_of(flow(period="day", max_wait="12h"))
    assert answer(policy, asks(50), spent=60).action is Action.WAIT
    assert "until the period ends, 2026-11-22 00:00" in answer(policy, asks(50), spent=60).reason
    assert answer(policy, asks(50), spent=60, now=NOW - timedelta(seconds=1)).action is Action.REFUSE
    assert answer(policy, asks(101), spent=60).action is Action.REFUSE


def test_a_step_that_has_waited_max_wait_is_refused():
    policy = policy_of(flow(period="total", max_wait="1h"))
    assert answer(policy, asks(30, waiting=timedelta(minutes=59)), spent=60, held=20).action is Action.WAIT
    decision = answer(policy, asks(30, waiting=timedelta(minutes=60)), spent=60, held=20)
    assert decision.action is Action.REFUSE
    assert decision.reason.endswith("is refused, after waiting 3600 s")


def test_without_budgets_a_step_is_admitted_and_holds_nothing():
    decision = answer(policy_of(), asks(10))
    assert (decision.action, decision.amounts, decision.reason) == (
        Action.ADMIT, {}, "train[model=mlp] falls under no budget",
    )  # fmt: skip


# --- rules --------------------------------------------------------------------------------------------------


def test_a_downgrade_rule_takes_the_dearest_tier_that_stays_under_its_threshold():
    policy = policy_of(flow(rules="{at: 80%, do: downgrade}"))
    assert answer(policy, asks(20, 10, 5), spent=60).action is Action.ADMIT
    assert answer(policy, asks(20, 10, 5), spent=65).tier == "half"
    assert answer(policy, asks(20, 10, 5), spent=72).tier == "tiny"
    decision = answer(policy, asks(20, 10, 5), spent=78)
    assert (decision.action, decision.tier) == (Action.DOWNGRADE, "tiny")
    assert "2.00 Wh available of 80 % of 100 Wh" in decision.reason


def test_a_downgrade_rule_does_not_touch_a_step_without_tiers():
    assert answer(policy_of(flow(rules="{at: 80%, do: downgrade}")), asks(20), spent=75).action is Action.ADMIT


def test_a_downgrade_rule_of_what_is_spent_does_not_count_holds():
    policy = policy_of(flow(rules="{at: 80%, of: spent, do: downgrade}"))
    assert answer(policy, asks(20, 10), spent=60, held=20).action is Action.ADMIT
    assert answer(policy, asks(20, 10), spent=80).action is Action.DOWNGRADE


def test_a_wait_rule_waits_as_long_as_it_says_and_then_refuses():
    policy = policy_of(flow(period="total", rules="{at: 90%, do: wait, for: 10min, then: refuse}"))
    assert answer(policy, asks(10), spent=75, held=10).action is Action.WAIT
    assert answer(policy, asks(10), spent=75, held=5).action is Action.ADMIT
    assert answer(policy, asks(10, waiting=timedelta(minutes=10)), spent=75, held=10).action is Action.REFUSE


def test_a_wait_rule_of_what_is_spent_does_not_wait_for_holds():
    policy = policy_of(flow(period="total", rules="{at: 90%, of: spent, do: wait}"))
    assert answer(policy, asks(1), spent=90, held=5).action is Action.REFUSE
    assert answer(policy, asks(1), spent=89, held=5).action is Action.ADMIT


def test_a_refuse_rule_refuses_where_waiting_would_have_helped():
    policy = policy_of(flow(rules="{at: 90%, do: refuse}"))
    assert answer(policy, asks(30), spent=50, held=20).action is Action.REFUSE
    assert answer(policy, asks(30, 15), spent=50, held=20).tier == "half"


# --- modes ------------------------------------------------------------------------------------------------------


def test_a_soft_budget_has_rules_but_no_limit_of_its_own():
    decision = answer(policy_of(flow(mode="soft", period="total")), asks(50), spent=90)
    assert (decision.action, decision.would) == (Action.ADMIT, Action.REFUSE)
    policy = policy_of(flow(mode="soft", period="total", rules="{at: 100%, do: wait}"))
    assert answer(policy, asks(50), spent=40, held=20).action is Action.WAIT


def test_an_observed_budget_only_says_what_would_have_happened():
    decision = answer(policy_of(flow(mode="observe", period="total")), asks(50, 20), spent=90)
    assert (decision.action, decision.would, decision.tier) == (Action.ADMIT, Action.REFUSE, "full")
    assert decision.amounts == {Unit.ENERGY: 50 * WH}
    assert "a hard budget would have answered refuse: b: energy 20.0 Wh needed" in decision.reason


# --- unknown steps ------------------------------------------------------------------------------------------------


def test_an_unknown_step_holds_a_minute_of_power_or_what_there_is():
    policy = policy_of(flow(limit="[1 kJ]"))
    assert answer(policy, asks(None), watts=1.0).amounts == {Unit.ENERGY: ONE_WATT_MINUTE}
    assert answer(policy, asks(None), watts=1_000.0).amounts == {Unit.ENERGY: 1_000_000_000}


def test_an_unknown_step_stays_below_the_rules_too():
    policy = policy_of(flow(limit="[1 kJ]", rules="{at: 50%, do: refuse}"))
    assert answer(policy, asks(None), watts=1_000.0).amounts == {Unit.ENERGY: 500_000_000}


def test_an_unknown_step_needs_some_room():
    policy = policy_of(flow(period="total"))
    assert answer(policy, asks(None), spent=90, held=10).action is Action.WAIT
    assert answer(policy, asks(None), spent=100).action is Action.REFUSE


def test_unknown_steps_can_be_refused_or_wait_for_others_to_teach():
    refusing = policy_of(flow(unknown_step="refuse"))
    assert answer(refusing, asks(None)).action is Action.REFUSE
    assert "unknown_step: refuse" in answer(refusing, asks(None)).reason
    waiting = policy_of(flow(unknown_step="wait"))
    assert answer(waiting, asks(None), held=1).action is Action.WAIT
    assert answer(waiting, asks(None)).action is Action.REFUSE


def test_a_unit_that_cannot_be_known_fails_closed_under_a_hard_budget_only():
    hard = policy_of(flow(limit="[100 Wh, 1 kgCO2e]"))
    assert answer(hard, asks(1)).action is Action.REFUSE
    assert "carbon needed is not known" in answer(hard, asks(1)).reason
    assert answer(policy_of(flow(mode="soft", limit="[100 Wh, 1 kgCO2e]")), asks(1)).action is Action.ADMIT


# --- several budgets and units ------------------------------------------------------------------------------------------


def test_all_units_must_fit_and_the_tightest_is_named():
    policy = policy_of(flow(period="total", limit="[10 Wh, 1 gCO2e]"))
    decision = answer(policy, asks(11, carbon=5_000_000))
    assert (decision.action, decision.unit, decision.needed) == (Action.REFUSE, Unit.CARBON, 5_000_000)
    assert "carbon 5.00 gCO2e needed, 1.00 gCO2e available of 1.00 gCO2e" in decision.reason


def test_one_budget_that_can_never_fit_refuses_though_another_would_wait():
    policy = policy_of(flow("wide", period="total"), flow("narrow", period="total", limit="[20 Wh]"))
    decision = answer(policy, asks(30), spent=10, held=85)
    assert (decision.action, decision.budget) == (Action.REFUSE, "narrow")


def test_a_balance_of_a_budget_that_the_policy_lacks_raises():
    with pytest.raises(KeyError):
        decide(policy_of(), asks(1), balances_of(policy_of(flow())), now=NOW, power_watts_max=1.0)


# --- laws ---------------------------------------------------------------------------------------------------------------

RULES = st.lists(
    st.sampled_from(
        [
            "{at: 50%, do: downgrade}",
            "{at: 80%, of: spent, do: downgrade}",
            "{at: 90%, do: wait, for: 1h}",
            "{at: 95%, of: spent, do: wait}",
            "{at: 97%, do: refuse}",
            "{at: 99%, of: spent, do: refuse}",
        ]
    ),
    max_size=4,
).map(", ".join)
LIMITS = st.sampled_from(["[100 J]", "[1 gCO2e]", "[50 J, 2 gCO2e]"])
PERIODS = st.sampled_from(["day", "total", "workflow"])
UNKNOWN = st.sampled_from(["admit", "wait", "refuse"])


@st.composite
def questions(draw, modes=("observe", "soft", "hard")):
    count = draw(st.integers(0, 3))
    policy = policy_of(
        *(
            flow(
                f"b{i}",
                mode=draw(st.sampled_from(modes)),
                limit=draw(LIMITS),
                rules=draw(RULES),
                period=draw(PERIODS),
                unknown_step=draw(UNKNOWN),
            )
            for i in range(count)
        )
    )
    amount = st.integers(0, 120_000_000)
    balances = tuple(replace(each, spent=draw(amount), held=draw(amount)) for each in balances_of(policy))
    known = st.fixed_dictionaries({Unit.ENERGY: amount}, optional={Unit.CARBON: amount})
    tiers = draw(st.sampled_from([(None,), ("full", "half", "tiny")]))
    estimates = tuple(Estimate(tier=tier, amounts=draw(st.none() | known), source="drawn") for tier in tiers)
    waiting = draw(st.none() | st.timedeltas(timedelta(), timedelta(days=2)))
    request = replace(asks(1, waiting=waiting), estimates=estimates)
    return policy, request, balances


def carbon_too(energy_microjoules):
    return {Unit.ENERGY: energy_microjoules, Unit.CARBON: energy_microjoules // 2}


def decided(question):
    policy, request, balances = question
    return decide(policy, request, balances, now=NOW, power_watts_max=0.5, to_amounts=carbon_too)


@settings(max_examples=200, deadline=None)
@given(questions())
def test_the_same_question_has_the_same_answer(question):
    assert decided(question) == decided(question)


@settings(max_examples=200, deadline=None)
@given(questions(modes=("observe",)))
def test_observed_budgets_never_change_what_runs(question):
    decision = decided(question)
    assert (decision.action, decision.tier) == (Action.ADMIT, question[1].estimates[0].tier)


@settings(max_examples=300, deadline=None)
@given(questions())
def test_what_is_admitted_fits_every_hard_limit(question):
    decision = decided(question)
    if decision.admitted:
        for balance in question[2]:
            if balance.term.mode is Mode.HARD:
                assert decision.amounts[balance.term.unit] <= max(0, balance.available)
                assert balance.committed + decision.amounts[balance.term.unit] <= balance.term.limit


@settings(max_examples=200, deadline=None)
@given(questions())
def test_every_admitted_step_holds_an_amount_under_every_term(question):
    decision = decided(question)
    units = {balance.term.unit for balance in question[2]}
    assert not decision.admitted or units <= set(decision.amounts)
    assert decision.admitted or (decision.amounts == {} and decision.budget is not None)


@settings(max_examples=200, deadline=None)
@given(questions())
def test_what_would_have_happened_is_what_happens_when_all_budgets_are_hard(question):
    policy, request, balances = question
    hard = tuple(replace(each, term=replace(each.term, mode=Mode.HARD)) for each in balances)
    assert decided(question).would is decided((policy, request, hard)).action


@settings(max_examples=200, deadline=None)
@given(questions(modes=("hard",)))
def test_with_nothing_held_and_no_boundary_near_no_step_waits(question):
    policy, request, balances = question
    empty = tuple(replace(each, held=0) for each in balances)
    if all(budget.period != "day" for budget in policy.budgets):
        assert decided((policy, request, empty)).action is not Action.WAIT


# --- what running steps wait for ----------------------------------------------------------------------------


def waits_for(policy, pending, *, spent=0, held=0):
    return tuple(replace(each, pending=round(pending * WH)) for each in balances_of(policy, spent, held))


def answer_beside(policy, request, pending, **more):
    return decide(policy, request, waits_for(policy, pending, **more), now=NOW, power_watts_max=100.0)


def test_what_a_running_step_waits_for_is_no_room_for_a_new_one():
    decision = answer_beside(policy_of(flow()), asks(10), 31, spent=40, held=20)
    assert (decision.action, decision.available) == (Action.WAIT, 9 * WH)
    assert answer_beside(policy_of(flow()), asks(9), 31, spent=40, held=20).action is Action.ADMIT


def test_a_step_waits_for_one_that_holds_nothing_and_wants_all():
    assert answer_beside(policy_of(flow()), asks(10), 100).action is Action.WAIT


def test_an_unknown_step_holds_what_running_steps_leave():
    decision = answer_beside(policy_of(flow()), asks(None), 30, spent=40, held=29)
    assert decision.amounts == {Unit.ENERGY: 1 * WH}
    assert answer_beside(policy_of(flow()), asks(None), 31, spent=40, held=29).action is Action.WAIT


def test_a_rule_of_what_is_committed_does_not_count_what_is_only_waited_for():
    policy = policy_of(flow(rules="{at: 60%, do: wait}"))
    assert answer_beside(policy, asks(10), 30, spent=20, held=30).action is Action.ADMIT
