"""What Slurm's own energy counters say of a job, told beside what was metered; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_green.records import Entry, Fact

if TYPE_CHECKING:
    from mlflow_green.metering.slurm import SlurmEnergy

JOB_ID = "slurm/job_id"
ENERGY = "slurm/energy_microjoules"
DIFFERENCE = "slurm/energy_difference_ratio"
NOTE = "slurm/energy_note"

_WHOLE_NODE = "Slurm counts the whole node from the job's first second to its last, idle energy included"


def job_id_facts(hold_id: str, job_id: str | None) -> tuple[Fact, ...]:
    """The batch system's job that ran the step, where it is known."""
    return (Fact(hold_id=hold_id, name=JOB_ID, value=job_id),) if job_id else ()


def opinion(entry: Entry, said: SlurmEnergy, steps_of_job: int) -> tuple[Fact, ...]:
    """Facts about the entry's hold; a sentence instead of a number where the two cannot be compared.

    The difference is (ours - Slurm's) / Slurm's, -1 or more. Slurm counts nodes, so its number is given only for a job
    that had its nodes to itself, and compared only for a job of one step.
    """
    hold_id, ours = entry.hold_id or "", entry.total
    energy_microjoules = said.energy_microjoules
    if said.note or energy_microjoules is None or not said.is_exclusive:
        return (Fact(hold_id=hold_id, name=NOTE, value=said.note or "Slurm has no number that is this job's alone"),)
    counted = Fact(hold_id=hold_id, name=ENERGY, value=energy_microjoules)
    if steps_of_job > 1:
        note = f"of the whole job, which ran {steps_of_job} steps; {_WHOLE_NODE}"
        return counted, Fact(hold_id=hold_id, name=NOTE, value=note)
    if ours is None:
        return counted, Fact(hold_id=hold_id, name=NOTE, value="our meter has no reading to compare it with")
    ratio = (ours.microjoules - energy_microjoules) / energy_microjoules
    difference = Fact(hold_id=hold_id, name=DIFFERENCE, value=ratio)
    return counted, difference, Fact(hold_id=hold_id, name=NOTE, value=_WHOLE_NODE)
