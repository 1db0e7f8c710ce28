"""Compacting a file that others use, that is full, or that is killed in the middle."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text

from mlflow_green.clock import SystemClock
from mlflow_green.ledger import sqlite as sqlite_module
from mlflow_green.records import Batch
from tests.testkit.ledger_samples import NOON, OWNER, SetClock, admit_what_fits, open_at, request, settle, term, window
from tests.testkit.ledger_workers import (
    Crew,
    Place,
    compact_until_statement,
    findings,
    folder_in_memory,
    hold_and_settle,
    sqlite_in,
)

LONG = timedelta(days=100)


def fill(ledger, messages=200):
    """A ledger with something of everything that may go, and a step that ran."""
    asked = request("train", 5, term())
    (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
    windows = [_at(number) for number in range(1, 50)]
    closing = settle(answer.hold, 5, sampler_id=None)
    ledger.commit(Batch(closings=(closing,), windows=tuple(windows)), admit_what_fits)
    blocker = request("blocker", 90, term())
    ledger.commit(Batch(requests=(blocker,), owner=OWNER), admit_what_fits)
    for amount in (50, 40, 30, 20):
        ledger.commit(Batch(requests=(request("waits", amount, term()),), owner=OWNER), admit_what_fits)
    for number in range(messages):
        ledger.put("alert", f"alert {number}", {"text": "x" * 500})
    for row in ledger.pending("alert", ledger._clock.now(), messages):
        ledger.delivered(row.outbox_id)


def _at(number):
    started = NOON + timedelta(seconds=number)
    return replace(window(number, 0), started_at=started, ended_at=started + timedelta(seconds=1))


def dump(folder):
    with closing(sqlite3.connect(folder / "ledger.db")) as file:
        return sorted(file.iterdump())  # VACUUM writes the triggers after all tables


@pytest.fixture
def folder():
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def ledger(folder, clock):
    ledger = open_at(folder, clock=clock)
    fill(ledger)
    clock.move(7200)
    yield ledger
    ledger.close()


def test_a_compacted_file_is_smaller_and_its_journal_still_refuses_changes(ledger, folder):
    done = ledger.compact(timedelta(0))
    assert done.messages == {"alert": 199}
    assert (done.decisions, done.windows) == (2, 48)
    assert done.bytes_after < done.bytes_before / 2
    assert done.bytes_after == sum(path.stat().st_size for path in folder.glob("ledger.db*") if path.suffix != ".lock")
    assert findings(ledger) == ()
    with closing(sqlite3.connect(folder / "ledger.db")) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for change in ("DELETE FROM journal", "UPDATE journal SET delta_spent = 0"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                file.execute(change)


def test_kill_9_at_any_statement_leaves_all_or_nothing(ledger, folder, clock):
    before, killed_at = dump(folder), 0
    while True:
        with Crew() as crew:
            process = crew.start(compact_until_statement, folder, clock, killed_at)
            process.join(60)
        if process.exitcode != -signal.SIGKILL:
            break
        assert dump(folder) == before
        killed_at += 1
    assert process.exitcode == 0
    assert killed_at > 8
    assert len(dump(folder)) < len(before) - 200
    assert findings(ledger) == ()


def killed_before_it_shrank(folder):
    """Rows are gone, and their room is still in the file."""
    with closing(sqlite3.connect(folder / "ledger.db")) as file, file:
        file.execute("DELETE FROM outbox WHERE outbox_id < 150")


def test_a_reader_in_the_way_is_said_and_the_next_time_makes_the_file_smaller(ledger, folder, monkeypatch):
    monkeypatch.setattr(sqlite_module, "SHRINK_WAIT_SECONDS", 1)
    killed_before_it_shrank(folder)
    size, rows = (folder / "ledger.db").stat().st_size, dump(folder)
    with closing(sqlite3.connect(folder / "ledger.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM journal").fetchone()
        assert "another process holds it" in ledger.compact(LONG).problem
    assert ((folder / "ledger.db").stat().st_size, dump(folder)) == (size, rows)
    assert ledger.compact(LONG).problem == ""
    assert (folder / "ledger.db").stat().st_size < 0.8 * size
    assert dump(folder) == rows


def test_a_full_disk_is_said_and_changes_nothing(small_disk):
    ledger = open_at(small_disk)
    fill(ledger, messages=60)  # shrinking needs room for all pages once more
    killed_before_it_shrank(small_disk)
    rows = dump(small_disk)
    with (small_disk / "other").open("wb", buffering=0) as other, suppress(OSError):
        while other.write(bytes(4096)):
            pass
    assert "free some space" in ledger.compact(LONG).problem
    assert dump(small_disk) == rows
    (small_disk / "other").unlink()
    assert ledger.compact(LONG).problem == ""
    assert dump(small_disk) == rows
    ledger.close()


def test_beside_writers_every_hold_is_booked_and_the_books_close(folder):
    place = sqlite_in(folder)
    compact_beside_writers(place)


def test_beside_writers_on_postgresql_too_and_its_triggers_stay(folder, postgres):
    place = Place(folder=folder, url=postgres.new_database())
    compact_beside_writers(place)
    engine = create_engine(place.url.replace("postgresql://", "postgresql+psycopg://"))
    with pytest.raises(Exception, match="only grows"), engine.begin() as connection:
        connection.execute(text("DELETE FROM journal"))
    engine.dispose()


def compact_beside_writers(place):
    place.open().close()
    reports = place.folder / "pairs"
    with Crew() as crew, place.opened() as ledger:
        start = crew.barrier(5)
        for number in range(4):
            crew.start(hold_and_settle, place, f"w{number}", start, 2.0, reports)
        start.wait(60)
        deadline, rounds, gone = time.monotonic() + 2.0, 0, 0
        while time.monotonic() < deadline:
            for row in ledger.pending("mlflow", SystemClock().now()):
                ledger.delivered(row.outbox_id)
            done = ledger.compact(timedelta(0))
            assert done.problem == ""
            rounds, gone = rounds + 1, gone + sum(done.messages.values())
        assert crew.all_succeed(60)
        pairs = sum(int(line.split()[0]) for line in reports.read_text().splitlines())
        assert rounds > 2
        assert gone > 0
        assert len(ledger.entries()) == pairs
        assert findings(ledger) == ()
