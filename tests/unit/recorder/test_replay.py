"""Another policy over the steps that ran."""

from dataclasses import replace
from datetime import timedelta

import pytest

from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.recorder.replay import raises_of, replay
from mlflow_green.records import Action, Domain, Hold, JournalRow
from tests.testkit.ledger_samples import OWNER, energy, entry, request, term
from tests.testkit.limit_samples import grant
from tests.testkit.workloads import BOOK, START, WH

HOUR = timedelta(hours=1)
SINCE, UNTIL = START - timedelta(days=30), START


def policy_of(limit, period="total", mode="hard", **more):
    extra = "".join(f", {key}: {value}" for key, value in more.items())
    text = f"""
version: 1
project: demo
site: {{carbon_intensity: 50 g/kWh, source: t}}
budgets: [{{name: lab, limit: {limit}, period: {period}, mode: {mode}{extra}}}]
steps: {{train: {{tiers: "full:1,half:0.5", energy: 1 Wh}}}}
"""
    return parse_policy(text.encode())


def ran(name, energy_wh, at, seconds=600, tier=None, **more):
    asked = request(name, 0, term())
    hold = Hold.of_nothing(asked, admit_at_nothing(asked), OWNER, hold_id=f"{name}-{at}")
    used = round(energy_wh * WH)
    base = entry(hold, used, tier=tier, energy={Domain.CPU: energy(used)} if used else {}, duration_seconds=seconds)
    return replace(base, started_at=at, ended_at=at + timedelta(seconds=seconds), **more)


def replayed(policy, *entries, since=SINCE, until=UNTIL, raises=()):
    return replay(entries, policy, BOOK, since=since, until=until, raises=raises)


def test_what_would_not_have_fitted_is_refused_and_all_of_it_is_saved():
    made = replayed(
        policy_of("5 Wh"), ran("a", 3, START - 3 * HOUR), ran("b", 4, START - 2 * HOUR), ran("c", 2, START - HOUR)
    )
    assert [answer.action for answer in made.answers] == [Action.ADMIT, Action.REFUSE, Action.ADMIT]
    assert made.saved_microjoules(Action.REFUSE) == 4 * WH
    assert made.balances[0].spent == 5 * WH


def test_a_cheaper_tier_saves_by_its_ratio_and_is_charged_the_rest():
    made = replayed(
        policy_of("5 Wh"), ran("train", 3, START - 3 * HOUR, tier="full"), ran("train", 4, START - HOUR, tier="full")
    )
    assert [answer.action for answer in made.answers] == [Action.ADMIT, Action.DOWNGRADE]
    assert made.saved_microjoules(Action.DOWNGRADE) == 2 * WH
    assert made.balances[0].spent == 5 * WH


def test_a_step_that_ran_as_a_cheaper_tier_is_not_replayed_as_a_dearer_one():
    (answer,) = replayed(policy_of("5 Wh"), ran("train", 2, START - HOUR, tier="half")).answers
    assert (answer.action, answer.decision.tier, answer.saved_microjoules) == (Action.ADMIT, "half", 0)


def test_what_ran_before_in_the_same_period_is_spent():
    before, inside = ran("a", 4, START - 3 * HOUR), ran("b", 4, START - HOUR)
    made = replayed(policy_of("5 Wh"), before, inside, since=START - 2 * HOUR)
    assert [answer.action for answer in made.answers] == [Action.REFUSE]
    in_other_period = replayed(policy_of("5 Wh", period="day"), before, replace(inside, started_at=START + 20 * HOUR),
                               since=START - 2 * HOUR, until=START + 30 * HOUR)  # fmt: skip
    assert [answer.action for answer in in_other_period.answers] == [Action.ADMIT]


def test_a_step_waits_for_the_next_period_and_starts_later():
    policy = policy_of("5 Wh", period="day", max_wait="24h")
    made = replayed(policy, ran("a", 3, START - 2 * HOUR), ran("b", 4, START - HOUR))
    assert [answer.action for answer in made.answers] == [Action.ADMIT, Action.ADMIT]
    assert made.answers[1].waited_seconds == pytest.approx(13 * 3600)


def test_a_budget_that_only_watches_refuses_nothing_and_says_what_it_would_have():
    (answer,) = replayed(policy_of("1 Wh", mode="observe"), ran("a", 3, START - HOUR)).answers
    assert (answer.action, answer.decision.would, answer.saved_microjoules) == (Action.ADMIT, Action.REFUSE, 0)


def test_steps_of_which_nobody_knows_what_they_use_are_counted_and_left_out():
    made = replayed(policy_of("5 Wh"), ran("a", 0, START - HOUR), ran("b", 1, START - HOUR))
    assert (made.unmetered, [answer.entry.step for answer in made.answers]) == (1, ["b"])


def test_only_what_started_in_the_time_asked_for_is_replayed():
    made = replayed(policy_of("5 Wh"), ran("a", 1, START - 5 * HOUR), ran("b", 1, START - 2 * HOUR), ran("c", 1, START),
                    since=START - 3 * HOUR)  # fmt: skip
    assert [answer.entry.step for answer in made.answers] == ["b"]


def test_two_starts_of_one_job_are_two_steps():
    made = replayed(policy_of("5 Wh"), ran("a", 1, START - 2 * HOUR), ran("a", 1, START - HOUR))
    assert [answer.action for answer in made.answers] == [Action.ADMIT, Action.ADMIT]


def test_a_grant_of_then_counts_from_when_it_did():
    budget = {"budget": "lab", "period": "total", "made_at": START - 6 * HOUR}
    asked = replace(grant(2 * WH), **budget)
    row = JournalRow(
        journal_id=1,
        at=START - 90 * timedelta(minutes=1),
        hold_id=None,
        budget="lab",
        account="project:demo",
        unit=asked.unit,
        period="total",
        kind="grant",
        delta_held=0,
        delta_spent=0,
        delta_limit=2 * WH,
        reason="",
    )
    waits_for_nobody = replace(grant(9 * WH, approved_by=None), **budget)
    raises = raises_of([asked, waits_for_nobody], [row])
    assert [(each.at, each.allowance) for each in raises] == [(row.at, asked)]
    ran_then = [ran(name, 4, START - hours * HOUR) for name, hours in (("a", 3), ("b", 2), ("c", 1))]
    made = replayed(policy_of("6 Wh"), *ran_then, raises=raises)
    assert [answer.action for answer in made.answers] == [Action.ADMIT, Action.REFUSE, Action.ADMIT]
    assert (made.raised, made.balances[0].limit) == (1, 8 * WH)
