"""What a meter is to the kit, our own, and any other that is a command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from mlflow_green.metering.sampler import Sampler, merge_windows
from mlflow_green.records import NodeWindow
from mlflow_green.sensors.rapl import RaplSensor
from mlflow_green.units import joules
from tests.testkit.metering_fakes import write_proc_stat


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An energy in joules. A meter that knows no interval, or not how much of the time it saw, leaves those out."""

    joules: float
    low_joules: float | None = None
    high_joules: float | None = None
    coverage_ratio: float | None = None


class Meter(Protocol):
    """Meters the tree under ``root`` from the return of ``start`` to the call of ``stop``.

    ``seconds`` is the tree's clock, which only moves between calls unless the kit plays in real time. ``sample`` comes
    once a second; a meter with a thread of its own does nothing then. ``stop`` gives the energies by domain, ``cpu``,
    ``dram`` and ``platform``; what is not metered is left out.
    """

    name: str

    def start(self, root: Path, seconds: Callable[[], float]) -> None: ...

    def sample(self) -> None: ...

    def stop(self) -> Mapping[str, Measured]: ...


class SamplerMeter:
    """Our sensor and sampler, in this process, read by the tree's clock."""

    name = "mlflow-green"

    def start(self, root: Path, seconds: Callable[[], float]) -> None:
        write_proc_stat(root.parent, busy_seconds=0)
        self._windows: list[NodeWindow] = []
        self._sampler = Sampler(
            [RaplSensor(root, proc_root=root.parent, monotonic=seconds)],
            clock=_TreeClock(seconds),
            host="host",
            boot_id="boot",
            lock_path=None,
            proc_root=root.parent,
        )

    def sample(self) -> None:
        self._windows += self._sampler.tick().windows

    def stop(self) -> Mapping[str, Measured]:
        self.sample()
        self._sampler.close()
        return {
            window.domain.value: Measured(
                joules=joules(window.energy.microjoules),
                low_joules=joules(window.energy.low_microjoules),
                high_joules=joules(window.energy.high_microjoules),
                coverage_ratio=window.coverage_ratio,
            )
            for window in merge_windows(self._windows)
        }


class CommandMeter:
    """A meter that is a program: ``COMMAND ROOT`` says ``ready``, reads a line, and answers with one line of JSON.

    ``{"cpu": {"joules": 10800, "low_joules": 9720, "high_joules": 11880, "coverage_ratio": 1}}``; only ``joules`` must
    be there. Lines before ``ready`` are ignored, and so are those that are not JSON before the answer.
    """

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name, self._command = name, command

    def start(self, root: Path, seconds: Callable[[], float]) -> None:
        self._process = subprocess.Popen(
            [*self._command, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while (line := self._process.stdout.readline()) != "ready\n":
            if not line:
                raise RuntimeError(f"{self.name} ended with status {self._ended()} before it was ready")

    def sample(self) -> None:
        pass

    def stop(self) -> Mapping[str, Measured]:
        try:
            said, _ = self._process.communicate("stop\n", timeout=60)
        except BrokenPipeError:
            said = ""
        answers = [line for line in said.splitlines() if line.startswith("{")]
        if not answers:
            raise RuntimeError(f"{self.name} ended with status {self._ended()} and no answer")
        return {domain: Measured(**energy) for domain, energy in json.loads(answers[-1]).items()}

    def _ended(self) -> int:
        with self._process:  # closes the pipes, and waits
            return self._process.wait()


@dataclass(frozen=True, slots=True)
class _TreeClock:
    seconds: Callable[[], float]

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds())

    def monotonic_seconds(self) -> float:
        return self.seconds()
