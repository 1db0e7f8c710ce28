from __future__ import annotations

import pytest

from mlflow_green.errors import SettingsError
from mlflow_green.metering.wall_meter import read_wall_meter
from tests.testkit.metering_fakes import START


def read(text):
    return read_wall_meter(text.splitlines(), "wall.csv", START)


def test_power_with_any_zone_and_in_any_order_is_put_on_our_time():
    samples = read(
        "Time, Watts ,note\n2026-01-01T01:00:20+01:00,143.2,x\n2026-01-01T00:00:10Z,90,\n2025-12-31T23:59:59Z,1e2,\n"
    )
    assert [(each.seconds, each.reading.power_watts) for each in samples] == [(-1, 100), (10, 90), (20, 143.2)]


@pytest.mark.parametrize(("column", "microjoules"), [("wh", 3_600_000_000), ("kWh", 3_600_000_000_000)])
def test_energy_is_a_counter_in_microjoules(column, microjoules):
    (sample,) = read(f"time,{column}\n2026-01-01T00:00:00Z,1\n")
    assert (sample.reading.energy_microjoules, sample.reading.power_watts) == (microjoules, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line must name a column 'time'"),
        ("time,volts\n", "'watts', 'wh' or 'kwh'"),
        ("time,watts,kwh\n", "one of"),
        ("time,watts\n2026-01-01T00:00:00,1\n", "wall.csv, line 2.*no time with its zone"),
        ("time,watts\nyesterday,1\n", "no time with its zone"),
        ('time,watts\n2026-01-01T00:00:00Z,1\n2026-01-01T00:00:00Z,"1,5"\n', "line 3.*decimal point"),
        ("time,watts\n2026-01-01T00:00:00Z,nan\n", "no number of watts"),
        ("time,watts\n2026-01-01T00:00:00Z,-3\n", "no number of watts"),
        ("time,watts\n2026-01-01T00:00:00Z\n", "no number of watts"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_line(text, words):
    with pytest.raises(SettingsError, match=words):
        read(text)
