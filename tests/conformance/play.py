"""Play a scenario to a meter, by a clock that is turned by hand or in real time, and judge what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.meters import Measured, Meter
from tests.conformance.scenarios import Event, Scenario
from tests.testkit.fakepowercap import FakePowercap

SAMPLE_SECONDS = 1.0
_STEP_SECONDS = 0.01
# What is asked of an interval where every reading came: half of its width, as a part of the point.
HALF_WIDTH_RATIO_MAX = {"cpu": 0.10, "dram": 0.20, "platform": 0.20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a meter said, by domain, and for how many seconds it was asked to meter."""

    seconds: float
    measured: Mapping[str, Measured]


class HandTime:
    """The tree's clock, moved on at once."""

    def __init__(self, tree: FakePowercap) -> None:
        self._tree, self._seconds = tree, 0.0

    def seconds(self) -> float:
        return self._seconds

    def wait_until(self, seconds: float) -> None:
        self._tree.advance(seconds - self._seconds)
        self._seconds = seconds

    def happen(self, event: Event) -> None:
        event.happen(self._tree)

    def end(self) -> None:
        pass


class RealTime:
    """The tree's clock runs with the machine's, in a thread that moves the counters on each 10 ms."""

    def __init__(self, tree: FakePowercap) -> None:
        self._tree, self._lock, self._ended = tree, threading.Lock(), threading.Event()
        self._moved_seconds = self._begun_seconds = time.monotonic()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def seconds(self) -> float:
        return time.monotonic() - self._begun_seconds

    def wait_until(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds - self.seconds()))

    def happen(self, event: Event) -> None:
        with self._lock:
            event.happen(self._tree)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_STEP_SECONDS):
            with self._lock:
                now_seconds = time.monotonic()
                self._tree.advance(now_seconds - self._moved_seconds)
                self._moved_seconds = now_seconds


def play(scenario: Scenario, meter: Meter, folder: Path, *, in_real_time: bool = False) -> Played:
    """Meter the scenario's tree, made in ``folder``; errors of the meter come through."""
    tree = scenario.tree(folder / "powercap")
    clock = RealTime(tree) if in_real_time else HandTime(tree)
    try:
        for event in scenario.events:
            if event.at_seconds <= 0:
                clock.happen(event)
        meter.start(tree.root, clock.seconds)
        begun_seconds = clock.seconds()
        for seconds, event in _course(scenario):
            clock.wait_until(begun_seconds + seconds)
            if event is None:
                meter.sample()
            else:
                clock.happen(event)
        metered_seconds = clock.seconds() - begun_seconds
        return Played(seconds=metered_seconds, measured=meter.stop())
    finally:
        clock.end()
        tree.close()


def _course(scenario: Scenario) -> list[tuple[float, Event | None]]:
    """Events and samples (``None``) in the order of time, an event before a sample of the same moment."""
    samples = [number * SAMPLE_SECONDS for number in range(1, int(scenario.seconds / SAMPLE_SECONDS) + 1)]
    course = [(event.at_seconds, event) for event in scenario.events if event.at_seconds > 0]
    return sorted([*course, *((seconds, None) for seconds in samples)], key=lambda each: (each[0], each[1] is None))


def judge(scenario: Scenario, played: Played) -> list[str]:
    """What is wrong with the meter's answer, a sentence each."""
    domains = frozenset(played.measured)
    if domains not in scenario.alternatives:
        wanted = " or ".join(" + ".join(sorted(each)) for each in scenario.alternatives)
        return [f"it reports {' + '.join(sorted(domains)) or 'nothing'} instead of {wanted}"]
    return [
        f"{domain}: {complaint}"
        for domain, measured in played.measured.items()
        for complaint in _wrong(scenario, domain, measured, scenario.truth_joules(domain, played.seconds))
    ]


def _wrong(scenario: Scenario, domain: str, measured: Measured, truth_joules: float) -> list[str]:
    point, low, high = measured.joules, measured.low_joules, measured.high_joules
    truth = f"{truth_joules:.0f} J were drawn"
    found: list[str] = []
    if scenario.tolerance_ratio is not None and abs(point - truth_joules) > scenario.tolerance_ratio * truth_joules:
        found.append(f"{point:.0f} J reported, {truth}")
    if low is None or high is None:
        return [*found, "no interval is given"]
    if not low <= truth_joules <= high:
        found.append(f"the interval [{low:.0f}, {high:.0f}] J does not hold the truth, {truth}")
    if scenario.is_covered and (high - low) / 2 > HALF_WIDTH_RATIO_MAX[domain] * point * 1.001:
        found.append(f"the interval [{low:.0f}, {high:.0f}] J is wide, though nothing was missed")
    if measured.coverage_ratio is not None and (measured.coverage_ratio >= 1) is not scenario.is_covered:
        found.append(
            f"coverage is {measured.coverage_ratio:.3f}, {'nothing' if scenario.is_covered else 'something'} was missed"
        )
    return found
