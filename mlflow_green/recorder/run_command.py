"""``run -- CMD``: one command as one metered step, in the process group of its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from mlflow_green.metering.cpu_clock import open_clock, start_process
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Action, Outcome
from mlflow_green.units import format_energy_interval

HALTED, REFUSED = 76, 77
CANNOT_RUN, NOT_FOUND = 126, 127  # as every shell says it
SIGNALLED = 128
_CLOSE_SECONDS = 30.0
_LOOK_SECONDS = 1.0


class Environment(Protocol):
    """What the command sees of its budget, beside its caller's environment."""

    def __call__(self, ticket: Ticket) -> Mapping[str, str]: ...


def run_command(
    recorder: Recorder,
    ticket: Ticket,
    argv: Sequence[str],
    *,
    environment: Environment,
    answered: threading.Event,
    say: Callable[[str], None],
) -> int:
    """Hold, run and settle; the exit code of the command, 128 + n for signal n, 76 when halted, 77 when refused.

    ``answered`` is set whenever the ledger has answered. Belongs to the main thread: it handles SIGINT and SIGTERM
    until it returns, and hands them on to the command.
    """
    with _Signals() as signals:
        recorder.start()
        recorder.ask([ticket])
        while not signals.received and (ticket.decision is None or ticket.decision.action is Action.WAIT):
            answered.wait(_LOOK_SECONDS)
            answered.clear()
        if ticket.admitted and not signals.received:
            code = _run(recorder, ticket, argv, {**os.environ, **environment(ticket)}, signals, say)
        else:
            code = SIGNALLED + signals.received if signals.received else REFUSED
        if not recorder.close(_CLOSE_SECONDS):
            say("not everything could be posted; it is kept in the spool, and 'mlflow-green balance' posts it")
        say(_closing_line(ticket, argv, code))
        return code


def replace_process(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Become the command: nothing is metered here, for somebody else does it or nobody is to. Returns on failure."""
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - the user's own command
    except OSError as error:
        return _cannot_start(argv, error, say)


def _run(
    recorder: Recorder,
    ticket: Ticket,
    argv: Sequence[str],
    environ: Mapping[str, str],
    signals: _Signals,
    say: Callable[[str], None],
) -> int:
    clock = open_clock(runs_one=True)  # before the fork: what is started from now on is metered
    recorder.begin(ticket, clock)
    problem: OSError | None = None
    code = NOT_FOUND
    try:
        process = start_process(clock, list(argv), env=environ)
    except OSError as error:
        problem = error
    else:
        signals.hand_to(process)
        status = process.wait()
        code = status if status >= 0 else SIGNALLED - status
    halted = ticket.halt_reason is not None  # before its end: a later halt finds it finished, and what it made whole
    recorder.end(ticket)
    if problem is not None:
        code = _cannot_start(argv, problem, say)
    outcome = Outcome.CANCELLED if signals.received else Outcome.SUCCEEDED if code == 0 else Outcome.FAILED
    recorder.tell(ticket, Outcome.FAILED if halted else outcome)
    return HALTED if ticket.outcome is Outcome.HALTED else code


def _cannot_start(argv: Sequence[str], error: OSError, say: Callable[[str], None]) -> int:
    say(f"cannot run {argv[0]}: {error.strerror}; look at its name and whether it may be executed")
    return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN


def _closing_line(ticket: Ticket, argv: Sequence[str], code: int) -> str:
    decision, name = ticket.decision, os.path.basename(argv[0])  # noqa: PTH119 - a word, not a path of ours
    if ticket.began_at is None:
        reason = decision.reason if decision and ticket.refused else "interrupted before it started"
        return f"{name} was not started: {reason}"
    total = ticket.usage.total if ticket.usage else None
    energy = "energy not metered"
    if total is not None:
        interval = format_energy_interval(total.microjoules, total.low_microjoules, total.high_microjoules)
        energy = f"energy {interval} {total.method}"
    ending = f"halted: {ticket.halt_reason}" if ticket.outcome is Outcome.HALTED else f"{name} exited with {code}"
    return f"{energy}, {ticket.duration_seconds or 0.0:.1f} s, {ending}"


class _Signals:
    """SIGINT and SIGTERM, handed on to the command while it runs and remembered otherwise."""

    def __init__(self) -> None:
        self.received = 0
        self._process: subprocess.Popen[Any] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hand_to(self, process: subprocess.Popen[Any]) -> None:
        self._process = process
        if self.received:  # between the fork and here
            process.send_signal(self.received)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        if self._process is not None and not (number == signal.SIGINT and _terminal_tells_all()):
            self._process.send_signal(number)


def _terminal_tells_all() -> bool:
    """Whether Ctrl-C reaches the command by itself: a second SIGINT would cut short how it ends."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
