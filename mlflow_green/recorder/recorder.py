"""The recorder of one workflow execution: metering, enforcement and posting, off the jobs' path.

Threads: the host program asks and tells; one ledger thread (``bookkeeper``) commits; one daemon ticker reads
the meters, writes the spool, ends steps that overran their grant and closes steps that have ended.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlflow_green.clock import Clock
from mlflow_green.metering.cpu_clock import CpuClock
from mlflow_green.metering.handover import HAND_OVER_SECONDS, Handover, RunningStep
from mlflow_green.metering.sampler import Sampler
from mlflow_green.metering.supervise import Ending
from mlflow_green.recorder.loss import GRACE_SECONDS
from mlflow_green.recorder.second_opinion import job_id_facts
from mlflow_green.recorder.spool_session import (
    END_LINE,
    begin_line,
    closing_line,
    placed_line,
    submitted_line,
    unplaced_line,
)
from mlflow_green.recorder.ticket import Book, Ticket, entry_of
from mlflow_green.records import Balance, Closing, ClosingKind, Fact, Hold, NodeWindow, Outcome, Owner, Term, Unit
from mlflow_green.spool import SpoolWriter, to_json

if TYPE_CHECKING:
    from mlflow_green.recorder.placed import JobEnds
    from mlflow_green.recorder.placement_watch import PlacementWatch

_log = logging.getLogger(__name__)

SAMPLING_PERIOD_SECONDS = 1.0
_WINDOW_SECONDS_MIN = 0.1  # shorter windows are dominated by the 10 ms ticks of /proc/stat
_ENDING_PERIOD_SECONDS = 0.2
_RECHECK_SECONDS = 5.0
_POST_WINDOWS_SECONDS = 10.0
_METRICS_BYTES_MAX = 1_000_000
_PLACED_SOON_SECONDS = 3.0
_PLACED_CLOSE_SECONDS = 20.0
_TOP_UP_SECONDS_MAX = 10.0
_UNWRITTEN_LINES_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What enforcement says about a running step after a sample: ask for more, end it, or neither.

    ``may_finish``: it runs on even if it gets no more.
    ``overrun`` says that it has passed its grant by the point value and may still run on.
    """

    top_up: dict[Unit, int] | None = None
    may_finish: bool = False
    halt_reason: str | None = None
    grace_seconds: float = 0.0
    overrun: str | None = None


class Enforcer(Protocol):
    """Judges running steps; pure. ``needs_balances`` says whether a rule looks at the whole budget."""

    needs_balances: bool

    def judge(self, ticket: Ticket, balances: Sequence[Balance]) -> Verdict: ...


class Bookkeeping(Protocol):
    """Answers tickets and posts what they used: the ledger's thread, or on a compute node what was granted before."""

    @property
    def is_busy(self) -> bool: ...
    @property
    def has_waiting(self) -> bool: ...
    @property
    def balances(self) -> tuple[Balance, ...]: ...

    def start(self) -> None: ...
    def ask(self, tickets: Sequence[Ticket]) -> None: ...
    def settle(self, ticket: Ticket, closing: Closing, facts: Sequence[Fact] = ()) -> None: ...
    def void(self, tickets: Sequence[Ticket], reason: str) -> None: ...
    def post(self, windows: Sequence[NodeWindow]) -> None: ...
    def top_up(self, ticket: Ticket, amounts: dict[Unit, int], *, may_finish: bool) -> None: ...
    def recheck(self) -> None: ...
    def read_balances(self, terms: Sequence[Term]) -> None: ...
    def flush(self, timeout_seconds: float) -> bool: ...
    def stop(self, timeout_seconds: float) -> None: ...


class Recorder:
    """Every method may be called from any thread; all return at once but ``close``, and ``end`` of a halted step.

    What concerns steps that a batch system runs also reads and writes files.
    """

    def __init__(  # noqa: PLR0913 - the parts that bootstrap wires
        self,
        *,
        sampler: Sampler,
        bookkeeper: Bookkeeping,
        spool: SpoolWriter | None,
        enforcer: Enforcer | None,
        book: Book,
        clock: Clock,
        say: Callable[[str], None],
        keeps_spool: bool = False,
        halts: bool = True,
        period_seconds: float = SAMPLING_PERIOD_SECONDS,
        handover: Handover | None = None,
        grace_seconds: Callable[[Hold], float] | None = None,
    ) -> None:
        """``keeps_spool``: the spool is the only record, and stays when the books are closed.

        ``halts``: a step that is due is ended; else that is said, for it is a part of the host program itself.
        ``handover`` tells the keeper of the steps that run. Should this process die, it ends them after
        ``grace_seconds``, or never where that is ``None``.
        """
        self._sampler = sampler
        self._bookkeeper = bookkeeper
        self._spool = spool
        self._keeps_spool = keeps_spool
        self._halts = halts
        self._watch: PlacementWatch | None = None
        self._spool_lock = threading.Lock()
        self._unwritten: deque[Mapping[str, object]] = deque(maxlen=_UNWRITTEN_LINES_MAX)
        self._enforcer = enforcer
        self._book = book
        self._clock = clock
        self._say = say
        self._period_seconds = period_seconds
        self._handover = handover
        self._grace_seconds = grace_seconds
        self._open: dict[str, Ticket] = {}  # begun and not yet settled, by hold id
        self._asked: list[Ticket] = []
        self._endings: dict[str, Ending] = {}
        self._halting = threading.Lock()
        self._windows: list[NodeWindow] = []
        self._cut = threading.Event()
        self._ticked = threading.Condition()
        self._stopping = False
        self._last_tick_seconds = -math.inf
        self._last_hand_over_seconds = -math.inf
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
        """The step starts now, in the calling thread. The recorder closes the clock. A view leaves no trace here."""
        ticket.began_monotonic_seconds = self._clock.monotonic_seconds()
        ticket.began_at = self._clock.now()
        self._open[ticket.hold_id] = ticket
        if not ticket.is_view:
            self._write(begin_line(ticket))
        self._sampler.join(ticket.hold_id, cpu_clock, is_view=ticket.is_view, is_own_process=ticket.is_own_process)

    # --- steps that a batch system runs ------------------------------------------------------------

    def watch_placed(self, spool_dir: Path, owner: Owner, job_ends: JobEnds) -> None:
        """From now on steps may be placed; ``job_ends`` asks the batch system."""
        from mlflow_green.recorder.placement_watch import PlacementWatch

        self._watch = PlacementWatch(
            spool_dir,
            owner,
            self._clock,
            job_ends=job_ends,
            settle=self._settle_placed,
            post=self._bookkeeper.post,
        )

    def place(self, tickets: Sequence[Ticket], placement_id: str) -> None:
        """The batch system is about to be given one job with these steps; from now on only evidence ends their holds.

        Raises:
            OSError: the spool folder cannot be written; nothing was placed.
        """
        assert self._watch is not None
        self._watch.make_room(placement_id)
        try:
            for ticket in tickets:
                ticket.placement_id = placement_id
                ticket.placed_at = self._clock.now()
                self._write(placed_line(ticket))
            if self._unwritten:
                raise OSError(errno.ENOSPC, "the spool cannot be written")  # noqa: TRY301 - said already, by _write
        except OSError:
            for ticket in tickets:
                ticket.placement_id = ticket.placed_at = None
            raise
        self._watch.add(tickets)

    def submitted(self, tickets: Sequence[Ticket], job_id: str | None) -> None:
        """The batch system has taken the job."""
        for ticket in tickets:
            ticket.submitted, ticket.job_id = True, job_id
        for ticket in tickets:
            self._write(submitted_line(ticket))

    def unplace(self, tickets: Sequence[Ticket], reason: str) -> None:
        """The batch system did not take the job: nothing of it runs."""
        assert self._watch is not None
        self._watch.forget(tickets)
        for ticket in tickets:
            self._write(unplaced_line(ticket))
        self._bookkeeper.void(tickets, reason)

    def learn_halts(self, tickets: Sequence[Ticket]) -> None:
        """Ask what their node wrote whether it halted steps of this job. Reads files."""
        assert self._watch is not None
        reasons = self._watch.halt_reasons(tickets[0].placement_id or "")
        for ticket in tickets:
            ticket.halt_reason = reasons.get(ticket.hold_id)

    def _settle_placed(self, ticket: Ticket, closing: Closing) -> None:
        if closing.kind is ClosingKind.VOID:
            self._write(unplaced_line(ticket))
            self._bookkeeper.void([ticket], closing.reason)
        else:
            self._write(closing_line(closing))
            facts = [*self._quality(ticket), *job_id_facts(ticket.hold_id, ticket.job_id)]
            self._bookkeeper.settle(ticket, closing, facts)

    @property
    def job_ids(self) -> Mapping[str, str]:
        """The batch system's job of each step that it ran, by hold id, where it can be asked about it."""
        return {ticket.hold_id: ticket.job_id for ticket in self._asked if ticket.job_id}

    # --- the end of a step ---------------------------------------------------------------------------

    def wait_until_gone(self, ticket: Ticket) -> None:
        """Block until a halted step has no process left: one that lives on could write its output again."""
        with self._halting:
            ticket.is_leaving = True
        ending = self._endings.get(ticket.hold_id)
        if ending is not None:
            ending.wait()

    def end(self, ticket: Ticket) -> None:
        """The step's main process has ended; its outcome is told separately. It cannot be halted any more."""
        self.wait_until_gone(ticket)
        ticket.duration_seconds = self._clock.monotonic_seconds() - ticket.began_monotonic_seconds
        ticket.ended_at = self._clock.now()
        self._sampler.leave(ticket.hold_id)

    def tell(self, ticket: Ticket, outcome: Outcome, metrics_path: Path | None = None) -> None:
        """Fix the outcome. Does no I/O: it is called under the host program's lock."""
        ticket.metrics_path = metrics_path
        ticket.told_at = self._clock.now()
        ticket.outcome = Outcome.HALTED if ticket.halt_reason and outcome is not Outcome.SUCCEEDED else outcome
        if self._bookkeeper.has_waiting:
            self._cut.set()

    def sample_soon(self) -> None:
        """Close the window now, or as soon as it is long enough."""
        self._cut.set()

    def wait_for_usage(self, ticket: Ticket, timeout_seconds: float) -> None:
        """Wait until what an ended step has used is final, but no longer than this."""
        with self._ticked:
            self._ticked.wait_for(lambda: ticket.usage_final, timeout_seconds)

    def void(self, tickets: Sequence[Ticket], reason: str) -> None:
        """Release holds of steps that will not start."""
        self._bookkeeper.void(tickets, reason)

    def close(self, timeout_seconds: float) -> bool:
        """Close the books: last sample, unused holds voided, all posted. False if some is left in the spool."""
        deadline_seconds = self._clock.monotonic_seconds() + timeout_seconds
        all_placed_are_over = self._finish_placed()
        self._stopping = True
        self._cut.set()
        self._thread.join(timeout_seconds)
        meters = not self._thread.is_alive()  # else a sensor does not answer, and nobody may read it beside that
        if meters:
            self._last_sample()
        unused = [ticket for ticket in self._asked if not ticket.started]
        self._bookkeeper.void(unused, "the workflow ended before the step began")
        left_seconds = max(1.0, deadline_seconds - self._clock.monotonic_seconds())
        posted = self._bookkeeper.flush(left_seconds) and meters and not self._open and all_placed_are_over
        self._bookkeeper.stop(left_seconds if posted else 1.0)
        if meters:
            if self._handover is not None:  # first: killed in between, the keeper would go on with what is over
                self._handover.close()
            self._sampler.close()
        if posted and self._watch is not None:
            self._watch.remove_files()
        if meters and not self._open:
            self._write(END_LINE)
        self._close_spool(removes=posted and not self._keeps_spool and not self._sampler.outlived_others)
        return posted

    def _finish_placed(self) -> bool:
        if self._watch is None or self._watch.is_done:
            return True
        for ticket in self._asked:
            if ticket.placed_at is not None and ticket.outcome is None:
                self.tell(ticket, Outcome.CANCELLED)
        if self._watch.finish(_PLACED_SOON_SECONDS):
            return True
        self._say(f"waiting up to {_PLACED_CLOSE_SECONDS:.0f} s for the last word about steps on the cluster")
        return self._watch.finish(_PLACED_CLOSE_SECONDS)

    def abandon(self) -> None:
        """In a forked child, where nothing of this is used again: close the descriptors that it would keep for life."""
        self._sampler.abandon()

    @property
    def ledger_is_busy(self) -> bool:
        """After ``close``: whether the ledger thread still waits for the ledger, so that nobody else may use it."""
        return self._bookkeeper.is_busy

    def _last_sample(self) -> None:
        """End, read and settle whatever has begun."""
        for ticket in list(self._open.values()):
            ticket.is_leaving = True
        while self._endings and any(self._wait_longer(ending) for ending in self._endings.values()):
            self._advance_endings()
            time.sleep(_ENDING_PERIOD_SECONDS)
        self._endings.clear()
        for ticket in list(self._open.values()):
            if ticket.ended_at is None:
                self.end(ticket)
            if ticket.outcome is None:
                self.tell(ticket, Outcome.CANCELLED)
        try:
            self._tick()
        except Exception:  # noqa: BLE001 - the host program's boundary: what is settled already must be posted
            _log.exception("mlflow-green: the last sample failed; its steps are settled by the next run")
        self._bookkeeper.post(self._windows)
        self._windows.clear()

    def _wait_longer(self, ending: Ending) -> bool:
        return self._clock.monotonic_seconds() < ending.give_up_seconds

    def _close_spool(self, *, removes: bool) -> None:
        with self._spool_lock:
            if self._spool is None:
                return
            self._spool.close()
            if self._unwritten and not removes:
                self._say(f"{len(self._unwritten)} readings that did not fit into {self._spool.path} are lost")
            if removes:
                self._spool.path.unlink(missing_ok=True)
            self._spool = None

    # --- the ticker ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._wait_for_a_sample()
            elapsed = self._clock.monotonic_seconds() - self._last_tick_seconds
            if self._cut.is_set() and elapsed < _WINDOW_SECONDS_MIN and not self._stopping:
                threading.Event().wait(_WINDOW_SECONDS_MIN - elapsed)
            self._cut.clear()
            if self._stopping:
                return
            try:
                self._tick()
                self._advance_endings()
                self._housekeeping()
            except Exception:  # noqa: BLE001 - a thread of the host program's process: it must not die unseen
                _log.exception("mlflow-green: the meter met an unexpected error; it goes on with the next sample")

    def _wait_for_a_sample(self) -> None:
        """Until one is due or wanted; what has begun meanwhile is handed over, however often one is wanted."""
        wait_seconds = _ENDING_PERIOD_SECONDS if self._endings else self._period_seconds
        until_seconds = self._clock.monotonic_seconds() + wait_seconds
        while (left_seconds := until_seconds - self._clock.monotonic_seconds()) > 0 and not self._stopping:
            if self._handover is not None:
                self._hand_over_in_time(self._handover)
                left_seconds = min(left_seconds, HAND_OVER_SECONDS)
            if self._cut.wait(left_seconds):
                return

    def _hand_over_in_time(self, handover: Handover) -> None:
        now_seconds = self._clock.monotonic_seconds()
        if now_seconds - self._last_hand_over_seconds >= HAND_OVER_SECONDS:
            self._last_hand_over_seconds = now_seconds
            self._hand_over(handover)

    def _hand_over(self, handover: Handover) -> None:
        """Tell the keeper which steps it is to go on for, should this process die."""
        begun_seconds = self._clock.monotonic_seconds() - HAND_OVER_SECONDS
        try:
            handover.update(
                RunningStep(
                    hold_id=hold_id,
                    standing=standing,
                    sampler_id=self._sampler.sampler_id,
                    spool_path=self._spool.path,
                    grace_seconds=self._grace_seconds_of(self._open.get(hold_id)),
                )
                for hold_id, standing in self._sampler.standing().items()
                if self._spool is not None and standing.presence.joined_seconds <= begun_seconds
            )
        except Exception:  # noqa: BLE001 - a thread of the host program's process
            _log.exception("mlflow-green: steps that outlive this process will not be metered")
            self._handover = None

    def _grace_seconds_of(self, ticket: Ticket | None) -> float | None:
        if self._grace_seconds is None:
            return None
        return GRACE_SECONDS if ticket is None or ticket.hold is None else self._grace_seconds(ticket.hold)

    def _tick(self) -> None:
        tick = self._sampler.tick()
        self._last_tick_seconds = self._clock.monotonic_seconds()
        self._windows.extend(tick.windows)
        if tick.usages or tick.windows:
            self._write({"kind": "tick", "tick": to_json(tick)})
        for hold_id, usage in tick.usages.items():
            ticket = self._open.get(hold_id)
            if ticket is not None:
                ticket.usage = usage
                ticket.usage_final = hold_id in tick.final
        with self._ticked:
            self._ticked.notify_all()
        self._settle_ended()
        for ticket in list(self._open.values()):
            if ticket.running:
                self._enforce(ticket)
        while self._sampler.notes:
            self._say(self._sampler.notes.pop(0))

    def _settle_ended(self) -> None:
        for hold_id, ticket in list(self._open.items()):
            if ticket.usage_final and ticket.outcome is not None:
                if not ticket.is_view:
                    self._settle(ticket, ticket.outcome)
                del self._open[hold_id]

    def _settle(self, ticket: Ticket, outcome: Outcome) -> None:
        entry = entry_of(ticket, outcome, self._book, self._clock.now())
        closing = Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry)
        self._write(closing_line(closing))
        self._bookkeeper.settle(ticket, closing, self._quality(ticket))

    def _enforce(self, ticket: Ticket) -> None:
        if self._enforcer is None or ticket.hold is None or ticket.halt_reason:
            return
        if self._enforcer.needs_balances:
            self._bookkeeper.read_balances(ticket.hold.terms)
        waited_seconds = self._last_tick_seconds - ticket.top_up_asked_seconds
        if ticket.top_up_pending and waited_seconds > _TOP_UP_SECONDS_MAX:
            ticket.top_up_refused = True  # the ledger is slow: what was granted is all there is, until it answers
        verdict = self._enforcer.judge(ticket, self._bookkeeper.balances)
        if verdict.halt_reason and self._halts:
            self._halt(ticket, verdict.halt_reason, verdict.grace_seconds)
        elif verdict.halt_reason:
            self._warn(ticket, verdict.halt_reason)
        elif verdict.top_up and not ticket.top_up_pending:
            may_finish = verdict.may_finish or not self._halts
            self._bookkeeper.top_up(ticket, verdict.top_up, may_finish=may_finish)
        if verdict.overrun and not ticket.overrun_said:
            ticket.overrun_said = True
            self._say(verdict.overrun)

    def _halt(self, ticket: Ticket, reason: str, grace_seconds: float) -> None:
        with self._halting:
            if ticket.is_leaving:  # it has finished meanwhile, and what it made is whole
                return
            self._endings[ticket.hold_id] = Ending(ticket.hold_id, grace_seconds)
            ticket.halt_reason = reason
        self._say(f"halting {ticket.step.label}: {reason}")

    def _warn(self, ticket: Ticket, reason: str) -> None:
        if ticket.over_grant is None:
            ticket.over_grant = reason
            self._say(f"{reason}; it is a part of this program, which goes on, and what it uses is charged")

    def _advance_endings(self) -> None:
        for hold_id, ending in list(self._endings.items()):
            ticket = self._open.get(hold_id)
            gone = ending.advance() or not self._wait_longer(ending)
            if gone and (ticket is None or not ticket.running):
                del self._endings[hold_id]

    def _housekeeping(self) -> None:
        now = self._last_tick_seconds
        if self._windows and now - self._last_post_seconds >= _POST_WINDOWS_SECONDS:
            self._bookkeeper.post(self._windows)
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
            numbers = _numbers_in(path)
        except (OSError, ValueError, RecursionError) as error:
            self._say(
                f"{ticket.step.label}: no accuracy recorded, {path} is not a JSON object of numbers ({error}); "
                'write e.g. {"mape": 2.1}'
            )
            return []
        return [
            Fact(hold_id=ticket.hold_id, name=f"quality/{name}", value=value)
            for name, value in numbers.items()
            if math.isfinite(value)
        ]

    def _write(self, line: Mapping[str, object]) -> None:
        """Append to the spool, after what could not be written before."""
        with self._spool_lock:
            if self._spool is None:
                return
            was_well = not self._unwritten
            self._unwritten.append(line)
            try:
                while self._unwritten:
                    self._spool.append(self._unwritten[0])
                    self._unwritten.popleft()
            except OSError as error:
                if was_well:
                    self._say(
                        f"cannot write {self._spool.path}: {error.strerror}; free space or make it writable. "
                        "Until then a kill -9 would lose the readings since the last commit"
                    )


def _numbers_in(path: Path) -> dict[str, float]:
    """The numbers of a JSON object; raises ``OSError``, ``ValueError`` or ``RecursionError``."""
    if not path.is_file():
        raise ValueError("there is no such file")
    if path.stat().st_size > _METRICS_BYTES_MAX:
        raise ValueError(f"larger than {_METRICS_BYTES_MAX} bytes")
    values = json.loads(path.read_text(), parse_int=float)
    if not isinstance(values, dict):
        raise ValueError("not an object")  # noqa: TRY004 - wrong content, not a wrong type of ours
    return {name: value for name, value in values.items() if isinstance(value, float)}
