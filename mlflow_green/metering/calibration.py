"""How much more than its metered components a node uses: component sum against node meter. Pure.

    P_node = offset + scale x P_components

``P_node`` (W) is what the node's own meter shows, ``P_components`` (W) the sum of what our sensors read meanwhile.
``scale`` is what one more component watt costs at the plug (losses of the power supply, fans), ``offset`` (W) what the
node draws beside its components (boards, disks, fans). ``node_overhead`` is the one factor that green.yaml knows: mean
node energy / mean component energy, which holds for the load that it was measured under.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import combinations
from statistics import fmean, median

from mlflow_green.metering.alignment import (
    WINDOWS_MIN,
    ComponentSample,
    Curve,
    NodeSample,
    Window,
    agreement_of,
    best_lag,
    covered_seconds,
    node_windows,
    paired,
)
from mlflow_green.records import Method, check_aware

SECONDS_MIN = 60.0  # a BMC's readings lag and are averages: below a minute they tell nothing
VARIATION_MIN = 0.10
CORRELATION_MIN = 0.5
COVERAGE_MIN = 0.9
NODE_OVERHEAD_MAX = 10.0  # green.yaml takes no more
BMC_LAG_SECONDS = (0.0, 30.0)
WALL_METER_LAG_SECONDS = (-60.0, 60.0)  # its clock may be wrong either way
# What the ENERGY STAR specification for servers (version 3.0) asks of reported input power above 200 W.
METER_ERROR_RATIO = 0.05
_NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What both saw of one time, and how the components' part was obtained. Seconds count from ``started_at``."""

    started_at: datetime
    components: tuple[ComponentSample, ...]
    node: tuple[NodeSample, ...]
    method: Method
    coverage_ratio: float

    def __post_init__(self) -> None:
        check_aware(self.started_at, "started_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value, and where it lies with 95 % confidence if the node's meter errs by no more than is stated."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a comparison taught. ``findings`` are sentences; with any, nothing here should be relied upon.

    ``seconds`` is the length of the time that both cover, in ``windows`` pieces. ``lag_seconds`` > 0 is how much later
    than the components the meter shows a change, ``correlation`` in [-1, 1] how well they agree then. The component
    powers (W) say over which load everything holds. ``scale`` (no unit), ``offset_watts`` and ``residual_watts``, the
    median distance of the windows from the line, are ``None`` where the load did not vary. ``node_overhead`` (no unit)
    is the energy of the node / that of the components, and ``gap_ratio`` the part of the node's energy that the
    components do not show, 1 - 1 / node_overhead: below 0 where they show more than there is, which is never clipped.
    """

    seconds: float
    windows: int
    lag_seconds: float | None
    correlation: float | None
    component_watts_min: float
    component_watts_mean: float
    component_watts_max: float
    node_watts_mean: float
    scale: Interval | None
    offset_watts: Interval | None
    residual_watts: float | None
    node_overhead: Interval
    gap_ratio: Interval
    findings: tuple[str, ...]

    def overhead_at(self, component_watts: float) -> float | None:
        """What ``node_overhead`` would be at this component power, by the line; ``None`` where there is none."""
        if self.scale is None or self.offset_watts is None or component_watts <= 0:
            return None
        return self.scale.point + self.offset_watts.point / component_watts


def calibrate(
    comparison: Comparison,
    *,
    lag_seconds: float | None = None,
    lag_range_seconds: tuple[float, float] = BMC_LAG_SECONDS,
    meter_error_ratio: float = METER_ERROR_RATIO,
) -> Calibration | None:
    """Compare the two; ``None`` where they share no time, or where one of them shows nothing in it.

    ``lag_seconds`` is told or, where it is ``None``, the one in the range at which the two agree best.
    ``meter_error_ratio`` is how far the node's meter may be off, as a part of its value.
    """
    curve = Curve(comparison.components)
    windows = node_windows(comparison.node)
    lag_found = best_lag(curve, windows, lag_range_seconds) if lag_seconds is None else lag_seconds
    pairs = list(paired(curve, windows, lag_found or 0.0))
    component_watts, node_watts = [watts for _, watts in pairs], [window.node_watts for window, _ in pairs]
    if not pairs or sum(component_watts) <= 0 or sum(node_watts) <= 0:
        return None
    overhead = _with_meter_error(_ratio(pairs), meter_error_ratio)
    varied = max(component_watts) - min(component_watts) >= VARIATION_MIN * max(component_watts)
    scale, offset, residual = _line(component_watts, node_watts) if varied else (None, None, None)
    agreement = agreement_of(component_watts, node_watts)
    seconds = covered_seconds([window for window, _ in pairs])
    found = Calibration(
        seconds=seconds,
        windows=len(pairs),
        lag_seconds=lag_found,
        correlation=agreement,
        component_watts_min=min(component_watts),
        component_watts_mean=_mean(pairs, component_watts),
        component_watts_max=max(component_watts),
        node_watts_mean=_mean(pairs, node_watts),
        scale=scale and _with_meter_error(scale, meter_error_ratio),
        offset_watts=offset and _with_meter_error(offset, meter_error_ratio),
        residual_watts=residual,
        node_overhead=overhead,
        gap_ratio=Interval(point=1 - 1 / overhead.point, low=1 - 1 / overhead.low, high=1 - 1 / overhead.high),
        findings=(),
    )
    return _judged(found, comparison)


def _judged(found: Calibration, comparison: Comparison) -> Calibration:
    """With a sentence for each reason not to rely on it."""
    findings: list[str] = []
    if found.seconds < SECONDS_MIN or found.windows < WINDOWS_MIN:
        findings.append(
            f"too short: {found.seconds:.0f} s in {found.windows} windows; a node meter lags and averages, so at least"
            f" {SECONDS_MIN:.0f} s in {WINDOWS_MIN} are needed. Run it longer; a meter with coarse steps needs hours"
        )
    elif comparison.coverage_ratio < COVERAGE_MIN:
        findings.append(
            f"only {comparison.coverage_ratio:.0%} of the time is covered by readings of the components;"
            " 'mlflow-green doctor' says what fails"
        )
    elif found.scale is None:
        findings.append(
            "too little variation: the components drew the same all the time, so scale and offset cannot be told apart"
            " and the factor holds for this load only. Run a load for half of the time, e.g. with --load"
        )
    elif found.correlation is None or found.correlation < CORRELATION_MIN:
        findings.append(
            "the node's meter does not follow the components (correlation"
            f" {found.correlation or 0:.2f}): is it another machine's, or are its clock or its averages too far off?"
        )
    if found.node_overhead.point > NODE_OVERHEAD_MAX:
        findings.append(
            f"the node uses {found.node_overhead.point:.0f} times what its components show, which no overhead explains:"
            " is a part of it, a GPU perhaps, not metered, or is the meter another's?"
        )
    shown = f"the components show {found.component_watts_mean:.1f} W, the node {found.node_watts_mean:.1f} W"
    if found.node_overhead.high < 1:
        whose = "model is set too high" if comparison.method is not Method.MEASURED else "counters read too high"
        findings.append(
            f"impossible: {shown}, and they are in it. Either their {whose}, or the meter does not see the whole node"
            " (a second power supply, another outlet)"
        )
    elif found.node_overhead.point < 1:
        findings.append(f"{shown}: within the meter's error that is the same, so there is no overhead to set")
    elif found.scale is not None and found.scale.high < 1:
        findings.append(
            f"impossible: one more watt of the components is only {found.scale.point:.2f} W at the node. Either the"
            " components read too high under load, or the meter does not see the whole node"
        )
    elif found.offset_watts is not None and found.offset_watts.high < 0:
        findings.append(
            f"impossible: beside its components the node would draw {found.offset_watts.point:.0f} W. A part that works"
            " when they do is not metered, or their model's range is too small"
        )
    return replace(found, findings=tuple(findings))


# --- fits -------------------------------------------------------------------------------------------


def _line(component_watts: Sequence[float], node_watts: Sequence[float]) -> tuple[Interval, Interval, float]:
    """Scale, offset and the median distance from the line.

    Theil and Sen: the median slope of all pairs (P. K. Sen, 1968, J. Am. Stat. Assoc. 63, 1379), which a fourth of wild
    windows does not move; its interval by the ranks that Kendall's tau gives. The offset is the median of what is left,
    with the ranks of a median; the intervals of both add.
    """
    points = list(zip(component_watts, node_watts, strict=True))
    slopes = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2)
    count = len(points)
    tau_deviation = (count * (count - 1) * (2 * count + 5) / 18) ** 0.5
    scale = _median_interval(slopes, _NORMAL_95 * tau_deviation / 2)
    rest = {slope: sorted(y - slope * x for x, y in points) for slope in (scale.low, scale.point, scale.high)}
    reach = _NORMAL_95 * count**0.5 / 2
    offset = Interval(
        point=median(rest[scale.point]),
        low=_median_interval(rest[scale.high], reach).low,
        high=_median_interval(rest[scale.low], reach).high,
    )
    residual = median(abs(left - offset.point) for left in rest[scale.point])
    return scale, offset, residual


def _median_interval(ordered: Sequence[float], reach: float) -> Interval:
    """The median, and the values ``reach`` ranks below and above it."""
    middle, last = (len(ordered) - 1) / 2, len(ordered) - 1
    return Interval(
        point=median(ordered),
        low=ordered[max(0, int(middle - reach))],
        high=ordered[min(last, int(middle + reach + 1))],
    )


def _ratio(pairs: Sequence[tuple[Window, float]]) -> Interval:
    """Node energy / component energy, with the error of a ratio estimate (W. G. Cochran, Sampling Techniques, 1977)."""
    node = sum(window.node_watts * window.seconds for window, _ in pairs)
    components = sum(watts * window.seconds for window, watts in pairs)
    ratio, count = node / components, len(pairs)
    squares = sum((window.node_watts - ratio * watts) ** 2 for window, watts in pairs)
    mean_watts = fmean(watts for _, watts in pairs)
    error_ratio = _NORMAL_95 * (squares / (count * max(1, count - 1))) ** 0.5 / mean_watts / ratio
    return Interval(point=ratio, low=ratio / (1 + error_ratio), high=ratio * (1 + error_ratio))


def _with_meter_error(value: Interval, error_ratio: float) -> Interval:
    """Wider by what the meter may be off, which scales every one of its readings; errors add linearly."""
    return Interval(
        point=value.point,
        low=value.low - error_ratio * abs(value.low),
        high=value.high + error_ratio * abs(value.high),
    )


def _mean(pairs: Sequence[tuple[Window, float]], watts: Sequence[float]) -> float:
    return fmean(watts, weights=[window.seconds for window, _ in pairs])
