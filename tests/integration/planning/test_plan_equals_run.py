"""A plan gives the decisions of the run, when the steps use what is known of them and nothing else happens.

The run is played in virtual time by the plugin's admission, Snakemake's greedy scheduler and the ledger's own thread.
"""

from collections import Counter

import pytest

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.recorder import plan as plan_module
from mlflow_green.recorder.plan import plan
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.rehearsal import Rehearsal, VirtualClock
from mlflow_green.records import Action
from tests.testkit.ledger_samples import open_at
from tests.testkit.virtual_run import VirtualRun
from tests.testkit.workloads import BOOK, START, case

SEEDS_IN_MEMORY = range(1_000)
SEEDS_IN_SQLITE = range(0, 1_000, 40)


def planned(played):
    real = MemoryLedger(VirtualClock(START))
    played.fill(real)
    answers = plan(played.workload, played.policy, BOOK, real, now=START, entries=played.timed).answers
    return {
        answer.step.label: None if answer.decision is None else (answer.decision, answer.halt_reason)
        for answer in answers
    }


def ran(played, ledger, clock):
    played.fill(ledger)
    run = VirtualRun(played.workload, played.policy, BOOK, ledger, clock, uses=played.uses, durations=played.durations)
    run.play()
    answers = {label: (ticket.decision, ticket.halt_reason) for label, ticket in run.tickets.items()}
    return {step.step.label: answers.get(step.step.label) for step in played.workload.steps}


def differs(seed) -> bool:
    played, clock = case(seed), VirtualClock(START)
    return planned(played) != ran(played, MemoryLedger(clock), clock)


def test_a_plan_gives_the_decisions_of_the_run_with_their_reasons():
    seen = Counter()
    for seed in SEEDS_IN_MEMORY:
        played, clock = case(seed), VirtualClock(START)
        answers = planned(played)
        assert answers == ran(played, MemoryLedger(clock), clock), f"seed {seed}"
        seen.update(answer and answer[0].action for answer in answers.values())
    assert min(seen[action] for action in (Action.ADMIT, Action.DOWNGRADE, Action.REFUSE, None)) > 500


def test_so_it_does_with_the_ledger_in_a_file(tmp_path):
    for seed in SEEDS_IN_SQLITE:
        played, clock = case(seed), VirtualClock(START)
        (tmp_path / str(seed)).mkdir()
        ledger = open_at(tmp_path / str(seed), clock=clock)
        try:
            assert planned(played) == ran(played, ledger, clock), f"seed {seed}"
        finally:
            ledger.close()


def asks_in_another_order(monkeypatch):
    original = plan_module.jobs_of

    def turned(workload):
        jobs = original(workload)
        for index, job in enumerate(dict.fromkeys(jobs.values())):
            job.rank = job.urgency = (-index,)
        return jobs

    monkeypatch.setattr(plan_module, "jobs_of", turned)


def never_looks_ahead(monkeypatch):
    original = Rehearsal.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **{**kwargs, "look_ahead": 0})

    monkeypatch.setattr(Rehearsal, "__init__", init)


def forgets_what_it_settled(monkeypatch):
    monkeypatch.setattr(plan_module.PlanLedger, "history", plan_module.PlanLedger.past)


def sleeps_through_boundaries(monkeypatch):
    monkeypatch.setattr(Planner, "next_look", lambda self, since, now: None)


@pytest.mark.parametrize(
    "mutate", [asks_in_another_order, never_looks_ahead, forgets_what_it_settled, sleeps_through_boundaries]
)
def test_a_plan_that_is_made_otherwise_gives_other_decisions(mutate, monkeypatch):
    mutate(monkeypatch)
    assert any(differs(seed) for seed in range(300))
