"""The law of an edited policy: without ``policy apply`` nothing is admitted that the applied policy does not admit."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.policy.decide import decide
from mlflow_green.policy.document import Policy, Scope, parse_policy
from mlflow_green.policy.loosening import (
    AppliedBudget,
    Counting,
    counting,
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
    Mode,
    PolicyVersion,
    Step,
    StepSpec,
    Unit,
)
from tests.testkit.ledger_samples import SetClock

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


# --- what the ledger knows as applied -----------------------------------------------------------------


class Project:
    """What several users see who start with their own copies of one green.yaml and a common ledger."""

    def __init__(self, project="demo"):
        self.project = project
        self.ledger = MemoryLedger(SetClock())
        self.starts = 0

    def counts(self, policy, user) -> Counting:
        """What would count, if this user started now with this file."""
        approved = self.ledger.approved_limits()
        return counting(policy, approved, self.ledger.policies, project=self.project, user=user, now=NOON)

    def start(self, policy, user) -> Counting:
        self.starts += 1
        at = NOON.replace(second=self.starts)
        version = PolicyVersion(sha256=policy.sha256, text=policy.text, author=user, at=at)
        self.ledger.record_policy(version, self.counts(policy, user).terms)
        return self.counts(policy, user)


def file_of(*budgets, name='"demo"', **more):
    """A policy as it is read from a file; ``name`` is the project as it is written there."""
    text = json.dumps({"version": 1, "budgets": budgets, **more})
    return parse_policy(f'{{"project": {name}, {text[1:]}'.encode())


def each(**said):
    """A budget of 10 J a month for each user."""
    return {"name": "b", "limit": ["10 J"], "period": "month", "mode": "hard", "scope": {"user": "*"}, **said}


def periods(counts):
    return [term.period for term in counts.terms]


def accepted(said):
    """Without the rules that no file may have here."""
    allowed = {"observe": set(), "soft": {"wait"}, "hard": {"wait", "refuse"}}[said["mode"]]
    return {**said, "rules": [rule for rule in said["rules"] if rule["do"] in allowed]}


files = budgets.map(accepted).map(file_of)


@settings(max_examples=15)  # each reads several files
@given(
    before=st.lists(st.tuples(st.sampled_from(["ana", "bob"]), files), min_size=1, max_size=3),
    edited=files,
    needs=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    spent=spent_by_period,
)
def test_whoever_started_with_whatever_file_an_edit_starts_only_what_the_first_file_that_acts_starts(
    before, edited, needs, spent
):
    project = Project()
    started = [(policy, project.start(policy, user)) for user, policy in before]
    first = next((policy for policy, counts in started if {term.mode for term in counts.terms} - {Mode.OBSERVE}), None)
    assume(first is not None)
    assert first is not None
    said = first.budgets[0]
    if said.scope == Scope():
        said = said.model_copy(update={"scope": Scope(project="demo")})
    was = first.model_copy(update={"budgets": (said,)})
    # Who has only observed since before there was anything else goes on so, until his file says more.
    accounts = {term.account for term in terms_of(was)}
    known = [limit for limit in project.ledger.approved_limits() if limit.account in accounts]
    assume(not known or any(limit.mode is not Mode.OBSERVE for limit in known))
    if answer(project.counts(edited, "bob").policy, needs, spent).action in STARTS:
        assert answer(was, needs, spent).action in STARTS


def test_that_somebody_else_was_last_seen_observing_lifts_nothing():
    project = Project()
    project.start(file_of(each(mode="observe")), "ana")
    project.start(file_of(each(rules=[{"at": "80%", "do": "refuse"}])), "bob")
    counts = project.start(file_of(each(period="day")), "bob")
    assert periods(counts) == ["2026-11"]
    assert len(counts.policy.budgets[0].rules) == 1


def test_who_observes_goes_on_to_observe_until_his_own_file_says_more():
    project = Project()
    project.start(file_of(each(mode="observe")), "ana")
    project.start(file_of(each()), "bob")
    assert project.counts(file_of(each(mode="observe")), "ana").policy.budgets[0].mode is Mode.OBSERVE
    assert project.counts(file_of(each(mode="observe")), "eve").policy.budgets[0].mode is Mode.HARD
    assert periods(project.start(file_of(each(period="day")), "ana")) == ["2026-11"]


@pytest.mark.parametrize("written", ["'it''s'", '"caf\\u00e9"', "a\n  b"])
def test_a_project_is_the_same_however_its_name_is_written(written):
    project = Project(file_of(each(), name=written).project)
    project.start(file_of(each(), name=written), "bob")
    assert periods(project.start(file_of(each(period="day"), name=written), "bob")) == ["2026-11"]


def test_a_budget_that_is_added_does_not_move_the_zone_of_the_others():
    project = Project()
    project.start(file_of(each(), timezone="UTC"), "bob")
    edited = file_of(each(), each(name="other"), timezone="Asia/Tokyo")
    assert project.start(edited, "bob").policy.timezone == "UTC"
    assert project.start(edited, "bob").policy.timezone == "UTC"
    assert project.counts(file_of(each(name="other"), timezone="Asia/Tokyo"), "bob").policy.timezone == "UTC"
