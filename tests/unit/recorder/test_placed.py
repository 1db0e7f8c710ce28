"""How a step ends that a batch system ran: each case of what is known about it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mlflow_green.recorder.late_hold import promised_hold
from mlflow_green.recorder.loss import SILENCE, lost_as_held
from mlflow_green.recorder.placed import WALLTIME_MARGIN, WALLTIME_UNKNOWN, JobEnd, closing_of
from mlflow_green.recorder.spool_session import Begun, Origin, Placed, SpoolSession
from mlflow_green.records import Closing, ClosingKind, Intensity, Outcome, Site, Unit
from tests.testkit.ledger_samples import NOON, OWNER, entry, request, usage
from tests.testkit.recorder_parts import BOOK

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
HELD = {Unit.ENERGY: 1_000, Unit.CARBON: 70, Unit.MONEY: 5}
HOLD = replace(promised_hold(request("train", 0, hold_id="train"), OWNER), amounts=HELD)
OTHER = replace(promised_hold(request("test", 0, hold_id="test"), OWNER), amounts=HELD)
PLACED = Placed(at=NOON, placement_id="p", hold=HOLD, request=None, walltime_seconds=3600.0, job_id="7")
GIVEN_UP = HOUR + WALLTIME_MARGIN
MICROJOULES_PER_SECOND = 10_000_000  # of the meter's P_max, 10 W


def start(
    at: datetime,
    *begun: str,
    ended: bool = False,
    read: int | None = None,
    read_at: datetime | None = None,
    **outcomes: Outcome,
) -> SpoolSession:
    """What one meter wrote: ``begun`` began at once, ``read`` is what each of them used, ``outcomes`` ends some."""
    session = SpoolSession(
        path=Path("node.jsonl"),
        owner=OWNER,
        book=replace(BOOK, host="node7"),
        origin=Origin(at=at, main=OWNER, placement_id="p", job_id="7"),
        last_read_at=read_at if read_at or read is None else at,
        begun={hold_id: Begun(at, None, None) for hold_id in begun},
        usages={} if read is None else {hold_id: usage(read) for hold_id in begun},
        ended=ended,
    )
    for hold_id, outcome in outcomes.items():
        own = entry(HOLD, read or 0, entry_id=hold_id, hold_id=hold_id, outcome=outcome, started_at=at, ended_at=at)
        session.closings[hold_id] = Closing(kind=ClosingKind.SETTLE, hold_id=hold_id, entry=own)
    return session


def closing(
    *sessions: SpoolSession,
    after: timedelta = SECOND,
    end: JobEnd | None = None,
    is_known: bool = False,
    hold=HOLD,
    **placed: object,
) -> Closing | None:
    return closing_of(hold, replace(PLACED, **placed), sessions, end, NOON + after, is_known=is_known)


def over(at: datetime = NOON + HOUR, started: bool | None = True) -> JobEnd:
    return JobEnd(at=at, started=started)


def kind(found: Closing | None) -> ClosingKind | None:
    return found.kind if found else None


def charged(found: Closing | None) -> list[int]:
    """Of every start, the earliest first."""
    assert found is not None
    assert found.entry is not None
    return [each.energy_charged_microjoules for each in (*found.earlier, found.entry)]


# --- nothing was heard of it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "after", "expected"),
    [
        (None, GIVEN_UP - SECOND, None),
        (None, GIVEN_UP, ClosingKind.LOST),
        (over(started=True), SECOND, ClosingKind.LOST),
        (over(started=None), SECOND, ClosingKind.LOST),
        (over(started=False), SECOND, ClosingKind.VOID),
        (over(started=False), GIVEN_UP, ClosingKind.VOID),
        (replace(over(), failed_after=SILENCE), SECOND, ClosingKind.VOID),
        (replace(over(), failed_after=SILENCE + SECOND), SECOND, ClosingKind.LOST),
    ],
)
def test_a_step_that_no_node_has_seen(end, after, expected) -> None:
    assert kind(closing(end=end, after=after)) is expected


def test_a_step_without_a_wall_time_is_given_up_after_a_week() -> None:
    assert closing(after=WALLTIME_UNKNOWN - SECOND, walltime_seconds=None) is None
    assert kind(closing(after=WALLTIME_UNKNOWN, walltime_seconds=None)) is ClosingKind.LOST


@pytest.mark.parametrize(
    "sessions", [(), (start(NOON, "train", read=7),), (start(NOON, "train", ended=True, train=Outcome.FAILED),)]
)
def test_a_job_that_the_batch_system_knows_is_not_given_up_however_long_it_waits(sessions) -> None:
    assert closing(*sessions, after=10 * WALLTIME_UNKNOWN, is_known=True) is None


# --- it began, and its node fell silent -------------------------------------------------------------


def test_a_running_step_stays_open() -> None:
    assert closing(start(NOON, "train", read=7)) is None


def test_a_step_that_is_heard_of_is_not_given_up_however_late_it_began() -> None:
    """A queue can be longer than any wall time."""
    running = start(NOON + 5 * HOUR, "train")
    waiting = start(NOON + 5 * HOUR, "other")
    for session in (running, waiting):
        assert closing(session, after=5 * HOUR + GIVEN_UP - SECOND) is None
        assert kind(closing(session, after=5 * HOUR + GIVEN_UP)) is ClosingKind.LOST


def test_a_step_that_is_read_for_longer_than_a_week_is_not_given_up() -> None:
    month = timedelta(days=30)
    running = start(NOON, "train", read=7, read_at=NOON + month)
    assert closing(running, after=month + HOUR, walltime_seconds=None) is None


def test_when_its_job_is_over_it_is_charged_for_the_silence_until_then() -> None:
    found = closing(start(NOON, "train", read=7), end=over(at=NOON + 100 * SECOND))
    assert kind(found) is ClosingKind.LOST
    assert charged(found) == [7 + 100 * MICROJOULES_PER_SECOND]


def test_an_end_before_the_last_reading_charges_the_reading() -> None:
    """The clocks of a node and of the batch system differ."""
    found = closing(start(NOON, "train", read=7, read_at=NOON + HOUR), end=over(at=NOON))
    assert charged(found) == [7]


def test_given_up_it_is_charged_what_it_held_or_what_was_read_if_that_is_more() -> None:
    assert charged(closing(start(NOON, "train", read=7), after=GIVEN_UP)) == [1_000]
    assert charged(closing(start(NOON, "train", read=7_000), after=GIVEN_UP)) == [7_000]


# --- its node had a last word -----------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.HALTED])
def test_a_last_word_that_ends_the_job_closes_it_at_once(outcome) -> None:
    found = closing(start(NOON, "train", ended=True, read=7, train=outcome))
    assert kind(found) is ClosingKind.SETTLE
    assert charged(found) == [7]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"end": over()}, ClosingKind.SETTLE),
        ({"after": SILENCE, "job_id": None}, ClosingKind.SETTLE),
        ({"after": SILENCE - SECOND, "job_id": None}, None),
        ({"after": GIVEN_UP - SECOND}, None),
        ({"after": GIVEN_UP}, ClosingKind.SETTLE),
    ],
)
def test_a_job_that_failed_can_be_begun_again_so_its_step_is_closed_with_the_job(more, expected) -> None:
    assert kind(closing(start(NOON, "train", ended=True, read=7, train=Outcome.FAILED), **more)) is expected


@pytest.mark.parametrize("job_id", ["7", None])
def test_a_step_that_succeeded_in_a_group_that_still_runs_stays_open(job_id) -> None:
    """Its node can be cut off, and then all of the group is begun again."""
    running = start(NOON, "train", "test", read=7, train=Outcome.SUCCEEDED)
    assert closing(running, after=SILENCE, job_id=job_id) is None
    again = start(NOON + HOUR, "train", ended=True, read=9, train=Outcome.SUCCEEDED)
    assert charged(closing(running, again)) == [7, 9]


def test_a_member_of_a_group_that_never_began_costs_nothing_once_the_group_is_over() -> None:
    failed = start(NOON, "train", ended=True, train=Outcome.FAILED)
    assert closing(failed, hold=OTHER) is None
    assert kind(closing(failed, hold=OTHER, end=over())) is ClosingKind.VOID
    halted = start(NOON, "train", ended=True, train=Outcome.HALTED)
    assert kind(closing(halted, hold=OTHER)) is ClosingKind.VOID


def test_a_job_that_ended_before_any_step_began_may_be_begun_again() -> None:
    empty = start(NOON, ended=True)
    assert closing(empty) is None
    assert kind(closing(empty, end=over())) is ClosingKind.VOID


# --- begun again ------------------------------------------------------------------------------------


def test_an_earlier_start_without_a_last_word_is_charged_for_its_silence_until_the_next() -> None:
    first = start(NOON, "train", read=7)
    second = start(NOON + 10 * SECOND, "train", ended=True, read=9, train=Outcome.SUCCEEDED)
    assert charged(closing(first, second)) == [7 + 10 * MICROJOULES_PER_SECOND, 9]


def test_the_silence_between_two_starts_is_not_charged_for_longer_than_a_meter_can_be_silent() -> None:
    first = start(NOON, "train", read=7)
    second = start(NOON + HOUR, "train", ended=True, read=9, train=Outcome.SUCCEEDED)
    assert charged(closing(first, second)) == [7 + 60 * MICROJOULES_PER_SECOND, 9]


def test_each_start_is_an_entry_of_its_own() -> None:
    first = start(NOON, "train", ended=True, read=7, train=Outcome.FAILED)
    second = start(NOON + HOUR, "train", ended=True, read=8, train=Outcome.FAILED)
    third = start(NOON + 2 * HOUR, "train", read=9)
    assert closing(first, second) is None
    found = closing(first, second, third, end=over(at=NOON + 2 * HOUR))
    assert charged(found) == [7, 8, 9]
    assert found is not None
    assert [each.entry_id for each in found.earlier] == ["train-1", "train-2"]
    assert {each.hold_id for each in found.earlier} == {"train"}
    assert found.kind is ClosingKind.LOST


def test_a_step_that_is_begun_again_elsewhere_stays_open_while_its_job_runs() -> None:
    first = start(NOON, "train", ended=True, read=7, train=Outcome.FAILED)
    assert closing(first, start(NOON + HOUR), after=HOUR + SILENCE, job_id=None) is None


def test_a_step_that_was_cut_off_is_silent_only_until_its_job_began_again_without_it() -> None:
    first = start(NOON, "train", "test", read=7)
    second = start(NOON + 20 * SECOND, "test", ended=True, test=Outcome.FAILED)
    found = closing(first, second, end=over(at=NOON + 10 * HOUR))
    assert charged(found) == [7 + 20 * MICROJOULES_PER_SECOND]


def test_time_in_the_queue_for_a_start_that_never_came_is_not_charged() -> None:
    first = start(NOON, "train", read=7)
    found = closing(first, end=over(at=NOON + 10 * HOUR, started=False))
    assert charged(found) == [7 + 60 * MICROJOULES_PER_SECOND]


# --- what it is charged where only the hold is known ------------------------------------------------

SITE = Site(
    intensity=Intensity(g_per_kwh=100.0, g_per_kwh_high=150.0, source="test"), price_per_kwh=0.2, currency="EUR"
)
KWH = 3_600_000_000_000


def test_without_a_meter_a_step_is_charged_what_it_held_in_every_unit() -> None:
    found = lost_as_held(HOLD, None, began_at=NOON, why="no word").entry
    assert found is not None
    assert found.charged == HELD
    assert (found.outcome, found.host, found.total) == (Outcome.LOST, OWNER.host, None)
    assert found.reason == "no word; it is charged what it held"


@pytest.mark.parametrize(("read", "due"), [(KWH // 2, KWH), (2 * KWH, 2 * KWH)])
def test_with_a_reading_carbon_and_money_follow_the_energy_that_is_charged(read, due) -> None:
    hold = replace(HOLD, amounts={Unit.ENERGY: KWH, Unit.CARBON: 150_000_000, Unit.MONEY: 200_000})
    session = replace(start(NOON, "train", read=read), book=replace(BOOK, host="node7", site=SITE))
    found = lost_as_held(hold, session, began_at=NOON, why="no word").entry
    assert found is not None
    assert found.charged == {
        Unit.ENERGY: due,
        Unit.CARBON: due * 100_000_000 // KWH,
        Unit.MONEY: due * 200_000 // KWH,
    }
    assert found.total is not None
    assert found.total.microjoules == read
    assert found.total.high_microjoules >= due
    assert (found.host, found.currency) == ("node7", "EUR")


def test_a_step_that_held_nothing_is_charged_its_reading() -> None:
    hold = replace(HOLD, amounts={})
    found = lost_as_held(hold, start(NOON, "train", read=7), began_at=NOON, why="no word").entry
    assert found is not None
    assert found.charged == {Unit.ENERGY: 7}
