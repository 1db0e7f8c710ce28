"""What a running step is judged by: holds at the upper intensity, rules of what is spent at what is charged."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.input_size import input_bytes
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.ticket import Book, Ticket
from mlflow_green.records import (
    Action,
    Balance,
    Batch,
    CpuClockName,
    Domain,
    Energy,
    Hold,
    Intensity,
    IntensitySeries,
    Method,
    Site,
    Step,
    StepSpec,
    Tier,
    Unit,
    Usage,
)
from mlflow_green.units import MICROJOULES_PER_KWH, parse_carbon_micrograms
from tests.testkit.ledger_samples import OWNER, admit_what_fits, request, settle, term

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SITE = Site(intensity=Intensity(g_per_kwh=100.0, g_per_kwh_high=150.0, source="test"))
POLICY = parse_policy(b"""version: 1
project: x
site: {country: FRA}
budgets:
  - {name: b, limit: 1000 gCO2e, period: total, mode: hard, rules: [{at: 100%, of: spent, do: halt}]}
""")


def judged(used_kwh, *, granted="10 kgCO2e", top_up_refused=False, site=SITE):
    book = Book(project="x", user="ana", host="h", site=site, sampler_id=None, power_watts_max=100.0)
    planner = Planner(POLICY, book, "w")
    ticket = Ticket(step=Step(workflow_run="w", name="train"), spec=StepSpec())
    ticket.granted = {Unit.CARBON: parse_carbon_micrograms(granted)}
    ticket.hold = Hold(
        hold_id="h", step=ticket.step, project="x", user="ana", spec=ticket.spec, tier=None,
        decision=Action.ADMIT, would_decision=Action.ADMIT, amounts=ticket.granted, terms=planner.terms(NOW),
        owner=OWNER, opened_at=NOW,
    )  # fmt: skip
    ticket.began_at = NOW
    ticket.top_up_refused = top_up_refused
    amount = round(used_kwh * MICROJOULES_PER_KWH)
    energy = Energy(microjoules=amount, low_microjoules=amount, high_microjoules=amount, method=Method.MEASURED)
    ticket.usage = Usage(
        energy={Domain.CPU: energy}, duration_seconds=10, cpu_seconds=1, cpu_clock=CpuClockName.PERF, coverage_ratio=1
    )
    return planner.judge(ticket, ())


@pytest.mark.parametrize("used_kwh", [7, 9.9])
def test_a_halt_rule_does_not_fire_before_what_would_be_charged_reaches_it(used_kwh):
    assert judged(used_kwh).halt_reason is None


def test_a_halt_rule_fires_with_the_carbon_that_would_be_charged():
    reason = judged(10).halt_reason
    assert "brings carbon spent to 1.00 kgCO2e, past 100% of 1.00 kgCO2e" in reason


def test_a_grant_is_compared_at_the_intensity_at_which_it_was_held():
    assert judged(7, granted="1 kgCO2e", top_up_refused=True).halt_reason.startswith("b: train used carbon 1.05 kgCO2e")
    assert judged(6, granted="1 kgCO2e", top_up_refused=True).halt_reason is None


def test_a_top_up_is_asked_for_at_the_intensity_of_holds():
    assert judged(6, granted="1 kgCO2e").top_up  # 900 g of 1 kg at the upper intensity
    assert not judged(5, granted="1 kgCO2e").top_up


def test_a_halt_rule_looks_at_the_carbon_of_the_hours_in_which_the_step_ran():
    hours = IntensitySeries(starts_at=NOW, step_seconds=3600, g_per_kwh=(50.0, 150.0))
    site = Site(intensity=Intensity(g_per_kwh=100.0, g_per_kwh_high=150.0, source="test", series=hours))
    assert judged(19, site=site).halt_reason is None
    assert "carbon spent to 1.00 kgCO2e" in judged(20, site=site).halt_reason


def test_a_step_that_nothing_is_known_about_holds_a_minute_of_its_tiers_power_cap() -> None:
    text = b"""
version: 1
project: x
tiers: {eco: {power_cap: 20 W}}
budgets: [{name: b, limit: 1 kWh, period: total, mode: hard}]
"""
    book = Book(project="x", user="ana", host="h", site=Site(), sampler_id=None, power_watts_max=100.0)
    planner = Planner(parse_policy(text), book, "w")

    def held(tier: str) -> int:
        spec = StepSpec(tiers=(Tier(name=tier, energy_ratio=1.0),))
        asks = planner.request(
            Ticket(step=Step(workflow_run="w", name="train"), spec=spec), MemoryLedger(SystemClock()), NOW
        )
        balances = [Balance(term=each, spent=0, held=0) for each in asks.terms]
        return planner.choose(asks, balances).amounts[Unit.ENERGY]

    assert (held("full"), held("eco")) == (60 * 100_000_000, 60 * 20_000_000)


def test_a_request_knows_the_size_of_its_input_and_the_estimate_is_scaled_by_it(tmp_path) -> None:
    def asked(megabytes: int):
        path = tmp_path / f"{megabytes}.dat"
        path.touch()
        os.truncate(path, megabytes * 10**6)
        asks = Ticket(step=Step(workflow_run="w", name="train"), spec=StepSpec(), input_paths=(str(path),))
        return planner.request(asks, ledger, NOW)

    book = Book(project="x", user="ana", host="h", site=SITE, sampler_id=None, power_watts_max=100.0)
    planner, ledger = Planner(POLICY, book, "w"), MemoryLedger(SystemClock())
    for attempt in range(1, 11):
        sized = request("train", 0, term(limit=10**15), project="x", attempt=attempt, input_bytes=attempt * 10**6)
        (answer,) = ledger.commit(Batch(requests=(sized,), owner=OWNER), admit_what_fits).answers
        ledger.commit(Batch(closings=(settle(answer.hold, attempt * 10**6, tier=None),)), admit_what_fits)
    found = asked(20)
    assert found.input_bytes == 20 * 10**6
    assert found.estimates[0].amounts[Unit.ENERGY] == pytest.approx(1.3 * 20 * 10**6, rel=1e-3)
    assert asked(2).estimates[0].amounts[Unit.ENERGY] == pytest.approx(1.3 * 2 * 10**6, rel=1e-3)


def test_a_size_is_known_only_of_files_that_are_here(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    os.mkfifo(tmp_path / "pipe")
    here = [str(tmp_path / name) for name in ("a", "b")]
    assert input_bytes(here) == 8
    for other in (str(tmp_path / "absent"), str(tmp_path), str(tmp_path / "pipe"), "zero\0byte"):
        assert input_bytes([*here, other]) is None
    assert input_bytes([]) is None
    assert input_bytes(here[:1] * 1_001) is None
