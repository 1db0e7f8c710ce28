"""The gate of the main Snakemake process: every job passes here before it starts, and is metered to its end.

Runs under Snakemake's locks in places, so nothing here does I/O except in the job's own thread, at shutdown, and once
where a private name of Snakemake is missing: the session is then given up at the first selection. Jobs of a batch
system are the exception, see ``placing``.
"""

from __future__ import annotations

import atexit
import logging
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_green import bootstrap
from mlflow_green.bootstrap import NodeSession, Session, Ticket
from mlflow_green.errors import UnsupportedHost
from mlflow_green.records import Outcome
from snakemake_plugin import compat
from snakemake_plugin.admission import Admission, Greedy
from snakemake_plugin.job_identity import metrics_output, name_of
from snakemake_plugin.placing import Placing

_log = logging.getLogger(__name__)
_REFUSALS_TOLD = 10


class Gate:
    """Joins one running Snakemake and one session of the recorder."""

    def __init__(
        self,
        snakemake: compat.SnakemakeInternals,
        session: Session | NodeSession,
        greedy: Greedy,
        logger: logging.Logger,
    ) -> None:
        self._snakemake = snakemake
        self._session = session
        self._greedy = greedy
        self._logger = logger
        self._admission = Admission(session, greedy, self._warn, snakemake.runs_here)
        self._placing: Placing | None = None
        self._attached = False
        self._passes_all = False  # the gate is out of order and stands open, or nothing can be metered
        self._closed = False
        self._cancelled = False
        self._refusals = 0
        self._thread = threading.local()
        atexit.register(self._close, interrupted=True)  # Snakemake may give up before its first job

    # --- scheduling: in Snakemake's main thread, under its lock ---------------------------------------

    def select(self, jobs: Sequence[Any], remaining: Any, free: Mapping[str, int], sizes: Any) -> Sequence[Any]:
        """The jobs that may start now.

        Raises:
            ApiError: a hard budget can no longer be kept; Snakemake then ends the workflow.
        """
        try:
            if not self._attached:
                self._attach(jobs)
            if not self._passes_all:
                return self._select(jobs, remaining, free, sizes)
        except UnsupportedHost as error:
            raise compat.workflow_error(f"mlflow-green: {error}") from None
        except Exception as error:  # noqa: BLE001 - the host program's boundary
            self._stand_open(error)
        return self._greedy(list(jobs), remaining, free, sizes)

    def _select(self, jobs: Sequence[Any], remaining: Any, free: Mapping[str, int], sizes: Any) -> Sequence[Any]:
        keep_going = self._snakemake.keeps_going
        selected = self._admission.select(jobs, remaining, free, sizes, keep_going=keep_going)
        for job in selected:
            if not job.is_group():
                self._set_tier(job)
        return selected

    def _stand_open(self, error: Exception) -> None:
        """After an error of our own: a hard budget ends the workflow, all else goes on without admission."""
        _log.error("mlflow-green met an unexpected error", exc_info=error)
        what = f"an unexpected error, {type(error).__name__}: {error}; please report it with the log above"
        if self._session.fails_closed:
            raise compat.workflow_error(
                f"mlflow-green: {what}. A hard budget cannot be kept, so no further job starts"
            ) from error
        self._warn(f"{what}. Jobs run on without being asked for")
        self._passes_all = True

    def _set_tier(self, job: Any) -> None:
        ticket = self._admission.ticket(job)
        if self._session.acts and ticket is not None and ticket.decision is not None:
            compat.set_tier(job, ticket.decision.tier)

    # --- hooks into the executors ------------------------------------------------------------------

    def _attach(self, jobs: Sequence[Any]) -> None:
        self._attached = True
        missing = self._snakemake.problems(jobs)
        if missing:
            self._passes_all = True
            self._closed = True
            text = f"this Snakemake lacks {', '.join(missing)}; install 'snakemake>=9.20,<10'"
            self._session.cannot_enforce(text)
            return
        here, there = self._snakemake.local_executor, self._snakemake.executor
        for executor in (here,) if here is there else (here, there):
            compat.wrap(executor, "run_jobs", self._run_jobs)
            compat.wrap(executor, "handle_job_success", self._succeeded)
            compat.wrap(executor, "handle_job_error", self._failed)
            compat.wrap(executor, "report_job_error", self._report_error)
        compat.wrap(here, "cached_or_run", self._run_metered)
        if isinstance(self._session, bootstrap.Session) and here is not there:
            self._placing = Placing(self._snakemake, self._session, self._admission)
            self._placing.attach(there)
        compat.wrap(there, "shutdown", self._shut_down)
        compat.wrap(there, "cancel", self._cancel)
        self._snakemake.start_processes_with(self._popen)
        if self._snakemake.is_node and self._session.fails_closed:
            self._snakemake.spawn_run_directives()

    def _run_jobs(self, original: Any, jobs: Sequence[Any]) -> None:
        """Main thread, no lock held: refused jobs fail here, the others go on to the executor."""
        started = []
        for job in jobs:
            refusal = None if self._passes_all else self._admission.refusal(job)
            if refusal is not None:
                self._tell_refusal(refusal)
                self._snakemake.fail_before_start(job, f"mlflow-green refused {name_of(job)}: {refusal}\n")
                continue
            # Only now: while a group is scheduled, its members' text resources must be equal. A batch system's group is
            # scheduled by its node.
            if job.is_group() and self._snakemake.runs_here(job):
                for part in compat.members(job):
                    self._set_tier(part)
            started.append(job)
        if started:
            original(started)

    def _tell_refusal(self, reason: str) -> None:
        """A warning of its own: quiet, Snakemake hides why a job failed."""
        self._refusals += 1
        if self._refusals <= _REFUSALS_TOLD:
            self._warn(reason)

    def _run_metered(self, original: Any, job: Any, *args: Any) -> None:
        """The job's own pool thread: everything that it forks from here on belongs to the job."""
        ticket = self._begin(job)
        if ticket is None:
            original(job, *args)
            return
        try:
            original(job, *args)
        finally:
            self._thread.ticket = None
            # A job may take SIGTERM for a reason to finish early and exit 0: what it left is partial all the same.
            halt_reason = ticket.halt_reason
            self._end(ticket)
            if halt_reason:
                raise compat.silent_failure() from None

    def _begin(self, job: Any) -> Ticket | None:
        ticket = self._admission.ticket(job)
        if ticket is None or ticket.began_at is not None:
            if self._session.fails_closed:
                raise UnsupportedHost(f"{job} was not admitted, and a hard budget must be kept; please report this")
            return None
        try:
            self._thread.clock = self._session.begin(ticket)
        except Exception:
            if self._session.fails_closed:
                raise
            _log.exception("%s is not metered", ticket.step.label)
            return None
        self._thread.ticket = ticket
        return ticket

    def _end(self, ticket: Ticket) -> None:
        try:
            self._session.end(ticket)
        except Exception:  # noqa: BLE001 - the host program's boundary
            _log.exception("the end of %s was not metered", ticket.step.label)

    def _popen(self, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        ticket = getattr(self._thread, "ticket", None)
        if ticket is None:
            return subprocess.Popen(*args, **kwargs)
        return self._session.popen(ticket, self._thread.clock, *args, **kwargs)

    # --- outcomes: under Snakemake's lock, so they only enqueue ---------------------------------------

    def _succeeded(self, original: Any, job: Any) -> None:
        original(job)
        if self._placing is not None:
            self._placing.forget(job)
        for part in compat.members(job):
            self._tell(part, Outcome.SUCCEEDED)

    def _failed(self, original: Any, job: Any) -> None:
        original(job)
        terminated = self._snakemake.is_node and self._snakemake.was_terminated
        for part in compat.members(job):
            self._tell(part, Outcome.CANCELLED if terminated else Outcome.FAILED)
            if job.is_group():
                compat.set_tier(part, None)  # a retried group is scheduled again

    def _tell(self, job: Any, outcome: Outcome) -> None:
        try:
            ticket = self._admission.ticket(job)
            if ticket is not None and ticket.started and ticket.outcome is None:
                metrics = metrics_output(job)
                path = self._snakemake.working_directory / metrics if metrics else None
                self._session.tell(ticket, outcome, path)
        except Exception:  # noqa: BLE001 - the host program's boundary
            _log.exception("the outcome of %s was not recorded", job)

    def _report_error(self, original: Any, job_info: Any, msg: str | None = None, **kwargs: Any) -> None:
        job = job_info.job
        tickets = [self._admission.ticket(part) for part in compat.members(job)]
        if self._placing is not None:
            self._placing.learn_why_failed(job)
        reasons = [ticket.halt_reason for ticket in tickets if ticket and ticket.halt_reason]
        # Snakemake sends --retries 0 to a node, but a rule's own retries would multiply there.
        if reasons or self._snakemake.is_node:
            compat.no_more_attempts(job)
        if reasons:
            msg = f"mlflow-green halted {name_of(job)}: {'; '.join(reasons)}\n"
            if job.is_group():
                self._logger.error(msg)  # a group's own error report drops the message
        original(job_info, msg=msg, **kwargs)

    # --- the end -----------------------------------------------------------------------------------------

    def _shut_down(self, original: Any, *args: Any, **kwargs: Any) -> None:
        interrupted = True
        try:
            original(*args, **kwargs)
            interrupted = self._cancelled
        finally:
            self._close(interrupted=interrupted)

    def _cancel(self, original: Any, *args: Any, **kwargs: Any) -> None:
        self._cancelled = True  # a remote executor shuts itself down when it is cancelled
        try:
            original(*args, **kwargs)
        finally:
            self._close(interrupted=True)

    def _close(self, *, interrupted: bool) -> None:
        atexit.unregister(self._close)
        if self._closed:
            return
        self._closed = True
        more = self._refusals - _REFUSALS_TOLD
        if more > 0:
            self._warn(
                f"{more} more {'job was' if more == 1 else 'jobs were'} refused; 'mlflow-green explain' shows why"
            )
        try:
            with compat.garbage_collection_paused():
                summary = self._session.close(interrupted=interrupted)
        except Exception:  # noqa: BLE001 - the host program's boundary
            _log.exception("the books were not closed; the next run, or 'mlflow-green balance', posts what is left")
            return
        if summary:
            self._logger.info(summary)

    def _warn(self, text: str) -> None:
        self._logger.warning(f"mlflow-green: {text}")
