"""After a dry run: what a run would be answered, from the jobs that Snakemake has just listed."""

from __future__ import annotations

import logging
import os
from typing import Any

from mlflow_green.errors import GreenError
from mlflow_green.records import PlannedStep, StepSpec, Workload
from snakemake_plugin import compat
from snakemake_plugin.admission import LOOK_AHEAD, WAITING_MAX
from snakemake_plugin.job_identity import declared, input_paths, step_of

_log = logging.getLogger(__name__)


def print_plan(snakemake: compat.SnakemakeInternals, logger: logging.Logger, policy: str | None) -> None:
    """Print the plan; whatever goes wrong with it, the dry run itself went well."""
    from mlflow_green import planning

    try:
        dry_run = planning.open_dry_run(policy)
        if dry_run is not None:
            text = dry_run.told(_workload(snakemake, dry_run, logger))
            if text:
                logger.info(text)
    except GreenError as error:
        logger.warning(f"mlflow-green: {error}. There is no plan of the energy")
    except Exception as error:  # noqa: BLE001 - the host program's boundary
        _log.exception("mlflow-green met an unexpected error")
        logger.warning(f"mlflow-green: there is no plan of the energy: {type(error).__name__}: {error}")


def _workload(snakemake: compat.SnakemakeInternals, dry_run: Any, logger: logging.Logger) -> Workload:
    jobs = snakemake.jobs_to_run
    position = {job: index for index, job in enumerate(jobs)}
    resources = snakemake.resources
    seen: set[int] = set()
    steps = []
    for job in jobs:
        group = snakemake.group_of(job)
        takes = job if group is None else group
        is_first = id(takes) not in seen
        seen.add(id(takes))
        steps.append(
            PlannedStep(
                step=step_of(job, dry_run.workflow_run, job.attempt),
                spec=_spec(job, dry_run, logger),
                after=tuple(sorted(position[each] for each in snakemake.needed_by(job) if each in position)),
                resources=_within(compat.whole(takes.scheduler_resources), resources) if is_first else {},
                group=None if group is None else str(group.jobid),
                priority=job.priority,
                input_bytes=sum(os.path.getsize(file) for file in job.input if os.path.isfile(file)),  # noqa: PTH113, PTH202 - of thousands
                input_paths=tuple(map(os.path.abspath, input_paths(job))),
                needs_nothing=compat.runs_nothing(job),
                can_ask_for_more=snakemake.would_run_here(job),
                walltime_seconds=None if snakemake.would_run_here(job) else compat.wall_time_seconds(job),
            )
        )
    checkpoints = sorted({job.rule.name for job in jobs if job.is_checkpoint})
    return Workload(
        steps=tuple(steps),
        resources=resources,
        look_ahead=LOOK_AHEAD,
        waiting_max=WAITING_MAX,
        keeps_going=snakemake.keeps_going,
        notes=tuple(f"After checkpoint {name} steps may follow that nobody knows yet." for name in checkpoints),
    )


def _within(takes: dict[str, int], resources: dict[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in takes.items() if name in resources}


def _spec(job: Any, dry_run: Any, logger: logging.Logger) -> StepSpec:
    try:
        spec: StepSpec = dry_run.spec(job.rule.name, declared(job))
    except (GreenError, TypeError, ValueError, KeyError, AttributeError) as error:
        logger.warning(f"mlflow-green: what rule {job.rule.name} declares is ignored: {error}")
        spec = dry_run.spec(job.rule.name, None)
    return spec
