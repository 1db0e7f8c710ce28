"""The main process waits for what the nodes of its placed steps write, and settles them."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow_green.clock import Clock
from mlflow_green.recorder.late_hold import promised_hold
from mlflow_green.recorder.placed import JobEnd, JobEnds, closing_of
from mlflow_green.recorder.spool_session import (
    SpoolSession,
    node_folder,
    placed_of,
    read_node_sessions,
    remove_node_file,
)
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Closing, Hold, NodeWindow, Outcome, Owner

_log = logging.getLogger(__name__)

_PERIOD_SECONDS = 1.0
# A network file system may show what a node wrote only after this long; sacct lags by some seconds.
_LAG_SECONDS = 60.0
_LAG_SECONDS_AT_CLOSE = 6.0
_ASK_SECONDS = 60.0


class PlacementWatch:
    """A thread of its own reads the share, which can be slow; it looks at a job once the host program says it is over.

    A host program can overlook that: a job of which nothing new was written for a while is asked after.

    ``settle(ticket, closing)`` and ``post(windows)`` are called on that thread, or on the one that calls ``finish``.
    """

    def __init__(
        self,
        spool_dir: Path,
        owner: Owner,
        clock: Clock,
        *,
        job_ends: JobEnds,
        settle: Callable[[Ticket, Closing], None],
        post: Callable[[Sequence[NodeWindow]], None],
        period_seconds: float = _PERIOD_SECONDS,
    ) -> None:
        self._spool_dir = spool_dir
        self._owner = owner
        self._clock = clock
        self._job_ends = job_ends
        self._settle = settle
        self._post = post
        self._period_seconds = period_seconds
        self._lock = threading.Lock()
        self._open: dict[str, list[Ticket]] = {}  # by placement
        self._over_since_seconds: dict[str, float] = {}
        self._written: dict[str, Mapping[str, int]] = {}  # of each placement, when it was last asked after
        self._asked_seconds = clock.monotonic_seconds()
        self._read: list[Path] = []
        self._failed: set[str] = set()
        self._lag_seconds = _LAG_SECONDS
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_done(self) -> bool:
        return not self._open

    def make_room(self, placement_id: str) -> None:
        """Make the folder that its nodes write into. Raises ``OSError``."""
        node_folder(self._spool_dir, placement_id).mkdir(parents=True, exist_ok=True)

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Watch the tickets of one placement."""
        with self._lock:
            self._open[tickets[0].placement_id or ""] = list(tickets)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="green-placed", daemon=True)
                self._thread.start()

    def forget(self, tickets: Sequence[Ticket]) -> None:
        """The batch system did not take them."""
        for placement_id in {ticket.placement_id or "" for ticket in tickets}:
            with self._lock:
                self._open.pop(placement_id, None)
            self._remove_empty_folder(placement_id)

    def halt_reasons(self, placement_id: str) -> Mapping[str, str]:
        """Why the node halted steps of this placement, by hold id; reads the share."""
        closings = [closing for session in self._sessions(placement_id) or () for closing in session.closings.values()]
        entries = [closing.entry for closing in closings if closing.entry]
        return {entry.entry_id: entry.reason for entry in entries if entry.outcome is Outcome.HALTED}

    def finish(self, timeout_seconds: float) -> bool:
        """Settle what is left; ``False`` if some job was not over in time. Nothing is watched afterwards."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():  # the share does not answer
                return False
        self._lag_seconds = _LAG_SECONDS_AT_CLOSE
        deadline_seconds = time.monotonic() + timeout_seconds
        self._advance()
        while self._open and time.monotonic() < deadline_seconds:
            time.sleep(max(0.0, min(_PERIOD_SECONDS, deadline_seconds - time.monotonic())))
            self._advance()
        return not self._open

    def remove_files(self) -> None:
        """Remove what has been read and is posted."""
        for path in self._read:
            remove_node_file(path)

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.wait(self._period_seconds):
            self._advance()

    def _advance(self) -> None:
        self._look_at_told()
        if self._clock.monotonic_seconds() - self._asked_seconds >= _ASK_SECONDS:
            with self._survived("which jobs are over though nobody said so"):
                self._ask_after_silent()
            self._asked_seconds = self._clock.monotonic_seconds()

    def _look_at_told(self) -> None:
        """Settle the jobs that are over, once their nodes have said all or had the time to."""
        with self._lock:
            told = {key: tickets for key, tickets in self._open.items() if all(t.outcome for t in tickets)}
        due = {
            key: sessions
            for key, tickets in told.items()
            if (sessions := self._sessions(key)) is not None and self._is_due(key, tickets, sessions)
        }
        # Whoever cancelled a job may not have waited for its end.
        asked = {
            ticket.job_id
            for key, sessions in due.items()
            for ticket in told[key]
            if ticket.job_id and (ticket.outcome is Outcome.CANCELLED or not _is_complete(sessions))
        }
        ends: Mapping[str, JobEnd | None] = {}
        with self._survived("which jobs are over"):
            ends = self._job_ends(asked) if asked else {}
        for key, sessions in due.items():
            with self._survived(f"how the steps of {key} ended"):
                self._settle_all(key, told[key], ends, sessions)

    def _ask_after_silent(self) -> None:
        """Tell of jobs that are over though nobody said so."""
        with self._lock:
            untold = {key: tickets for key, tickets in self._open.items() if not all(t.outcome for t in tickets)}
        before, self._written = self._written, {key: _sizes(node_folder(self._spool_dir, key)) for key in untold}
        silent = {key: tickets for key, tickets in untold.items() if self._written[key] == before.get(key)}
        job_ids = {ticket.job_id for tickets in silent.values() for ticket in tickets if ticket.job_id}
        ends = self._job_ends(job_ids) if job_ids else {}
        for placement_id, tickets in silent.items():
            sessions = self._sessions(placement_id)
            if sessions is not None and any(ends.get(ticket.job_id or "") for ticket in tickets):
                self._settle_all(placement_id, tickets, ends, sessions)

    def _sessions(self, placement_id: str) -> Sequence[SpoolSession] | None:
        """What the nodes have written; ``None`` while the share does not answer."""
        with self._survived(f"what the nodes of {placement_id} wrote"):
            folder = node_folder(self._spool_dir, placement_id)
            os.listdir(folder)  # noqa: PTH208 - a glob takes a folder that cannot be read for an empty one
            return read_node_sessions(folder)
        return None

    def _is_due(self, placement_id: str, tickets: Sequence[Ticket], sessions: Sequence[SpoolSession]) -> bool:
        """Whether the node has said all, or has had the time to. What succeeded was metered, so it will be seen yet."""
        unseen = not sessions and any(ticket.outcome is Outcome.SUCCEEDED for ticket in tickets)
        lag_seconds = max(self._lag_seconds, _LAG_SECONDS) if unseen else self._lag_seconds
        now_seconds = self._clock.monotonic_seconds()
        waited_seconds = now_seconds - self._over_since_seconds.setdefault(placement_id, now_seconds)
        return _is_complete(sessions) or waited_seconds >= lag_seconds

    def _settle_all(
        self,
        placement_id: str,
        tickets: Sequence[Ticket],
        ends: Mapping[str, JobEnd | None],
        sessions: Sequence[SpoolSession],
    ) -> None:
        closings = [self._closing(ticket, ends, sessions) for ticket in tickets]
        if None in closings:
            return
        for ticket, closing in zip(tickets, closings, strict=True):
            assert closing is not None
            self._settle(ticket, _as_told(closing, ticket))
        with self._lock:
            self._open.pop(placement_id, None)
        self._post([window for session in sessions for window in session.windows])
        self._read += [session.path for session in sessions]
        self._remove_empty_folder(placement_id)

    def _closing(
        self, ticket: Ticket, ends: Mapping[str, JobEnd | None], sessions: Sequence[SpoolSession]
    ) -> Closing | None:
        """By the end of its job as the batch system has it, else as the host program was told."""
        job_id = ticket.job_id or ""
        end = ends.get(job_id)
        if end is None and ticket.told_at is not None and ticket.outcome not in {None, Outcome.CANCELLED}:
            end = JobEnd(at=ticket.told_at, started=None)
        hold, placed = self._hold(ticket), placed_of(ticket)
        return closing_of(hold, placed, sessions, end, self._clock.now(), is_known=job_id in ends)

    def _remove_empty_folder(self, placement_id: str) -> None:
        with suppress(OSError):  # a node has written into it
            node_folder(self._spool_dir, placement_id).rmdir()

    @contextmanager
    def _survived(self, subject: str) -> Iterator[None]:
        """A share or a batch system that fails is said once, until it works again; the thread must not die of it."""
        try:
            yield
            self._failed.discard(subject)
        except Exception:  # noqa: BLE001 - a thread of the host program's process
            if subject not in self._failed:
                _log.exception("mlflow-green: %s was not found out; it is tried again", subject)
            self._failed.add(subject)

    def _hold(self, ticket: Ticket) -> Hold:
        if ticket.hold is not None:
            return ticket.hold
        assert ticket.late_request is not None
        return promised_hold(ticket.late_request, self._owner)


def _sizes(folder: Path) -> Mapping[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.jsonl")}


def _is_complete(sessions: Sequence[SpoolSession]) -> bool:
    """Whether the last start of the job has closed its books, with a last word about every step that began."""
    return bool(sessions) and sessions[-1].ended and not sessions[-1].unfinished


def _as_told(closing: Closing, ticket: Ticket) -> Closing:
    """The node's closing with what only the main process knows: its outputs are missing here, or it was cancelled."""
    entry, outcome = closing.entry, ticket.outcome
    if entry is None or outcome is None:
        return closing
    missing = entry.outcome is Outcome.SUCCEEDED and outcome is Outcome.FAILED
    cancelled = entry.outcome is Outcome.FAILED and outcome is Outcome.CANCELLED
    if missing or cancelled:
        return dataclasses.replace(closing, entry=dataclasses.replace(entry, outcome=outcome))
    return closing
