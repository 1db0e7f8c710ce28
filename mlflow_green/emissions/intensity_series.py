"""Carbon intensity hour by hour, from a user's own file.

The file is CSV with the columns ``time`` and ``g_per_kwh``. A time is ISO 8601 with its offset from UTC; a value counts
from its time until the next step. The step is the smallest distance between two rows, and every row is a whole number
of steps after the first. An absent row, or an empty value, is a gap.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from math import fsum, isfinite
from pathlib import Path

from mlflow_green.errors import IntensityUnknown
from mlflow_green.records import Intensity, IntensitySeries, Site
from mlflow_green.units import SECONDS

COLUMNS = ("time", "g_per_kwh")
STEP_SECONDS_MIN = 5 * SECONDS["min"]
STEP_SECONDS_MAX = SECONDS["d"]
VALUES_MAX = 500_000
G_PER_KWH_MAX = 10_000
DECIMALS = 6  # of a mean in g/kWh

AHEAD = timedelta(hours=24)
"""Holds are made at the highest intensity of the time ahead; a gap there counts as the highest of the whole series."""
KEPT_BEFORE = timedelta(days=1)
KEPT_AHEAD = timedelta(days=31)
"""What a workflow execution carries along of the series, also to the nodes of a cluster: longer than it runs."""


# --- reading ----------------------------------------------------------------------------------------


def read_series(path: Path) -> IntensitySeries:
    """The series in a file.

    Raises:
        IntensityUnknown: the file cannot be read, or a line of it is wrong; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(islice(_rows(path, file), VALUES_MAX + 1))
    except OSError as error:
        raise IntensityUnknown(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise IntensityUnknown(f"{path} cannot be read: it is not a CSV file in UTF-8") from error
    if len(rows) < 2 or all(value is None for _, _, value in rows):  # noqa: PLR2004 - one row has no step
        raise IntensityUnknown(f"{path} has fewer than two rows with values; one for each hour is needed")
    return _on_a_grid(path, rows)


def _rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, datetime, float | None]]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    if tuple(header) != COLUMNS:
        raise IntensityUnknown(f"{path}, line 1: the columns are {', '.join(COLUMNS)}, not {', '.join(header)!r}")
    for row in reader:
        if not row:
            continue
        if len(row) != len(COLUMNS):
            raise IntensityUnknown(f"{path}, line {reader.line_num}: {len(row)} values, not {len(COLUMNS)}")
        where = f"{path}, line {reader.line_num}"
        yield reader.line_num, _moment(where, row[0].strip()), _value(where, row[1].strip())


def _moment(where: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise IntensityUnknown(f"{where}: {text!r} is not a time; write e.g. '2026-01-31T13:00+01:00'") from None
    raise IntensityUnknown(f"{where}: {text!r} does not say its offset from UTC; write e.g. '{text}Z' for UTC")


def _value(where: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not isfinite(value) or not 0 <= value <= G_PER_KWH_MAX:
        raise IntensityUnknown(f"{where}: {text!r} is not a carbon intensity in g/kWh; leave an unknown one empty")
    return value


def _on_a_grid(path: Path, rows: list[tuple[int, datetime, float | None]]) -> IntensitySeries:
    start = rows[0][1]
    for (_, before, _), (line, at, _) in pairwise(rows):
        if at <= before:
            raise IntensityUnknown(f"{path}, line {line}: {at.isoformat()} does not come after the line before it")
    step = min(at - before for (_, before, _), (_, at, _) in pairwise(rows))
    if not STEP_SECONDS_MIN <= step.total_seconds() <= STEP_SECONDS_MAX or step.microseconds:
        raise IntensityUnknown(
            f"{path} has a row every {step}; a series has one every 5 minutes to every day, in whole seconds"
        )
    count = (rows[-1][1] - start) // step + 1
    if max(count, len(rows)) > VALUES_MAX:
        raise IntensityUnknown(f"{path} spans {count} steps of {step}; keep at most {VALUES_MAX}")
    values: list[float | None] = [None] * count
    for line, at, value in rows:
        index, rest = divmod(at - start, step)
        if rest:
            raise IntensityUnknown(
                f"{path}, line {line}: {at.isoformat()} is not a whole number of steps of {step} after the first row"
            )
        values[index] = value
    return IntensitySeries(starts_at=start, step_seconds=int(step.total_seconds()), g_per_kwh=tuple(values))


# --- using ------------------------------------------------------------------------------------------


def series_intensity(series: IntensitySeries, source: str, now: datetime) -> Intensity:
    """The intensity of what starts now: by the series, and by its mean at times that it does not know.

    ``source`` gets the days that the series covers. Pure.
    """
    known = [value for value in series.g_per_kwh if value is not None]
    ahead = [value for _, value in _pieces(series, now, now + AHEAD)]
    highest = max(known if None in ahead else [value for value in ahead if value is not None])
    mean = round(fsum(known) / len(known), DECIMALS)
    last = series.starts_at + timedelta(seconds=series.step_seconds) * (len(series.g_per_kwh) - 1)
    return Intensity(
        g_per_kwh=mean,
        g_per_kwh_high=max(highest, mean),
        source=f"{source} (hours of {series.starts_at.date()} to {last.date()})",
        series=_cut(series, now - KEPT_BEFORE, now + KEPT_AHEAD),
    )


def site_during(site: Site, started_at: datetime, ended_at: datetime) -> Site:
    """The site with the intensity of that time: the mean of the series over it, weighted by time. Pure.

    Time that the series does not know counts at the mean of the series, and the source says so.
    """
    intensity = site.intensity
    if intensity is None or intensity.series is None:
        return site
    pieces = _pieces(intensity.series, started_at, ended_at)
    unknown = sum(value is None for _, value in pieces)
    note = "mean over the run"
    if unknown:
        note = "mean of the series, for the run is not in it" if unknown == len(pieces) else f"{note}, partly not in it"
    weighed = [weight * (intensity.g_per_kwh if value is None else value) for weight, value in pieces]
    mean = round(fsum(weighed) / sum(weight for weight, _ in pieces), DECIMALS)
    during = replace(intensity, g_per_kwh=mean, source=f"{intensity.source}: {note}", series=None)
    return replace(site, intensity=during)


def _pieces(series: IntensitySeries, started_at: datetime, ended_at: datetime) -> list[tuple[int, float | None]]:
    """The time from start to end, step by step: microseconds > 0, and the value or ``None``.

    What took no time counts as an instant.
    """
    step = timedelta(seconds=series.step_seconds)
    ended_at = max(ended_at, started_at + timedelta.resolution)
    index = (started_at - series.starts_at) // step
    pieces = []
    while (begins := series.starts_at + index * step) < ended_at:
        lasts = min(ended_at, begins + step) - max(started_at, begins)
        value = series.g_per_kwh[index] if 0 <= index < len(series.g_per_kwh) else None
        pieces.append((lasts // timedelta.resolution, value))
        index += 1
    return pieces


def _cut(series: IntensitySeries, first: datetime, last: datetime) -> IntensitySeries:
    """The steps of the series between these times; there may be none."""
    step = timedelta(seconds=series.step_seconds)
    start, stop = max(0, (first - series.starts_at) // step), max(0, (last - series.starts_at) // step + 1)
    values = series.g_per_kwh[start:stop]
    return replace(series, starts_at=series.starts_at + start * step, g_per_kwh=values)
