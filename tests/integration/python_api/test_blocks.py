"""``with mlflow_green.meter(...)`` in this process: what is measured, posted and charged, and to whom."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time

import pytest

import mlflow_green
from mlflow_green.errors import BudgetExceeded, GreenError, StepHalted
from mlflow_green.records import Domain, Outcome
from mlflow_green.units import microjoules


def burn(cpu_seconds: float) -> None:
    end = time.thread_time() + cpu_seconds
    while time.thread_time() < end:
        pass


def test_a_block_is_posted_once_with_what_its_record_says(folder, posted):
    with mlflow_green.meter("train") as m:
        burn(0.3)
        assert m.record.outcome is None
    record = m.record
    (entry,) = posted()
    assert (entry.step, entry.project, entry.outcome) == ("train", "work", Outcome.SUCCEEDED)
    assert entry.hold_id == record.hold_id
    assert entry.total.microjoules == microjoules(record.total.joules) > 0
    assert record.total.low_joules <= record.total.joules <= record.total.high_joules
    assert record.energy[Domain.CPU] == record.energy["cpu"]
    assert record.cpu_seconds == pytest.approx(entry.cpu_seconds)
    assert 0.3 <= record.cpu_seconds <= record.duration_seconds * 2 + 0.1
    assert record.operational_g_co2e is None  # nobody has said where this is
    assert str(m).startswith(f"energy {record.total}, ")
    assert str(m).endswith("train succeeded")


def test_the_place_of_green_yaml_gives_grams_and_its_budget_is_charged(folder, posted):
    (folder / "green.yaml").write_text(
        "version: 1\nproject: demo\nsite: {country: FRA}\ntracking: {jobs: none}\nbudgets:\n  - {name: watched, limit: [1 kWh], period: total}\n"
    )
    with mlflow_green.meter("train", project="other") as m:
        burn(0.1)
    (entry,) = posted()
    assert entry.project == "other"
    assert m.record.operational_g_co2e == pytest.approx(entry.operational_micrograms_co2e / 1e6)
    assert "Our World in Data" in m.record.intensity_source


def test_an_exception_passes_through_untouched_and_the_block_has_failed(folder, posted):
    error = KeyError("the program's own")
    with pytest.raises(KeyError) as caught, mlflow_green.meter("train"):
        raise error
    assert caught.value is error
    with pytest.raises(SystemExit), mlflow_green.meter("leave"):
        raise SystemExit(0)
    assert [entry.outcome for entry in posted()] == [Outcome.FAILED, Outcome.SUCCEEDED]


def test_a_block_inside_a_block_is_a_view_and_only_the_outer_is_posted(folder, posted):
    with mlflow_green.meter("outer") as outer:
        burn(0.1)
        with mlflow_green.meter("inner") as inner:
            burn(0.2)
    assert (outer.record.is_view, inner.record.is_view) == (False, True)
    assert inner.record.hold_id is None
    assert 0 < inner.record.total.joules <= outer.record.total.joules
    assert [entry.step for entry in posted()] == ["outer"]


def test_blocks_one_after_the_other_have_one_meter_and_an_entry_each(folder, posted):
    for _ in range(5):
        with mlflow_green.meter("epoch"):
            burn(0.01)
    entries = posted()
    assert [(entry.step, entry.attempt) for entry in entries] == [("epoch", n + entries[0].attempt) for n in range(5)]
    assert len({entry.sampler_id for entry in entries}) == 1
    assert len({entry.workflow_run for entry in entries}) == 1


def test_a_block_that_outlives_the_one_that_pays_pays_for_its_own_rest(folder, posted):
    entered, first_is_over = threading.Event(), threading.Event()

    def second() -> None:
        with mlflow_green.meter("second"):
            entered.set()
            first_is_over.wait()
            burn(0.2)

    thread = threading.Thread(target=second)
    with mlflow_green.meter("first"):
        thread.start()
        entered.wait()
        burn(0.1)
    first_is_over.set()
    thread.join()
    first, rest = posted()
    assert (first.step, rest.step) == ("first", "second")
    assert rest.started_at >= first.started_at
    assert rest.cpu_seconds == pytest.approx(0.2, abs=0.15)


def test_blocks_of_many_threads_at_once_are_all_measured_and_no_cpu_second_is_charged_twice(folder, posted):
    blocks = []
    used_before = time.process_time()

    def work() -> None:
        with mlflow_green.meter("work") as m:
            burn(0.05)
        blocks.append(m)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(m.record.total is not None for m in blocks)
    entries = posted()
    assert 1 <= len(entries) <= 8
    assert sum(entry.cpu_seconds for entry in entries) <= time.process_time() - used_before + 0.05


def test_when_all_blocks_have_ended_none_pays_for_another(folder):
    def work() -> None:
        with mlflow_green.meter("work"):
            time.sleep(random.uniform(0, 0.004))

    for _ in range(30):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "GREEN_HOLD_ID" not in os.environ


class Trainer:
    @mlflow_green.metered()
    def fit(self, x: int) -> int:
        """Fits."""
        return x + 1


@mlflow_green.metered("named")
def fails() -> None:
    raise ValueError("the program's own")


@mlflow_green.metered
def bare() -> str:
    return "bare"


@mlflow_green.metered()
async def coroutine(x: int) -> int:
    await asyncio.sleep(0.01)
    return x * 2


def test_a_metered_function_returns_raises_and_looks_as_before(folder, posted):
    assert Trainer.fit.last_block is None
    assert Trainer().fit(1) == 2
    assert (Trainer.fit.__name__, Trainer.fit.__doc__) == ("fit", "Fits.")
    with pytest.raises(ValueError, match="the program's own"):
        fails()
    assert bare() == "bare"
    assert asyncio.run(coroutine(4)) == 8
    assert [(entry.step, entry.outcome) for entry in posted()] == [
        ("Trainer.fit", Outcome.SUCCEEDED),
        ("named", Outcome.FAILED),
        ("bare", Outcome.SUCCEEDED),
        ("coroutine", Outcome.SUCCEEDED),
    ]
    assert Trainer.fit.last_block.record.outcome is Outcome.SUCCEEDED
    assert fails.last_block.record.outcome is Outcome.FAILED


def test_generators_and_classes_cannot_be_metered_by_a_decorator():
    def numbers():
        yield 1

    with pytest.raises(TypeError, match="is a generator"):
        mlflow_green.metered()(numbers)
    with pytest.raises(TypeError, match="is for functions"):
        mlflow_green.metered()(Trainer)


def test_a_block_is_entered_once_and_a_wrong_estimate_is_told_at_once(folder):
    with mlflow_green.meter("train") as m:
        pass
    with pytest.raises(RuntimeError, match="make a new one"), m:
        pass
    with pytest.raises(ValueError, match="5 watts"):
        mlflow_green.meter("train", energy="5 watts")


# --- budgets ----------------------------------------------------------------------------------------


def test_a_hard_budget_refuses_before_the_block_starts(folder, posted, hard_budget):
    hard_budget("1 J")
    with pytest.raises(BudgetExceeded, match="total"), mlflow_green.meter("train", energy="5 Wh"):
        pytest.fail("the block must not start")
    with mlflow_green.meter("small", energy="0.1 J") as m:
        assert m.record.outcome is None
    assert [(entry.step, entry.outcome) for entry in posted()] == [
        ("train", Outcome.REFUSED),
        ("small", Outcome.SUCCEEDED),
    ]


def test_a_policy_that_makes_no_sense_hides_no_hard_budget_that_the_ledger_knows(folder, posted, hard_budget):
    hard_budget("1 kWh")
    with mlflow_green.meter("train"):
        pass
    posted()
    (folder / "green.yaml").write_text("version: 1\nbudgetz: []\n")
    with pytest.raises(GreenError, match="a hard budget cannot be kept"), mlflow_green.meter("train"):
        pass


def test_no_block_starts_as_a_view_of_one_that_is_refused(folder, posted, hard_budget):
    hard_budget("1 J")
    refused = []

    def work() -> None:
        try:
            with mlflow_green.meter("train", energy="5 Wh"):
                pass
        except BudgetExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 4
    assert [entry.outcome for entry in posted()] == [Outcome.REFUSED] * 4


def test_past_its_grant_a_block_is_warned_goes_on_and_may_stop_itself(folder, posted, hard_budget, caplog):
    hard_budget("1 J")

    def train() -> None:
        with mlflow_green.meter("train", energy="0.5 J") as m:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                burn(0.05)
                m.check()

    with pytest.raises(StepHalted):
        train()
    (entry,) = posted()
    assert entry.outcome is Outcome.HALTED
    assert entry.energy_charged_microjoules == entry.total.microjoules > 1_000_000
    assert "goes on" in caplog.text


@pytest.mark.parametrize("name", [None, 7, "", " ", "two\nlines"])
def test_what_is_no_name_is_told_before_anything_is_recorded(folder, name):
    with pytest.raises(TypeError, match=r"not the name of a step; write e\.g\. meter\('train'\)"):
        mlflow_green.meter(name)


def test_an_energy_without_unit_is_told_with_an_example(folder):
    with pytest.raises(TypeError, match=r"write e\.g\. energy='5 Wh'"):
        mlflow_green.meter("train", energy=5)
