"""Delivers the ledger's outbox to MLflow: at least once, oldest first, with growing pauses after a failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlflow_green.clock import Clock
from mlflow_green.ledger.ledger import LedgerReader, Outbox
from mlflow_green.records import Entry, Fact, OutboxRow
from mlflow_green.tracking.run_metrics import Workflow, large_shares

if TYPE_CHECKING:
    from mlflow_green.tracking.run_writer import RunWriter

KIND = "mlflow"
BATCH_MAX = 100
LEFT_MAX = 100_000
RETRY_SECONDS_MAX = 300
DRAIN_SECONDS_MAX = 60.0
DRAIN_FAILURES_MAX = 3
WARN_SECONDS = 60.0
FAR_FUTURE = timedelta(days=3_650)
_TERMINAL = {"finished": "FINISHED", "failed": "FAILED"}


class SinkLedger(LedgerReader, Outbox, Protocol):
    """The two sides of the ledger that the sink uses."""


class Delivery:
    """One sink's work. ``workflow`` is the execution that it serves; ``None`` serves those of everyone.

    A sink that serves one execution leaves the rows of others alone: their users may have named another MLflow server.
    """

    def __init__(
        self,
        ledger: SinkLedger,
        writer: RunWriter,
        clock: Clock,
        warn: Callable[[str], None],
        workflow: Workflow | None,
    ) -> None:
        self._ledger = ledger
        self._writer = writer
        self._clock = clock
        self._warn = warn
        self._workflow = workflow
        self._entries: dict[str, Entry] = {}
        self._foreign: set[int] = set()
        self._warned_at: float | None = None
        self._facts: Mapping[str, Mapping[str, float | str]] = {}
        self._unfinished: dict[str, Workflow] = {}
        self._ended: set[str] = set()

    def round(self) -> bool:
        """Deliver what is due, up to the first failure; whether there was none.

        One failure ends the round: a server that is down is asked once a round, not once a row.
        """
        return all(self._try(row) for row in self._rows(self._clock.now()))

    def drain(self) -> int:
        """Deliver everything, due or not; how many rows are left. Ends after a minute or three failures in a row."""
        deadline = self._clock.monotonic_seconds() + DRAIN_SECONDS_MAX
        tried: set[int] = set()
        failures = 0
        while rows := [row for row in self._rows(self._clock.now() + FAR_FUTURE) if row.outbox_id not in tried]:
            for row in rows:
                tried.add(row.outbox_id)
                failures = 0 if self._try(row) else failures + 1
                if failures >= DRAIN_FAILURES_MAX or self._clock.monotonic_seconds() > deadline:
                    return self._left()
        return self._left()

    def close_unended(self) -> None:
        """Bring the parent runs up to date that something was delivered for after, or without, their end.

        Our own workflow has ended with our pipe: if it never told so, it was killed. Others may be running.
        """
        for workflow in tuple(self._unfinished.values()):
            is_killed = self._workflow is not None and workflow.workflow_run not in self._ended
            self._finish(workflow, "KILLED" if is_killed else None, None)

    def warn(self, text: str) -> None:
        """Say it, unless something was said less than a minute ago."""
        now = self._clock.monotonic_seconds()
        if self._warned_at is None or now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            self._warn(text)

    def _left(self) -> int:
        return len(self._rows(self._clock.now() + FAR_FUTURE, rows_max=LEFT_MAX))

    def _rows(self, now: datetime, rows_max: int = BATCH_MAX) -> list[OutboxRow]:
        """Rows to deliver by ``now``; the end of a workflow comes last, for its table names the jobs' runs."""
        while True:
            # The rows of others stay pending, so they must not use up the limit.
            limit = rows_max + len(self._foreign)
            rows = self._ledger.pending(KIND, now, limit=limit)
            ours = self._ours([row for row in rows if row.outbox_id not in self._foreign])
            if ours:
                self._facts = self._ledger.facts()
            if ours or len(rows) < limit:
                return sorted(ours, key=_is_end)

    def _ours(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        if any(_entry_id(row) not in self._entries for row in rows if _workflow(row) is None):
            workflow_run = self._workflow.workflow_run if self._workflow else None
            self._entries = {entry.entry_id: entry for entry in self._ledger.entries(workflow_run=workflow_run)}
        ours = [row for row in rows if self._is_ours(row)]
        self._foreign |= {row.outbox_id for row in rows} - {row.outbox_id for row in ours}
        return ours

    def _is_ours(self, row: OutboxRow) -> bool:
        if self._workflow is None:
            return True
        told = _workflow(row)
        if told is not None:
            return told.get("workflow_run") == self._workflow.workflow_run
        return _entry_id(row) in self._entries

    def _try(self, row: OutboxRow) -> bool:
        try:
            facts = self._deliver(row)
        except Exception as error:  # noqa: BLE001 - MLflow is a host: whatever it does, the row is kept and tried again
            pause = min(2**row.tries, RETRY_SECONDS_MAX)
            reason = f"{type(error).__name__}: {error}"
            self._ledger.failed(row.outbox_id, self._clock.now() + timedelta(seconds=pause), reason[:1_000])
            self.warn(f"MLflow did not take a run, it is kept and tried again: {reason.splitlines()[0][:300]}")
            return False
        self._ledger.delivered(row.outbox_id, facts)
        return True

    def _deliver(self, row: OutboxRow) -> tuple[Fact, ...]:
        told = _workflow(row)
        if told is not None:
            self._tell(told)
            return ()
        entry = self._entries.get(_entry_id(row))
        if entry is None:
            raise LookupError(f"outbox row {row.outbox_id} names an entry that the ledger does not have: {row.payload}")
        workflow = self._workflow_of(entry)
        learnt = self._writer.write(entry, self._facts.get(entry.hold_id or "", {}), workflow)
        self._unfinished.setdefault(workflow.workflow_run, workflow)
        return learnt

    def _tell(self, told: Mapping[str, object]) -> None:
        workflow = Workflow(
            workflow_run=str(told["workflow_run"]),
            project=str(told["project"]),
            name=str(told["name"]),
            started_at=datetime.fromisoformat(str(told["started_at"])),
        )
        status = _TERMINAL.get(str(told["status"]))
        if status is None:
            self._writer.start(workflow)
            self._unfinished[workflow.workflow_run] = workflow
            return
        report_path = told.get("report_path")
        self._finish(workflow, status, Path(str(report_path)) if report_path else None)
        self._ended.add(workflow.workflow_run)

    def _finish(self, workflow: Workflow, status: str | None, report_path: Path | None) -> None:
        """Large jobs get their runs only now: which ones are large is not known before the end."""
        entries = self._ledger.entries(workflow_run=workflow.workflow_run)
        facts = dict(self._ledger.facts())
        large = large_shares(entries)
        for entry in entries:
            told = facts.get(entry.hold_id or "", {})
            if entry.entry_id in large and entry.hold_id and "mlflow/run_id" not in told:
                learnt = self._writer.write(entry, told, workflow, large=True)
                facts[entry.hold_id] = {**told, **{fact.name: fact.value for fact in learnt}}
        self._writer.finish(workflow, entries, facts, status=status, report_path=report_path)
        self._unfinished.pop(workflow.workflow_run, None)

    def _workflow_of(self, entry: Entry) -> Workflow:
        if self._workflow is not None:
            return self._workflow
        return Workflow(
            workflow_run=entry.workflow_run,
            project=entry.project,
            name=entry.workflow_run,
            started_at=entry.started_at,
        )


def _workflow(row: OutboxRow) -> Mapping[str, object] | None:
    """What the row tells about a workflow; ``None`` for the row of an entry."""
    told = row.payload.get("workflow")
    return told if isinstance(told, Mapping) else None


def _entry_id(row: OutboxRow) -> str:
    return str(row.payload.get("entry_id"))


def _is_end(row: OutboxRow) -> bool:
    told = _workflow(row)
    return told is not None and told.get("status") in _TERMINAL
