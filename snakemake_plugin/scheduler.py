"""The scheduler plugin: three lines a method, the rest is in ``gate`` and in mlflow_green."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from snakemake.scheduling.greedy import Scheduler as GreedyScheduler
from snakemake.scheduling.greedy import SchedulerSettings as GreedySettings
from snakemake_interface_scheduler_plugins.base import SchedulerBase

from mlflow_green.errors import GreenError
from snakemake_plugin import compat
from snakemake_plugin.gate import Gate
from snakemake_plugin.job_identity import step_of


class Scheduler(SchedulerBase):
    """Snakemake's greedy scheduler, behind an energy budget."""

    def __post_init__(self) -> None:
        self._snakemake = compat.SnakemakeInternals(self.dag)
        self._greedy = GreedyScheduler(self.dag, GreedySettings(), self.logger)
        with compat.garbage_collection_paused():
            self._gate = self._open_gate() if self._snakemake.is_main and len(self.dag) else None

    def select_jobs(
        self, selectable_jobs: Any, remaining_jobs: Any, available_resources: Any, input_sizes: Any
    ) -> Sequence[Any]:
        if self._gate is not None:
            return self._gate.select(selectable_jobs, remaining_jobs, available_resources, input_sizes)
        if not self._snakemake.is_main:
            self._restore_tier(selectable_jobs)
        jobs = list(selectable_jobs)
        return self._greedy.select_jobs(jobs, remaining_jobs, available_resources, input_sizes) if jobs else []

    def _open_gate(self) -> Gate | None:
        """Open the session before Snakemake's scheduler exists: here, files may be read and waited for."""
        from mlflow_green import bootstrap

        try:
            session = bootstrap.open_session(
                name=self._snakemake.name,
                policy=getattr(self.settings, "policy", None),
                runs_locally=self._snakemake.runs_locally,
                host_problem=self._snakemake.version_problem(),
                wake=self._snakemake.wake,
                say=lambda text: self.logger.warning(f"mlflow-green: {text}"),
            )
        except GreenError as error:
            raise compat.workflow_error(f"mlflow-green: {error}") from None
        if session is None:
            return None
        return Gate(self._snakemake, session, self._snakemake.greedy(self._greedy), self.logger)

    @staticmethod
    def _restore_tier(jobs: Any) -> None:
        """In the child Snakemake of a ``run:`` or shadow job: the tier that the main process granted."""
        tier = os.environ.get("GREEN_TIER")
        for job in jobs if tier else ():
            # A Snakemake started inside a metered job has children too, and their jobs have no tier.
            if not job.is_group() and step_of(job, "", 1).label == os.environ.get("GREEN_JOB"):
                compat.set_tier(job, tier)
