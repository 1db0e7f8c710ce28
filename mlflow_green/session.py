"""One workflow execution as a host program such as Snakemake sees it."""

from __future__ import annotations

import os
import shlex
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_green.errors import LedgerUnavailable, SensorError, UnsupportedHost
from mlflow_green.metering.cpu_clock import CpuClock, open_clock, start_process
from mlflow_green.metering.supervise import start_ticks
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Action, Batch, Decision, Outcome, Owner, Step, StepSpec, Unit
from mlflow_green.settings import Settings
from mlflow_green.tracking.context import run_context
from mlflow_green.units import joules

if TYPE_CHECKING:
    from mlflow_green.ledger.sql import SqlLedger
    from mlflow_green.policy.document import Policy
    from mlflow_green.recorder.placement import PlacedStep, Placement
    from mlflow_green.recorder.planner import Planner
    from mlflow_green.tracking.child import TrackingChild

CLOSE_SECONDS = 30.0
TRACKING_SECONDS = 15.0
SLURM_SECONDS = 5.0

TierEnvironments = Mapping[str, Mapping[str, str]]
"""By the name of a tier: variable to value."""


class _Steps:
    """The steps of one workflow execution, as the process meters them that runs them.

    ``ask``, ``void`` and ``tell`` do no I/O and may be called under the host program's locks. ``begin`` and ``end``
    belong to the job's thread: they write the spool, and the end of a halted step waits for its processes.

    ``acts``: any budget may change what runs; in observe nothing may. ``fails_closed``: a hard budget is at stake, and
    what cannot be enforced must not run. ``tier_environments``: what else a job sees that was granted a tier.
    """

    def __init__(
        self,
        recorder: Recorder,
        workflow_run: str,
        say: Callable[[str], None],
        *,
        acts: bool,
        fails_closed: bool,
        tier_environments: TierEnvironments,
    ) -> None:
        self._recorder = recorder
        self._tier_environments = tier_environments
        self._say = say
        self.workflow_run = workflow_run
        self.acts = acts
        self.fails_closed = fails_closed

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
        return job_environment(ticket, self.workflow_run, acts=self.acts, tier_environments=self._tier_environments)

    def cannot_enforce(self, problem: str) -> None:
        """The host program lacks what refusing and halting need: fatal under a hard budget, else said."""
        self.close(interrupted=True)
        if self.fails_closed:
            raise UnsupportedHost(f"{problem}. A hard budget cannot be kept without it, so nothing was started")
        self._say(f"{problem}. Nothing is metered in this run")

    def close(self, *, interrupted: bool) -> str:
        raise NotImplementedError


class Session(_Steps):
    """All that the main process of a host program needs for one workflow execution. ``close`` waits for the ledger."""

    def __init__(  # noqa: PLR0913 - the parts that ``_open`` wires
        self,
        *,
        settings: Settings,
        policy: Policy,
        ledger: SqlLedger,
        planner: Planner,
        recorder: Recorder,
        tracking: TrackingChild | None,
        owner: Owner,
        workflow_run: str,
        workflow: Mapping[str, object],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(
            recorder,
            workflow_run,
            say,
            acts=planner.acts,
            fails_closed=planner.enforces,
            tier_environments=policy.tier_environments,
        )
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._planner = planner
        self._tracking = tracking
        self._owner = owner
        self._workflow = workflow

    @property
    def may_look_ahead(self) -> bool:
        """Whether jobs may be asked for before a core is free: not once a budget nears its first threshold."""
        return not self._planner.tight

    def spec(self, rule: str, declared: Mapping[str, object] | None) -> StepSpec:
        """As ``step_spec``."""
        return step_spec(self._policy, rule, declared)

    def ticket(self, step: Step, spec: StepSpec, group: str | None = None) -> Ticket:
        return Ticket(step=step, spec=spec, group=group)

    # --- steps that a batch system runs ------------------------------------------------------------

    def place(self, tickets: Sequence[Ticket]) -> dict[str, str]:
        """The environment that the batch system's job of these steps must have.

        Call it right before the job is submitted: from then on only evidence of its end ends the holds. Writes files.
        """
        from mlflow_green.recorder.placement import VARIABLE, Placement

        placement_id = uuid.uuid4().hex
        granted = {ticket.decision.tier for ticket in tickets if ticket.decision}
        placement = Placement(
            placement_id=placement_id,
            main=self._owner,
            workflow_run=self.workflow_run,
            project=self._policy.project,
            user=self._planner.user,
            site=self._planner.site,
            spool_dir=str(self._settings.spool_dir.resolve()),
            acts=self.acts,
            enforces=self.fails_closed,
            steps=tuple(self._placed_step(ticket) for ticket in tickets),
            tier_environments={name: env for name, env in self._tier_environments.items() if name in granted},
        )
        environment = {VARIABLE: placement.encoded()}
        self._recorder.place(tickets, placement_id)
        return environment

    def _placed_step(self, ticket: Ticket) -> PlacedStep:
        from mlflow_green.recorder.placement import PlacedStep

        hold = ticket.hold
        assert ticket.decision is not None
        return PlacedStep(
            ticket_id=ticket.ticket_id,
            step=ticket.step,
            spec=ticket.spec,
            decision=ticket.decision,
            hold=hold,
            late_request=ticket.late_request,
            granted=ticket.granted,
            leashes=self._planner.leashes(hold) if hold else (),
            grace_seconds=self._planner.grace_seconds(hold) if hold else 0.0,
        )

    def submitted(self, tickets: Sequence[Ticket], job_id: str | None) -> None:
        """The batch system has taken the job; ``job_id`` only where it can be asked about it."""
        self._recorder.submitted(tickets, job_id)

    def unplace(self, tickets: Sequence[Ticket], reason: str) -> None:
        """The batch system did not take the job."""
        self._recorder.unplace(tickets, reason)

    def learn_halts(self, tickets: Sequence[Ticket]) -> None:
        """After a failure of their job: whether its node halted a step, in ``ticket.halt_reason``. Reads files."""
        self._recorder.learn_halts(tickets)

    # --- the end -----------------------------------------------------------------------------------

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
            if not interrupted:
                self._ask_slurm()
            self._finish_tracking(interrupted=interrupted)
            self._send_alerts()
            self._ledger.close()
        except LedgerUnavailable as error:
            self._say(str(error))
        return summary

    def _ask_slurm(self) -> None:
        """Put what Slurm's counters say beside what was metered, where the site has such counters."""
        from mlflow_green.metering.slurm import has_energy_plugin, job_energy
        from mlflow_green.recorder.second_opinion import opinion

        job_of = self._recorder.job_ids
        try:
            if not job_of or not has_energy_plugin(timeout_seconds=SLURM_SECONDS):
                return
        except SensorError:
            return
        said = job_energy(set(job_of.values()), timeout_seconds=SLURM_SECONDS)
        steps = Counter(job_of.values())
        entries = [entry for entry in self._ledger.entries(workflow_run=self.workflow_run) if entry.hold_id in job_of]
        jobs = [(entry, job_of[entry.hold_id or ""]) for entry in entries]
        facts = [fact for entry, job_id in jobs for fact in opinion(entry, said[job_id], steps[job_id])]
        self._ledger.commit(Batch(facts=tuple(facts)), admit_at_nothing)

    def _send_alerts(self) -> None:
        """Leave alerts to a process of its own, which this one does not wait for."""
        path = self._settings.policy_path
        if path is None or not self._policy.channels:
            return
        waiting = sum(self._ledger.count(kind) for kind in ("alert", "notice", "letter"))
        if not waiting:
            return
        from mlflow_green.alerts.child import start_sender

        try:
            start_sender(path, self._settings.ledger_url)
        except OSError as error:
            self._say(f"alerts could not be sent ({error.strerror}); 'mlflow-green alerts send' tries again")
            return
        folder = shlex.quote(str(path.parent))
        wait = "1 alert waits; it is" if waiting == 1 else f"{waiting} alerts wait; they are"
        self._say(
            f"{wait} sent now, in the background. What a channel does not take, or must not get yet, a line in the"
            f" crontab sends: */5 * * * * cd {folder} && mlflow-green alerts send"
        )

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


class NodeSession(_Steps):
    """The steps of one job of a batch system, on the node that runs it: answered already, and metered to the spool."""

    may_look_ahead = False

    def __init__(
        self, recorder: Recorder, placement: Placement, tickets: Sequence[Ticket], say: Callable[[str], None]
    ) -> None:
        super().__init__(
            recorder,
            placement.workflow_run,
            say,
            acts=placement.acts,
            fails_closed=placement.enforces,
            tier_environments=placement.tier_environments,
        )
        self._tickets = {(ticket.step.name, ticket.step.wildcards): ticket for ticket in tickets}
        self._runs_one = len(tickets) == 1

    def begin(self, ticket: Ticket) -> CpuClock:
        """The step starts in the calling thread. Where it is all of the job, the job's own control group counts it.

        Snakemake runs a ``run:`` directive of such a job in this process, so the environment is set here too.
        """
        if self._runs_one:
            os.environ.update(self.environment(ticket))
        ticket.is_own_process = self._runs_one
        clock = open_clock(own_cgroup=self._runs_one, runs_one=self._runs_one)
        self._recorder.begin(ticket, clock)
        return clock

    def spec(self, _rule: str, _declared: Mapping[str, object] | None) -> StepSpec:
        """What the main process found declared travels with the ticket."""
        return StepSpec()

    def ticket(self, step: Step, spec: StepSpec, group: str | None = None) -> Ticket:
        """The step's ticket, once; a step that was not sent here, or runs a second time, has no grant."""
        sent = self._tickets.pop((step.name, step.wildcards), None)
        if sent is not None:
            sent.group = group
            return sent
        action = Action.REFUSE if self.fails_closed else Action.ADMIT
        reason = "nothing was granted to it: the main process did not send it with this job"
        decision = Decision(action=action, would=action, tier=None, amounts={}, reason=reason)
        return Ticket(step=step, spec=spec, group=group, decision=decision)

    def close(self, *, interrupted: bool) -> str:  # noqa: ARG002 - as the main process's session
        """Write the last words; there is nothing to print."""
        self._recorder.close(CLOSE_SECONDS)
        return ""


def step_spec(policy: Policy, rule: str, declared: Mapping[str, object] | None) -> StepSpec:
    """What is declared about a rule, in its ``green`` parameter or under ``steps:``. Raises ``PolicyError``."""
    from mlflow_green.policy.document import parse_step_spec

    if declared is not None:
        return parse_step_spec(declared, where=f"rule {rule}, params: green")
    return policy.steps.get(rule, StepSpec())


def inside_metered_step(environ: Mapping[str, str]) -> bool:
    """Whether a live meter pays for this process already; a shell that a job left behind has only its variables."""
    pid, _, started_ticks = environ.get("GREEN_METER", "").partition(":")
    return bool(environ.get("GREEN_HOLD_ID")) and pid.isdigit() and str(start_ticks(int(pid))) == started_ticks


def meter_environment(ticket: Ticket) -> dict[str, str]:
    """By what a process knows that it is metered already, and by what it is found."""
    return {"GREEN_HOLD_ID": ticket.hold_id, "GREEN_METER": _meter_of(os.getpid())}


@cache
def _meter_of(pid: int) -> str:
    return f"{pid}:{start_ticks(pid)}"


def job_environment(
    ticket: Ticket, workflow_run: str, *, acts: bool, tier_environments: TierEnvironments
) -> dict[str, str]:
    """What a job or command sees of its budget and its tier, and what lets its MLflow runs be found again."""
    environ = {"GREEN_JOB": ticket.step.label, **meter_environment(ticket)}
    decision = ticket.decision
    if acts and decision is not None and decision.tier is not None:
        environ |= {**tier_environments.get(decision.tier, {}), "GREEN_TIER": decision.tier}
    if Unit.ENERGY in ticket.granted:
        environ["GREEN_GRANT_JOULES"] = f"{joules(ticket.granted[Unit.ENERGY]):.6f}"
    if ticket.spec.checkpoint:
        environ["GREEN_CHECKPOINT"] = str(Path(ticket.spec.checkpoint).absolute())
    context = run_context(os.environ, ticket.hold_id, workflow_run)
    if context is not None:
        environ["MLFLOW_RUN_CONTEXT"] = context
    return environ
