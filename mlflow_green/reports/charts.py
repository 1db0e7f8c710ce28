"""Charts as SVG text: crisp at any size, dark with the page, readable without a script.

Colours come from the page's style sheet by class. Every text of a user is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from markupsafe import Markup, escape

from mlflow_green import units
from mlflow_green.records import Unit
from mlflow_green.reports.pareto import Goal, pareto_front
from mlflow_green.reports.totals import Variant
from mlflow_green.reports.wording import energy_text

CHARACTER_WIDTH = 6.8  # of the 12 px text, on average, to keep labels apart
LABEL_HEIGHT = 15
LABELS_MAX = 40
LOGARITHMIC_FROM_RATIO = 30
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 18, 24, 48
_ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What was spent and held under a budget from this moment on, in the unit's integer scale."""

    at: datetime
    spent: int
    held: int


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plot area inside the axes, in pixels."""

    width: int
    height: int

    @property
    def right(self) -> int:
        return self.width - _RIGHT

    @property
    def bottom(self) -> int:
        return self.height - _BOTTOM


# --- budget over time -------------------------------------------------------------------------------


def budget_chart(levels: Sequence[Level], unit: Unit, limit: int | None, *, width: int, title: str) -> Markup:
    """Spent and, on top of it, held energy against the limit, over time."""
    frame = _Frame(width, 240)
    levels = _thinned(levels, frame.right - _LEFT)
    peak = max((level.spent + level.held for level in levels), default=0) or 1
    limit_shown = limit is not None and limit <= peak * 4
    top = max(peak, limit if limit is not None and limit_shown else 0) * 1.12
    start, end = levels[0].at, levels[-1].at
    if end - start < timedelta(seconds=1):
        end = start + timedelta(minutes=1)

    def x(at: datetime) -> float:
        return _LEFT + (at - start) / (end - start) * (frame.right - _LEFT)

    def y(amount: float) -> float:
        return frame.bottom - amount / top * (frame.bottom - _TOP)

    spent = _steps([(x(level.at), y(level.spent)) for level in levels], frame.right)
    committed = _steps([(x(level.at), y(level.spent + level.held)) for level in levels], frame.right)
    base = f"L{frame.right:.1f},{frame.bottom} L{_LEFT},{frame.bottom} Z"
    factor = _factor(unit, peak)
    parts = [
        *_y_axis(frame, [(tick, units.format_amount(unit, round(tick))) for tick in _linear_ticks(0, top, factor)], y),
        *_time_axis(frame, start, end, x),
        f'<path class="held" d="M{committed} {base}"/>',
        f'<path class="spent" d="M{spent} {base}"/>',
        f'<path class="spent-line" d="M{spent}"/>',
    ]
    if limit is not None and limit_shown:
        parts.append(f'<path class="limit" d="M{_LEFT},{y(limit):.1f} H{frame.right}"/>')
        parts.append(_label(_LEFT + 6, y(limit) - 6, f"limit {units.format_amount(unit, limit)}", "limit-label"))
    elif limit is not None:
        parts.append(
            _label(_LEFT + 6, _TOP - 8, f"limit {units.format_amount(unit, limit)}, above this chart", "limit-label")
        )
    last = levels[-1]
    words = f"spent {units.format_amount(unit, last.spent)}, held {units.format_amount(unit, last.held)}"
    parts.append(_label(frame.right - 4, min(y(last.spent + last.held) - 6, frame.bottom - 8), words, "end"))
    return _svg(frame, title, parts)


def _thinned(levels: Sequence[Level], columns: int) -> Sequence[Level]:
    """At most one level a pixel column: the last one in it."""
    if len(levels) <= columns:
        return levels
    span = (levels[-1].at - levels[0].at).total_seconds() or 1
    last = {int((level.at - levels[0].at).total_seconds() / span * columns): level for level in levels}
    return [levels[0], *last.values()]


def _steps(points: Sequence[tuple[float, float]], right: float) -> str:
    path = f"{points[0][0]:.1f},{points[0][1]:.1f}"
    for x, y in points[1:]:
        path += f" H{x:.1f} V{y:.1f}"
    return f"{path} H{right:.1f}"


# --- accuracy against energy ------------------------------------------------------------------------


def pareto_chart(variants: Sequence[Variant], metric: str, goal: Goal, *, width: int, title: str) -> Markup:
    """Each variant by its energy and metric, with the interval of its energy and the Pareto front."""
    frame = _Frame(width, 340)
    front = set(front_indices(variants, goal))
    low = min(variant.energy.low_microjoules for variant in variants)
    high = max(variant.energy.high_microjoules for variant in variants)
    x, x_ticks = _energy_scale(max(low, 1), max(high, low + 1, 2), frame)
    metrics = [variant.metric for variant in variants]
    margin = (max(metrics) - min(metrics)) * 0.12 or abs(metrics[0]) * 0.1 or 1
    bottom, top = min(metrics) - margin, max(metrics) + margin

    def y(value: float) -> float:
        return frame.bottom - (value - bottom) / (top - bottom) * (frame.bottom - _TOP)

    better = "lower" if goal == "min" else "higher"
    ticks = [(tick, f"{tick:g}") for tick in _linear_ticks(bottom, top, 1.0) if tick > bottom]
    parts = [*_y_axis(frame, ticks, y), *_x_ticks(frame, x_ticks, x)]
    parts.append(_label(_LEFT, _TOP - 10, f"{metric} ({better} is better)", "axis-title"))
    parts.append(_label(frame.right, frame.height - 8, "energy to get there (less is better)", "axis-title end"))
    on_front = sorted((variants[index] for index in front), key=lambda v: (v.energy.microjoules, -y(v.metric)))
    points = [(x(v.energy.microjoules), y(v.metric)) for v in on_front]
    parts.append(f'<path class="front" d="M{_steps(points, frame.right)}"/>')
    placed: dict[str, _Box] = {}
    for index in sorted(range(len(variants)), key=lambda index: index not in front):
        parts += _point(variants[index], index in front, x, y, placed, frame, metric)
    return _svg(frame, title, parts)


def front_indices(variants: Sequence[Variant], goal: Goal) -> tuple[int, ...]:
    return pareto_front([(variant.energy.microjoules, variant.metric) for variant in variants], goal)


_Box = tuple[float, float, float, float]


def _point(
    variant: Variant,
    on_front: bool,  # noqa: FBT001 - a private function with one caller
    x: Callable[[float], float],
    y: Callable[[float], float],
    placed: dict[str, _Box],
    frame: _Frame,
    metric: str,
) -> list[str]:
    px, py = x(variant.energy.microjoules), y(variant.metric)
    left, right = x(variant.energy.low_microjoules), x(variant.energy.high_microjoules)
    kind, radius = ("point on-front", 5) if on_front else ("point", 4)
    hint = f"{variant.label}: {metric} {units.three_digits(variant.metric)}, {energy_text(variant.energy)}"
    parts = [
        f'<path class="whisker" d="M{left:.1f},{py:.1f} H{right:.1f}"/>',
        f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}"><title>{escape(hint)}</title></circle>',
    ]
    if variant.label in placed or len(placed) >= LABELS_MAX:  # the same model of another run, beside its better self
        return parts
    spot = _free_spot(px, py, len(variant.label) * CHARACTER_WIDTH, tuple(placed.values()), frame)
    if spot is not None:
        placed[variant.label] = spot
        parts.append(_label(spot[0], spot[3] - 4, variant.label, "strong" if on_front else ""))
    return parts


def _free_spot(px: float, py: float, width: float, placed: Sequence[_Box], frame: _Frame) -> _Box | None:
    """A place for a label beside its point that no other label has, ``None`` if there is none."""
    for left, top in (
        (px + 7, py - LABEL_HEIGHT - 2),
        (px - width - 7, py - LABEL_HEIGHT - 2),
        (px + 7, py + 3),
        (px - width - 7, py + 3),
    ):
        box = (left, top, left + width, top + LABEL_HEIGHT)
        inside = left >= _LEFT and box[2] <= frame.width and top >= 0 and box[3] <= frame.bottom
        if inside and not any(_overlap(box, other) for other in placed):
            return box
    return None


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _energy_scale(low: float, high: float, frame: _Frame) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Pixels of an energy, and the ticks: logarithmic when the energies differ by more than 30 times."""
    span = frame.right - _LEFT
    factor = _factor(Unit.ENERGY, round(high))
    if high / low > LOGARITHMIC_FROM_RATIO:
        bottom, top = math.log(low / 1.2), math.log(high * 1.2)
        values = _decades(low / 1.2, high * 1.2, units.ENERGY_MICROJOULES["mWh"])

        def x(value: float) -> float:
            return _LEFT + (math.log(max(value, low)) - bottom) / (top - bottom) * span
    else:
        values = _linear_ticks(0, high * 1.08, factor)

        def x(value: float) -> float:
            return _LEFT + value / (high * 1.08) * span

    return x, [(value, _tick_text(value)) for value in values]


def _tick_text(energy_microjoules: float) -> str:
    number, unit = units.format_energy(round(energy_microjoules)).split(" ") if energy_microjoules >= 1 else ("0", "Wh")
    return f"{float(number):g} {unit}"


def _decades(low: float, high: float, factor: int) -> list[float]:
    """Powers of ten of ``factor`` between low and high; with fewer than three, also 2 and 5 times them."""
    first, last = math.floor(math.log10(low / factor)), math.ceil(math.log10(high / factor))
    for steps in ((1,), (1, 3), (1, 2, 5)):
        values = [step * factor * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [value for value in values if low <= value <= high]
        if len(inside) >= 3:  # noqa: PLR2004 - enough ticks to read a scale
            break
    return inside


# --- axes -------------------------------------------------------------------------------------------


def _factor(unit: Unit, amount: int) -> float:
    """One of the unit in which people read this amount, in the integer scale."""
    tables: dict[Unit, dict[str, int]] = {
        Unit.ENERGY: units.ENERGY_MICROJOULES,
        Unit.CARBON: units.CARBON_MICROGRAMS,
    }
    name = units.format_amount(unit, amount).rpartition(" ")[2]
    return tables.get(unit, {}).get(name, units.MICRO_UNITS_PER_UNIT)


def _linear_ticks(low: float, high: float, factor: float) -> list[float]:
    """Four to six round values, in the scale of ``factor``, between low and high."""
    raw = (high - low) / factor / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(step for step in (1, 2, 2.5, 5, 10) if raw <= step * size) * size * factor
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _y_axis(frame: _Frame, ticks: Sequence[tuple[float, str]], y: Callable[[float], float]) -> list[str]:
    parts = []
    for value, text in ticks:
        parts.append(f'<path class="grid" d="M{_LEFT},{y(value):.1f} H{frame.right}"/>')
        parts.append(_label(_LEFT - 8, y(value) + 4, text.removesuffix("CO2e"), "tick end"))
    parts.append(f'<path class="axis" d="M{_LEFT},{frame.bottom} H{frame.right}"/>')
    return parts


def _x_ticks(frame: _Frame, ticks: Sequence[tuple[float, str]], x: Callable[[float], float]) -> list[str]:
    parts = []
    free_from = 0.0
    for value, text in ticks:
        half = len(text) * CHARACTER_WIDTH / 2
        parts.append(f'<path class="grid" d="M{x(value):.1f},{_TOP} V{frame.bottom}"/>')
        middle = min(x(value), frame.right - half)  # the last one keeps its last letters
        if middle - half >= free_from:
            parts.append(_label(middle, frame.bottom + 18, text, "tick middle"))
            free_from = middle + half + 8
    return parts


def _time_axis(frame: _Frame, start: datetime, end: datetime, x: Callable[[datetime], float]) -> list[str]:
    span = end - start
    pattern = "%d %b" if span > 3 * _ONE_DAY else "%d %b %H:%M" if span > _ONE_DAY else "%H:%M"
    if span < timedelta(minutes=5):
        pattern = "%H:%M:%S"
    count = max(2, (frame.right - _LEFT) // 130)
    moments = [start + span * index / count for index in range(count + 1)]
    anchors = ["", *["middle"] * (count - 1), "end"]
    parts = [
        _label(x(moment), frame.bottom + 18, moment.strftime(pattern), f"tick {anchor}")
        for moment, anchor in zip(moments, anchors, strict=True)
    ]
    return [*parts, _label(frame.right, frame.height - 8, f"{end:%Y-%m-%d}, UTC", "axis-title end")]


def _label(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind.strip()}">{escape(text)}</text>'


def _svg(frame: _Frame, title: str, parts: Sequence[str]) -> Markup:
    head = f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")  # noqa: S704 - every text in it is escaped
