"""The components' readings and the node meter's on one time: windows, and the lag between the two. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor
from statistics import StatisticsError, correlation, median

from mlflow_green.sensors.node_meter import NodeReading
from mlflow_green.units import joules

WINDOW_SECONDS = 10.0  # several readings of a BMC, which says something new every second or so
WINDOWS_MIN = 6
WINDOWS_MAX = 300
COUNTER_STEPS_MIN = 10  # a window of a counter is at least so many of its steps, so that a step errs by a tenth at most
LAG_STEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSample:
    """What all components have used since the comparison began, in microjoules; seconds count from the same moment."""

    seconds: float
    energy_microjoules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSample:
    """What the node's meter showed at this moment."""

    seconds: float
    reading: NodeReading


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of time, and the node's mean power in it."""

    start_seconds: float
    end_seconds: float
    node_watts: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


class Curve:
    """The components' energy over time, straight between samples."""

    def __init__(self, samples: Sequence[ComponentSample]) -> None:
        self._seconds = [sample.seconds for sample in samples]
        self._joules = [joules(sample.energy_microjoules) for sample in samples]

    def power_watts(self, start_seconds: float, end_seconds: float) -> float | None:
        """Mean power between two moments; ``None`` where the samples do not reach so far."""
        if len(self._seconds) < 2 or start_seconds < self._seconds[0] or end_seconds > self._seconds[-1]:  # noqa: PLR2004
            return None
        return (self._at(end_seconds) - self._at(start_seconds)) / (end_seconds - start_seconds)

    def _at(self, seconds: float) -> float:
        after = min(bisect_right(self._seconds, seconds), len(self._seconds) - 1)
        before_seconds, after_seconds = self._seconds[after - 1], self._seconds[after]
        part = (seconds - before_seconds) / (after_seconds - before_seconds)
        return self._joules[after - 1] * (1 - part) + self._joules[after] * part


def paired(curve: Curve, windows: Sequence[Window], lag_seconds: float) -> Iterator[tuple[Window, float]]:
    """Each window with the components' power (W) in it, where both are known."""
    for window in windows:
        watts = curve.power_watts(window.start_seconds - lag_seconds, window.end_seconds - lag_seconds)
        if watts is not None:
            yield window, watts


def best_lag(curve: Curve, windows: Sequence[Window], range_seconds: tuple[float, float]) -> float | None:
    """The shift at which the two agree best, the smallest of equals; ``None`` where nothing varies.

    Only windows that are covered at every shift are compared. The range is cut to a quarter of the time.
    """
    if not windows:
        return None
    longest = (windows[-1].end_seconds - windows[0].start_seconds) / 4
    low, high = (max(-longest, min(longest, end)) for end in range_seconds)
    lags = [step * LAG_STEP_SECONDS for step in range(ceil(low / LAG_STEP_SECONDS), floor(high / LAG_STEP_SECONDS) + 1)]
    inside = [window for window in windows if all(list(paired(curve, [window], lag)) for lag in (low, high))]
    best: tuple[float, float] | None = None
    for lag in sorted(lags, key=abs):
        shifted = [watts for _, watts in paired(curve, inside, lag)]
        agreement = agreement_of(shifted, [window.node_watts for window in inside])
        if agreement is not None and (best is None or agreement > best[0] + 1e-9):
            best = (agreement, lag)
    return best[1] if best else None


def node_windows(samples: Sequence[NodeSample]) -> list[Window]:
    """The node's mean power piece by piece: by its energy counter if that moves often enough, else by its power."""
    span_seconds = samples[-1].seconds - samples[0].seconds if samples else 0.0
    least_seconds = max(WINDOW_SECONDS, span_seconds / WINDOWS_MAX)
    by_counter = list(_counter_windows(samples, least_seconds))
    if len(by_counter) >= WINDOWS_MIN:
        return by_counter
    return list(_averages(samples, least_seconds)) or list(_power_windows(samples, least_seconds)) or by_counter


def _counter_windows(samples: Sequence[NodeSample], least_seconds: float) -> Iterator[Window]:
    """From one change of the counter to another, at least ten steps later; a counter that falls starts afresh."""
    readings = [(each.seconds, energy) for each in samples if (energy := each.reading.energy_microjoules) is not None]
    steps = [after - before for (_, before), (_, after) in pairwise(readings) if after > before]
    start: tuple[float, int] | None = None
    for (_, before), (seconds, after) in pairwise(readings):
        if after < before:
            start = None
        elif after > before and start is None:
            start = (seconds, after)
        elif after > before and start is not None:
            gained, length = after - start[1], seconds - start[0]
            if length >= least_seconds and gained >= COUNTER_STEPS_MIN * min(steps):
                yield Window(start[0], seconds, joules(gained) / length)
                start = (seconds, after)


def _power_windows(samples: Sequence[NodeSample], least_seconds: float) -> Iterator[Window]:
    """Readings joined by straight lines; a break of more than a window and three usual distances is left out.

    Where they are dense each is the median of three neighbours: BMCs show a wild value now and then, and edges stay.
    """
    readings = [(each.seconds, watts) for each in samples if (watts := each.reading.power_watts) is not None]
    usual_seconds = median(after - before for (before, _), (after, _) in pairwise(readings)) if readings[1:] else 0.0
    if usual_seconds < WINDOW_SECONDS / 3:
        readings = [
            (seconds, median(watts for _, watts in readings[max(0, index - 1) : index + 2]))
            for index, (seconds, _) in enumerate(readings)
        ]
    start_seconds, area_joules = readings[0][0] if readings else 0.0, 0.0
    for (before_seconds, before_watts), (seconds, watts) in pairwise(readings):
        area_joules += (before_watts + watts) / 2 * (seconds - before_seconds)
        is_broken = seconds - before_seconds > max(WINDOW_SECONDS, 3 * usual_seconds)
        if is_broken or seconds - start_seconds >= least_seconds:
            if not is_broken:
                yield Window(start_seconds, seconds, area_joules / (seconds - start_seconds))
            start_seconds, area_joules = seconds, 0.0


def _averages(samples: Sequence[NodeSample], least_seconds: float) -> Iterator[Window]:
    """Readings that say over how long they are the mean: each is a window by itself."""
    done_seconds: float | None = None
    for sample in samples:
        watts, seconds = sample.reading.power_watts, sample.reading.averaging_seconds
        is_next = done_seconds is None or sample.seconds - done_seconds >= least_seconds
        if watts is not None and seconds is not None and seconds >= WINDOW_SECONDS and is_next:
            yield Window(sample.seconds - seconds, sample.seconds, watts)
            done_seconds = sample.seconds


def covered_seconds(windows: Sequence[Window]) -> float:
    """The time that the windows, in order, cover together; those of averages overlap."""
    ends = [windows[0].start_seconds, *(window.end_seconds for window in windows)]
    return sum(
        window.end_seconds - max(window.start_seconds, end_seconds)
        for window, end_seconds in zip(windows, ends, strict=False)
    )


def agreement_of(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's correlation; ``None`` where one of the two does not vary."""
    try:
        return correlation(one, other)
    except StatisticsError:
        return None
