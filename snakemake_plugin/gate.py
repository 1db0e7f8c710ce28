"""The gate of the main Snakemake process: every job asks here before it starts, and is metered to its end.

Runs under Snakemake's locks in places, so nothing here does I/O except in the job's own thread and at shutdown.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_green.errors import GreenError, StepHalted
from mlflow_green.records import Outcome, StepSpec
from snakemake_plugin import compat
from snakemake_plugin.job_identity import declared, metrics_output, step_of

if TYPE_CHECKING:
    from mlflow_green.bootstrap import Session, Ticket

LOOK_AHEAD = 16
_log = logging.getLogger(__name__)


class Gate:
    """Joins one running Snakemake and one session of the recorder."""

    def __init__(self, snakemake: compat.SnakemakeInternals, session: Session, logger: logging.Logger) -> None:
        self._snakemake = snakemake
        self._session = session
        self._logger = logger
        self._tickets: dict[tuple[int, int], Ticket] = {}
        self._jobs: list[Any] = []  # keeps jobs alive, so that their ids stay their own
        self._attached = False
        self._closed = False
        self._thread = threading.local()
        self._meters = False

    # --- scheduling: in Snakemake's main thread, under its lock ---------------------------------------

    def select(self, jobs: Sequence[Any], remaining: Any, resources: Any, sizes: Any) -> Sequence[Any]:
        """The jobs that may start now. Refused ones are selected too, so that they can fail properly."""
        if not self._attached:
            self._attach(list(jobs))
        ordered = sorted(jobs, key=lambda job: (-job.priority, str(job.jobid)))
        self._ask(ordered, int(resources.get("_cores", 1)))
        admitted = [job for job in ordered if self._all(job, "admitted")]
        refused = [job for job in ordered if self._any_refused(job)]
        if self._session.enforces:
            for job in admitted:
                self._set_tier(job)
        return refused + self._snakemake.greedy(admitted, remaining, resources, sizes)

    def _ask(self, ordered: Sequence[Any], cores_free: int) -> None:
        ahead = LOOK_AHEAD if self._session.may_look_ahead else max(1, cores_free)
        unanswered = sum(1 for job in ordered if self._known(job) and not self._any_refused(job))
        for job in ordered:
            if unanswered >= ahead:
                return
            if self._known(job):
                continue
            self._session.ask(self._new_tickets(job))
            unanswered += 1

    def _new_tickets(self, job: Any) -> list[Ticket]:
        parts = compat.members(job)
        group = str(job.jobid) if len(parts) > 1 else None
        tickets = []
        for part in parts:
            step = step_of(part, self._session.workflow_run)
            ticket = self._session.ticket(step, self._spec(part), group)
            self._tickets[id(part), part.attempt] = ticket
            self._jobs.append(part)
            tickets.append(ticket)
        return tickets

    def _spec(self, job: Any) -> StepSpec:
        try:
            return self._session.spec(job.rule.name, declared(job))
        except (GreenError, TypeError, ValueError, KeyError, AttributeError) as error:
            self._logger.warning(f"mlflow-green: what rule {job.rule.name} declares is ignored: {error}")
            return self._session.spec(job.rule.name, None)

    def _set_tier(self, job: Any) -> None:
        if job.is_group():
            return  # string resources must not differ inside a group; its members see GREEN_TIER only
        decision = self._ticket(job).decision
        tier = decision.tier if decision else None
        if job._aux_resources.get(compat.TIER) != tier:  # noqa: SLF001
            compat.set_tier(job, tier)

    def _ticket(self, job: Any) -> Ticket:
        return self._tickets[id(job), job.attempt]

    def _known(self, job: Any) -> bool:
        return all((id(part), part.attempt) in self._tickets for part in compat.members(job))

    def _all(self, job: Any, what: str) -> bool:
        return self._known(job) and all(getattr(self._ticket(part), what) for part in compat.members(job))

    def _any_refused(self, job: Any) -> bool:
        return self._known(job) and any(self._ticket(part).refused for part in compat.members(job))

    # --- hooks into the local executor ------------------------------------------------------------------

    def _attach(self, jobs: list[Any]) -> None:
        self._attached = True
        missing = self._snakemake.problems(jobs)
        if missing:
            text = f"this Snakemake lacks {', '.join(missing)}; install 'snakemake>=9.20,<9.28'"
            self._session.cannot_enforce(text)
            return
        self._meters = True
        executor = self._snakemake.executor
        compat.wrap(executor, "run_jobs", self._run_jobs)
        compat.wrap(executor, "cached_or_run", self._run_metered)
        compat.wrap(executor, "handle_job_success", self._succeeded)
        compat.wrap(executor, "handle_job_error", self._failed)
        compat.wrap(executor, "report_job_error", self._report_error)
        compat.wrap(executor, "shutdown", self._shut_down)
        compat.wrap(executor, "cancel", self._cancel)
        self._snakemake.start_processes_with(self._popen)

    def _run_jobs(self, original: Any, jobs: Sequence[Any]) -> None:
        """Main thread, no lock held: refused jobs fail here, the others go on to the executor."""
        for job in jobs:
            if self._any_refused(job):
                reasons = [self._ticket(part).decision for part in compat.members(job)]
                message = "; ".join(sorted({reason.reason for reason in reasons if reason}))
                self._snakemake.fail_before_start(job, f"mlflow-green refused {job}: {message}\n")
        original([job for job in jobs if not self._any_refused(job)])

    def _run_metered(self, original: Any, job: Any, *args: Any) -> None:
        """The job's own pool thread: everything that it forks from here on belongs to the job."""
        ticket = self._ticket(job)
        self._thread.ticket = ticket
        clock = self._session.begin(ticket)
        self._thread.clock = clock
        try:
            original(job, *args)
        except Exception:
            self._session.end(ticket)
            if ticket.halt_reason:
                raise StepHalted(f"mlflow-green halted {ticket.step.label}: {ticket.halt_reason}") from None
            raise
        else:
            self._session.end(ticket)
            if ticket.halt_reason:  # it took SIGTERM for a reason to finish early: what it left is partial
                raise StepHalted(f"mlflow-green halted {ticket.step.label}: {ticket.halt_reason}")
        finally:
            self._thread.ticket = None

    def _popen(self, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        ticket = getattr(self._thread, "ticket", None)
        if ticket is None:
            return subprocess.Popen(*args, **kwargs)
        return self._session.popen(ticket, self._thread.clock, *args, **kwargs)

    # --- outcomes: under Snakemake's lock, so they only enqueue ---------------------------------------

    def _succeeded(self, original: Any, job: Any) -> None:
        original(job)
        for part in compat.members(job):
            metrics = metrics_output(part)
            path = self._snakemake.working_directory / metrics if metrics else None
            self._tell(part, Outcome.SUCCEEDED, path)

    def _failed(self, original: Any, job: Any) -> None:
        original(job)
        for part in compat.members(job):
            self._tell(part, Outcome.FAILED)

    def _tell(self, job: Any, outcome: Outcome, metrics_path: Path | None = None) -> None:
        for attempt in range(job.attempt, 0, -1):  # a halted job's attempts were used up meanwhile
            ticket = self._tickets.get((id(job), attempt))
            if ticket is not None:
                if ticket.outcome is None and not ticket.refused:
                    self._session.tell(ticket, outcome, metrics_path)
                return

    def _report_error(self, original: Any, job_info: Any, msg: str | None = None, **kwargs: Any) -> None:
        halted = [
            ticket.halt_reason
            for part in compat.members(job_info.job)
            if (ticket := self._tickets.get((id(part), part.attempt))) and ticket.halt_reason
        ]
        if halted:
            compat.no_more_attempts(job_info.job)
            msg = f"mlflow-green halted it: {halted[0]}\n"
        original(job_info, msg=msg, **kwargs)

    # --- the end -----------------------------------------------------------------------------------------

    def _shut_down(self, original: Any, *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        self._close(interrupted=False)

    def _cancel(self, original: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(*args, **kwargs)
        finally:
            self._close(interrupted=True)

    def _close(self, *, interrupted: bool) -> None:
        if self._closed:
            return
        self._closed = True
        summary = self._session.close(interrupted=interrupted)
        if summary:
            self._logger.info(summary)
