"""The readings of a meter at the wall, from the CSV file that its software or a person wrote."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from mlflow_green.errors import SettingsError
from mlflow_green.metering.alignment import NodeSample
from mlflow_green.sensors.node_meter import NodeReading
from mlflow_green.units import ENERGY_MICROJOULES

ROWS_MAX = 1_000_000
_ENERGY_COLUMNS = {"wh": "Wh", "kwh": "kWh"}
_EXAMPLE = "time,watts\n2026-11-21T10:00:00+01:00,143.2"


def read_wall_meter(lines: Iterable[str], name: str, started_at: datetime) -> tuple[NodeSample, ...]:
    """The readings in the order of time, in seconds since ``started_at`` (before it: negative).

    A column ``time`` (ISO 8601 with its zone) and one of ``watts``, ``wh`` or ``kwh``; the last two count up. Other
    columns are left alone.

    Raises:
        SettingsError: the file has another form; the message names the line.
    """
    reader = csv.DictReader(lines)
    columns = {(column or "").strip().lower(): column for column in reader.fieldnames or ()}
    values = [column for column in ("watts", *_ENERGY_COLUMNS) if column in columns]
    if "time" not in columns or len(values) != 1:
        raise SettingsError(
            f"{name}: the first line must name a column 'time' and one of 'watts', 'wh' or 'kwh'; e.g.\n{_EXAMPLE}"
        )
    samples = _samples(reader, name, started_at, columns["time"], (values[0], columns[values[0]]))
    return tuple(sorted(samples, key=lambda sample: sample.seconds))


def _samples(
    rows: csv.DictReader[str], name: str, started_at: datetime, time_column: str, value: tuple[str, str]
) -> Iterator[NodeSample]:
    for count, row in enumerate(rows):
        where = f"{name}, line {rows.line_num}"
        if count >= ROWS_MAX:
            raise SettingsError(f"{where}: more than {ROWS_MAX} readings; cut the file to the time of the comparison")
        at = _time(row.get(time_column), where)
        yield NodeSample(seconds=(at - started_at).total_seconds(), reading=_reading(row, value, where))


def _time(text: str | None, where: str) -> datetime:
    try:
        at = datetime.fromisoformat((text or "").strip())
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise SettingsError(f"{where}: {text!r} is no time with its zone; write e.g. 2026-11-21T10:00:00+01:00")
    return at


def _reading(row: Mapping[str, str | None], value: tuple[str, str], where: str) -> NodeReading:
    kind, column = value
    text = (row.get(column) or "").strip()
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise SettingsError(f"{where}: {text!r} is no number of {kind}; write it with a decimal point, e.g. 143.2")
    if kind == "watts":
        return NodeReading(power_watts=number)
    return NodeReading(energy_microjoules=round(number * ENERGY_MICROJOULES[_ENERGY_COLUMNS[kind]]))
