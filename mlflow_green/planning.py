"""Plans of a workflow, wired: what ``policy plan`` and a dry run of Snakemake call. Nothing is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from mlflow_green import bootstrap
from mlflow_green.clock import SystemClock
from mlflow_green.errors import DryRunFailed
from mlflow_green.ledger.ledger import Ledger, LedgerReader, PolicyBook
from mlflow_green.metering.supervise import owner_alive
from mlflow_green.records import StepSpec, Workload
from mlflow_green.session import inside_metered_step, step_spec
from mlflow_green.settings import Settings, load_settings
from mlflow_green.spool import from_json, to_json

if TYPE_CHECKING:
    from mlflow_green.policy.document import Policy
    from mlflow_green.recorder.plan import Plan
    from mlflow_green.recorder.replay import Replay
    from mlflow_green.recorder.waits import Waiting

_NO_JOBS_STATUS = 3
WORKLOAD_FILE = "MLFLOW_GREEN_WORKLOAD_FILE"
"""Where a dry run leaves its jobs for ``policy plan``, which started it, instead of printing a plan itself."""


def plan_workload(settings: Settings, workload: Workload) -> Plan:
    """What this workload would be answered now.

    Raises:
        GreenError: the policy is wrong, the ledger cannot be read, or a hard budget could not be kept here.
    """
    from mlflow_green.recorder.plan import plan

    clock, policy = SystemClock(), bootstrap.load_policy_for(settings)
    now = clock.now()
    if not has_ledger(settings):
        return plan(workload, policy, bootstrap.book_without_meter(settings, policy, now), None, now=now)
    ledger = bootstrap.open_ledger(settings, clock)
    try:
        policy = bootstrap.policy_for_a_plan(ledger, policy, clock, is_own=settings.has_own_ledger)
        book = bootstrap.book_without_meter(settings, policy, now)
        with ledger.snapshot():
            return plan(workload, policy, book, ledger, now=now, entries=ledger.entries())
    finally:
        ledger.close()


def replay_policy(settings: Settings, file: Path, *, since: datetime, until: datetime) -> Replay:
    """What the policy in ``file`` would have answered to the steps in the ledger.

    Raises:
        GreenError: the policy is wrong, or the ledger cannot be read.
    """
    from mlflow_green.recorder.replay import raises_of, replay

    settings = replace(settings, policy_path=file)
    policy = bootstrap.load_policy_for(settings)
    book = bootstrap.book_without_meter(settings, policy, until)
    if not has_ledger(settings):
        return replay((), policy, book, since=since, until=until)
    ledger = bootstrap.open_ledger(settings, SystemClock())
    try:
        with ledger.snapshot():
            entries, raises = ledger.entries(), raises_of(ledger.allowances(), ledger.journal())
    finally:
        ledger.close()
    return replay(entries, policy, book, since=since, until=until, raises=raises)


class Books(Ledger, LedgerReader, PolicyBook, Protocol):
    """A ledger that can be asked for all that is in it."""


def waits_now(settings: Settings, books: Books, now: datetime) -> tuple[Waiting, ...]:
    """The steps that wait now, of every workflow run that goes on: it holds something, or its meter runs here."""
    from mlflow_green.policy.raising import with_governing
    from mlflow_green.recorder.spool_session import unposted_sessions
    from mlflow_green.recorder.waits import waits

    agreed = bootstrap.policy_as_agreed(books, bootstrap.load_policy_for(settings), SystemClock())
    policy = with_governing(agreed, books.approved_limits(), books.policies())
    holds = books.open_holds()
    meters = [meter for meter in unposted_sessions(settings.spool_dir) if owner_alive(meter.owner, platform.node())]
    runs = {hold.step.workflow_run for hold in holds}
    begun = [asked for meter in meters for each in meter.begun.values() if (asked := each.hold or each.request)]
    runs |= {asked.step.workflow_run for asked in begun}
    # What a meter has not begun yet, it cannot be asked for.
    has_silent_meter = any(not meter.begun for meter in meters)
    return waits(
        books.decisions(),
        books.entries(),
        holds,
        books.balances(),
        policy,
        now=now,
        is_live=lambda run: run in runs or has_silent_meter,
    )


def has_ledger(settings: Settings) -> bool:
    """Whether there is a ledger that can be opened without making one.

    Raises:
        LedgerUnavailable: its URL is none of a ledger.
    """
    from mlflow_green.ledger.address import is_postgres, ledger_path, parsed_url
    from mlflow_green.ledger.filesystem import journal_path

    if is_postgres(parsed_url(settings.ledger_url)):
        return True
    path = ledger_path(settings.ledger_url)
    return path.exists() or journal_path(path).exists()


# --- a dry run of Snakemake -------------------------------------------------------------------------


class DryRun:
    """One dry run: says what rules declare, and is told all the jobs in the end."""

    def __init__(self, settings: Settings, policy: Policy, workload_file: Path | None) -> None:
        self._settings = settings
        self._policy = policy
        self._workload_file = workload_file
        self.workflow_run = uuid.uuid4().hex

    def spec(self, rule: str, declared: Mapping[str, object] | None) -> StepSpec:
        """What is declared about a rule. Raises ``PolicyError``."""
        return step_spec(self._policy, rule, declared)

    def told(self, workload: Workload) -> str:
        """The plan as text for the host program's log; empty where there is nothing to say."""
        if self._workload_file is not None:
            self._workload_file.write_text(json.dumps(to_json(workload)), encoding="utf-8")
            return ""
        if not workload.steps:
            return ""
        from mlflow_green.reports.plans import plan_text

        return plan_text(plan_workload(self._settings, workload))


def open_dry_run(policy: str | None, environ: Mapping[str, str] = os.environ) -> DryRun | None:
    """What a dry run in the working directory tells its jobs; ``None`` where a run would not be metered either.

    Raises:
        GreenError: the policy is wrong.
    """
    settings = load_settings(Path.cwd(), environ, policy_path=Path(policy) if policy else None)
    if settings.disabled or inside_metered_step(environ):
        return None
    file = environ.get(WORKLOAD_FILE)
    return DryRun(settings, bootstrap.load_policy_for(settings), Path(file) if file else None)


def snakemake_workload(
    settings: Settings, arguments: Sequence[str], *, cwd: Path, environ: Mapping[str, str] = os.environ
) -> Workload:
    """The jobs that ``snakemake ARGUMENTS`` would run in ``cwd``, by a dry run in a process of its own.

    Raises:
        PolicyError: with every problem of the policy.
        DryRunFailed: Snakemake says what is wrong with the workflow.
    """
    bootstrap.load_policy_for(settings)  # a wrong one is told without Snakemake's banner around it
    with tempfile.TemporaryDirectory(prefix="mlflow-green-") as folder:
        file = Path(folder) / "workload.json"
        environ = {**environ, WORKLOAD_FILE: str(file), "MLFLOW_GREEN_LEDGER": settings.ledger_url}
        if settings.policy_path is not None:
            environ["MLFLOW_GREEN_POLICY"] = str(settings.policy_path)
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "host", "rules", "progress"]
        command += ["--scheduler", "green", *arguments]
        done = subprocess.run(
            command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise DryRunFailed(said.rpartition("Building DAG of jobs...")[2].strip(), status=done.returncode)
        if not file.exists():
            lines = [line for line in done.stderr.splitlines() if "mlflow-green" in line]
            raise DryRunFailed(lines[0] if lines else "is MLFLOW_GREEN_DISABLE set?", status=_NO_JOBS_STATUS)
        return cast("Workload", from_json(Workload, json.loads(file.read_text(encoding="utf-8"))))
