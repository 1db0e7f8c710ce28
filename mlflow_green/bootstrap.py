"""The composition root: the only place that picks implementations and wires them.

Everything heavy is imported inside the function that needs it: the Snakemake process never imports mlflow,
pandas, numpy, alembic or codecarbon.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlflow_green.clock import Clock, SystemClock, boot_id
from mlflow_green.errors import (
    AllowanceRefused,
    BudgetUnkept,
    GreenError,
    LedgerUnavailable,
    SettingsError,
    UnsupportedHost,
)
from mlflow_green.metering.supervise import owner_alive, this_process
from mlflow_green.recorder.bookkeeper import Bookkeeper
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.spool_session import (
    Origin,
    SpoolSession,
    node_folder,
    read_node_sessions,
    session_line,
    unposted_sessions,
)
from mlflow_green.recorder.ticket import Book, Ticket, bare_request, entry_of
from mlflow_green.records import (
    Balance,
    CpuClockName,
    Entry,
    HoldRequest,
    Mode,
    Outcome,
    Owner,
    Site,
    Step,
    StepSpec,
    Term,
)
from mlflow_green.session import NodeSession, Session, inside_metered_step, job_environment, meter_environment
from mlflow_green.settings import Settings, is_disabled, load_settings, secret
from mlflow_green.spool import SpoolWriter
from mlflow_green.units import parse_energy_microjoules

if TYPE_CHECKING:
    from mlflow_green.alerts.addresses import Address
    from mlflow_green.alerts.delivery import Sender
    from mlflow_green.alerts.standing import AlertBooks
    from mlflow_green.ledger.allowances import LimitKey
    from mlflow_green.ledger.ledger import PolicyBook
    from mlflow_green.ledger.sql import SqlLedger
    from mlflow_green.ledger.verify import Books
    from mlflow_green.metering.calibration import Comparison
    from mlflow_green.metering.handover import Handover
    from mlflow_green.metering.sampler import Sampler
    from mlflow_green.metering.slurm import JobReport
    from mlflow_green.policy.document import Policy
    from mlflow_green.policy.loosening import Counting
    from mlflow_green.recorder.placed import JobEnd
    from mlflow_green.recorder.placement import Placement
    from mlflow_green.recorder.planner import Planner
    from mlflow_green.recorder.process_meter import ProcessMeter
    from mlflow_green.recorder.recorder import Bookkeeping
    from mlflow_green.sensors.detect import Detection
    from mlflow_green.sensors.node_meter import NodeMeter
    from mlflow_green.sensors.sensor import Sensor
    from mlflow_green.tracking.child import TrackingChild

__all__ = ["NodeSession", "Session", "Ticket", "open_node_session", "open_session"]

_log = logging.getLogger(__name__)

# --- parts ----------------------------------------------------------------------------------------


def load_policy_for(settings: Settings) -> Policy:
    """The policy of the file that the settings found; without one, a policy that only observes.

    Raises:
        PolicyError: with every problem of the file.
    """
    from mlflow_green.emissions.intensity import cloud_intensity, known_countries
    from mlflow_green.emissions.intensity_series import read_series
    from mlflow_green.policy.document import default_policy, load_policy

    if settings.policy_path is None:
        return default_policy(_project_of(settings))
    folder = settings.policy_path.parent
    look_up = {"cloud": cloud_intensity, "intensity_series": lambda name: read_series(folder / name)}
    return load_policy(settings.policy_path, known_countries=known_countries(), look_up=look_up)


def _project_of(settings: Settings) -> str:
    """The project that pays where no policy names one: the folder."""
    return settings.state_dir.resolve().parent.name or "default"


def site_of(policy: Policy | None, settings: Settings, now: datetime) -> Site:
    """What turns joules into grams and money at the policy's site; no intensity for an unknown place.

    Raises:
        IntensityUnknown: the site's file of intensities cannot be read any more.
    """
    if policy is None:
        return Site()
    from mlflow_green.emissions.intensity import cloud_intensity, country_intensity
    from mlflow_green.emissions.intensity_series import read_series, series_intensity
    from mlflow_green.records import Embodied, Intensity

    site = policy.site
    intensity = None
    if site.intensity_series is not None and settings.policy_path is not None:
        series = read_series(settings.policy_path.parent / site.intensity_series)
        intensity = series_intensity(series, site.source or site.intensity_series, now)
    elif site.carbon_intensity_g_per_kwh is not None:
        stated = site.carbon_intensity_g_per_kwh
        intensity = Intensity(
            g_per_kwh=stated, g_per_kwh_high=stated, source=site.source or "stated in green.yaml without a source"
        )
    elif site.country is not None:
        intensity = country_intensity(site.country)
    elif site.cloud is not None:
        intensity = cloud_intensity(site.cloud)
    embodied = None
    if site.embodied is not None:
        embodied = Embodied(
            micrograms_co2e=site.embodied.carbon_micrograms,
            lifetime_seconds=site.embodied.lifetime_seconds,
            source=site.embodied.source,
            share=site.embodied.share,
        )
    return Site(
        intensity=intensity,
        pue=site.pue,
        node_overhead=site.node_overhead,
        price_per_kwh=site.price.per_kwh if site.price else None,
        currency=site.price.currency if site.price else None,
        embodied=embodied,
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

    return detect_sensors(
        settings.powercap_root,
        Path("/proc"),
        prefers_psys=settings.rapl_prefers_psys,
        memory_watts_per_gib=settings.memory_watts_per_gib,
    )


def rapl_help(settings: Settings) -> tuple[str, ...]:
    """Ways to open RAPL's counters where they are closed, each with its commands; none where nothing is closed."""
    from mlflow_green.sensors.rapl import rapl_access_help

    return rapl_access_help(settings.powercap_root)


def host_name(environ: Mapping[str, str] = os.environ) -> str:
    """This machine, by the name that Slurm gives it where Slurm runs the job."""
    return environ.get("SLURMD_NODENAME") or platform.node()


def _lock_path(spool_dir: Path) -> Path:
    """Where all meters of this host and user meet whose spools are posted to the same ledger. Raises ``OSError``."""
    scope = hashlib.sha256(str(spool_dir.resolve()).encode()).hexdigest()[:16]
    return runtime_dir() / f"sampler-{scope}" / "lock"


def open_sampler(settings: Settings, spool_dir: Path, clock: Clock, *, may_lead: bool = True) -> Sampler:
    """The sampler that all meters of this host and user share whose spools are posted to the same ledger."""
    from mlflow_green.metering.sampler import Sampler

    try:
        lock_path: Path | None = _lock_path(spool_dir)
    except OSError:
        lock_path = None
    return Sampler(
        detect(settings).sensors,
        clock=clock,
        host=host_name(),
        boot_id=boot_id(),
        lock_path=lock_path,
        may_lead=may_lead,
    )


def open_handover(settings: Settings, sampler: Sampler) -> Handover | None:
    """What tells the keeper of the steps that run; ``None`` where it is switched off, or could not go on for them."""
    from mlflow_green.metering.handover import Handover
    from mlflow_green.recorder.recorder import SAMPLING_PERIOD_SECONDS

    if not settings.sampler_process or not sampler.is_shared:
        return None
    return Handover(
        _lock_path(settings.spool_dir),
        powercap_root=settings.powercap_root,
        host=host_name(),
        period_seconds=SAMPLING_PERIOD_SECONDS,
        rapl_prefers_psys=settings.rapl_prefers_psys,
        memory_watts_per_gib=settings.memory_watts_per_gib,
    )


def open_ledger(settings: Settings, clock: Clock) -> SqlLedger:
    """The ledger, without looking at what crashed runs left behind."""
    from mlflow_green.ledger.sql import open_ledger as open_sql

    return open_sql(settings.ledger_url, mountinfo_path=settings.mountinfo_path, clock=clock)


def open_reader(settings: Settings, say: Callable[[str], None] = lambda _text: None) -> SqlLedger:
    """The ledger, after what dead meters left in their spools has been posted and their holds closed."""
    return _open_recovered(settings, SystemClock(), say)


def _open_recovered(settings: Settings, clock: Clock, say: Callable[[str], None]) -> SqlLedger:
    ledger = open_ledger(settings, clock)
    try:
        recover_into(ledger, settings, clock, say)
    except BaseException:
        ledger.close()
        raise
    return ledger


def unused_balances(settings: Settings, used: Sequence[Balance], books: PolicyBook | None) -> tuple[Balance, ...]:
    """What counts now and nothing was spent of yet; a budget of each workflow starts with the workflow."""
    from mlflow_green.policy.terms import terms

    policy = load_policy_for(settings)
    if books is not None:
        policy = policy_as_agreed(books, policy, SystemClock())
    known = {balance.term.key for balance in used}
    now = terms(
        policy, project=policy.project, user=user_name(), org=None, now=SystemClock().now(), workflow_run="next"
    )
    return tuple(Balance(term=term, spent=0, held=0) for term in now if term.key not in known)


def unknown_to_policy(
    settings: Settings, balances: Sequence[Balance], approved: Collection[LimitKey]
) -> tuple[Balance, ...]:
    """The balances whose budget the policy does not have: it had it, or another policy in this ledger has.

    One of another project that is not among the ``approved`` limits any more is of this one's earlier name.
    """
    from mlflow_green.ledger.allowances import limit_key
    from mlflow_green.policy.terms import account_labels

    policy = load_policy_for(settings)
    names = {budget.name for budget in policy.budgets}

    def is_known(term: Term) -> bool:
        is_ours = account_labels(term.account).get("project", policy.project) == policy.project
        return term.budget in names and (is_ours or limit_key(term) in approved)

    return tuple(balance for balance in balances if not is_known(balance.term))


def recover_into(ledger: SqlLedger, settings: Settings, clock: Clock, say: Callable[[str], None]) -> None:
    from mlflow_green.recorder.recovery import recover

    recover(ledger, settings.spool_dir, host=platform.node(), clock=clock, say=say, job_ends=slurm_job_ends)


def slurm_job_ends(job_ids: Collection[str]) -> Mapping[str, JobEnd | None]:
    """How these Slurm jobs ended, ``None`` for one that has not; without those that Slurm cannot speak of."""
    from mlflow_green.metering.slurm import JobState, job_reports

    known = {id_: report for id_, report in job_reports(job_ids).items() if report.state is not JobState.UNKNOWN}
    return {id_: _job_end(report) for id_, report in known.items()}


def _job_end(report: JobReport) -> JobEnd | None:
    from mlflow_green.recorder.placed import JobEnd

    if report.ended_at is None:
        return None
    ran = report.ended_at - report.started_at if report.started_at else None
    failed_after = None if report.slurm_state == "COMPLETED" else ran
    return JobEnd(at=report.ended_at, started=report.started_at is not None, failed_after=failed_after)


def verify_books(settings: Settings, books: Books) -> tuple[str, ...]:
    """One sentence for each thing that does not close. What is still in a spool has not been posted."""
    from mlflow_green.ledger.verify import verify

    spools = unposted_sessions(settings.spool_dir)
    samplers = {session.book.sampler_id for session in spools if session.book.sampler_id}
    # A dead process answers for what it handed to a batch system until that is over.
    answering = {session.owner for session in spools if session.placed}
    host = platform.node()
    return verify(books, lambda owner: owner in answering or owner_alive(owner, host), samplers)


def sync(settings: Settings) -> int:
    """Write to MLflow what was not written yet, of all workflow executions; the number of rows still left."""
    ledger = open_reader(settings)
    try:
        if ledger.count("mlflow"):
            policy = load_policy_for(settings)
            arguments = ["--mountinfo", str(settings.mountinfo_path), "--once"]
            arguments += ["--workflow-run", "", "--project", policy.project, "--name", policy.project]
            subprocess.run(
                [sys.executable, "-P", "-m", "mlflow_green.tracking.sink", *arguments, "--jobs", policy.tracking.jobs],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "MLFLOW_GREEN_LEDGER": settings.ledger_url},
                check=False,
            )
        return ledger.count("mlflow")
    finally:
        ledger.close()


def open_alerts(settings: Settings, books: AlertBooks, environ: Mapping[str, str] = os.environ) -> Sender:
    """What sends the alerts of these books over the channels of the policy; the books stay the caller's to close.

    Secrets are read from ``environ``.

    Raises:
        PolicyError: with every problem of the file.
    """
    from mlflow_green.alerts.addresses import Carriers
    from mlflow_green.alerts.delivery import Sender
    from mlflow_green.ledger.shared_clock import SharedClock

    clock = SystemClock()
    policy = policy_as_agreed(books, load_policy_for(settings), clock)
    carriers = Carriers(policy.channels, settings.smtp, environ, clock)
    return Sender(books, policy, carriers, SharedClock(books, clock))


def lacks_of_channels(settings: Settings, policy: Policy, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What keeps channels of the policy from working here and now, a sentence each."""
    from mlflow_green.alerts.addresses import lacks

    found = [(name, lack) for name, each in policy.channels.items() for lack in lacks(each, settings.smtp, environ)]
    return tuple(f"channel {name}: {lack}" for name, lack in found)


def try_channel(
    settings: Settings, name: str, environ: Mapping[str, str] = os.environ
) -> Iterator[tuple[Address, str | None]]:
    """Send a test to each address of a channel of the policy; why it was not taken, ``None`` where it was.

    Raises:
        KeyError: the policy has no such channel.
    """
    from mlflow_green.alerts.addresses import Carriers
    from mlflow_green.alerts.trial import try_channel as tried

    policy, clock = load_policy_for(settings), SystemClock()
    carriers = Carriers(policy.channels, settings.smtp, environ, clock)
    return tried(carriers, name, policy.channels[name], clock.now())


def user_name() -> str:
    """The name of the real uid, never ``$USER``, which anybody can set."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# --- the node's own meter ---------------------------------------------------------------------------


def open_node_meter(settings: Settings, kind: str | None = None, environ: Mapping[str, str] = os.environ) -> NodeMeter:
    """The BMC of this node, by ``redfish`` or ``ipmi``; as it is set where ``kind`` is ``None``.

    Raises:
        GreenError: there is none, or it does not let us in.
    """
    from urllib.parse import urlsplit

    from mlflow_green.sensors.ipmi import IpmiMeter
    from mlflow_green.sensors.redfish import RedfishMeter

    bmc, password = settings.bmc, None
    if bmc.password is not None:
        password = secret("MLFLOW_GREEN_BMC_PASSWORD", bmc.password, environ)
    if (kind or ("redfish" if bmc.address else "ipmi")) == "redfish":
        if bmc.address is None:
            raise SettingsError("no BMC is set; set MLFLOW_GREEN_BMC to its address, e.g. https://bmc7.example")
        return RedfishMeter(bmc.address, user=bmc.user, password=password, certificate=bmc.certificate)
    if bmc.address is None:
        return IpmiMeter()
    host = urlsplit(bmc.address if "//" in bmc.address else f"//{bmc.address}")
    port = None if host.scheme.startswith("http") else host.port  # the port of a web address is not that of IPMI
    return IpmiMeter(host.hostname, port=port, user=bmc.user, password=password)


def compare_with_node(
    settings: Settings,
    meter: NodeMeter | None,
    *,
    seconds: float,
    start_load: Callable[[float], Callable[[], None]] | None,
    say: Callable[[str], None],
    sensors: Sequence[Sensor] | None = None,
    clock: Clock | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Comparison:
    """Watch this node's components and its meter side by side. The sampler is one of its own: it shares nothing out.

    Raises:
        GreenError: no component can be metered, or the node's meter is gone for good.
    """
    from mlflow_green.metering.comparison import compare
    from mlflow_green.metering.sampler import Sampler

    clock = clock or SystemClock()
    sensors = detect(settings).sensors if sensors is None else sensors
    sampler = Sampler(sensors, clock=clock, host=host_name(), boot_id=boot_id(), lock_path=None)
    try:
        _check_meter(sampler)
        return compare(sampler, meter, seconds=seconds, clock=clock, pause=pause, say=say, start_load=start_load)
    finally:
        sampler.close()
        for note in sampler.notes:
            say(note)


def load_every_core(seconds: float) -> Callable[[], None]:
    """Keep the cores that this process may use busy for at most so long; call what it returns to stop."""
    from mlflow_green.metering.comparison import busy_cores

    return busy_cores(len(os.sched_getaffinity(0)), seconds)


def cpu_clock_here(environ: Mapping[str, str] = os.environ) -> CpuClockName:
    """By which clock the CPU time of a job would be taken if it started here and now."""
    from mlflow_green.metering.cpu_clock import open_clock

    clock = open_clock(own_cgroup="SLURM_JOB_ID" in environ)
    try:
        return CpuClockName.WAIT4 if clock.name is CpuClockName.POLLING else clock.name  # polled until it is reaped
    finally:
        clock.close()


# --- one Snakemake execution ----------------------------------------------------------------------


def open_session(
    *,
    name: str,
    policy: str | None,
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
    if inside_metered_step(environ):
        say("this Snakemake runs inside a metered step, which pays for all of it")
        return None
    edited = counts = load_policy_for(settings)
    with ExitStack() as opened:
        try:
            if host_problem and (is_hard(counts) or not _may_know_hard(settings)):
                raise UnsupportedHost(host_problem)  # noqa: TRY301 - one place decides what a missing part means
            clock = SystemClock()
            ledger = _open_recovered(settings, clock, say)
            opened.callback(ledger.close)
            counts = agreed_policy(ledger, counts, counts.project, clock, say, is_own=settings.has_own_ledger)
            if host_problem:
                raise UnsupportedHost(host_problem)  # noqa: TRY301
            session = _open(settings, counts, ledger, name=name, wake=wake, say=say)
            opened.pop_all()  # from here on it is the session's to close
        except AllowanceRefused:
            raise
        except Exception as error:
            if is_hard(counts):
                text = f"{error}. A hard budget cannot be kept without it, so nothing was started"
                raise type(error)(text) if isinstance(error, GreenError) else LedgerUnavailable(text) from error
            if isinstance(error, LedgerUnavailable):
                _without_ledger(counts, error)
            if not isinstance(error, GreenError | OSError):
                _log.exception("mlflow-green met an unexpected error")
            not_known = f". {_NOT_KNOWN}" if isinstance(error, LedgerUnavailable) and counts is edited else ""
            say(f"{error}{not_known}. Jobs run as usual, but nothing is metered in this run")
            return None
        return session


# --- the policy that counts -------------------------------------------------------------------------


def open_counting(
    settings: Settings, policy: Policy | None, project: str | None, clock: Clock, say: Callable[[str], None]
) -> tuple[Policy | None, SqlLedger | None]:
    """The policy that counts for what runs alone, and the ledger if a budget of it is hard; else it stays closed.

    What the ledger knows as applied counts, whatever green.yaml says meanwhile. Where there is no ledger yet, none is
    made for that.

    Raises:
        AllowanceRefused: green.yaml dropped a hard budget, and nobody applied that.
        LedgerUnavailable: there is a hard budget, or one with 'ledger_down', and no ledger.
        BudgetUnkept: there is a hard budget that only the ledger knows of, and it cannot be kept.
    """
    edited_is_hard = is_hard(policy)
    if not edited_is_hard and not _may_know_hard(settings):
        return policy, None
    asked = policy or load_policy_for(settings)
    payer, is_own = project or asked.project, settings.has_own_ledger
    with ExitStack() as opened:
        try:
            ledger = open_ledger(settings, clock)
            opened.callback(ledger.close)
            if not edited_is_hard and not _knows_hard(_counting(ledger, asked, payer, clock, is_own=is_own)):
                return policy, None
        except LedgerUnavailable as error:
            if edited_is_hard:
                raise
            _without_ledger(asked, error)
            say(f"{error}. {_NOT_KNOWN}")
            return policy, None
        with _kept(is_known=not edited_is_hard):
            recover_into(ledger, settings, clock, say)
            counts = agreed_policy(ledger, asked, payer, clock, say, is_own=is_own)
        opened.pop_all()
        return counts, ledger


_NOT_KNOWN = "Whether a hard budget was applied there is not known, and green.yaml has none"


def _may_know_hard(settings: Settings) -> bool:
    """Whether the ledger may know a hard budget; opens and makes nothing."""
    from mlflow_green.ledger.glance import may_know_hard

    return may_know_hard(settings.ledger_url)


def _knows_hard(found: Counting) -> bool:
    """Whether a hard budget counts, also one that the policy dropped."""
    return is_hard(found.policy) or any(limit.mode is Mode.HARD for limit in found.dropped)


def _without_ledger(policy: Policy, error: LedgerUnavailable) -> None:
    """Raise ``LedgerUnavailable`` if a budget lets nothing start without the ledger."""
    if any(each.without_ledger != "admit" for each in policy.budgets):
        text = f"{error}. 'ledger_down' in green.yaml lets no step start without it, so nothing was started"
        raise LedgerUnavailable(text) from error


@contextmanager
def _kept(*, is_known: bool) -> Iterator[None]:
    """Where it ``is_known`` that a hard budget counts, nothing goes on without what fails. Raises ``BudgetUnkept``."""
    try:
        yield
    except (AllowanceRefused, BudgetUnkept):
        raise
    except Exception as error:
        if not is_known:
            raise
        raise BudgetUnkept(f"nothing was started, for a hard budget cannot be kept: {error}") from error


def agreed_policy(
    ledger: SqlLedger,
    policy: Policy,
    project: str,
    clock: Clock,
    say: Callable[[str], None],
    *,
    is_own: bool = False,
) -> Policy:
    """Keep the policy in the ledger, and say what of it does not count yet; with the budgets that count.

    In a ledger that ``is_own`` there is no other policy, so that every budget in it is one of this.

    Raises:
        AllowanceRefused: it dropped a hard budget, and nobody applied that.
    """
    from mlflow_green.records import PolicyVersion

    found = _counting(ledger, policy, project, clock, is_own=is_own)
    if policy.text:
        author = ledger.identity() or user_name()
        version = PolicyVersion(sha256=policy.sha256, text=policy.text, author=author, at=clock.now())
        ledger.record_policy(version, found.terms)
        found = _counting(ledger, policy, project, clock, is_own=is_own)
    for line in (*dropped_lines(found), *found.lines):
        say(line)
    return found.policy


def dropped_lines(found: Counting) -> tuple[str, ...]:
    """What to say of the limits that the policy dropped and nobody applied.

    Raises:
        AllowanceRefused: one of them is hard.
    """
    from mlflow_green.policy.raising import dropped_line

    for limit in found.dropped:
        if limit.mode is Mode.HARD:
            raise AllowanceRefused(
                f"{dropped_line(limit)}. A hard budget is not lifted so, and nothing was started: apply it, or put the"
                " budget back"
            )
    return tuple(map(dropped_line, found.dropped))


def policy_as_agreed(books: PolicyBook, policy: Policy, clock: Clock) -> Policy:
    """The policy with the budgets that a run would keep to, for what only looks: nothing is recorded or said."""
    return _counting(books, policy, policy.project, clock).policy


def policy_for_a_plan(books: PolicyBook, policy: Policy, clock: Clock, *, is_own: bool) -> Policy:
    """As ``policy_as_agreed``. Raises ``AllowanceRefused`` where a run would not start."""
    found = _counting(books, policy, policy.project, clock, is_own=is_own)
    dropped_lines(found)
    return found.policy


def _counting(books: PolicyBook, policy: Policy, project: str, clock: Clock, *, is_own: bool = False) -> Counting:
    """What of the policy counts for this user, by what the ledger knows as applied."""
    from mlflow_green.policy.loosening import counting

    approved = books.approved_limits()
    return counting(policy, approved, books.policies, project=project, user=user_name(), now=clock.now(), is_own=is_own)


def is_hard(policy: Policy | None) -> bool:
    """Whether any budget must be kept: then what cannot be enforced must not run."""
    return policy is not None and any(budget.mode == "hard" for budget in policy.budgets)


class Meter(NamedTuple):
    """What measures, and whose measurements they are."""

    sampler: Sampler
    book: Book
    owner: Owner


def open_meter(
    settings: Settings, policy: Policy | None, clock: Clock, project: str | None = None, *, may_lead: bool = True
) -> Meter:
    """The sampler of this process. One that may not lead has no budget to keep.

    Where no ``project`` is named the policy's pays, and without a policy the folder's.

    Raises:
        UnsupportedHost: there is a hard budget, and nothing here can be metered or estimated.
        IntensityUnknown: the site's file of intensities cannot be read any more.
    """
    site = site_of(policy, settings, clock.now())
    sampler = open_sampler(settings, settings.spool_dir, clock, may_lead=may_lead)
    with ExitStack() as opened:
        opened.callback(sampler.close)  # one that is left open leads on, and never ticks
        if may_lead and is_hard(policy):
            _check_meter(sampler)
        payer = project or (policy.project if policy else _project_of(settings))
        book = _book(sampler, payer, user_name(), site)
        meter = Meter(sampler, book, this_process(platform.node(), settings.spool_dir))
        opened.pop_all()
        return meter


def book_without_meter(settings: Settings, policy: Policy, now: datetime) -> Book:
    """What a run here would have for a book, for one that measures nothing: no file is made.

    Raises:
        UnsupportedHost: there is a hard budget, and nothing here can be metered or estimated.
        IntensityUnknown: the site's file of intensities cannot be read any more.
    """
    from mlflow_green.metering.sampler import Sampler

    sampler = Sampler(
        detect(settings).sensors, clock=SystemClock(), host=host_name(), boot_id=boot_id(), lock_path=None
    )
    try:
        if is_hard(policy):
            _check_meter(sampler)
        return _book(sampler, policy.project, user_name(), site_of(policy, settings, now))
    finally:
        sampler.close()


def _book(sampler: Sampler, project: str, user: str, site: Site) -> Book:
    return Book(
        project=project,
        user=user,
        host=host_name(),
        site=site,
        sampler_id=sampler.sampler_id if sampler.coordinated else None,
        power_watts_max=sampler.power_watts_max,
        cores=os.cpu_count(),
    )


def _check_meter(sampler: Sampler) -> None:
    if not sampler.power_watts_max:
        raise UnsupportedHost("nothing can be metered or estimated on this machine; 'mlflow-green doctor' says why")


def open_spool(
    folder: Path,
    meter: Meter,
    *,
    leaves_orphans: bool = False,
    are_blocks: bool = False,
    origin: Origin | None = None,
) -> SpoolWriter:
    """The file that keeps what this meter reads. Raises ``OSError``."""
    spool = SpoolWriter(folder / f"{uuid.uuid4().hex}.jsonl")
    line = session_line(meter.owner, meter.book, leaves_orphans=leaves_orphans, are_blocks=are_blocks, origin=origin)
    spool.append(line)
    return spool


def _open(
    settings: Settings,
    policy: Policy,
    ledger: SqlLedger,
    *,
    name: str,
    wake: Callable[[], None],
    say: Callable[[str], None],
) -> Session:
    from mlflow_green.recorder.planner import Planner

    clock, workflow_run = SystemClock(), uuid.uuid4().hex
    with ExitStack() as opened:
        meter = open_meter(settings, policy, clock)
        opened.callback(meter.sampler.close)
        spool = open_spool(settings.spool_dir, meter)
        opened.callback(spool.close)
        planner = Planner(policy, meter.book, workflow_run)
        workflow: dict[str, object] = {
            "workflow_run": workflow_run,
            "project": policy.project,
            "name": name,
            "started_at": clock.now().isoformat(),
        }
        handover = open_handover(settings, meter.sampler)
        tracking = _start_tracking(settings, policy, ledger, workflow, wake=wake, say=say)
        opened.pop_all()  # from here on all of it is the session's to close
    bookkeeper = Bookkeeper(
        ledger,
        planner,
        meter.book,
        meter.owner,
        clock,
        wake=wake,
        say=say,
        ready=tracking.ready if tracking else lambda: True,
    )
    recorder = Recorder(
        sampler=meter.sampler,
        bookkeeper=bookkeeper,
        spool=spool,
        enforcer=planner if planner.enforces else None,
        book=meter.book,
        clock=clock,
        say=say,
        handover=handover,
        grace_seconds=planner.grace_seconds if planner.enforces else None,
    )
    recorder.watch_placed(settings.spool_dir, meter.owner, slurm_job_ends)
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
        owner=meter.owner,
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
    arguments = ["--mountinfo", str(settings.mountinfo_path)]
    arguments += ["--workflow-run", workflow_run, "--project", policy.project]
    arguments += ["--jobs", policy.tracking.jobs, "--name", str(workflow["name"])]
    return TrackingChild(settings.ledger_url, arguments, wake=wake, say=say)


# --- a node of a batch system -----------------------------------------------------------------------


def open_node_session(
    *, wake: Callable[[], None], say: Callable[[str], None], environ: MutableMapping[str, str] = os.environ
) -> NodeSession | None:
    """Open what meters the steps of this batch job; ``None`` when the main process sent nothing to meter.

    The ledger is not opened here: what is read goes to a spool file on the share, and a step is ended at its grant.

    Raises:
        GreenError: a hard budget cannot be kept here. Without one that is said, and the job runs unmetered.
    """
    from mlflow_green.recorder.placement import VARIABLE, Placement, is_enforced

    sent = environ.pop(VARIABLE, None)  # what runs inside this job was not sent
    if sent is None or is_disabled(environ):
        return None
    try:
        return _open_node(Placement.decoded(sent), wake=wake, say=say, environ=environ)
    except Exception as error:
        if is_enforced(sent):
            raise UnsupportedHost(f"{error}. A hard budget cannot be kept here, so the job is not run") from error
        if not isinstance(error, GreenError | OSError):
            _log.exception("mlflow-green met an unexpected error")
        say(f"{error}. The job runs as usual, but what it uses is not recorded")
        return None


def _open_node(
    placement: Placement, *, wake: Callable[[], None], say: Callable[[str], None], environ: Mapping[str, str]
) -> NodeSession:
    from mlflow_green.recorder.escrow import Escrow, GrantEnforcer

    clock, spool_dir = SystemClock(), Path(placement.spool_dir)
    folder = node_folder(spool_dir, placement.placement_id)
    if not folder.is_dir():
        raise UnsupportedHost(
            f"{folder}, which the main process made, is not on {host_name(environ)}; run the workflow on a file system"
            " that both share"
        )
    tickets = [step.ticket() for step in placement.steps]
    _take_off_earlier_use(tickets, read_node_sessions(folder), placement.site)
    settings, job_id = load_settings(Path.cwd(), environ), environ.get("SLURM_JOB_ID")
    origin = Origin(at=clock.now(), main=placement.main, placement_id=placement.placement_id, job_id=job_id)
    with ExitStack() as opened:
        sampler = open_sampler(settings, spool_dir, clock)
        opened.callback(sampler.close)
        if placement.enforces:
            _check_meter(sampler)
        book = _book(sampler, placement.project, placement.user, placement.site)
        meter = Meter(sampler, book, this_process(book.host, spool_dir))
        try:
            spool = open_spool(folder, meter, origin=origin)
        except OSError as error:
            text = f"cannot write {folder}: {error.strerror}; make it writable or free space"
            raise LedgerUnavailable(text) from error
        opened.pop_all()  # from here on both are the recorder's to close
    recorder = Recorder(
        sampler=sampler,
        bookkeeper=Escrow(wake),
        spool=spool,
        enforcer=GrantEnforcer(placement.steps, book, clock) if placement.enforces else None,
        book=book,
        clock=clock,
        say=say,
        keeps_spool=True,
    )
    recorder.start()
    return NodeSession(recorder, placement, tickets, say)


def is_placed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to a batch job that a main process sent with its grants."""
    from mlflow_green.recorder.placement import VARIABLE

    return VARIABLE in environ


def _take_off_earlier_use(tickets: Sequence[Ticket], earlier: Sequence[SpoolSession], site: Site) -> None:
    """A job that the batch system began again has what its earlier starts left of the grant."""
    from mlflow_green.emissions.operational import hold_amounts

    for ticket in tickets:
        totals = [usage.total for session in earlier if (usage := session.usages.get(ticket.hold_id))]
        used = hold_amounts(sum(total.microjoules for total in totals if total), site)
        ticket.granted = {unit: max(0, amount - used.get(unit, 0)) for unit, amount in ticket.granted.items()}


# --- what runs alone ----------------------------------------------------------------------------------


class _Books(NamedTuple):
    """Who answers and posts a step that asks alone. Without a ledger nobody is asked, and all is in the spool."""

    planner: Planner | None
    bookkeeper: Bookkeeping
    request: Callable[[Ticket, datetime], HoldRequest]
    answered: threading.Event


def _open_books(
    policy: Policy | None,
    ledger: SqlLedger | None,
    meter: Meter,
    workflow_run: str,
    clock: Clock,
    say: Callable[[str], None],
) -> _Books:
    """``policy`` is ``None`` without a policy file: what reads one takes longer to load than a command to start."""
    from mlflow_green.recorder.spool_only import SpoolOnly

    answered, bookkeeper = threading.Event(), SpoolOnly()
    if policy is None:
        return _Books(None, bookkeeper, lambda ticket, now: bare_request(ticket, meter.book, (), now), answered)
    from mlflow_green.recorder.planner import Planner

    planner = Planner(policy, meter.book, workflow_run)
    if ledger is None:
        return _Books(planner, bookkeeper, planner.bare_request, answered)
    posting = Bookkeeper(ledger, planner, meter.book, meter.owner, clock, wake=answered.set, say=say)
    return _Books(planner, posting, planner.bare_request, answered)


def _open_alone(
    settings: Settings,
    policy: Policy | None,
    clock: Clock,
    project: str | None,
    say: Callable[[str], None],
    *,
    are_blocks: bool = False,
) -> tuple[Meter, SpoolWriter | None]:
    """The meter and the spool of what runs alone; where the spool cannot be written only a hard budget stops that."""
    enforces, folder = is_hard(policy), settings.spool_dir
    with ExitStack() as opened:
        meter = open_meter(settings, policy, clock, project)
        opened.callback(meter.sampler.close)
        try:
            spool = open_spool(folder, meter, leaves_orphans=not enforces, are_blocks=are_blocks)
        except OSError as error:
            text = f"cannot write {folder}: {error.strerror}; make it writable or free space"
            if enforces:
                raise LedgerUnavailable(f"{text}. A hard budget cannot be kept without it") from None
            say(f"{text}. What runs goes on as usual, but what it uses is not recorded")
        else:
            opened.pop_all()
            return meter, spool
    # Others would follow it, and their windows be kept nowhere.
    return open_meter(settings, policy, clock, project, may_lead=False), None


# --- the blocks of one process ---------------------------------------------------------------------


def open_process_meter(
    settings: Settings, *, project: str | None, workflow_run: str, say: Callable[[str], None]
) -> ProcessMeter:
    """What meters the blocks of this process, which is one execution, ``workflow_run``, whatever it opens and closes.

    Without a hard budget only the spool is written, and the next command that opens the ledger posts it. Inside a
    step that is metered already nothing is written: all blocks are views of that step.

    Raises:
        GreenError: the policy is wrong, or a hard budget cannot be kept.
    """
    policy = load_policy_for(settings) if settings.policy_path else None
    clock, is_view = SystemClock(), inside_metered_step(os.environ)
    ledger: SqlLedger | None = None
    if not is_view:
        policy, ledger = open_counting(settings, policy, project, clock, say)
    with _kept(is_known=ledger is not None), ExitStack() as opened:
        if ledger is not None:
            opened.callback(ledger.close)
        spool: SpoolWriter | None = None
        if is_view:
            meter = open_meter(settings, policy, clock, project, may_lead=False)
        else:
            meter, spool = _open_alone(settings, policy, clock, project, say, are_blocks=True)
        opened.callback(meter.sampler.close)
        made = _process_meter(policy, ledger, meter, spool, workflow_run, clock, say, is_view=is_view)
        opened.pop_all()  # from here on all of it is the meter's to close
        return made


def _process_meter(
    policy: Policy | None,
    ledger: SqlLedger | None,
    meter: Meter,
    spool: SpoolWriter | None,
    workflow_run: str,
    clock: Clock,
    say: Callable[[str], None],
    *,
    is_view: bool,
) -> ProcessMeter:
    from mlflow_green.metering.cpu_clock import open_process_clock
    from mlflow_green.recorder.admission import Freely, UnderBudget
    from mlflow_green.recorder.process_meter import ProcessMeter

    books = _open_books(policy, ledger, meter, workflow_run, clock, say)
    recorder = Recorder(
        sampler=meter.sampler,
        bookkeeper=books.bookkeeper,
        spool=spool,
        enforcer=books.planner if ledger else None,
        book=meter.book,
        clock=clock,
        say=say,
        keeps_spool=ledger is None,
        halts=False,
    )
    recorder.start()
    asked = UnderBudget(books.request, clock, recorder, books.answered) if ledger else Freely(books.request, clock)
    return ProcessMeter(
        recorder,
        open_process_clock(),
        meter.book,
        clock,
        admission=None if is_view else asked,
        specs=policy.steps if policy else {},
        environment=meter_environment,
        close_ledger=ledger.close if ledger else lambda: None,
    )


# --- one command ----------------------------------------------------------------------------------


class Ran(NamedTuple):
    """How a command ended: its exit code, 76 when halted, 77 when refused; and its entry, if it was decided upon."""

    exit_code: int
    entry: Entry | None


def run_command(
    settings: Settings, argv: Sequence[str], *, project: str | None, step: str | None, energy: str | None
) -> Ran:
    """Run one command as a metered step.

    Without a hard budget only the spool is written, and the next command that opens the ledger posts it. Inside a
    step that is metered already the command is part of that step.

    Raises:
        GreenError: the policy is wrong, or a hard budget cannot be kept.
    """
    from mlflow_green.recorder import run_command as command
    from mlflow_green.recorder.admission import Freely

    def say(text: str) -> None:
        print(f"mlflow-green: {text}", file=sys.stderr, flush=True)  # noqa: T201 - it has no log of its own

    if settings.disabled or inside_metered_step(os.environ):
        return Ran(command.replace_process(argv, say), None)
    policy = load_policy_for(settings) if settings.policy_path else None
    clock, workflow_run = SystemClock(), uuid.uuid4().hex
    name = step or Path(argv[0]).name
    spec = policy.steps.get(name, StepSpec()) if policy else StepSpec()
    if energy is not None:
        spec = dataclasses.replace(spec, energy_microjoules=parse_energy_microjoules(energy))
    ticket = Ticket(step=Step(workflow_run=workflow_run, name=name), spec=spec)
    with ExitStack() as opened:
        policy, ledger = open_counting(settings, policy, project, clock, say)
        if ledger is not None:
            opened.callback(ledger.close)
        meter, spool = _open_alone(settings, policy, clock, project, say)
        opened.callback(meter.sampler.close)
        books = _open_books(policy, ledger, meter, workflow_run, clock, say)
        handover = open_handover(settings, meter.sampler)
        opened.pop_all()  # from here on the recorder closes the meter, and what follows the ledger
    if ledger is None:
        Freely(books.request, clock).admit(ticket)
    recorder = Recorder(
        sampler=meter.sampler,
        bookkeeper=books.bookkeeper,
        spool=spool,
        enforcer=books.planner if ledger else None,
        book=meter.book,
        clock=clock,
        say=say,
        keeps_spool=ledger is None,
        handover=handover,
        grace_seconds=books.planner.grace_seconds if books.planner and ledger else None,
    )
    acts = books.planner is not None and books.planner.acts
    tiers = policy.tier_environments if policy else {}
    code = command.run_command(
        recorder,
        ticket,
        argv,
        environment=lambda ticket: job_environment(ticket, workflow_run, acts=acts, tier_environments=tiers),
        answered=books.answered,
        say=say,
    )
    if ledger and not recorder.ledger_is_busy:
        ledger.close()
    outcome = Outcome.REFUSED if ticket.refused else ticket.outcome
    return Ran(code, entry_of(ticket, outcome, meter.book, clock.now()) if outcome else None)
