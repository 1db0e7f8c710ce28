"""``with mlflow_green.meter("train") as m:``: parts of a Python program as metered steps.

Metering never breaks the program: whatever fails here is said once, in the log, and the block runs on unmetered. Only
a hard budget raises, before the block starts.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import logging
import os
import re
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast, overload

from mlflow_green.errors import (
    AllowanceRefused,
    BudgetExceeded,
    BudgetUnkept,
    GreenError,
    PolicyError,
    StepHalted,
    UnsupportedHost,
)
from mlflow_green.records import CpuClockName, Domain, Energy, Entry, Method, Outcome, Step, StepSpec
from mlflow_green.settings import Settings, load_settings
from mlflow_green.units import format_energy_interval, grams, joules, microjoules, parse_energy_microjoules

if TYPE_CHECKING:
    from mlflow_green.recorder.process_meter import ProcessMeter
    from mlflow_green.recorder.ticket import Ticket

__all__ = ["Block", "BlockRecord", "Joules", "meter", "metered"]

_log = logging.getLogger("mlflow_green")

LINGER_SECONDS = 0.2  # the meter stays open for blocks that follow each other
CLOSE_SECONDS = 10.0

P = ParamSpec("P")
R = TypeVar("R")

# --- what a block used ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Joules:
    """An energy with its interval in joules, 0 <= low <= point <= high, and how it was obtained."""

    joules: float
    low_joules: float
    high_joules: float
    method: Method

    def __str__(self) -> str:
        """As people read it: ``4.20 mWh [1.40, 12.6] estimated``."""
        ends = (microjoules(each) for each in (self.joules, self.low_joules, self.high_joules))
        return f"{format_energy_interval(*ends)} {self.method}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecord:
    """What a block used. What is not known is ``None``, or has no domain in ``energy``; it is never 0.

    ``energy`` and ``total`` are those of the metered components, without the rest of the node and without idle energy.
    ``outcome`` is ``None`` while the block runs. A view is a part of another metered step: it is neither posted nor
    charged. ``hold_id`` names the block's entry in the ledger. ``cpu_seconds`` are those of the whole process with its
    children. ``coverage_ratio`` is the part of the time between valid readings.
    """

    name: str
    outcome: Outcome | None
    is_view: bool
    duration_seconds: float
    energy: Mapping[Domain, Joules] = field(default_factory=dict)
    total: Joules | None = None
    cpu_seconds: float | None = None
    cpu_clock: CpuClockName | None = None
    coverage_ratio: float | None = None
    operational_g_co2e: float | None = None
    embodied_g_co2e: float | None = None
    carbon_intensity_g_per_kwh: float | None = None
    intensity_source: str | None = None
    hold_id: str | None = None

    def __str__(self) -> str:
        """One line, as ``mlflow-green run`` prints it."""
        ending = self.outcome.value if self.outcome else "is running"
        energy = f"energy {self.total}" if self.total else "energy not metered"
        return f"{energy}, {self.duration_seconds:.1f} s, {self.name} {ending}"


def _record_of(name: str, ticket: Ticket, entry: Entry, duration_seconds: float) -> BlockRecord:
    total, carbon, embodied = entry.total, entry.operational_micrograms_co2e, entry.embodied_micrograms_co2e
    return BlockRecord(
        name=name,
        outcome=ticket.outcome,
        is_view=ticket.is_view,
        duration_seconds=duration_seconds,
        energy={domain: _in_joules(energy) for domain, energy in entry.energy.items()},
        total=_in_joules(total) if total else None,
        cpu_seconds=entry.cpu_seconds,
        cpu_clock=entry.cpu_clock,
        coverage_ratio=entry.coverage_ratio,
        operational_g_co2e=None if carbon is None else grams(carbon),
        embodied_g_co2e=None if embodied is None else grams(embodied),
        carbon_intensity_g_per_kwh=entry.carbon_intensity_g_per_kwh,
        intensity_source=entry.intensity_source,
        hold_id=entry.hold_id,
    )


def _in_joules(energy: Energy) -> Joules:
    return Joules(
        joules=joules(energy.microjoules),
        low_joules=joules(energy.low_microjoules),
        high_joules=joules(energy.high_microjoules),
        method=energy.method,
    )


# --- a block ----------------------------------------------------------------------------------------


class Block:
    """One execution of a part of this program, as a step of its project. Not for two threads at once.

    A block inside another one, or inside a step that ``mlflow-green run`` or Snakemake meters, is a view: it measures
    its part, and the outermost is posted and charged.
    """

    def __init__(self, name: str, *, project: str | None = None, energy: str | None = None, log: bool = False) -> None:
        """See ``meter``."""
        if not isinstance(name, str) or not name.strip() or len(name.splitlines()) > 1:
            raise TypeError(f"{name!r} is not the name of a step; write e.g. meter('train')")
        if not isinstance(energy, str | None):
            raise TypeError(f"{energy!r} is not an energy; write e.g. energy='5 Wh'")
        self.name = name
        self._project = project
        self._energy_microjoules = None if energy is None else parse_energy_microjoules(energy)
        self._logs = log
        self._metered: tuple[ProcessMeter, Ticket] | None = None
        self._pid = 0
        self._began_seconds = 0.0
        self._duration_seconds: float | None = None
        self._outcome: Outcome | None = None

    def __enter__(self) -> Self:
        if self._pid:
            raise RuntimeError(f"block {self.name!r} was entered before; make a new one with meter({self.name!r})")
        self._pid, self._began_seconds = os.getpid(), time.monotonic()
        self._metered = _process.enter(self.name, self._project, self._energy_microjoules)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:  # a forked child leaves a block that its parent goes on with
            return
        self._outcome = _outcome_of(error)
        self._duration_seconds = time.monotonic() - self._began_seconds
        if self._metered is not None:
            _process.leave(*self._metered, self._outcome)
            if self._logs:
                self._log()

    @property
    def record(self) -> BlockRecord:
        """What the block has used: up to the last sample while it runs, then finally, which may take a moment."""
        duration_seconds = self._duration_seconds
        if duration_seconds is None:
            duration_seconds = time.monotonic() - self._began_seconds if self._pid else 0.0
        if self._metered is None or os.getpid() != self._pid:
            return BlockRecord(name=self.name, outcome=self._outcome, is_view=False, duration_seconds=duration_seconds)
        process_meter, ticket = self._metered
        return _record_of(self.name, ticket, process_meter.entry(ticket), duration_seconds)

    @property
    def tier(self) -> str | None:
        """The tier that the block was admitted at, where its step has tiers."""
        decision = self._metered[1].decision if self._metered else None
        return decision.tier if decision else None

    def check(self) -> None:
        """Stop here if a hard budget is used up: call it where the program can end well, after each epoch say.

        Raises:
            StepHalted: what was granted is used up, and more was refused.
        """
        if self._metered is not None and os.getpid() == self._pid:
            reason = self._metered[0].over_grant()
            if reason is not None:
                raise StepHalted(reason)

    def __str__(self) -> str:
        return str(self.record)

    def _log(self) -> None:
        assert self._metered is not None
        process_meter, ticket = self._metered
        try:
            if "mlflow" in sys.modules:
                from mlflow_green.tracking.active_run import log_to_active_run

                if log_to_active_run(process_meter.entry(ticket)):
                    return
            _process.say(f"{self.name}: there is no active MLflow run to log its energy to")
        except Exception as error:  # noqa: BLE001 - MLflow is a host, and the user's block has ended well
            _process.say(f"{self.name}: its energy could not be logged to MLflow: {error}")


def _outcome_of(error: BaseException | None) -> Outcome:
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return Outcome.SUCCEEDED
    if isinstance(error, StepHalted):
        return Outcome.HALTED
    # Ctrl-C, a cancelled task and a closed coroutine are no exceptions of the block's own.
    return Outcome.FAILED if isinstance(error, Exception | SystemExit) else Outcome.CANCELLED


def meter(name: str, *, project: str | None = None, energy: str | None = None, log: bool = False) -> Block:
    """Meter a part of this program as a step of its project, in a ``with`` statement that gives its ``Block``.

    ``project`` pays; that of green.yaml by default. ``energy`` is a first estimate such as ``"5 Wh"``, which a hard
    budget holds. ``log`` puts the metrics on the MLflow run that is active when the block ends, if there is one.

    Raises:
        TypeError: the name is no line of text, or the energy is no text.

    Raises, when the block is entered:
        BudgetExceeded: a hard budget refuses it.
        GreenError: a hard budget cannot be kept here.
    """
    return Block(name, project=project, energy=energy, log=log)


@overload
def metered(name: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def metered(
    name: str | None = None, *, project: str | None = None, energy: str | None = None, log: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def metered(name: Any = None, *, project: str | None = None, energy: str | None = None, log: bool = False) -> Any:
    """Meter each call of a function, method or coroutine function as ``meter`` does; by default under its own name.

    The call returns and raises what the function does. ``FUNCTION.last_block`` is the block of the call that ended
    last, ``None`` before. A coroutine's block lasts until it is done and counts the whole process meanwhile.

    Raises:
        TypeError: for a class, or a generator, whose pieces run whenever somebody asks for the next: put
            ``with meter(NAME)`` around the loop that does.
    """
    if callable(name):
        return metered()(name)  # @metered without parentheses

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"metered() is for functions, not {function!r}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator; put 'with meter(...)' around the loop that uses it"
            )
        label = name or function.__qualname__.rpartition("<locals>.")[2]
        block_of_call = functools.partial(meter, label, project=project, energy=energy, log=log)
        block_of_call()  # a wrong argument is told here

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            block = block_of_call()
            try:
                with block:
                    return function(*args, **kwargs)
            finally:
                wrapper.last_block = block

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            block = block_of_call()
            try:
                with block:
                    return await function(*args, **kwargs)
            finally:
                wrapper.last_block = block

        wrapper: Any = call_async if inspect.iscoroutinefunction(function) else call
        wrapper.last_block = None
        return cast("Callable[..., Any]", wrapper)

    return decorate


# --- this process -----------------------------------------------------------------------------------


class _Process:
    """The meter of this process: opened by its first block, closed a moment after its last, forgotten by a fork."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child: the meter, its threads and whoever holds a lock stay with the parent."""
        forgotten: ProcessMeter | None = self.__dict__.get("_meter")
        if forgotten is not None:
            with contextlib.suppress(OSError):
                forgotten.abandon()
        self._lock = threading.Lock()
        self._meter: ProcessMeter | None = None
        self._opened_for: tuple[Settings, str | None] | None = None
        self._users = 0
        self._left_seconds = 0.0
        self._closers: list[threading.Thread] = []
        self._exits: threading.Event | None = None
        self._said: set[str] = set()
        self._workflow_run = uuid.uuid4().hex
        self._times: Counter[str] = Counter()

    def say(self, text: str) -> None:
        """Once for each text."""
        if text not in self._said:
            self._said.add(text)
            _log.warning("mlflow-green: %s", text)

    def enter(
        self, name: str, project: str | None, energy_microjoules: int | None
    ) -> tuple[ProcessMeter, Ticket] | None:
        """Begin a block; ``None`` where it runs unmetered. Raises ``GreenError`` under a hard budget."""
        settings: Settings | None = None
        process_meter: ProcessMeter | None = None
        try:
            settings = load_settings(Path.cwd(), os.environ)
            if settings.disabled:
                return None
            process_meter = self._use(settings, project)
            ticket = self._ticket(process_meter, name, energy_microjoules)
            process_meter.enter(ticket)
        except BaseException as error:
            if process_meter is not None:
                self._release()
            if not isinstance(error, Exception) or isinstance(error, BudgetExceeded | AllowanceRefused | BudgetUnkept):
                raise
            self._fail(error, settings)
            return None
        return process_meter, ticket

    def leave(self, process_meter: ProcessMeter, ticket: Ticket, outcome: Outcome) -> None:
        try:
            process_meter.leave(ticket, outcome)
        except Exception:  # noqa: BLE001 - the user's block has ended, well or not, and that is what counts
            _log.exception("mlflow-green met an unexpected error at the end of a block")
        finally:
            self._release()

    def _fail(self, error: Exception, settings: Settings | None) -> None:
        """Open where nothing is enforced, else closed."""
        from mlflow_green.session import inside_metered_step

        if settings is not None and _may_be_hard(settings, error) and not inside_metered_step(os.environ):
            raise UnsupportedHost(f"the block is not started, for a hard budget cannot be kept: {error}") from error
        if not isinstance(error, GreenError | OSError):
            _log.debug("mlflow-green met an unexpected error", exc_info=error)
        self.say(f"blocks run as usual, but what they use is not metered: {error}")

    def _ticket(self, process_meter: ProcessMeter, name: str, energy_microjoules: int | None) -> Ticket:
        from mlflow_green.recorder.ticket import Ticket

        spec = process_meter.specs.get(name, StepSpec())
        if energy_microjoules is not None:
            spec = replace(spec, energy_microjoules=energy_microjoules)
        with self._lock:
            self._times[name] += 1
            step = Step(workflow_run=self._workflow_run, name=name, attempt=self._times[name])
        return Ticket(step=step, spec=spec)

    # --- opening and closing ------------------------------------------------------------------------

    def _use(self, settings: Settings, project: str | None) -> ProcessMeter:
        """The meter, opened if it is not; what is open already serves whatever comes meanwhile."""
        with self._lock:
            if self._meter is None or (self._users == 0 and self._opened_for != (settings, project)):
                self._meter = None  # the closer of an older one sees that
                self._open(settings, project)
            assert self._meter is not None
            self._users += 1
            return self._meter

    def _open(self, settings: Settings, project: str | None) -> None:
        from mlflow_green.bootstrap import open_process_meter

        exits = self._exits = self._exits or self._watch_exit()
        opened = open_process_meter(settings, project=project, workflow_run=self._workflow_run, say=self.say)
        self._meter, self._opened_for = opened, (settings, project)
        closer = threading.Thread(target=self._close_when_idle, args=(opened, exits), name="green-closer", daemon=True)
        self._closers = [*(each for each in self._closers if each.is_alive()), *([closer] if opened.pays else [])]
        closer.start()

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            self._left_seconds = time.monotonic()

    def _close_when_idle(self, process_meter: ProcessMeter, exits: threading.Event) -> None:
        while self._meter is process_meter:
            is_exiting = exits.wait(LINGER_SECONDS)
            with self._lock:
                is_idle = self._users == 0 and time.monotonic() - self._left_seconds >= LINGER_SECONDS
                if (is_idle or is_exiting) and self._meter is process_meter:
                    self._meter = None
        process_meter.close(CLOSE_SECONDS)

    def _watch_exit(self) -> threading.Event:
        exits, pid = threading.Event(), os.getpid()

        def close() -> None:
            if os.getpid() == pid:
                exits.set()
                for closer in self._closers:
                    closer.join(CLOSE_SECONDS)

        atexit.register(close)
        if "multiprocessing.util" in sys.modules:  # its children end without atexit
            from multiprocessing.util import Finalize

            Finalize(None, close, exitpriority=0)
        return exits


def _may_be_hard(settings: Settings, error: Exception) -> bool:
    """Whether the policy file speaks of a hard budget; one that makes no sense may hide one that the ledger knows."""
    from mlflow_green.ledger.glance import may_know_hard

    path = settings.policy_path
    try:
        if path is not None and re.search(rb"\bhard\b", path.read_bytes()) is not None:
            return True
    except OSError:
        return False
    return isinstance(error, PolicyError) and may_know_hard(settings.ledger_url)


_process = _Process()
os.register_at_fork(after_in_child=_process.forget)
