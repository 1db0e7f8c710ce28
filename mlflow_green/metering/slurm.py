"""What Slurm says of its jobs: their states, and the energy that its own counters saw. Asked by its commands.

Job ids are those that people see (``12``, ``12_3`` in an array, ``12+1`` in a heterogeneous job) or the plain number
that a job finds as ``SLURM_JOB_ID``. ``sacct`` lags by some seconds; ``squeue`` forgets a job some minutes after its
end (``MinJobAge``).
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise

from mlflow_green.errors import SensorError, SensorRetry, SensorUnavailable
from mlflow_green.units import microjoules

_log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
_JOBS_MAX = 1_000  # in one question, far below the longest command line
_JOB_ID = re.compile(r"\d+(_\d+|\+\d+)?")
_SACCT_COLUMNS = "JobID,JobIDRaw,State,Start,End,NodeList,AllocCPUS,ConsumedEnergyRaw"
_SQUEUE_COLUMNS = "%i|%A|%T|%S|%e|%N||"  # the same without the last two
_NO_NODES = {"", "(null)", "None", "None assigned"}
# Slurm's marks for "no value" and "infinite" (slurm.h: NO_VAL, INFINITE, NO_VAL64, INFINITE64) reach its output.
_NO_JOULES = {0, 2**32 - 2, 2**32 - 1, 2**64 - 2, 2**64 - 1}


class JobState(StrEnum):
    """Where a job is in its life; ``UNKNOWN`` where nobody knows the job, or Slurm does not answer."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


# slurm.h, JOB_STATE_BASE and its flags (Slurm 25.05).
_STATES = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
        JobState.PENDING,
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"), JobState.RUNNING
    ),
    **dict.fromkeys(
        ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "EXPIRED", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"),
        JobState.ENDED,
    ),
    **dict.fromkeys(("OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"), JobState.ENDED),
}
# Slurm may put such a job back into the queue; sacct tells of it ten seconds and more after squeue.
_DOUBTFUL = {"", "BOOT_FAIL", "NODE_FAIL", "PREEMPTED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """A job as Slurm sees it; of a job that was requeued, its last start.

    ``started_at`` is ``None`` while it has no node and for a job that never had one; ``ended_at`` until it has ended.
    ``slurm_state`` is Slurm's own word (``NODE_FAIL``), empty where nobody knows the job.
    """

    job_id: str
    state: JobState = JobState.UNKNOWN
    started_at: datetime | None = None
    ended_at: datetime | None = None
    slurm_state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmEnergy:
    """The energy of a job's nodes during its steps, by Slurm's counters; ``None`` where Slurm has no number.

    It is the energy of whole nodes: the job's own only if it ``is_exclusive``, that is, had all their CPUs. ``note``
    says in a sentence why it is missing, or what else is in it; empty if it can be compared with the job's own meter.
    """

    job_id: str
    energy_microjoules: int | None
    is_exclusive: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of sacct or squeue: a job, or one of its steps. ``step`` is ``0``, ``batch`` ..., empty for the job."""

    job_id: str
    raw_id: str
    step: str
    slurm_state: str
    started_at: datetime | None
    ended_at: datetime | None
    nodes: str
    cpus: int | None
    energy_joules: int | None


def job_reports(job_ids: Collection[str], *, timeout_seconds: float = TIMEOUT_SECONDS) -> Mapping[str, JobReport]:
    """A report for each of the jobs; never raises. One that Slurm cannot speak of now is ``UNKNOWN``: ask again.

    For some seconds after a change the report can still be the one before, even after the newer one was seen.

    Asks sacct once for all jobs, and squeue for those that sacct does not know or that may be requeued; each for at
    most ``timeout_seconds``.
    """
    reports = {job_id: JobReport(job_id=job_id) for job_id in job_ids}
    for ask in (_ask_accounting, _ask_controller):
        doubtful = {job_id for job_id in _well_formed(job_ids) if reports[job_id].slurm_state in _DOUBTFUL}
        try:
            reports |= report_jobs(doubtful, ask(doubtful, timeout_seconds))
        except SensorError as error:
            _log.info("jobs of Slurm are unknown: %s", error)
            reports |= {job_id: JobReport(job_id=job_id) for job_id in doubtful}
    return reports


def job_energy(job_ids: Collection[str], *, timeout_seconds: float = TIMEOUT_SECONDS) -> Mapping[str, SlurmEnergy]:
    """The energy of each of the jobs, which should have ended some seconds ago; never raises."""
    asked = _well_formed(job_ids)
    note = "this is not the id of a Slurm job"
    energies: dict[str, SlurmEnergy] = {}
    try:
        rows = _by_job(asked, _ask_accounting(asked, timeout_seconds, with_steps=True)) if asked else {}
        has_plugin = has_energy_plugin(timeout_seconds=timeout_seconds) if rows else False
        places = {row.nodes for lines in rows.values() for row in lines if not row.step}
        cpus = {nodes: _node_cpus(nodes, timeout_seconds) for nodes in places - _NO_NODES}
        energies = {job_id: energy_of(job_id, rows.get(job_id, ()), cpus, has_plugin=has_plugin) for job_id in asked}
    except SensorError as error:
        note = str(error)
    unknown = {
        job_id: SlurmEnergy(job_id=job_id, energy_microjoules=None, is_exclusive=False, note=note) for job_id in job_ids
    }
    return unknown | energies


def has_energy_plugin(*, timeout_seconds: float = TIMEOUT_SECONDS) -> bool:
    """Whether Slurm reads energy counters on its nodes (``AcctGatherEnergyType``).

    Raises:
        SensorError: Slurm does not answer.
    """
    config = _ask("scontrol", "show", "config", timeout_seconds=timeout_seconds)
    found = re.search(r"^AcctGatherEnergyType\s*=\s*(\S+)", config, re.MULTILINE)
    return found is not None and found[1].removeprefix("acct_gather_energy/") not in {"none", "(null)"}


# --- what the answers mean, without asking ----------------------------------------------------------


def read_rows(text: str) -> list[Row]:
    """The lines of ``sacct -n -P`` or ``squeue -h`` with our columns and times in seconds since 1970; no others."""
    return [_row(*fields) for line in text.splitlines() if len(fields := line.split("|")) == 8]  # noqa: PLR2004


def report_jobs(job_ids: Collection[str], rows: Iterable[Row]) -> dict[str, JobReport]:
    """A report for each of the jobs that the rows tell of."""
    jobs = (row for row in rows if not row.step)
    return {job_id: _report(job_id, lines[-1]) for job_id, lines in _by_job(job_ids, jobs).items()}


def energy_of(
    job_id: str, rows: Sequence[Row], node_cpus: Mapping[str, int | None], *, has_plugin: bool
) -> SlurmEnergy:
    """The energy of one job by its rows; ``node_cpus`` are the CPUs of each list of nodes, together.

    The numbered steps count; ``.batch`` and ``.extern`` ran at the same time on the same nodes, so what they say is in
    it already. A job without ``srun`` has only ``.batch``.
    """
    job = next((row for row in rows if not row.step), None)
    numbered = [row for row in rows if row.step[:1].isdigit()]
    counted = numbered or [row for row in rows if row.step == "batch"]
    seen = [row.energy_joules for row in counted if row.energy_joules is not None]
    cpus = node_cpus.get(job.nodes) if job else None
    is_exclusive = job is not None and cpus is not None and (job.cpus or 0) >= cpus
    energy_microjoules = None
    if job is None:
        notes = ["Slurm's accounting does not know the job; it lags by some seconds"]
    elif not has_plugin:
        notes = ["Slurm reads no energy counters here (AcctGatherEnergyType is none)"]
    elif not seen:
        notes = ["the job was too short for Slurm to see its energy"]
    else:
        energy_microjoules = microjoules(sum(seen))
        findings = (
            (not is_exclusive, "it did not have all CPUs of its nodes, and what others used there is in it"),
            (not numbered, "it has no step made by srun, so this is the energy of its batch script's node"),
            (len(seen) < len(counted), f"{len(counted) - len(seen)} of its steps were too short to be seen"),
            (_overlap(numbered), "its steps ran side by side, and their nodes' energy may be in it more than once"),
        )
        notes = [note for is_so, note in findings if is_so]
    return SlurmEnergy(
        job_id=job_id, energy_microjoules=energy_microjoules, is_exclusive=is_exclusive, note="; ".join(notes)
    )


def _row(name: str, raw_name: str, state: str, start: str, end: str, nodes: str, cpus: str, energy_joules: str) -> Row:
    job_id, _, step = name.partition(".")
    joules = int(energy_joules) if energy_joules.isdecimal() else 0
    return Row(
        job_id=job_id,
        raw_id=raw_name.partition(".")[0],
        step=step,
        slurm_state=(state.split() or [""])[0].rstrip("+"),  # "CANCELLED by 1000"
        started_at=_moment(start),
        ended_at=_moment(end),
        nodes=nodes,
        cpus=int(cpus) if cpus.isdecimal() else None,
        energy_joules=None if joules in _NO_JOULES else joules,
    )


def _moment(text: str) -> datetime | None:
    """Seconds since 1970; ``Unknown``, ``None`` and ``N/A`` are ``None``."""
    return datetime.fromtimestamp(int(text), UTC) if re.fullmatch(r"[0-9]{1,11}", text) else None


def _report(job_id: str, row: Row) -> JobReport:
    state = _STATES.get(row.slurm_state, JobState.UNKNOWN)
    # A pending job shows when it may start, a running one when it must end, one that never ran when it was cancelled.
    has_run = state in {JobState.RUNNING, JobState.ENDED} and row.nodes not in _NO_NODES
    return JobReport(
        job_id=job_id,
        state=state,
        started_at=row.started_at if has_run else None,
        ended_at=row.ended_at if state is JobState.ENDED else None,
        slurm_state=row.slurm_state,
    )


def _by_job(job_ids: Collection[str], rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each job that has some, in Slurm's order: its last start last."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        names = {row.raw_id, row.job_id} if "[" not in row.job_id else {row.raw_id, *_elements(row.job_id, job_ids)}
        for name in names.intersection(job_ids):
            found.setdefault(name, []).append(row)
    return found


def _elements(name: str, job_ids: Collection[str]) -> Iterator[str]:
    """Those of the jobs that ``12_[1-3,7,10-20:5%2]``, the waiting elements of an array, stands for."""
    array, _, listed = name.partition("_")
    spans = re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", listed.partition("%")[0])
    ranges = [range(int(first), int(last or first) + 1, int(step or 1) or 1) for first, last, step in spans]
    for job_id in job_ids:
        of_array, _, index = job_id.partition("_")
        if of_array == array and index.isdecimal() and any(int(index) in each for each in ranges):
            yield job_id


def _overlap(steps: Iterable[Row]) -> bool:
    times = sorted((row.started_at, row.ended_at) for row in steps if row.started_at and row.ended_at)
    return any(second[0] < first[1] for first, second in pairwise(times))


# --- asking -----------------------------------------------------------------------------------------


def _well_formed(job_ids: Iterable[str]) -> set[str]:
    """One bad id makes Slurm refuse the whole question."""
    return {job_id for job_id in job_ids if _JOB_ID.fullmatch(job_id)}


def _ask_accounting(job_ids: Collection[str], timeout_seconds: float, *, with_steps: bool = False) -> list[Row]:
    """The rows of the jobs in the accounting. Raises ``SensorError`` where there is none or it does not answer."""
    options = ("-n", "-P", f"--format={_SACCT_COLUMNS}", *(() if with_steps else ("-X",)))
    return _ask_in_batches(job_ids, lambda ids: _ask("sacct", *options, "-j", ids, timeout_seconds=timeout_seconds))


def _ask_controller(job_ids: Collection[str], timeout_seconds: float) -> list[Row]:
    """The rows of the jobs in the controller's memory. Raises ``SensorError`` where it does not answer."""

    def ask(ids: str) -> str:
        try:
            return _ask(
                "squeue", "-h", "-r", "-t", "all", "-o", _SQUEUE_COLUMNS, "-j", ids, timeout_seconds=timeout_seconds
            )
        except SensorRetry as error:
            if "Invalid job id" in str(error):  # how squeue says that it does not know a single job
                return ""
            raise

    return _ask_in_batches(job_ids, ask)


def _ask_in_batches(job_ids: Collection[str], ask: Callable[[str], str]) -> list[Row]:
    ids = sorted(job_ids)
    batches = [",".join(ids[first : first + _JOBS_MAX]) for first in range(0, len(ids), _JOBS_MAX)]
    return [row for batch in batches for row in read_rows(ask(batch))]


def _node_cpus(nodes: str, timeout_seconds: float) -> int | None:
    """CPUs that jobs can get on these nodes, together; ``None`` where Slurm does not know a node any more."""
    try:
        text = _ask("scontrol", "show", "node", "-o", nodes, timeout_seconds=timeout_seconds)
    except SensorRetry:
        return None
    # CPUEfctv leaves out what is kept for the system; older versions do not say it.
    counts = re.findall(r"\bCPUEfctv=(\d+)", text) or re.findall(r"\bCPUTot=(\d+)", text)
    return sum(map(int, counts)) or None


def _ask(program: str, *arguments: str, timeout_seconds: float) -> str:
    """The standard output of one of Slurm's commands.

    Raises:
        SensorUnavailable: the command is not there.
        SensorRetry: it failed or took longer than ``timeout_seconds``.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environ(),
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise SensorUnavailable(f"Slurm's command {program} is not on the PATH of this process") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SensorRetry(f"Slurm's command {program} did not answer: {error}") from error
    if done.returncode:
        raise SensorRetry(f"Slurm's command {program} failed ({done.returncode}): {done.stderr.strip()[-300:]}")
    return done.stdout


def _environ() -> dict[str, str]:
    """Ours, without the user's own habits for these commands, and with output that can be read."""
    habits = ("SACCT_", "SQUEUE_")
    own = {name: text for name, text in os.environ.items() if not name.startswith(habits)}
    # Times in seconds since 1970; array elements in full (else cut after 64 characters).
    return {**own, "TZ": "UTC", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
