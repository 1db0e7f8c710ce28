"""Jobs that a batch system runs: what they are sent with, and what is learnt of them. Not under Snakemake's locks.

The executor calls these hooks where it submits and asks after jobs, which takes its time anyway: they may write and
read files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow_green.errors import UnsupportedHost
from snakemake_plugin import compat
from snakemake_plugin.admission import Admission
from snakemake_plugin.job_identity import name_of

if TYPE_CHECKING:
    from mlflow_green.bootstrap import Session, Ticket

_log = logging.getLogger(__name__)


class Placing:
    """Sends each job with its grants, and lets the session know how the batch system took it."""

    def __init__(self, snakemake: compat.SnakemakeInternals, session: Session, admission: Admission) -> None:
        self._session = session
        self._admission = admission
        self._can_be_asked = snakemake.executor_name == "slurm"
        self._sent: dict[Any, dict[str, str]] = {}  # the environment of each job that is not over

    def attach(self, executor: Any) -> None:
        compat.wrap(executor, "format_job_exec", self._send)
        compat.wrap(executor, "report_job_submission", self._submitted)

    def forget(self, job: Any) -> None:
        """The job has succeeded."""
        self._sent.pop(job, None)

    def learn_why_failed(self, job: Any) -> None:
        """The job was never submitted, or its node may have halted it: then its tickets say so afterwards."""
        if not self._sent.pop(job, None):
            return
        try:
            tickets = self._tickets(job)
            if all(ticket.submitted for ticket in tickets):
                self._session.learn_halts(tickets)
            else:
                self._session.unplace(tickets, "its job was not submitted")
        except Exception:  # noqa: BLE001 - the host program's boundary
            _log.exception("why %s failed was not found out", name_of(job))

    def _send(self, original: Any, job: Any) -> str:
        """The command of a job that is about to be submitted; an executor may format it more than once.

        Raises:
            ApiError: a hard budget cannot be kept for it; the executor then fails the job.
        """
        command = str(original(job))
        if job not in self._sent:
            self._sent[job] = self._environment(job)
        return compat.exported(self._sent[job], command)

    def _environment(self, job: Any) -> dict[str, str]:
        try:
            tickets = self._tickets(job)
            if any(ticket.started for ticket in tickets):
                raise UnsupportedHost("it was not asked for again after it ran; please report this")  # noqa: TRY301
            return self._session.place(tickets)
        except Exception as error:
            if self._session.fails_closed:
                raise compat.workflow_error(
                    f"mlflow-green: {name_of(job)} is not submitted, for its budget could not be kept: {error}"
                ) from error
            _log.exception("%s is not metered", name_of(job))
            return {}

    def _submitted(self, original: Any, job_info: Any, *args: Any, **kwargs: Any) -> None:
        try:
            if self._sent.get(job_info.job):
                job_id = job_info.external_jobid if self._can_be_asked else None
                self._session.submitted(self._tickets(job_info.job), job_id)
        except Exception:  # noqa: BLE001 - the host program's boundary
            _log.exception("the job of %s was not noted", name_of(job_info.job))
        original(job_info, *args, **kwargs)  # only now may its end be told

    def _tickets(self, job: Any) -> Sequence[Ticket]:
        """Raises ``UnsupportedHost`` where the budget was not asked about the job."""
        tickets = [self._admission.ticket(part) for part in compat.members(job)]
        known = [ticket for ticket in tickets if ticket is not None]
        if len(known) < len(tickets):
            raise UnsupportedHost(f"{name_of(job)} was not admitted; please report this")
        return known
