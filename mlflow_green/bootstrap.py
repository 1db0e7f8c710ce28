"""The composition root: the only place that picks implementations and wires them.

Everything heavy is imported inside the function that needs it: the Snakemake process never imports mlflow,
pandas, numpy, alembic or codecarbon.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_green.clock import Clock, SystemClock, boot_id
from mlflow_green.errors import GreenError, LedgerUnavailable, SettingsError, UnsupportedHost
from mlflow_green.metering.cpu_clock import CpuClock, ProcessTreeClock, metered_popen, open_clock
from mlflow_green.metering.supervise import this_process
from mlflow_green.recorder.bookkeeper import Bookkeeper
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.recovery import recover, session_line
from mlflow_green.recorder.ticket import Book, Ticket
from mlflow_green.records import Domain, Outcome, Site, Step, StepSpec
from mlflow_green.settings import Settings, load_settings
from mlflow_green.spool import SpoolWriter
from mlflow_green.units import parse_energy_microjoules

if TYPE_CHECKING:
    from mlflow_green.ledger.sql import SqlLedger
    from mlflow_green.metering.sampler import Sampler
    from mlflow_green.policy.document import Policy
    from mlflow_green.sensors.detect import Detection
    from mlflow_green.tracking.child import TrackingChild

__all__ = ["Session", "Ticket", "open_session"]

CLOSE_SECONDS = 30.0
TRACKING_SECONDS = 15.0


# --- parts ----------------------------------------------------------------------------------------


def load_policy_for(settings: Settings) -> Policy:
    """The policy of the file that the settings found; without one, a policy that only observes.

    Raises:
        PolicyError: with every problem of the file.
    """
    from mlflow_green.emissions.intensity import known_countries
    from mlflow_green.policy.document import default_policy, load_policy

    if settings.policy_path is None:
        return default_policy(settings.state_dir.resolve().parent.name or "default")
    return load_policy(settings.policy_path, known_countries=known_countries())


def site_of(policy: Policy) -> Site:
    """What turns joules into grams and money at the policy's site; no intensity for an unknown place."""
    from mlflow_green.emissions.intensity import country_intensity
    from mlflow_green.records import Intensity

    site = policy.site
    intensity = None
    if site.carbon_intensity_g_per_kwh is not None:
        stated = site.carbon_intensity_g_per_kwh
        intensity = Intensity(
            g_per_kwh=stated, g_per_kwh_high=stated, source=site.source or "stated in green.yaml without a source"
        )
    elif site.country is not None:
        intensity = country_intensity(site.country)
    return Site(
        intensity=intensity,
        pue=site.pue,
        node_overhead=site.node_overhead,
        price_per_kwh=site.price.per_kwh if site.price else None,
        currency=site.price.currency if site.price else None,
    )


def runtime_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the samplers of this user elect the one that may speak for the node."""
    named = environ.get("MLFLOW_GREEN_RUNTIME_DIR")
    base = Path(named) if named else Path(tempfile.gettempdir()) / f"mlflow-green-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    return base


def detect(settings: Settings) -> Detection:
    """The sensors of this host."""
    from mlflow_green.sensors.detect import detect_sensors

    return detect_sensors(settings.powercap_root, Path("/proc"))


def open_sampler(settings: Settings, clock: Clock) -> Sampler:
    from mlflow_green.metering.sampler import Sampler

    try:
        lock_path: Path | None = runtime_dir() / "sampler.lock"
    except OSError:
        lock_path = None
    return Sampler(detect(settings).sensors, clock=clock, host=platform.node(), boot_id=boot_id(), lock_path=lock_path)


def open_ledger(settings: Settings, clock: Clock) -> SqlLedger:
    """The ledger, without looking at what crashed runs left behind."""
    from mlflow_green.ledger.sql import open_ledger as open_sql

    return open_sql(settings.ledger_url, mountinfo_path=settings.mountinfo_path, clock=clock)


def open_reader(settings: Settings, say: Callable[[str], None] = lambda _text: None) -> SqlLedger:
    """The ledger, after what dead meters left in their spools has been posted and their holds closed."""
    clock = SystemClock()
    ledger = open_ledger(settings, clock)
    recover_into(ledger, settings, clock, say)
    return ledger


def recover_into(ledger: SqlLedger, settings: Settings, clock: Clock, say: Callable[[str], None]) -> None:
    def posted_sequences(sampler_id: str) -> dict[Domain, int]:
        last: dict[Domain, int] = {}
        for window in ledger.node_windows():
            if window.sampler_id == sampler_id:
                last[window.domain] = max(window.sequence_last, last.get(window.domain, -1))
        return last

    recover(ledger, settings.spool_dir, host=platform.node(), clock=clock, say=say, posted_sequences=posted_sequences)


def sync(settings: Settings) -> int:
    """Write to MLflow what was not written yet, of all workflow executions; the number of rows still left."""
    ledger = open_reader(settings)
    try:
        if ledger.count("mlflow"):
            policy = load_policy_for(settings)
            arguments = ["--ledger-url", settings.ledger_url, "--mountinfo", str(settings.mountinfo_path), "--once"]
            arguments += ["--workflow-run", "", "--project", policy.project, "--name", policy.project]
            subprocess.run(
                [sys.executable, "-m", "mlflow_green.tracking.sink", *arguments, "--jobs", policy.tracking.jobs],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=False,
            )
        return ledger.count("mlflow")
    finally:
        ledger.close()


def user_name() -> str:
    """The name of the real uid, never ``$USER``, which anybody can set."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# --- one Snakemake execution ----------------------------------------------------------------------


class Session:
    """All that a host program needs for one workflow execution. Methods return at once, except ``close``."""

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
    def enforces(self) -> bool:
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
        if ticket.halt_reason:
            self._recorder.wait_until_gone(ticket)
        self._recorder.end(ticket)

    def tell(self, ticket: Ticket, outcome: Outcome, metrics_path: Path | None = None) -> None:
        self._recorder.tell(ticket, outcome, metrics_path)

    def popen(self, ticket: Ticket, clock: CpuClock, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """``subprocess.Popen`` with the step's environment, reporting to its clock."""
        environ = kwargs.get("env")
        kwargs["env"] = {**(os.environ if environ is None else environ), **self.environment(ticket)}
        if not isinstance(clock, ProcessTreeClock):
            return subprocess.Popen(*args, **kwargs)
        metered = metered_popen(lambda pid, used: clock.add_finished(pid, used.ru_utime + used.ru_stime))
        process = metered(*args, **kwargs)
        clock.add_root(process.pid)
        return process

    def environment(self, ticket: Ticket) -> dict[str, str]:
        """What a job sees of its budget, and what lets its MLflow runs be found again."""
        return job_environment(ticket, self.workflow_run, acts=self.enforces)

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


def open_session(
    *,
    name: str,
    policy: str | None,
    runs_locally: bool,
    host_problem: str | None,
    wake: Callable[[], None],
    say: Callable[[str], None],
    cwd: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Session | None:
    """Open everything for one workflow execution; ``None`` when there is nothing to do.

    In observe and soft mode what is broken is said and the workflow runs unmetered; under a hard budget it does
    not start.

    Raises:
        GreenError: the policy is wrong, or a hard budget cannot be kept.
    """
    cwd = cwd or Path.cwd()
    settings = load_settings(cwd, environ, policy_path=Path(policy) if policy else None)
    if settings.disabled:
        return None
    if environ.get("GREEN_HOLD_ID"):
        say("this Snakemake runs inside a metered step, which pays for all of it")
        return None
    rules = load_policy_for(settings)
    if not runs_locally:
        host_problem = (
            "jobs of cluster executors are not metered yet; use the local executor, or MLFLOW_GREEN_DISABLE=1"
        )
    try:
        if host_problem:
            raise UnsupportedHost(host_problem)  # noqa: TRY301 - one place decides what a missing part means
        return _open(settings, rules, name=name, wake=wake, say=say)
    except (UnsupportedHost, LedgerUnavailable, SettingsError, OSError) as error:
        if any(budget.mode == "hard" for budget in rules.budgets):
            text = f"{error}. A hard budget cannot be kept without it, so nothing was started"
            raise type(error)(text) if isinstance(error, GreenError) else LedgerUnavailable(text) from None
        say(f"{error}. Jobs run as usual, but nothing is metered in this run")
        return None


def _open(
    settings: Settings, policy: Policy, *, name: str, wake: Callable[[], None], say: Callable[[str], None]
) -> Session:
    clock = SystemClock()
    ledger = open_ledger(settings, clock)
    recover_into(ledger, settings, clock, say)
    workflow_run = uuid.uuid4().hex
    site = site_of(policy)
    sampler = open_sampler(settings, clock)
    host = platform.node()
    book = Book(
        project=policy.project,
        user=user_name(),
        host=host,
        site=site,
        sampler_id=sampler.sampler_id if sampler.coordinated else None,
        power_watts_max=sampler.power_watts_max,
    )
    owner = this_process(host)
    spool = SpoolWriter(settings.spool_dir / f"{sampler.sampler_id}.jsonl")
    spool.append(session_line(owner, book))
    planner = Planner(policy, book, workflow_run)
    workflow: dict[str, object] = {
        "workflow_run": workflow_run,
        "project": policy.project,
        "name": name,
        "started_at": clock.now().isoformat(),
    }
    tracking = _start_tracking(settings, policy, ledger, workflow, wake=wake, say=say)
    bookkeeper = Bookkeeper(
        ledger, planner, book, owner, clock, wake=wake, say=say, ready=tracking.ready if tracking else lambda: True
    )
    recorder = Recorder(
        sampler=sampler,
        bookkeeper=bookkeeper,
        spool=spool,
        enforcer=planner if planner.enforces else None,
        book=book,
        clock=clock,
        say=say,
    )
    recorder.start()
    # The closing table is read at the end; its library is loaded while jobs run, and not while somebody waits.
    threading.Thread(target=import_module, args=("mlflow_green.reports.closing",), daemon=True).start()
    return Session(
        settings=settings,
        policy=policy,
        ledger=ledger,
        planner=planner,
        recorder=recorder,
        tracking=tracking,
        workflow_run=workflow_run,
        workflow=workflow,
        say=say,
    )


def _start_tracking(
    settings: Settings,
    policy: Policy,
    ledger: SqlLedger,
    workflow: Mapping[str, object],
    *,
    wake: Callable[[], None],
    say: Callable[[str], None],
) -> TrackingChild | None:
    if policy.tracking.jobs == "none":
        return None
    from mlflow_green.tracking.child import TrackingChild

    workflow_run = str(workflow["workflow_run"])
    ledger.put("mlflow", f"workflow:{workflow_run}:start", {"workflow": {**workflow, "status": "running"}})
    arguments = ["--ledger-url", settings.ledger_url, "--mountinfo", str(settings.mountinfo_path)]
    arguments += ["--workflow-run", workflow_run, "--project", policy.project]
    arguments += ["--jobs", policy.tracking.jobs, "--name", str(workflow["name"])]
    return TrackingChild(arguments, wake=wake, say=say)


# --- one command ----------------------------------------------------------------------------------


def job_environment(ticket: Ticket, workflow_run: str, *, acts: bool) -> dict[str, str]:
    """What a job or command sees of its budget, and what lets its MLflow runs be found again."""
    from mlflow_green.records import Unit
    from mlflow_green.tracking.context import run_context
    from mlflow_green.units import joules

    environ = {"GREEN_JOB": ticket.step.label, "GREEN_HOLD_ID": ticket.hold_id}
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


def run_command(
    settings: Settings, argv: Sequence[str], *, project: str | None, step: str | None, energy: str | None
) -> int:
    """Run one command as a metered step; its exit code, 76 when halted, 77 when refused.

    Without a hard budget only the spool is written, and the next command that opens the ledger posts it. Inside a
    step that is metered already the command is part of that step.

    Raises:
        GreenError: the policy is wrong, or a hard budget cannot be kept.
    """
    from mlflow_green.recorder import run_command as command
    from mlflow_green.recorder.late_hold import NoLedger

    def say(text: str) -> None:
        print(f"mlflow-green: {text}", file=sys.stderr, flush=True)  # noqa: T201 - it has no log of its own

    if settings.disabled or os.environ.get("GREEN_HOLD_ID"):
        return command.replace_process(argv, say)
    policy = load_policy_for(settings)
    clock, host, workflow_run = SystemClock(), platform.node(), uuid.uuid4().hex
    enforces = any(budget.mode == "hard" for budget in policy.budgets)
    ledger: SqlLedger | NoLedger = NoLedger()
    if enforces:
        ledger = open_ledger(settings, clock)
        recover_into(ledger, settings, clock, say)
    sampler = open_sampler(settings, clock)
    book = Book(
        project=project or policy.project,
        user=user_name(),
        host=host,
        site=site_of(policy),
        sampler_id=sampler.sampler_id if sampler.coordinated else None,
        power_watts_max=sampler.power_watts_max,
    )
    owner = this_process(host)
    spool: SpoolWriter | None = None
    try:
        spool = SpoolWriter(settings.spool_dir / f"{sampler.sampler_id}.jsonl")
        spool.append(session_line(owner, book, leaves_orphans=not enforces))
    except OSError as error:
        text = f"cannot write {settings.spool_dir}: {error.strerror}; make it writable or free space"
        if enforces:
            raise LedgerUnavailable(f"{text}. A hard budget cannot be kept without it") from None
        say(f"{text}. The command runs as usual, but what it uses is not recorded")
        spool = None
    name = step or Path(argv[0]).name
    spec = policy.steps.get(name, StepSpec())
    if energy is not None:
        spec = dataclasses.replace(spec, energy_microjoules=parse_energy_microjoules(energy))
    planner, answered = Planner(policy, book, workflow_run), threading.Event()
    recorder = Recorder(
        sampler=sampler,
        bookkeeper=Bookkeeper(ledger, planner, book, owner, clock, wake=answered.set, say=say),
        spool=spool,
        enforcer=planner if enforces else None,
        book=book,
        clock=clock,
        say=say,
        keeps_spool=not enforces,
    )
    code = command.run_command(
        recorder,
        Ticket(step=Step(workflow_run=workflow_run, name=name), spec=spec),
        argv,
        environment=lambda ticket: job_environment(ticket, workflow_run, acts=planner.acts),
        answered=answered,
        say=say,
    )
    if not recorder.ledger_is_busy:
        ledger.close()
    return code
