"""The blocks of one process while they are open: one at a time pays for the process, and the others are views of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from mlflow_green.clock import Clock
from mlflow_green.metering.cpu_clock import CpuClock, ThreadsClock
from mlflow_green.recorder.admission import Admission
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.ticket import Book, Ticket, entry_of
from mlflow_green.records import CpuClockName, Entry, Outcome, StepSpec

_USAGE_SECONDS_MAX = 5.0  # a meter that leads elsewhere answers within three


class ProcessMeter:
    """Meters the blocks of this process by one CPU clock: that of the whole process with its children.

    The block that finds no other open pays: its ticket is held, posted and charged. All that are opened meanwhile, in
    whatever thread, are views. One of them that is still open when the paying block ends pays for its own rest.
    Without an ``admission`` all are views: this process is a part of a step that is metered already.

    Thread-safe, and of one process: a forked child must not touch it.
    """

    def __init__(
        self,
        recorder: Recorder,
        cpu_clock: CpuClock,
        book: Book,
        clock: Clock,
        *,
        admission: Admission | None,
        specs: Mapping[str, StepSpec],
        environment: Callable[[Ticket], Mapping[str, str]],
        close_ledger: Callable[[], None],
    ) -> None:
        """``environment``: by what a program that the block starts knows that it is metered already."""
        self._recorder = recorder
        self._cpu_clock = cpu_clock
        self._book = book
        self._clock = clock
        self._admission = admission
        self._environment = environment
        self._close_ledger = close_ledger
        self.specs = specs
        self._lock = threading.Lock()
        self._entering = threading.Lock()
        self._open: list[Ticket] = []
        self._rest: dict[Ticket, Ticket] = {}  # what pays for a view that outlived the paying block
        self._payer: Ticket | None = None
        self._environ_before: dict[str, str | None] = {}

    @property
    def pays(self) -> bool:
        """Whether anything is posted and charged here; else another meter does it."""
        return self._admission is not None

    def enter(self, ticket: Ticket) -> None:
        """The block starts in the calling thread, once its budgets have admitted it. Raises ``BudgetExceeded``."""
        with self._entering:  # of a block that waits for its budget, or is refused, none is a view
            with self._lock:
                ticket.is_own_process = True
                ticket.is_view = self._payer is not None or self._admission is None
                self._open.append(ticket)
                if not ticket.is_view:
                    self._payer = ticket
            try:
                if not ticket.is_view and self._admission is not None:
                    self._admission.admit(ticket)
                    self._set_environ(ticket)
                self._recorder.begin(ticket, _Look(self._cpu_clock))
            except BaseException:
                self._end_rest(ticket)
                self._drop(ticket)
                raise

    def _end_rest(self, ticket: Ticket) -> None:
        """Of a view that did not begin, though the paying block has ended meanwhile."""
        with self._lock:
            self._open.remove(ticket)
            rest = self._rest.pop(ticket, None)
        if rest is not None:
            self._recorder.end(rest)
            self._recorder.tell(rest, Outcome.CANCELLED)
            self._drop(rest)

    def leave(self, ticket: Ticket, outcome: Outcome) -> None:
        """The block has ended. What it used is final soon after: ``entry`` waits for that."""
        with self._lock:
            self._open.remove(ticket)  # if the paying block ends meanwhile, there is no rest of this one to pay for
            rest = self._rest.pop(ticket, None)
        ending = [each for each in (ticket, rest) if each is not None]
        try:
            for each in ending:
                self._recorder.end(each)
                each.halt_reason = each.over_grant if outcome is Outcome.HALTED else None
                self._recorder.tell(each, outcome)
        finally:  # also when somebody presses Ctrl-C here
            self._drop(*ending)
            self._recorder.sample_soon()

    def entry(self, ticket: Ticket) -> Entry:
        """What the block has used: up to the last sample while it is open, then finally."""
        if ticket.outcome is not None and not ticket.usage_final:
            self._recorder.sample_soon()
            self._recorder.wait_for_usage(ticket, _USAGE_SECONDS_MAX)
        return entry_of(ticket, ticket.outcome or Outcome.CANCELLED, self._book, self._clock.now())

    def over_grant(self) -> str | None:
        """Why the block that pays should end, in a sentence; ``None`` while it may go on."""
        payer = self._payer
        return payer.over_grant if payer else None

    def close(self, timeout_seconds: float) -> bool:
        """End what is open, and post everything. False if some is left in the spool."""
        posted = self._recorder.close(timeout_seconds)
        self._cpu_clock.close()
        if not self._recorder.ledger_is_busy:
            self._close_ledger()
        return posted

    def abandon(self) -> None:
        """In a forked child, where this is not used again: close the descriptors that the child would keep for life."""
        if isinstance(self._cpu_clock, ThreadsClock):
            self._cpu_clock.abandon()
        self._recorder.abandon()

    def _drop(self, *tickets: Ticket) -> None:
        """These are over; if one of them paid, the view that was opened first goes on paying."""
        with self._lock:
            self._open = [each for each in self._open if each not in tickets]
            if self._payer not in tickets:
                return
            self._restore_environ()
            self._payer = None
            if self._open and self._admission is not None:
                self._pay_for_rest(self._open[0], self._admission)

    def _pay_for_rest(self, view: Ticket, admission: Admission) -> None:
        rest = self._payer = self._rest[view] = Ticket(step=view.step, spec=view.spec, is_own_process=True)
        admission.promise(rest)
        self._set_environ(rest)
        self._recorder.begin(rest, _Look(self._cpu_clock))

    def _set_environ(self, ticket: Ticket) -> None:
        environ = self._environment(ticket)
        self._environ_before = {name: os.environ.get(name) for name in environ}
        os.environ.update(environ)

    def _restore_environ(self) -> None:
        for name, value in self._environ_before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environ_before = {}


class _Look:
    """One block's look at the clock of the process, which is not the block's to close."""

    def __init__(self, clock: CpuClock) -> None:
        self._clock = clock

    @property
    def name(self) -> CpuClockName:
        return self._clock.name

    def seconds(self) -> float:
        return self._clock.seconds()

    def close(self) -> None:
        """The process's clock goes on."""
