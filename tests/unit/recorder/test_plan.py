"""What a plan says beyond the decisions: who waits for whom, what is not known, and what it all costs."""

from dataclasses import replace
from datetime import timedelta
from io import StringIO

import pytest
from rich.console import Console

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder import planner
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.recorder.plan import plan
from mlflow_green.recorder.rehearsal import PassingLedger, VirtualClock
from mlflow_green.records import (
    Action,
    Batch,
    Closing,
    ClosingKind,
    PlannedStep,
    Step,
    StepSpec,
    Tier,
    TopUp,
    Unit,
    Workload,
)
from mlflow_green.reports.plans import print_plan
from snakemake_plugin import admission
from tests.testkit.ledger_samples import OWNER, admit_anything, request, settle, term
from tests.testkit.workloads import BOOK, START, WH, Case

TIERS = (Tier(name="full", energy_ratio=1.0), Tier(name="half", energy_ratio=0.5))


def policy_of(*budgets):
    text = "version: 1\nproject: demo\nsite: {carbon_intensity: 50 g/kWh, source: t}\nbudgets:\n"
    return parse_policy((text + "".join(f"  - {{{budget}}}\n" for budget in budgets)).encode())


HARD = "name: lab, limit: 10 Wh, period: total, mode: hard, reserve: declared, max_wait: 2h"


def step(name, energy_wh=None, *, after=(), tiers=(), **more):
    energy = None if energy_wh is None else round(energy_wh * WH)
    spec = StepSpec(tiers=tiers, energy_microjoules=energy)
    return PlannedStep(
        step=Step(workflow_run="run", name=name), spec=spec, after=after, resources={"_cores": 1}, **more
    )


def planned(policy, *steps, real=None, cores=1, entries=(), **more):
    workload = Workload(steps=steps, resources={"_cores": cores}, look_ahead=16, **more)
    return plan(workload, policy, BOOK, real, now=START, entries=entries)


def actions(made):
    return {answer.step.name: answer.action for answer in made.answers}


def ledger_with_history(**uses):
    played = Case(None, None, dict.fromkeys(uses, 60.0), {rule: (None, used) for rule, used in uses.items()})
    ledger = MemoryLedger(VirtualClock(START))
    played.fill(ledger)
    return ledger, played.entries


def held_by_others(policy, energy_wh):
    from mlflow_green.recorder.planner import Planner

    ledger = MemoryLedger(VirtualClock(START))
    terms = Planner(policy, BOOK, "another").terms(START)
    asked = request("another", {Unit.ENERGY: round(energy_wh * WH)}, *terms)
    ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_anything)
    return ledger


def test_a_step_that_only_other_runs_keep_out_waits_and_the_plan_says_until_when():
    policy = policy_of(HARD)
    made = planned(policy, step("train", 3), step("after", 1, after=(0,)), real=held_by_others(policy, 8))
    assert actions(made) == {"train": Action.WAIT, "after": None}
    assert made.answers[0].refused_at == START + timedelta(hours=2)
    assert made.answers[1].behind == "train"
    assert made.balances[0].before.held == made.balances[0].after.held == 8 * WH


def ledger_with_sizes(rule):
    """Ten runs that used 1 Wh for each kilobyte of their input."""
    ledger = MemoryLedger(VirtualClock(START))
    for kilobytes in range(1, 11):
        asked = request(rule, 0, term(), attempt=kilobytes, input_bytes=kilobytes * 1_000)
        (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_at_nothing).answers
        ledger.commit(Batch(closings=(settle(answer.hold, kilobytes * WH),)), admit_at_nothing)
    return ledger


def test_what_a_step_is_expected_to_use_grows_with_its_input_as_what_it_holds_does(tmp_path):
    file = tmp_path / "input"
    file.write_bytes(bytes(9_000))
    train = step("train", tiers=TIERS[:1], input_paths=(str(file),))
    made = planned(policy_of(HARD.replace("10 Wh", "100 Wh")), train, real=ledger_with_sizes("train"))
    (answer,) = made.answers
    assert "scaled to 9.00 kB of input" in answer.estimate.source
    assert answer.expected.point == pytest.approx(9 * WH, rel=0.01)
    assert made.balances[0].after.spent == answer.expected.point


def test_what_ran_earlier_in_a_plan_is_known_with_the_size_of_its_input():
    ledger = PassingLedger(VirtualClock(START))
    asked = request("train", 0, term(), input_bytes=9_000)
    (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_at_nothing).answers
    ledger.commit(Batch(closings=(settle(answer.hold, WH),)), admit_at_nothing)
    assert [use.input_bytes for use in ledger.history("demo", "train")] == [9_000]


def test_the_books_of_a_rehearsal_do_not_grow_with_the_steps_that_are_over():
    ledger, sizes = PassingLedger(VirtualClock(START)), []
    for attempt in (1, 2, 3):
        asked = request("train", 1, term(), attempt=attempt)
        (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_anything).answers
        ledger.commit(Batch(closings=(settle(answer.hold, 1),)), admit_anything)
        sizes.append({name: len(kept) for name, kept in vars(ledger).items() if hasattr(kept, "__len__")})
    assert sizes[0] == sizes[-1]


def test_what_running_steps_still_wait_for_is_nobodys_and_shown_apart_from_what_they_hold():
    policy = policy_of(HARD)
    ledger = held_by_others(policy, 4)
    (hold,) = ledger.open_holds()
    ledger.commit(Batch(top_ups=(TopUp(hold_id=hold.hold_id, amounts={Unit.ENERGY: 9 * WH}),)), admit_anything)
    made = planned(policy, step("train", 3), real=ledger)
    assert actions(made) == {"train": Action.WAIT}
    assert (made.balances[0].before.held, made.balances[0].before.pending) == (10 * WH, 3 * WH)
    assert made.balances[0].after.available == -3 * WH


def test_what_other_runs_hold_does_not_excuse_a_step_that_never_fits():
    policy = policy_of(HARD)
    made = planned(policy, step("train", 11), real=held_by_others(policy, 8))
    assert actions(made) == {"train": Action.REFUSE}


def test_the_steps_behind_a_refused_one_are_not_reached_and_the_others_go_on():
    made = planned(policy_of(HARD), step("a", 11), step("b", 1, after=(0,)), step("c", 1, after=(1,)), step("d", 1))
    assert actions(made) == {"a": Action.REFUSE, "b": None, "c": None, "d": Action.ADMIT}
    assert [answer.behind for answer in made.answers] == [None, "a", "a", None]


def test_a_step_that_waits_for_a_core_is_not_delayed_and_one_that_waits_for_a_budget_is():
    policy = policy_of(HARD)
    on_one_core = planned(policy, step("a", 6), step("b", 4), real=None)
    assert not any(answer.is_delayed for answer in on_one_core.answers)
    ledger, entries = ledger_with_history(a=6 * WH // 2)
    # a holds twice what it uses, so b fits only once a has settled.
    made = planned(policy, step("a", 6), step("b", 5), real=ledger, entries=entries, cores=2)
    assert [answer.is_delayed for answer in made.answers] == [False, True]
    assert made.answers[1].first.action is Action.WAIT
    assert made.answers[1].action is Action.ADMIT
    assert made.answers[1].decided_at == START + timedelta(seconds=60)


def test_a_step_is_expected_to_use_what_it_used_and_holds_what_its_budget_reserves():
    ledger, entries = ledger_with_history(a=3 * WH)
    made = planned(policy_of(HARD), step("a", 5), real=ledger, entries=entries)
    (answer,) = made.answers
    assert answer.decision.amounts[Unit.ENERGY] == 5 * WH
    assert (answer.expected.point, answer.expected.low, answer.expected.high) == (3 * WH, 3 * WH, 3 * WH)
    (balance,) = made.balances
    assert (balance.low, balance.after.spent, balance.high) == (3 * WH, 3 * WH, 3 * WH)
    assert not made.notes


def test_a_declared_energy_has_no_interval():
    made = planned(policy_of(HARD), step("a", 5))
    assert made.answers[0].expected.low is None
    assert (made.balances[0].low, made.balances[0].high) == (None, None)


def test_of_unknown_steps_the_plan_says_that_it_counts_what_they_hold():
    made = planned(policy_of(HARD), step("a"), step("b"))
    assert [answer.expected for answer in made.answers] == [None, None]
    assert made.balances[0].after.spent == 2 * 120 * 60 * 10**6  # 60 s at 120 W each
    assert "Of 2 steps nothing is known" in made.notes[0]
    assert "is not known (1 s each is assumed)" in made.notes[1]


def test_what_was_used_moves_later_estimates_but_not_what_is_expected():
    policy = policy_of(HARD.replace("declared", "p95"))
    first, second = step("a", 3), step("a", 3)
    second = replace(second, step=replace(second.step, wildcards="i=2"), after=(0,))
    made = planned(policy, first, second)
    assert [answer.decision.amounts[Unit.ENERGY] for answer in made.answers] == [3 * WH, 39 * WH // 10]
    assert [answer.expected.point for answer in made.answers] == [3 * WH, 3 * WH]


def test_a_tier_that_never_ran_is_expected_to_use_its_part_of_the_declared_energy():
    made = planned(policy_of(HARD), step("a", 15, tiers=TIERS))
    assert made.answers[0].action is Action.DOWNGRADE
    assert made.answers[0].expected.point == 75 * WH // 10


def test_the_worst_overshoot_is_the_power_of_the_machine_for_a_period_and_the_grace():
    halts = f"{HARD}, rules: [{{at: 110%, do: halt, grace: 9s}}]"
    made = planned(policy_of(halts), step("a", 1))
    assert (made.overshoot_seconds, made.overshoot_microjoules) == (10.0, 120 * 10 * 10**6)
    assert planned(policy_of(HARD.replace("hard", "soft")), step("a", 1)).overshoot_microjoules is None
    assert planned(policy_of(f"{HARD}, overrun: finish"), step("a", 1)).overshoot_microjoules is None


def test_a_step_that_needs_the_next_period_is_planned_for_it():
    day = "name: day, limit: 5 Wh, period: day, mode: hard, reserve: declared, max_wait: 24h"
    made = planned(policy_of(day), step("a", 4), step("b", 4, after=(0,)))
    assert actions(made) == {"a": Action.ADMIT, "b": Action.ADMIT}
    assert made.answers[1].decided_at == START.replace(day=22, hour=0)
    assert made.answers[1].is_delayed
    assert [(each.after.term.period, each.after.spent) for each in made.balances] == [
        ("2026-11-21", 4 * WH),
        ("2026-11-22", 4 * WH),
    ]


def test_members_of_a_group_are_admitted_together_or_not_at_all():
    made = planned(policy_of(HARD), step("a", 6, group="g"), step("b", 6, group="g"), step("c", 6))
    assert actions(made) == {"a": Action.REFUSE, "b": Action.REFUSE, "c": Action.ADMIT}


def test_planning_changes_nothing_in_the_real_ledger():
    ledger, entries = ledger_with_history(a=3 * WH)
    before = (ledger.balances(), ledger.entries(), ledger.journal(), ledger.decisions())
    planned(policy_of(HARD), step("a", 5), step("b"), real=ledger, entries=entries)
    assert before == (ledger.balances(), ledger.entries(), ledger.journal(), ledger.decisions())


def test_without_keep_going_the_plan_says_that_snakemake_stops_early():
    made = planned(policy_of(HARD), step("a", 11), step("b", 1), keeps_going=False)
    assert any("--keep-going" in note for note in made.notes)
    assert not any("--keep-going" in note for note in planned(policy_of(HARD), step("a", 11)).notes)


def test_a_rule_without_a_program_needs_nothing_whatever_is_left():
    made = planned(
        policy_of(f"{HARD}, unknown_step: refuse"), step("a", 10), step("all", after=(0,), needs_nothing=True)
    )
    assert actions(made) == {"a": Action.ADMIT, "all": Action.ADMIT}
    assert made.answers[1].decision.reason == "all runs no program, so it needs nothing"
    assert made.balances[0].after.spent == 10 * WH
    assert not any("nothing is known" in note for note in made.notes)


def test_with_one_core_only_the_job_that_starts_is_asked_for_where_the_room_is_scarce():
    ledger, entries = ledger_with_history(a=3 * WH // 10)
    asked = [replace(step("a", 3), step=Step(workflow_run="run", name="a", wildcards=f"i={i}")) for i in range(3)]
    made = planned(policy_of(HARD.replace("10 Wh", "4 Wh")), *asked, real=ledger, entries=entries)
    assert [answer.first.action for answer in made.answers] == [Action.ADMIT] * 3


def test_the_planner_looks_as_far_ahead_as_the_plugin():
    assert planner.LOOK_AHEAD == admission.LOOK_AHEAD


def test_one_run_gives_no_interval():
    ledger, entries = ledger_with_history(a=3 * WH)
    one = MemoryLedger(VirtualClock(START))
    one.commit(Batch(closings=(Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=entries[0]),)), admit_anything)
    made = planned(policy_of(HARD), step("a", 5), real=one)
    assert (made.answers[0].expected.point, made.answers[0].expected.low) == (3 * WH, None)
    assert made.balances[0].low is None
    assert planned(policy_of(HARD), step("a", 5), real=ledger).answers[0].expected.low == 3 * WH


def test_where_the_estimates_come_from_is_said_at_any_width():
    made = planned(
        policy_of(HARD), *(step(f"a_step_with_a_name_that_is_long_{n}", 2) for n in range(3)), step("other", 1)
    )

    def said(width):
        screen = Console(width=width, record=True, file=StringIO())
        print_plan(screen, made)
        return " ".join(screen.export_text().split())

    assert "Known from" in said(160)
    assert "Known from: a_step_with_a_name_that_is_long_0: declared 2.00 Wh;" in said(60)
    assert "other: declared 1.00 Wh." in said(60)
    assert "A wider terminal also shows: Known from" not in said(60)
