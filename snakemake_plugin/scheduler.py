"""The scheduler plugin: three lines a method, the rest is in ``gate`` and in mlflow_green."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from snakemake.scheduling.greedy import Scheduler as GreedyScheduler
from snakemake.scheduling.greedy import SchedulerSettings as GreedySettings
from snakemake_interface_scheduler_plugins.base import SchedulerBase

from mlflow_green.errors import GreenError
from snakemake_plugin import compat
from snakemake_plugin.job_identity import step_of

if TYPE_CHECKING:
    from mlflow_green.bootstrap import NodeSession, Session
    from snakemake_plugin.gate import Gate


class Scheduler(SchedulerBase):
    """Snakemake's greedy scheduler, behind an energy budget."""

    def __post_init__(self) -> None:
        self._snakemake = compat.SnakemakeInternals(self.dag)
        self._greedy = GreedyScheduler(self.dag, GreedySettings(), self.logger)
        self._watches_errors = False
        with compat.garbage_collection_paused():
            self._gate = self._open_gate() if len(self.dag) else None

    def select_jobs(
        self, selectable_jobs: Any, remaining_jobs: Any, available_resources: Any, input_sizes: Any
    ) -> Sequence[Any]:
        if self._gate is not None:
            return self._gate.select(selectable_jobs, remaining_jobs, available_resources, input_sizes)
        if self._snakemake.is_courier:
            self._leave_attempts_to_main()
        elif self._snakemake.is_child:
            self._restore_tier(selectable_jobs)
        jobs = list(selectable_jobs)
        return self._greedy.select_jobs(jobs, remaining_jobs, available_resources, input_sizes) if jobs else []

    def _open_gate(self) -> Gate | None:
        """Open the session before Snakemake's scheduler exists: here, files may be read and waited for."""
        try:
            session = self._open_session()
        except GreenError as error:
            raise compat.workflow_error(f"mlflow-green: {error}") from None
        if session is None:
            return None
        from snakemake_plugin.gate import Gate

        return Gate(self._snakemake, session, self._snakemake.greedy(self._greedy), self.logger)

    def _open_session(self) -> Session | NodeSession | None:
        from mlflow_green import bootstrap

        def say(text: str) -> None:
            self.logger.warning(f"mlflow-green: {text}")

        if self._snakemake.is_node:
            return bootstrap.open_node_session(wake=self._snakemake.wake, say=say)
        if not self._snakemake.is_main:
            return None
        return bootstrap.open_session(
            name=self._snakemake.name,
            policy=getattr(self.settings, "policy", None),
            host_problem=self._snakemake.version_problem() or self._snakemake.executor_problem(),
            wake=self._snakemake.wake,
            say=say,
        )

    def _leave_attempts_to_main(self) -> None:
        """In the Snakemake between the main process and the node, which would repeat a rule's own ``retries`` too."""
        if self._watches_errors:
            return
        self._watches_errors = True

        def report_error(original: Any, job_info: Any, *args: Any, **kwargs: Any) -> None:
            compat.no_more_attempts(job_info.job)
            original(job_info, *args, **kwargs)

        from mlflow_green import bootstrap

        if bootstrap.is_placed():
            compat.wrap(self._snakemake.executor, "report_job_error", report_error)

    @staticmethod
    def _restore_tier(jobs: Any) -> None:
        """In the child Snakemake of a ``run:`` or shadow job: the tier that was granted."""
        tier = os.environ.get("GREEN_TIER")
        for job in jobs if tier else ():
            # A Snakemake started inside a metered job has children too, and their jobs have no tier.
            if not job.is_group() and step_of(job, "", 1).label == os.environ.get("GREEN_JOB"):
                compat.set_tier(job, tier)
