"""Every step is done or refused with a reason, whatever the budgets, the jobs and what they really use.

Steps use more or less than is known of them, ask for more while they run, or are not known at all; other runs may hold
a part of a budget for good. A step may wait only while something can help it: a step that runs, or the end of a period.
"""

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from mlflow_green.ledger import holding
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.policy import decide as decide_module
from mlflow_green.policy.terms import period_end
from mlflow_green.recorder.plan import jobs_of
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.rehearsal import Rehearsal, VirtualClock
from mlflow_green.recorder.ticket import entry_of
from mlflow_green.records import Action, Batch, Outcome, Unit
from tests.testkit.ledger_samples import OWNER, admit_anything, request, usage
from tests.testkit.workloads import BOOK, START, case, scaled

SEEDS = range(1_000)
LONGEST_STEP = timedelta(seconds=120_000)


class Wilful:
    """Steps that use what they like, and ask for more when they have used most of what they hold."""

    def __init__(self, played, planner, ledger, seed) -> None:
        self.played = played
        self.planner = planner
        self.ledger = ledger
        self.dice = random.Random(seed)

    def request(self, ticket, now):
        return self.planner.request(ticket, self.ledger, now)

    def duration_seconds(self, part):
        return self.played.durations[part.ticket.step.name]

    def usage(self, part):
        ticket = part.ticket
        known = self.played.past.get(ticket.step.name, (None, ticket.spec.energy_microjoules))[1] or 10**9
        used = scaled(int(known * self.dice.choice((0.3, 0.9, 1, 1.2, 3))), ticket.spec, ticket.decision.tier)
        return usage(used, ticket.duration_seconds)

    def entry(self, part, outcome, now):
        return entry_of(part.ticket, outcome, BOOK, now)

    def top_ups(self, part):
        seconds, hold = self.duration_seconds(part), part.ticket.hold
        if self.dice.random() < 0.5:
            wanted = {unit: amount * self.dice.choice((1, 3)) for unit, amount in hold.amounts.items()}
            yield 0.6 * seconds, wanted
            yield 0.8 * seconds, wanted


class Waits(AssertionError):
    pass


class Played:
    """One workload played to its end; raises ``Waits`` where a step waits for nothing."""

    def __init__(self, seed) -> None:
        self.case = case(seed, knows_all=False)
        self.clock = VirtualClock(START)
        self.ledger = MemoryLedger(self.clock)
        self.case.fill(self.ledger)
        self.planner = Planner(self.case.policy, BOOK, "run")
        self.jobs = jobs_of(self.case.workload)
        self.others_hold = seed % 5 == 0
        if self.others_hold:
            self._let_others_hold()
        self.choose, self.planner.choose = self.planner.choose, self._watched
        self.running: dict[str, str | None] = {}
        budgets = self.case.policy.budgets
        seconds = {budget.max_wait_seconds for budget in budgets}
        seconds |= {rule.for_seconds for budget in budgets for rule in budget.rules if rule.for_seconds}
        self.patience = timedelta(seconds=max(seconds))
        Rehearsal(
            list(dict.fromkeys(self.jobs.values())),
            Wilful(self.case, self.planner, self.ledger, seed),
            self.planner,
            self.ledger,
            self.clock,
            resources=self.case.workload.resources,
            look_ahead=16,
            waiting_max=64,
        ).run()

    def _let_others_hold(self):
        terms = [term for term in self.planner.terms(START) if term.period != "workflow:run"]
        amounts = {unit: min([term.limit for term in terms if term.unit is unit] or [0]) // 2 for unit in Unit}
        other = request("another", amounts, *terms)
        self.ledger.commit(Batch(requests=(other,), owner=OWNER), admit_anything)

    def _watched(self, asked, balances):
        decision = self.choose(asked, balances)
        label = asked.step.label
        if decision.admitted:
            self.running[label] = asked.group
        elif asked.group:  # what was granted to its group a moment ago is taken back
            self.running = {name: group for name, group in self.running.items() if group != asked.group}
        if decision.action is Action.WAIT and not self.others_hold:
            ended = {part.ticket.step.label for part in self.jobs if part.ticket.outcome}
            end = min(
                (
                    end
                    for budget in self.case.policy.budgets
                    if (end := period_end(budget.period, asked.requested_at, self.case.policy.zone))
                ),
                default=None,
            )
            helps = end is not None and end - asked.requested_at <= self.patience
            if not (set(self.running) - ended) and not helps:
                raise Waits(f"{label} waits for nothing: {decision.reason}")
        return decision

    def check(self):
        for part, job in self.jobs.items():
            decision = part.ticket.decision
            if decision is None:
                assert any(not before.succeeded for before in job.after), (
                    f"{part.ticket.step.label} was never asked for"
                )
            elif decision.action is Action.WAIT:
                raise Waits(f"{part.ticket.step.label} waits for ever: {decision.reason}")
            elif decision.action is Action.REFUSE:
                assert decision.reason
                assert decision.budget
            else:
                assert part.ticket.outcome in {Outcome.SUCCEEDED, Outcome.HALTED}
        longest = (self.patience + LONGEST_STEP) * (len(self.jobs) + 1)
        if self.clock.now() - START > longest:
            raise Waits("it takes for ever")
        assert not [hold for hold in self.ledger.open_holds() if hold.step.workflow_run == "run"]


def play(seed):
    Played(seed).check()


def test_every_step_is_done_or_refused_with_a_reason():
    for seed in SEEDS:
        play(seed)


# --- rules that let a step wait, each of which is found -----------------------------------------------


def hopes_without_patience(monkeypatch):
    original = decide_module._hope

    def hope(question, obstacle):
        return original(question, replace(obstacle, patience_seconds=10**9))

    monkeypatch.setattr(decide_module, "_hope", hope)


def hopes_for_anything(monkeypatch):
    monkeypatch.setattr(decide_module, "_hope", lambda question, obstacle: "until something happens")


def hopes_for_what_is_spent(monkeypatch):
    monkeypatch.setattr(
        decide_module, "_hope", lambda question, obstacle: "hope" if obstacle.view.balance.spent else None
    )


def hopes_for_its_own_group(monkeypatch):
    monkeypatch.setattr(holding, "_as_spent", lambda balance, mates: balance)


def forgets_since_when_it_waits(monkeypatch):
    monkeypatch.setattr(decide_module._Question, "waited", timedelta())


@pytest.mark.parametrize(
    "mutate",
    [
        hopes_without_patience,
        hopes_for_anything,
        hopes_for_what_is_spent,
        hopes_for_its_own_group,
        forgets_since_when_it_waits,
    ],
)
def test_a_rule_that_lets_a_step_wait_for_nothing_is_found(mutate, monkeypatch):
    mutate(monkeypatch)

    def is_found(seed):
        try:
            play(seed)
        except Waits:
            return True
        return False

    assert any(is_found(seed) for seed in range(500))
