"""The law of an edited policy: without ``policy apply`` nothing is admitted that the applied policy does not admit."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import assume, given
from hypothesis import strategies as st

from mlflow_green.policy.decide import decide
from mlflow_green.policy.document import Policy
from mlflow_green.policy.loosening import (
    AppliedBudget,
    counting_budget,
    loosened,
    with_what_was_applied,
)
from mlflow_green.policy.terms import terms
from mlflow_green.records import (
    Action,
    Balance,
    Estimate,
    HoldRequest,
    Step,
    StepSpec,
    Unit,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
STARTS = {Action.ADMIT, Action.DOWNGRADE}
LIMIT_MAX = 100
PERIODS = ["2026-11-21", "2026-W47", "2026-11", "total"]

rules = st.lists(
    st.fixed_dictionaries(
        {"at": st.sampled_from(["50%", "80%", "100%"]), "do": st.sampled_from(["downgrade", "wait", "refuse", "halt"])}
    ),
    max_size=3,
)
budgets = st.fixed_dictionaries(
    {
        "name": st.just("b"),
        "limit": st.integers(1, LIMIT_MAX).map(lambda joules: [f"{joules} J"]),
        "period": st.sampled_from(["day", "week", "month", "total"]),
        "mode": st.sampled_from(["observe", "soft", "hard"]),
        "scope": st.sampled_from([{}, {"project": "demo"}, {"user": "*"}, {"project": "*", "user": "bob"}]),
        "reserve": st.sampled_from(["declared", "p95"]),
        "unknown_step": st.sampled_from(["admit", "wait", "refuse"]),
        "max_wait": st.sampled_from(["1h", "2h"]),
        "rules": rules,
    }
)
spent_by_period = st.dictionaries(
    st.tuples(st.sampled_from(["project:demo", "user:bob", "project:demo/user:bob"]), st.integers(0, 3)),
    st.integers(0, LIMIT_MAX),
)


def policy_of(budget, **more):
    return Policy.model_validate({"version": 1, "project": "demo", "budgets": [budget], **more})


def terms_of(policy):
    return terms(policy, project="demo", user="bob", org=None, now=NOON, workflow_run="run")


def answer(policy, needs, balances):
    found = terms_of(policy)
    seen = [
        Balance(term=term, spent=1_000_000 * balances.get((term.account, PERIODS.index(term.period)), 0), held=0)
        for term in found
    ]
    estimates = tuple(
        Estimate(tier=tier, amounts=None if joules is None else {Unit.ENERGY: 1_000_000 * joules}, source="test")
        for tier, joules in zip(("full", "half"), needs, strict=True)
    )
    step = Step(workflow_run="run", name="train")
    request = HoldRequest(
        step=step,
        spec=StepSpec(),
        estimates=estimates,
        terms=found,
        project="demo",
        user="bob",
        requested_at=NOON,
    )
    return decide(policy, request, seen, now=NOON, power_watts_max=1.0)


def what_counts(applied, edited):
    """What counts of the edited policy where the ledger knows the other one as applied."""
    return with_what_was_applied(edited, {"b": AppliedBudget(applied.budgets[0], applied.timezone, "applied")})


@given(
    applied=budgets,
    edited=budgets,
    needs=st.tuples(st.none() | st.integers(1, 150), st.integers(1, 150)),
    spent=spent_by_period,
)
def test_whatever_is_edited_the_steps_that_start_are_some_of_those_that_the_applied_policy_starts(
    applied, edited, needs, spent
):
    # A step that nothing is known of holds what there is: where that is less, a downgrade may not be due any more.
    assume(needs[0] is not None or all(rule["do"] != "downgrade" for rule in applied["rules"]))
    was = policy_of({**applied, "scope": applied["scope"] or {"project": "demo"}})
    counts = what_counts(was, policy_of(edited))
    if answer(counts, needs, spent).action in STARTS:
        assert answer(was, needs, spent).action in STARTS


@given(applied=budgets, edited=budgets)
def test_what_counts_once_is_what_counts_after_the_next_edit_back(applied, edited):
    was, now = policy_of(applied).budgets[0], policy_of(edited).budgets[0]
    counts = counting_budget(was, now)
    assert counting_budget(was, counts) == counts
    assert list(loosened(was, counts)) == []
    assert counting_budget(was, was) == was


@given(applied=budgets, edited=budgets)
def test_whatever_does_not_count_is_told_beside_limit_and_mode(applied, edited):
    was, now = policy_of(applied).budgets[0], policy_of(edited).budgets[0]
    counts = counting_budget(was, now)
    same = {"limit": now.limit, "mode": now.mode}
    # A mode that counts brings its own answer for a ledger that is down.
    assert bool(list(loosened(was, now))) == (counts.model_copy(update=same) != now)
