"""Which steps wait now, and for whom."""

from datetime import timedelta
from io import StringIO

from rich.console import Console

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.rehearsal import VirtualClock
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.recorder.waits import HOLDERS_MAX, waits
from mlflow_green.records import Batch, Step, StepSpec, TopUp, Unit
from mlflow_green.reports.waiting import explain_waiting, waiting_to_json
from tests.testkit.ledger_samples import OWNER, settle
from tests.testkit.workloads import BOOK, START, WH, Case

POLICY_TEXT = b"version: 1\nproject: demo\nbudgets:\n  - {name: lab, limit: 10 Wh, period: month, mode: hard, reserve: declared, max_wait: 2h}\n"
POLICY = parse_policy(POLICY_TEXT)


class Asking:
    """A ledger that steps ask, one after the other."""

    def __init__(self) -> None:
        self.clock = VirtualClock(START)
        self.ledger = MemoryLedger(self.clock)
        self.planner = Planner(POLICY, BOOK, "run")
        self.tickets = {}

    def ask(self, name, energy_wh):
        spec = StepSpec(energy_microjoules=round(energy_wh * WH))
        ticket = self.tickets.setdefault(name, Ticket(step=Step(workflow_run="run", name=name), spec=spec))
        asked = self.planner.request(ticket, self.ledger, self.clock.now())
        answer = self.ledger.commit(Batch(requests=(asked,), owner=OWNER), self.planner.choose).answers[0]
        ticket.waiting_since = ticket.waiting_since or self.clock.now()
        return answer

    def waits(self, is_live=lambda run: True, policy=POLICY):
        ledger = self.ledger
        return waits(
            ledger.decisions(),
            ledger.entries(),
            ledger.open_holds(),
            ledger.balances(),
            policy,
            now=self.clock.now(),
            is_live=is_live,
        )


def test_a_waiting_step_is_told_with_who_holds_the_room_and_what_happens_next():
    asking = Asking()
    asking.ask("big", 6)
    asking.ask("small", 2)
    asking.ask("waiter", 3)
    (found,) = asking.waits()
    assert found.row.step.name == "waiter"
    assert [(holder.hold.step.name, holder.amount) for holder in found.holders] == [("big", 6 * WH), ("small", 2 * WH)]
    assert (found.balance.available, found.row.decision.needed) == (2 * WH, 3 * WH)
    assert found.refused_by == START + timedelta(hours=2)
    assert found.period_ends_at == START.replace(month=12, day=1, hour=0)


def test_a_step_that_was_answered_later_does_not_wait_any_more():
    asking = Asking()
    hold = asking.ask("big", 6).hold
    asking.ask("waiter", 5)
    assert asking.waits()
    asking.ledger.commit(Batch(closings=(settle(hold, WH),)), asking.planner.choose)
    asking.ask("waiter", 5)
    assert asking.waits() == ()


def test_a_running_step_that_waits_for_more_is_named_with_what_it_waits_for():
    asking = Asking()
    hold = asking.ask("big", 6).hold
    asking.ledger.commit(
        Batch(top_ups=(TopUp(hold_id=hold.hold_id, amounts={Unit.ENERGY: 7 * WH}),)), asking.planner.choose
    )
    asking.ask("waiter", 3)
    (found,) = asking.waits()
    assert [(holder.amount, holder.wanted) for holder in found.holders] == [(10 * WH, 3 * WH)]
    assert found.balance.available == -3 * WH
    told = waiting_to_json(found)
    assert (told["pending"], told["holders"][0]["wanted"]) == (3 * WH, 3 * WH)
    screen = Console(width=200, record=True, file=StringIO())
    explain_waiting(screen, found, START)
    assert "big 10.0 Wh, waits for 3.00 Wh more" in screen.export_text()


def advice(asking, policy=POLICY):
    (found,) = asking.waits(policy=policy)
    screen = Console(width=300, record=True, file=StringIO())
    explain_waiting(screen, found, START)
    return next(line.split("to do", 1)[1].strip() for line in screen.export_text().splitlines() if "to do" in line)


def test_an_override_is_advised_only_where_somebody_may_approve_it():
    asking = Asking()
    asking.ask("big", 8)
    asking.ask("waiter", 3)
    assert advice(asking).startswith("nothing, or end what holds it; else mlflow-green budget grant lab")
    rules = b"{name: lab, override: {approvers: ['user:ana'], max_extra: 10%},"
    told = advice(asking, parse_policy(POLICY_TEXT.replace(b"{name: lab,", rules)))
    assert "mlflow-green budget override lab 10% --until 72h" in told
    assert "approved by user:ana" in told


def test_it_waits_since_the_first_of_its_answers():
    asking = Asking()
    asking.ask("big", 6)
    asking.ask("waiter", 5)
    asking.clock.move_to(START + timedelta(minutes=5))
    asking.ask("small", 1)
    asking.ask("waiter", 5)
    (found,) = asking.waits()
    assert (found.since, found.row.at) == (START, START + timedelta(minutes=5))
    assert found.refused_by == START + timedelta(hours=2)


def test_the_steps_of_a_run_that_is_over_do_not_wait():
    asking = Asking()
    asking.ask("big", 6)
    asking.ask("waiter", 5)
    assert asking.waits(is_live=lambda run: run != "run") == ()


def test_a_holder_is_expected_to_end_when_its_earlier_runs_did():
    asking = Asking()
    Case(None, None, {"big": 1_800.0}, {"big": (None, 6 * WH)}).fill(asking.ledger)
    asking.ask("big", 6)
    asking.ask("waiter", 5)
    (found,) = asking.waits()
    assert found.holders[0].ends_at == START + timedelta(minutes=30)


def test_of_many_holders_the_largest_are_named():
    asking = Asking()
    for index in range(8):
        asking.ask(f"s{index}", 1 + index / 10_000)
    asking.ask("waiter", 5)
    (found,) = asking.waits()
    assert len(found.holders) == HOLDERS_MAX
    assert found.holders_more == 8 - HOLDERS_MAX
    assert found.holders[0].hold.step.name == "s7"


def test_a_budget_that_the_policy_has_no_more_promises_nothing():
    asking = Asking()
    asking.ask("big", 6)
    asking.ask("waiter", 5)
    (found,) = asking.waits(policy=replace_budget())
    assert (found.refused_by, found.period_ends_at) == (None, None)


def replace_budget():
    return parse_policy(b"version: 1\nproject: demo\nbudgets: [{name: other, limit: 1 Wh, period: total}]\n")
