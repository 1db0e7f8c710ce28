"""Intensities hour by hour: what a file may say, and what a run is charged by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.emissions.intensity_series import KEPT_AHEAD, read_series, series_intensity, site_during
from mlflow_green.errors import IntensityUnknown
from mlflow_green.records import Intensity, IntensitySeries, Site

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def series(*values, step_seconds=3600):
    return IntensitySeries(starts_at=NOON, step_seconds=step_seconds, g_per_kwh=values)


def site(known, *, now=NOON):
    return Site(intensity=series_intensity(known, "test", now), pue=1.2)


def charged(known, start, end, *, now=NOON):
    return site_during(site(known, now=now), start, end).intensity


# --- files --------------------------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path):
    def write_and_read(text):
        path = tmp_path / "grid.csv"
        path.write_bytes(text.encode())
        return read_series(path)

    return write_and_read


def test_hours_in_any_offset_are_read_with_their_gaps(read):
    text = (
        "time,g_per_kwh\r\n2026-11-21T12:00Z,50\r\n2026-11-21T14:00+01:00,\r\n2026-11-21T16:00+01:00,62.5\n"
        "2026-11-21T16:00:00+00:00,70\n"
    )
    assert read(text) == series(50.0, None, None, 62.5, 70.0)


def test_the_night_in_which_the_clocks_go_back_has_no_gap_and_no_hour_twice(read):
    text = "time,g_per_kwh\n2026-10-25T01:00+02:00,1\n2026-10-25T02:00+02:00,2\n2026-10-25T02:00+01:00,3\n2026-10-25T03:00+01:00,4\n"
    assert read(text).g_per_kwh == (1, 2, 3, 4)


def test_quarter_hours_are_read_with_their_own_step(read):
    text = "time,g_per_kwh\n2026-11-21T12:00Z,1\n2026-11-21T13:00Z,2\n2026-11-21T13:15Z,3\n"
    assert read(text) == series(1, None, None, None, 2, 3, step_seconds=900)


BROKEN = {
    "other columns": ("hour,co2\n", "line 1: the columns are time, g_per_kwh"),
    "empty": ("", "line 1: the columns are"),
    "no offset": ("time,g_per_kwh\n2026-11-21T12:00,5\n", "line 2: '2026-11-21T12:00' does not say its offset"),
    "no time": ("time,g_per_kwh\nnoon,5\n", "line 2: 'noon' is not a time"),
    "no number": ("time,g_per_kwh\n2026-11-21T12:00Z,5\n2026-11-21T13:00Z,n/a\n", "line 3: 'n/a' is not a carbon"),
    "negative": ("time,g_per_kwh\n2026-11-21T12:00Z,-5\n", "line 2: '-5' is not a carbon"),
    "not a number": ("time,g_per_kwh\n2026-11-21T12:00Z,nan\n", "line 2: 'nan' is not a carbon"),
    "three values": ("time,g_per_kwh\n2026-11-21T12:00Z,5,6\n", "line 2: 3 values, not 2"),
    "going back": ("time,g_per_kwh\n2026-11-21T12:00Z,5\n2026-11-21T11:00Z,5\n", "line 3: .* does not come after"),
    "twice": ("time,g_per_kwh\n2026-11-21T12:00Z,5\n2026-11-21T13:00+01:00,5\n", "line 3: .* does not come after"),
    "off the grid": (
        "time,g_per_kwh\n2026-11-21T12:00Z,5\n2026-11-21T13:00Z,5\n2026-11-21T14:20Z,5\n",
        "line 4: .* is not a whole number of steps of 1:00:00",
    ),
    "every second": ("time,g_per_kwh\n2026-11-21T12:00:00Z,5\n2026-11-21T12:00:01Z,5\n", "a row every 0:00:01"),
    "a thousand years": (
        "time,g_per_kwh\n1026-11-21T12:00Z,5\n1026-11-21T13:00Z,5\n2026-11-21T13:00Z,5\n",
        "spans .* keep at most",
    ),
    "half seconds": ("time,g_per_kwh\n2026-11-21T12:00Z,5\n2026-11-21T12:30:00.5Z,5\n", "in whole seconds"),
    "before all time": ("time,g_per_kwh\n0001-01-01T00:00+14:00,5\n", "line 2: '0001-.*' is not a time"),
    "one row": ("time,g_per_kwh\n2026-11-21T12:00Z,5\n", "fewer than two rows"),
    "only gaps": ("time,g_per_kwh\n2026-11-21T12:00Z,\n2026-11-21T13:00Z,\n", "fewer than two rows with values"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_told_with_its_line(read, text, message):
    with pytest.raises(IntensityUnknown, match=rf"grid\.csv.*{message}"):
        read(text)


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path):
    with pytest.raises(IntensityUnknown, match=r"grid\.csv cannot be read: No such file"):
        read_series(tmp_path / "grid.csv")
    for data in (b"\xff\xfe\x00", b"time,g_per_kwh\n2026-11-21T12:00Z," + b"5" * 200_000, b"\0\0"):
        (tmp_path / "grid.csv").write_bytes(data)
        with pytest.raises(IntensityUnknown, match=r"grid\.csv"):
            read_series(tmp_path / "grid.csv")


# --- what a run is charged by ---------------------------------------------------------------------------


def test_a_run_is_charged_by_the_mean_of_its_hours_weighted_by_time():
    during = charged(series(100.0, 200.0, 900.0), NOON + HOUR / 2, NOON + HOUR * 5 / 4)
    assert during.g_per_kwh == pytest.approx((2 * 100 + 1 * 200) / 3)
    assert during.source == "test (hours of 2026-11-21 to 2026-11-21): mean over the run"
    assert during.series is None


def test_a_run_that_took_no_time_is_charged_by_its_hour():
    assert charged(series(100.0, 200.0), NOON + HOUR, NOON + HOUR).g_per_kwh == 200


def test_time_that_the_series_does_not_know_counts_at_its_mean_and_the_source_says_so():
    known = series(100.0, None, 300.0)
    partly = charged(known, NOON, NOON + 2 * HOUR)
    assert partly.g_per_kwh == (100 + 200) / 2
    assert partly.source.endswith(": mean over the run, partly not in it")
    for start in (NOON + HOUR, NOON - 9 * HOUR, NOON + 99 * HOUR):
        never = charged(known, start, start + HOUR)
        assert never.g_per_kwh == 200
        assert never.source.endswith(": mean of the series, for the run is not in it")


def test_a_place_without_a_series_stays_as_it_is():
    for place in (Site(), Site(intensity=Intensity(g_per_kwh=56.0, g_per_kwh_high=84.0, source="test"))):
        assert site_during(place, NOON, NOON + HOUR) is place


def test_a_hold_is_made_at_the_highest_of_the_hours_ahead():
    day = series(*[100.0] * 23, 150.0, 900.0)
    assert site(day).intensity.g_per_kwh_high == 150


def test_a_hold_into_hours_that_nobody_has_forecast_is_made_at_the_highest_of_all():
    assert site(series(900.0, *[100.0] * 20), now=NOON + 5 * HOUR).intensity.g_per_kwh_high == 900


def test_a_long_series_is_cut_to_what_a_workflow_needs_and_keeps_its_mean():
    year = series(*[float(hour) for hour in range(8760)])
    now = NOON + 1000 * HOUR
    kept = series_intensity(year, "test", now)
    assert kept.g_per_kwh == 8759 / 2
    assert len(kept.series.g_per_kwh) < 1000
    for at in (now - 23 * HOUR, now, now + KEPT_AHEAD):
        assert site_during(Site(intensity=kept), at, at + HOUR / 2).intensity.g_per_kwh == (at - NOON) / HOUR // 1


VALUES = st.lists(st.none() | st.integers(0, 1_000).map(float), min_size=2, max_size=40).filter(
    lambda values: any(value is not None for value in values)
)
MOMENTS = st.integers(-5 * 3600, 45 * 3600).map(lambda seconds: NOON + timedelta(seconds=seconds))


@given(VALUES, MOMENTS, MOMENTS, MOMENTS)
def test_parts_of_a_run_weigh_as_their_whole(values, first, second, third):
    start, middle, end = sorted((first, second, third))
    place = site(series(*values))

    def gram_hours(one, other):
        return site_during(place, one, other).intensity.g_per_kwh * ((other - one) / HOUR)

    assert gram_hours(start, middle) + gram_hours(middle, end) == pytest.approx(gram_hours(start, end), abs=1e-3)


@given(VALUES, MOMENTS, MOMENTS)
def test_a_run_lies_between_the_lowest_and_the_highest_hour(values, first, second):
    known = [value for value in values if value is not None]
    during = charged(series(*values), min(first, second), max(first, second))
    assert min(known) - 1e-6 <= during.g_per_kwh <= max(known) + 1e-6


@given(VALUES, MOMENTS)
def test_what_is_held_covers_what_a_run_of_the_next_day_is_charged(values, now):
    place = site(series(*values), now=now)
    during = site_during(place, now, now + 24 * HOUR)
    assert during.intensity.g_per_kwh <= place.intensity.g_per_kwh_high + 1e-6
