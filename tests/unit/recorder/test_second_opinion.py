"""Slurm's number beside ours: compared only where both count the same."""

from __future__ import annotations

import pytest

from mlflow_green.metering.slurm import SlurmEnergy
from mlflow_green.recorder.late_hold import promised_hold
from mlflow_green.recorder.second_opinion import DIFFERENCE, ENERGY, NOTE, opinion
from tests.testkit.ledger_samples import OWNER, entry, request

HOLD = promised_hold(request("train", 0, hold_id="hold1"), OWNER)


def said(energy_microjoules: int | None, *, is_exclusive: bool = True, note: str = "") -> SlurmEnergy:
    return SlurmEnergy(job_id="12", energy_microjoules=energy_microjoules, is_exclusive=is_exclusive, note=note)


def told(ours: int | None, slurm: SlurmEnergy, steps: int = 1) -> dict[str, float | str]:
    posted = entry(HOLD, ours or 0) if ours is not None else entry(HOLD, 0, energy={})
    facts = opinion(posted, slurm, steps)
    assert {fact.hold_id for fact in facts} == {"hold1"}
    return {fact.name: fact.value for fact in facts}


@pytest.mark.parametrize(("ours", "ratio"), [(100, 0.0), (50, -0.5), (0, -1.0), (300, 2.0)])
def test_the_difference_is_a_part_of_slurms_number(ours, ratio) -> None:
    facts = told(ours, said(100))
    assert (facts[ENERGY], facts[DIFFERENCE]) == (100, ratio)
    assert "whole node" in str(facts[NOTE])


@pytest.mark.parametrize(
    ("slurm", "note"),
    [
        (said(None, note="no energy plugin"), "no energy plugin"),
        (said(100, note="the job was too short"), "the job was too short"),
        (said(100, is_exclusive=False), "this job's alone"),
        (said(None), "this job's alone"),
    ],
)
def test_a_number_that_is_not_the_jobs_own_is_not_told(slurm, note) -> None:
    facts = told(50, slurm)
    assert set(facts) == {NOTE}
    assert note in str(facts[NOTE])


def test_a_job_of_several_steps_has_a_number_and_no_difference() -> None:
    facts = told(50, said(100), steps=3)
    assert set(facts) == {ENERGY, NOTE}
    assert "3 steps" in str(facts[NOTE])


def test_without_a_reading_of_ours_there_is_nothing_to_compare() -> None:
    facts = told(None, said(100))
    assert set(facts) == {ENERGY, NOTE}
    assert "no reading" in str(facts[NOTE])
