"""One workflow execution as a host program such as Snakemake sees it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_green.errors import LedgerUnavailable, UnsupportedHost
from mlflow_green.metering.cpu_clock import CpuClock, open_clock, start_process
from mlflow_green.metering.supervise import start_ticks
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Outcome, Step, StepSpec, Unit
from mlflow_green.settings import Settings
from mlflow_green.tracking.context import run_context
from mlflow_green.units import joules

if TYPE_CHECKING:
    from mlflow_green.ledger.sql import SqlLedger
    from mlflow_green.policy.document import Policy
    from mlflow_green.tracking.child import TrackingChild

CLOSE_SECONDS = 30.0
TRACKING_SECONDS = 15.0


class Session:
    """All that a host program needs for one workflow execution.

    ``ask``, ``void`` and ``tell`` do no I/O and may be called under the host program's locks. ``begin`` and ``end``
    belong to the job's thread: they write the spool, and the end of a halted step waits for its processes. ``close``
    waits for the ledger.
    """

    def __init__(  # noqa: PLR0913 - the parts that ``_open`` wires
        self,
        *,
        settings: Settings,
        policy: Policy,
        ledger: SqlLedger,
        planner: Planner,
        recorder: Recorder,
        tracking: TrackingChild | None,
        workflow_run: str,
        workflow: Mapping[str, object],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._planner = planner
        self._recorder = recorder
        self._tracking = tracking
        self._workflow = workflow
        self._say = say
        self.workflow_run = workflow_run

    @property
    def acts(self) -> bool:
        """Whether any budget may change what runs; in observe nothing may."""
        return self._planner.acts

    @property
    def fails_closed(self) -> bool:
        """Whether a hard budget is at stake: what cannot be enforced must not run."""
        return self._planner.enforces

    @property
    def may_look_ahead(self) -> bool:
        """Whether jobs may be asked for before a core is free: not once a budget nears its first threshold."""
        return not self._planner.tight

    def spec(self, rule: str, declared: Mapping[str, object] | None) -> StepSpec:
        """What is declared about a rule, in its ``green`` parameter or under ``steps:``. Raises ``PolicyError``."""
        from mlflow_green.policy.document import parse_step_spec

        if declared is not None:
            return parse_step_spec(declared, where=f"rule {rule}, params: green")
        return self._policy.steps.get(rule, StepSpec())

    def ticket(self, step: Step, spec: StepSpec, group: str | None = None) -> Ticket:
        return Ticket(step=step, spec=spec, group=group)

    def ask(self, tickets: Sequence[Ticket]) -> None:
        self._recorder.ask(tickets)

    def void(self, tickets: Sequence[Ticket], reason: str) -> None:
        """Release what these steps hold; they will not begin."""
        self._recorder.void(tickets, reason)

    def begin(self, ticket: Ticket) -> CpuClock:
        """The step starts in the calling thread; what this thread forks from now on is metered."""
        clock = open_clock()
        self._recorder.begin(ticket, clock)
        return clock

    def end(self, ticket: Ticket) -> None:
        """The step's own process has ended. Of a halted step, wait until none of its processes is left."""
        self._recorder.end(ticket)

    def tell(self, ticket: Ticket, outcome: Outcome, metrics_path: Path | None = None) -> None:
        self._recorder.tell(ticket, outcome, metrics_path)

    def popen(self, ticket: Ticket, clock: CpuClock, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """``subprocess.Popen`` with the step's environment, reporting to its clock."""
        environ = kwargs.get("env")
        kwargs["env"] = {**(os.environ if environ is None else environ), **self.environment(ticket)}
        return start_process(clock, *args, **kwargs)

    def environment(self, ticket: Ticket) -> dict[str, str]:
        """What a job sees of its budget, and what lets its MLflow runs be found again."""
        return job_environment(ticket, self.workflow_run, acts=self.acts)

    def cannot_enforce(self, problem: str) -> None:
        """The host program lacks what refusing and halting need: fatal under a hard budget, else said."""
        self.close(interrupted=True)
        if self._planner.enforces:
            raise UnsupportedHost(f"{problem}. A hard budget cannot be kept without it, so nothing was started")
        self._say(f"{problem}. Nothing is metered in this run")

    def close(self, *, interrupted: bool) -> str:
        """Post everything and return the closing table; the host program prints it."""
        posted = self._recorder.close(CLOSE_SECONDS)
        if self._recorder.ledger_is_busy:  # its connection is in a transaction that does not end
            if self._tracking is not None:
                self._tracking.close(0.5)
            return self._unposted_text()
        summary = ""
        try:
            summary = self._summary(posted=posted)
            self._finish_tracking(interrupted=interrupted)
            self._ledger.close()
        except LedgerUnavailable as error:
            self._say(str(error))
        return summary

    def _finish_tracking(self, *, interrupted: bool) -> None:
        if self._tracking is None:
            return
        last = {(entry.step, entry.wildcards): entry for entry in self._ledger.entries(workflow_run=self.workflow_run)}
        whole = all(entry.outcome is Outcome.SUCCEEDED for entry in last.values())
        status = "finished" if whole and not interrupted else "failed"
        self._ledger.put(
            "mlflow",
            f"workflow:{self.workflow_run}:end",
            {"workflow": {**self._workflow, "status": status, "report_path": None}},
        )
        if not self._tracking.close(0.5 if interrupted else TRACKING_SECONDS):
            self._say("MLflow is still being written; 'mlflow-green sync' writes whatever is left")

    def _summary(self, *, posted: bool) -> str:
        from mlflow_green.reports.closing import closing_text

        terms = self._planner.terms(datetime.now().astimezone())
        balances = self._ledger.balances(terms) if terms else ()  # asked for no term, it gives every old bucket
        text = closing_text(
            self._ledger.entries(workflow_run=self.workflow_run),
            balances,
            has_policy=self._settings.policy_path is not None,
            has_place=self._planner.site.intensity is not None,
        )
        if not posted:
            text += f"\n{self._unposted_text()}"
        return text

    def _unposted_text(self) -> str:
        return (
            f"Not everything could be posted; it is kept in {self._settings.spool_dir} and the next run, "
            "or 'mlflow-green balance', posts it."
        )


def inside_metered_step(environ: Mapping[str, str]) -> bool:
    """Whether a live meter pays for this process already; a shell that a job left behind has only its variables."""
    pid, _, started_ticks = environ.get("GREEN_METER", "").partition(":")
    return bool(environ.get("GREEN_HOLD_ID")) and pid.isdigit() and str(start_ticks(int(pid))) == started_ticks


@cache
def _this_meter() -> str:
    return f"{os.getpid()}:{start_ticks(os.getpid())}"


def job_environment(ticket: Ticket, workflow_run: str, *, acts: bool) -> dict[str, str]:
    """What a job or command sees of its budget, and what lets its MLflow runs be found again."""
    environ = {"GREEN_JOB": ticket.step.label, "GREEN_HOLD_ID": ticket.hold_id, "GREEN_METER": _this_meter()}
    decision = ticket.decision
    if acts and decision is not None and decision.tier is not None:
        environ["GREEN_TIER"] = decision.tier
    if Unit.ENERGY in ticket.granted:
        environ["GREEN_GRANT_JOULES"] = f"{joules(ticket.granted[Unit.ENERGY]):.6f}"
    if ticket.spec.checkpoint:
        environ["GREEN_CHECKPOINT"] = str(Path(ticket.spec.checkpoint).absolute())
    context = run_context(os.environ, ticket.hold_id, workflow_run)
    if context is not None:
        environ["MLFLOW_RUN_CONTEXT"] = context
    return environ
