"""The recorder of one workflow execution: metering, enforcement and posting, off the jobs' path.

Threads: the host program asks and tells; one ledger thread (``bookkeeper``) commits; one daemon ticker reads
the meters, writes the spool, ends steps that overran their grant and closes steps that have ended.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlflow_green.clock import Clock
from mlflow_green.metering.cpu_clock import CpuClock
from mlflow_green.metering.sampler import Sampler, merge_windows
from mlflow_green.metering.supervise import Ending
from mlflow_green.records import Balance, Closing, ClosingKind, Fact, NodeWindow, Outcome, Tick, Unit
from mlflow_green.recorder.bookkeeper import Bookkeeper
from mlflow_green.recorder.ticket import Book, Ticket, entry_of
from mlflow_green.spool import SpoolWriter, to_json

_log = logging.getLogger(__name__)

SAMPLING_PERIOD_SECONDS = 1.0
_WINDOW_SECONDS_MIN = 0.1  # shorter windows are dominated by the 10 ms ticks of /proc/stat
_ENDING_PERIOD_SECONDS = 0.2
_RECHECK_SECONDS = 5.0
_POST_WINDOWS_SECONDS = 10.0
_METRICS_BYTES_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What enforcement says about a running step after a sample: ask for more, end it, or neither."""

    top_up: dict[Unit, int] | None = None
    halt_reason: str | None = None
    grace_seconds: float = 0.0


class Enforcer(Protocol):
    """Judges running steps; pure. ``needs_balances`` says whether a rule looks at the whole budget."""

    needs_balances: bool

    def judge(self, ticket: Ticket, balances: Sequence[Balance]) -> Verdict: ...


class Recorder:
    """Every method may be called from any thread and returns at once, except ``close``."""

    def __init__(
        self,
        *,
        sampler: Sampler,
        bookkeeper: Bookkeeper,
        spool: SpoolWriter | None,
        enforcer: Enforcer | None,
        book: Book,
        clock: Clock,
        say: Callable[[str], None],
        period_seconds: float = SAMPLING_PERIOD_SECONDS,
    ) -> None:
        self._sampler = sampler
        self._bookkeeper = bookkeeper
        self._spool = spool
        self._spool_lock = threading.Lock()
        self._enforcer = enforcer
        self._book = book
        self._clock = clock
        self._say = say
        self._period_seconds = period_seconds
        self._open: dict[str, Ticket] = {}  # begun and not yet posted, by hold id
        self._asked: list[Ticket] = []
        self._endings: dict[str, Ending] = {}
        self._windows: list[NodeWindow] = []
        self._cut = threading.Event()
        self._stopping = False
        self._last_tick_seconds = -math.inf
        self._last_post_seconds = clock.monotonic_seconds()
        self._last_recheck_seconds = clock.monotonic_seconds()
        self._thread = threading.Thread(target=self._run, name="green-ticker", daemon=True)

    def start(self) -> None:
        self._bookkeeper.start()
        self._thread.start()

    # --- the host program's side -----------------------------------------------------------------

    def ask(self, tickets: Sequence[Ticket]) -> None:
        """Ask the ledger for these steps; the answers appear in ``ticket.decision``."""
        self._asked.extend(tickets)
        self._bookkeeper.ask(tickets)

    def begin(self, ticket: Ticket, cpu_clock: CpuClock) -> None:
        """The step starts now, in the calling thread. The recorder closes the clock."""
        ticket.began_monotonic_seconds = self._clock.monotonic_seconds()
        ticket.began_at = self._clock.now()
        self._open[ticket.hold_id] = ticket
        self._write({"kind": "begin", "hold_id": ticket.hold_id, "at": ticket.began_at.isoformat()})
        self._sampler.join(ticket.hold_id, cpu_clock)

    def wait_until_gone(self, ticket: Ticket) -> None:
        """Block until a halted step has no process left: one that lives on could write its output again."""
        ending = self._endings.get(ticket.hold_id)
        if ending is not None:
            ending.wait()

    def end(self, ticket: Ticket) -> None:
        """The step's processes have ended; its outcome is told separately."""
        self._sampler.leave(ticket.hold_id)
        ticket.duration_seconds = self._clock.monotonic_seconds() - ticket.began_monotonic_seconds
        ticket.ended_at = self._clock.now()

    def tell(self, ticket: Ticket, outcome: Outcome, metrics_path: Path | None = None) -> None:
        """Fix the outcome. Does no I/O: it is called under the host program's lock."""
        ticket.metrics_path = metrics_path
        ticket.outcome = Outcome.HALTED if ticket.halt_reason and outcome is Outcome.FAILED else outcome
        if self._bookkeeper.has_waiting:
            self._cut.set()

    def void(self, tickets: Sequence[Ticket], reason: str) -> None:
        """Release holds of steps that will not start."""
        self._bookkeeper.void(tickets, reason)

    def close(self, timeout_seconds: float) -> bool:
        """Close the books: last sample, unused holds voided, all posted. False if some is left in the spool."""
        self._stopping = True
        self._cut.set()
        self._thread.join(timeout_seconds)
        for ticket in self._open.values():
            if ticket.ended_at is None:
                self.end(ticket)
            if ticket.outcome is None:
                self.tell(ticket, Outcome.CANCELLED)
        self._tick()
        self._bookkeeper.post(merge_windows(self._windows))
        self._windows.clear()
        unused = [ticket for ticket in self._asked if ticket.began_at is None and not ticket.refused]
        self._bookkeeper.void(unused, "the workflow ended before the step began")
        posted = self._bookkeeper.flush(timeout_seconds)
        self._bookkeeper.stop(timeout_seconds if posted else 1.0)
        self._sampler.close()
        if self._spool is not None:
            self._spool.close()
            if posted:
                self._spool.path.unlink(missing_ok=True)
        return posted

    # --- the ticker ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._cut.wait(_ENDING_PERIOD_SECONDS if self._endings else self._period_seconds)
            elapsed = self._clock.monotonic_seconds() - self._last_tick_seconds
            if self._cut.is_set() and elapsed < _WINDOW_SECONDS_MIN:
                threading.Event().wait(_WINDOW_SECONDS_MIN - elapsed)
            self._cut.clear()
            if self._stopping:
                return
            try:
                self._tick()
                self._advance_endings()
                self._housekeeping()
            except Exception:
                _log.exception("the meter met an unexpected error; it goes on with the next sample")

    def _tick(self) -> None:
        tick = self._sampler.tick()
        self._last_tick_seconds = self._clock.monotonic_seconds()
        if tick.usages or tick.windows:
            self._write({"kind": "tick", "tick": to_json(tick)})
        self._windows.extend(tick.windows)
        for hold_id, usage in tick.usages.items():
            ticket = self._open.get(hold_id)
            if ticket is None:
                continue
            ticket.usage = usage
            ticket.usage_final = hold_id in tick.final
            if ticket.running:
                self._enforce(ticket, tick)
        self._settle_ended()

    def _settle_ended(self) -> None:
        for hold_id, ticket in list(self._open.items()):
            if ticket.usage_final and ticket.outcome is not None:
                entry = entry_of(ticket, ticket.outcome, self._book, self._clock.now())
                hold = ticket.hold
                closing = Closing(kind=ClosingKind.SETTLE, hold_id=hold.hold_id if hold else None, entry=entry)
                self._write({"kind": "closing", "closing": to_json(closing)})
                self._bookkeeper.settle(ticket, closing, self._quality(ticket))
                del self._open[hold_id]

    def _enforce(self, ticket: Ticket, _tick: Tick) -> None:
        if self._enforcer is None or ticket.hold is None or ticket.halt_reason:
            return
        if self._enforcer.needs_balances or not self._bookkeeper.balances:
            self._bookkeeper.read_balances()
        verdict = self._enforcer.judge(ticket, self._bookkeeper.balances)
        if verdict.halt_reason:
            self._endings[ticket.hold_id] = Ending(ticket.hold_id, verdict.grace_seconds)
            ticket.halt_reason = verdict.halt_reason  # after its ending is there, for the job's thread waits for that
            self._say(f"halting {ticket.step.label}: {verdict.halt_reason}")
        elif verdict.top_up and not ticket.top_up_pending:
            self._bookkeeper.top_up(ticket, verdict.top_up)

    def _advance_endings(self) -> None:
        for hold_id, ending in list(self._endings.items()):
            ticket = self._open.get(hold_id)
            gone = ending.advance()
            if gone and (ticket is None or not ticket.running):
                del self._endings[hold_id]

    def _housekeeping(self) -> None:
        now = self._last_tick_seconds
        if self._windows and now - self._last_post_seconds >= _POST_WINDOWS_SECONDS:
            self._bookkeeper.post(merge_windows(self._windows))
            self._windows.clear()
            self._last_post_seconds = now
        if self._bookkeeper.has_waiting and now - self._last_recheck_seconds >= _RECHECK_SECONDS:
            self._bookkeeper.recheck()
            self._last_recheck_seconds = now

    def _quality(self, ticket: Ticket) -> list[Fact]:
        """The numbers of the rule's ``metrics`` output; a file that cannot be read is said, never fatal."""
        path = ticket.metrics_path
        if path is None or ticket.outcome is not Outcome.SUCCEEDED:
            return []
        try:
            if path.stat().st_size > _METRICS_BYTES_MAX:
                raise ValueError(f"larger than {_METRICS_BYTES_MAX} bytes")  # noqa: TRY301 - one message for all causes
            values = json.loads(path.read_text())
            items = values.items()
        except (OSError, ValueError, AttributeError) as error:
            self._say(
                f"{ticket.step.label}: no accuracy recorded, {path} is not a JSON object of numbers ({error}); "
                'write e.g. {"mape": 2.1}'
            )
            return []
        return [
            Fact(hold_id=ticket.hold_id, name=f"quality/{name}", value=float(value))
            for name, value in items
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ]

    def _write(self, line: dict[str, object]) -> None:
        with self._spool_lock:
            if self._spool is None:
                return
            try:
                self._spool.append(line)
            except OSError as error:
                _log.debug("spool", exc_info=True)
                self._say(
                    f"cannot write {self._spool.path}: {error.strerror}; free space or make it writable. "
                    "Until then a kill -9 would lose the readings since the last commit"
                )
                self._spool = None
