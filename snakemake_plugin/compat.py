"""Every private piece of Snakemake 9 that the plugin touches, in one place, checked before the first job.

Refusing and halting reach through the public scheduler interface, for it can only select. ``problems`` says
what is missing: closed with a clear message under a hard budget, open with a warning otherwise.
"""

from __future__ import annotations

import gc
import importlib
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake.exceptions import SpawnedJobError
from snakemake_interface_common.exceptions import ApiError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.settings import ExecMode, SharedFSUsage

VERSION_FIRST, VERSION_END = (9, 20), (10, 0)
TIER = "green_tier"
_SCHEDULER_PARTS = (
    "_lock",
    "_open_jobs",
    "_handle_error",
    "get_executor",
    "running",
    "_local_executor",
    "_user_kill",
)
_EXECUTOR_PARTS = (
    "run_jobs",
    "handle_job_success",
    "handle_job_error",
    "report_job_error",
    "print_job_error",
    "shutdown",
    "cancel",
)
_LOCAL_PARTS = ("cached_or_run",)
_REMOTE_PARTS = ("format_job_exec", "report_job_submission")
_JOB_PARTS = ("_aux_resources", "_resources", "_params", "_attempt", "add_aux_resource", "restart_times", "is_norun")


class StartProcess:
    """Starts the child processes of the calling thread's job: ``popen`` takes what ``subprocess.Popen`` takes."""

    def __init__(self, popen: Callable[..., subprocess.Popen[Any]]) -> None:
        self.Popen = popen  # the name that Snakemake calls

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def check_call(self, *args: Any, **kwargs: Any) -> int:
        with self.Popen(*args, **kwargs) as process:
            code = process.wait()
        if code:
            raise subprocess.CalledProcessError(code, kwargs.get("args") or args[0])
        return 0


class SnakemakeInternals:
    """The running Snakemake, reached through the DAG that every scheduler plugin is given."""

    def __init__(self, dag: Any) -> None:
        self.workflow = dag.workflow

    # --- a dry run ----------------------------------------------------------------------------------

    @property
    def jobs_to_run(self) -> list[Any]:
        """The single jobs that a run would start, in Snakemake's numbering."""
        dag = self.workflow.dag
        return sorted((job for job in dag.jobs if dag.needrun(job)), key=lambda job: job.jobid)

    def needed_by(self, job: Any) -> Sequence[Any]:
        """The jobs whose outputs this one needs, also those that have run."""
        return tuple(self.workflow.dag.dependencies[job])

    def group_of(self, job: Any) -> Any | None:
        """The group that the job is started with, if any."""
        return self.workflow.dag.get_job_group(job)

    @property
    def resources(self) -> dict[str, int]:
        """What the workflow may use at once."""
        return whole(self.scheduler.global_resources)

    def would_run_here(self, job: Any) -> bool:
        """Whether this process would run the job itself; in a dry run no batch system is told of."""
        return bool(self.workflow.global_resources["_nodes"].value is None or job.is_local)

    # --- before the first job ---------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        return bool(self.workflow.exec_mode == ExecMode.DEFAULT)

    @property
    def is_node(self) -> bool:
        """Whether this is the innermost Snakemake of a job that another one sent: the one whose children work."""
        return bool(self.workflow.exec_mode == ExecMode.REMOTE and self.workflow.local_exec)

    @property
    def is_courier(self) -> bool:
        """Whether this Snakemake only starts the innermost one of its job: slurm-jobstep, by srun."""
        return bool(self.workflow.exec_mode == ExecMode.REMOTE and not self.workflow.local_exec)

    @property
    def is_child(self) -> bool:
        """Whether this Snakemake runs one ``run:`` or shadow job of another on this host."""
        return bool(self.workflow.exec_mode == ExecMode.SUBPROCESS)

    def executor_problem(self) -> str | None:
        """Why the jobs of this executor cannot be metered; ``None`` if they can."""
        if self.workflow.local_exec:
            return None
        settings = self.workflow.executor_plugin.common_settings
        shares_files = SharedFSUsage.INPUT_OUTPUT in self.workflow.storage_settings.shared_fs_usage
        if settings.implies_no_shared_fs or not shares_files:
            return (
                f"jobs of the executor {self.executor_name} share no file system with this host, so what their nodes"
                " meter does not get here; use an executor with a shared file system, or MLFLOW_GREEN_DISABLE=1"
            )
        return None

    @property
    def executor_name(self) -> str:
        return str(self.workflow.executor_plugin.name)

    def runs_here(self, job: Any) -> bool:
        """Whether this process runs the job itself, not a batch system."""
        return bool(self.workflow.local_exec or job.is_local)

    @property
    def keeps_going(self) -> bool:
        return bool(self.workflow.execution_settings.keep_going)

    @property
    def working_directory(self) -> Path:
        return Path.cwd()

    @property
    def name(self) -> str:
        return Path(self.workflow.main_snakefile).parent.name

    @staticmethod
    def version_problem() -> str | None:
        from snakemake import __version__ as version

        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers and VERSION_FIRST <= (int(numbers[1]), int(numbers[2])) < VERSION_END:
            return None
        return f"Snakemake {version} is outside the tested range; install 'snakemake>=9.20,<10'"

    # --- once the scheduler runs --------------------------------------------------------------------

    @property
    def scheduler(self) -> Any:
        return self.workflow.scheduler

    @property
    def executor(self) -> Any:
        """What runs the jobs, or sends them to a batch system."""
        return self.scheduler._executor  # noqa: SLF001

    @property
    def local_executor(self) -> Any:
        """What runs jobs here: all of them, or the local rules beside those of a batch system."""
        return self.executor if self.workflow.local_exec else self.scheduler._local_executor  # noqa: SLF001

    @property
    def was_terminated(self) -> bool:
        """Whether somebody asked this Snakemake to end: scancel, a time limit, Ctrl-C."""
        return self.scheduler._user_kill is not None  # noqa: SLF001

    def spawn_run_directives(self) -> None:
        """A ``run:`` directive of a batch job shall have a process of its own, which can be halted."""
        self.local_executor.use_threads = False

    def problems(self, jobs: Sequence[Any]) -> list[str]:
        """What this Snakemake lacks of the private API; empty when all is there."""
        parts = [(self.scheduler, name) for name in _SCHEDULER_PARTS]
        parts += [(self.local_executor, name) for name in (*_EXECUTOR_PARTS, *_LOCAL_PARTS)]
        if not self.workflow.local_exec:
            parts += [(self.executor, name) for name in (*_EXECUTOR_PARTS, *_REMOTE_PARTS)]
        parts += [(member, name) for job in jobs for member in members(job)[:1] for name in _JOB_PARTS]
        missing = sorted({f"{type(owner).__name__}.{name}" for owner, name in parts if not hasattr(owner, name)})
        modules = (("snakemake.shell", "sp"), ("snakemake.executors.local", "subprocess"))
        missing += [f"{m}.{name}" for m, name in modules if not hasattr(importlib.import_module(m), name)]
        return missing

    def greedy(self, own: Any) -> Callable[..., list[Any]]:
        """Snakemake's greedy choice with the user's ``--scheduler-greedy-*`` options, else that of ``own``."""

        def choose(jobs: Sequence[Any], remaining: Any, resources: Any, sizes: Any) -> list[Any]:
            select = getattr(self.scheduler, "job_selector_greedy", own.select_jobs)
            return list(select(jobs, remaining, resources, sizes)) if jobs else []

        return choose

    def wake(self) -> None:
        """Make the scheduler look again. Safe from any thread, also before the scheduler exists."""
        if self.scheduler is not None:
            self.scheduler._open_jobs.release()  # noqa: SLF001

    def start_processes_with(self, popen: Callable[..., subprocess.Popen[Any]]) -> None:
        """From now on, processes of jobs are started by ``popen``."""
        starter = StartProcess(popen)
        importlib.import_module("snakemake.shell").sp = starter  # type: ignore[attr-defined]
        importlib.import_module("snakemake.executors.local").subprocess = starter  # type: ignore[attr-defined]

    def fail_before_start(self, job: Any, message: str) -> None:
        """Fail a selected job that never started: no retry, and its existing outputs stay.

        The obvious ``report_job_error`` would post-process the job and delete outputs of an earlier run.
        """
        no_more_attempts(job)
        executor = self.scheduler.get_executor(job)
        try:
            executor.print_job_error(SubmittedJobInfo(job=job), msg=message)
        except Exception:  # noqa: BLE001 - it formats the shell command, which may need what only a started job has
            executor.logger.error(message)
        else:
            if job.is_group():
                executor.logger.error(message)  # a group's own error report drops the message
        with self.scheduler._lock:  # noqa: SLF001
            self.scheduler._handle_error(job, postprocess_job=False)  # noqa: SLF001
        self.wake()


def after_dry_run(tell: Callable[[SnakemakeInternals, logging.Logger], None]) -> None:
    """Call ``tell`` when a dry run of this process has ended well: Snakemake gives it its own scheduler, not ours."""
    module = importlib.import_module("snakemake.workflow")
    original = module.Workflow.execute

    def execute(workflow: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(workflow, *args, **kwargs)
        if workflow.dryrun and workflow.exec_mode == ExecMode.DEFAULT:
            tell(SnakemakeInternals(workflow.dag), module.logger)
        return result

    module.Workflow.execute = execute


def whole(amounts: Mapping[str, Any]) -> dict[str, int]:
    """Those of the resources that are numbers and limited; before its inputs are there, one may be a text."""
    return {name: amount for name, amount in amounts.items() if isinstance(amount, int) and amount < sys.maxsize}


def members(job: Any) -> Sequence[Any]:
    """The single jobs of a group in Snakemake's numbering, for a group keeps them in none; or the job itself."""
    return tuple(sorted(job.jobs, key=lambda part: part.jobid)) if job.is_group() else (job,)


def runs_nothing(job: Any) -> bool:
    """Whether its rule runs no program: it only names files, as ``rule all`` does."""
    return bool(job.is_norun)


def set_tier(job: Any, tier: str | None) -> None:
    """Give the job's resources ``green_tier`` (or take it away) and forget what was computed without it."""
    if job._aux_resources.get(TIER) == tier:  # noqa: SLF001
        return
    job._aux_resources.pop(TIER, None)  # noqa: SLF001 - a second add_aux_resource of a name raises
    job._resources = None  # noqa: SLF001
    job._params = None  # noqa: SLF001 - a look at job.params before this would have kept the default tier
    if tier is not None:
        job.add_aux_resource(TIER, tier)


def wall_time_seconds(job: Any) -> float | None:
    """The longest that the batch system lets the job run: Snakemake's ``runtime``, in minutes."""
    minutes = job.resources.get("runtime")
    return 60.0 * minutes if isinstance(minutes, int | float) and minutes > 0 else None


def exported(environment: Mapping[str, str], command: str) -> str:
    """A shell command that runs ``command`` with these variables; their values need no quoting."""
    if not environment:
        return command
    assignments = " ".join(f"{name}={value}" for name, value in environment.items())
    return f"export {assignments} && {command}"


def no_more_attempts(job: Any) -> None:
    """Use up the job's ``--retries``: what was refused or halted once would be refused or halted again."""
    for one in {id(j): j for j in (job, *members(job))}.values():
        one._attempt = max(one._attempt, (one.restart_times or 0) + 1)  # noqa: SLF001


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """For imports: the collector would go through Snakemake's whole DAG again and again, and find nothing.

    What exists at the end, modules and the DAG, stays to the end of the process: it is set aside, or the first full
    collection (0.2 s of standstill for all jobs) would follow soon after.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()


def wrap(instance: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method of one instance by ``around(original, *args, **kwargs)``."""
    original = getattr(instance, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(instance, name, wrapped)


def workflow_error(message: str) -> Exception:
    """An error that ends the workflow and that Snakemake prints as one message, without a traceback."""
    return ApiError(message)


def silent_failure() -> Exception:
    """Fails a job without a message of its own: the one given to ``report_job_error`` is all that is printed."""
    return SpawnedJobError()
