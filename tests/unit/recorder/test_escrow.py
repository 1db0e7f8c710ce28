"""On a compute node: a step is ended at its grant, and nobody is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.policy.leash import Leash
from mlflow_green.recorder.escrow import Escrow, GrantEnforcer
from mlflow_green.recorder.placement import PlacedStep
from mlflow_green.recorder.recorder import Verdict
from mlflow_green.records import Action, Decision, Domain, Energy, Intensity, Method, Site, Unit, Usage
from tests.testkit.recorder_parts import BOOK, ticket

KWH = 3_600_000_000_000
SITE = Site(
    intensity=Intensity(g_per_kwh=100.0, g_per_kwh_high=150.0, source="test"),
    pue=1.0,
    price_per_kwh=0.2,
    currency="EUR",
)


def sent(unit: Unit, granted: int, *, enforce: str = "point", grace_seconds: float = 30.0) -> PlacedStep:
    step = ticket("train")
    return PlacedStep(
        ticket_id=step.ticket_id,
        step=step.step,
        spec=step.spec,
        decision=Decision(action=Action.ADMIT, would=Action.ADMIT, tier=None, amounts={}, reason="fits"),
        hold=None,
        late_request=None,
        granted={unit: granted},
        leashes=(Leash(budget="month", unit=unit, enforce=enforce, currency="EUR"),),
        grace_seconds=grace_seconds,
    )


def used(low: int, point: int, high: int) -> Usage:
    energy = Energy(microjoules=point, low_microjoules=low, high_microjoules=high, method=Method.ESTIMATED)
    return Usage(energy={Domain.CPU: energy}, duration_seconds=9.0, cpu_seconds=9.0, cpu_clock=None, coverage_ratio=1.0)


class At:
    """A clock that stands at so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def monotonic_seconds(self) -> float:
        return self.seconds


def enforcer(step: PlacedStep, seconds: float = 9.0) -> GrantEnforcer:
    return GrantEnforcer([step], replace(BOOK, site=SITE, power_watts_max=100.0), At(seconds))


def judged(step: PlacedStep, usage: Usage | None, seconds: float = 9.0) -> Verdict:
    """The verdict on a step that began at 0 s."""
    running = step.ticket()
    running.usage = usage
    return enforcer(step, seconds).judge(running, ())


@pytest.mark.parametrize(("enforce", "halts"), [("low", False), ("point", False), ("high", True)])
def test_a_step_is_judged_by_the_end_of_the_interval_that_its_budget_names(enforce, halts) -> None:
    verdict = judged(sent(Unit.ENERGY, KWH, enforce=enforce), used(KWH - 1, KWH, KWH + 1))
    assert bool(verdict.halt_reason) is halts


@pytest.mark.parametrize(
    ("unit", "of_one_kwh"),
    [(Unit.ENERGY, KWH), (Unit.CARBON, 150_000_000), (Unit.MONEY, 200_000)],
)
def test_one_kwh_is_over_a_grant_of_anything_less_in_every_unit(unit, of_one_kwh) -> None:
    """Carbon as it was reserved: at the upper intensity."""
    assert judged(sent(unit, of_one_kwh), used(KWH, KWH, KWH)).halt_reason is None
    assert judged(sent(unit, of_one_kwh - 1), used(KWH, KWH, KWH)).halt_reason


def test_a_halted_step_gets_its_grace_and_never_a_top_up() -> None:
    verdict = judged(sent(Unit.ENERGY, 1, grace_seconds=7.0), used(2, 2, 2))
    assert (verdict.grace_seconds, verdict.top_up) == (7.0, None)


def test_what_an_earlier_start_left_of_the_grant_is_all_there_is() -> None:
    step = sent(Unit.ENERGY, KWH)
    running = step.ticket()
    running.granted, running.usage = {Unit.ENERGY: 0}, used(1, 1, 1)
    assert enforcer(step).judge(running, ()).halt_reason


def test_a_step_without_a_reading_goes_on_for_a_while() -> None:
    unread = Usage(energy={}, duration_seconds=9.0, cpu_seconds=9.0, cpu_clock=None, coverage_ratio=0.0)
    for usage in (None, unread):
        assert judged(sent(Unit.ENERGY, 0), usage).halt_reason is None


@pytest.mark.parametrize("enforce", ["low", "point", "high"])
def test_a_step_whose_meter_stands_still_counts_as_drawing_all_that_the_node_can(enforce) -> None:
    step = sent(Unit.ENERGY, 10_000_000_000, enforce=enforce)  # 10 kJ: 100 s at 100 W
    assert judged(step, used(0, 0, 0), seconds=9.0 + 99).halt_reason is None
    assert judged(step, used(0, 0, 0), seconds=9.0 + 101).halt_reason
    assert judged(step, None, seconds=101).halt_reason


def test_a_step_that_was_not_sent_is_not_judged() -> None:
    stranger = ticket("other", granted={Unit.ENERGY: 0})
    stranger.usage = used(1, 1, 1)
    assert enforcer(sent(Unit.ENERGY, 0)).judge(stranger, ()) == Verdict()


def test_asking_is_answered_at_once_and_more_is_refused() -> None:
    woken: list[bool] = []
    escrow, step = Escrow(lambda: woken.append(True)), ticket("train")
    escrow.ask([step])
    escrow.top_up(step, {Unit.ENERGY: 1})
    assert woken == [True]
    assert step.top_up_refused
    assert escrow.flush(0.0)
