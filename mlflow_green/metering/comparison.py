"""Watching components and node meter side by side for some minutes, if wanted at rest and under load in turn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Protocol

from mlflow_green.clock import Clock
from mlflow_green.errors import SensorRetry
from mlflow_green.metering.alignment import ComponentSample, NodeSample
from mlflow_green.metering.calibration import Comparison
from mlflow_green.records import Method, NodeWindow, Tick
from mlflow_green.sensors.node_meter import NodeMeter

PERIOD_SECONDS = 1.0
PHASES = 4  # rest, load, rest, load: edges show the meter's lag, and twice shows a drift
_BUSY = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


class Ticking(Protocol):
    """What is wanted of a sampler: windows that follow each other without a gap."""

    def tick(self) -> Tick: ...


def compare(
    sampler: Ticking,
    meter: NodeMeter | None,
    *,
    seconds: float,
    clock: Clock,
    pause: Callable[[float], None],
    say: Callable[[str], None],
    start_load: Callable[[float], Callable[[], None]] | None = None,
) -> Comparison:
    """Read both once a second; ``meter`` is ``None`` for one that keeps its readings itself.

    ``start_load(seconds)`` makes the machine busy for at most so long and returns what ends it. A read of the meter
    that fails is left out.

    Raises:
        SensorUnavailable: the node's meter is gone for good.
    """
    started_at, started_seconds = clock.now(), clock.monotonic_seconds()
    used_microjoules, elapsed_seconds = 0, 0.0
    components = [ComponentSample(seconds=0.0, energy_microjoules=0)]
    node: list[NodeSample] = []
    windows: list[NodeWindow] = []
    end_load: Callable[[], None] | None = None
    try:
        while elapsed_seconds < seconds:
            is_busy = start_load is not None and int(PHASES * elapsed_seconds / seconds) % 2 == 1
            if is_busy and end_load is None and start_load is not None:
                say(f"every core is busy for {seconds / PHASES:.0f} s")
                end_load = start_load(seconds / PHASES)
            elif not is_busy and end_load is not None:
                end_load()
                end_load = None
            pause(PERIOD_SECONDS)
            closed = sampler.tick().windows
            elapsed_seconds = clock.monotonic_seconds() - started_seconds
            windows += closed
            used_microjoules += sum(window.energy.microjoules for window in closed)
            components.append(ComponentSample(seconds=elapsed_seconds, energy_microjoules=used_microjoules))
            node += _sample(meter, clock, started_seconds)
    finally:
        if end_load is not None:
            end_load()
    return Comparison(
        started_at=started_at,
        components=tuple(components),
        node=tuple(node),
        method=_method(windows),
        coverage_ratio=fmean(window.coverage_ratio for window in windows) if windows else 0.0,
    )


def _sample(meter: NodeMeter | None, clock: Clock, started_seconds: float) -> list[NodeSample]:
    if meter is None:
        return []
    try:
        reading = meter.read()
    except SensorRetry:
        return []
    return [NodeSample(seconds=clock.monotonic_seconds() - started_seconds, reading=reading)]


def _method(windows: Sequence[NodeWindow]) -> Method:
    methods = {window.energy.method for window in windows}
    return methods.pop() if len(methods) == 1 else Method.MIXED


def busy_cores(count: int, seconds: float) -> Callable[[], None]:
    """Keep ``count`` cores busy for at most so long, whatever becomes of this process; call what it returns to stop."""
    command = [sys.executable, "-IS", "-c", _BUSY, str(seconds)]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(count)]

    def end() -> None:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()

    return end
