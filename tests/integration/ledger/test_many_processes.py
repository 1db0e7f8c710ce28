"""Law 2 with real processes: sixteen at the limit take all of it and no more, and none ever hears that it is locked."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from sqlalchemy import create_engine, text

from mlflow_green.ledger.gate import GATE_TIMEOUT_SECONDS, Gate
from mlflow_green.records import Unit
from tests.testkit.ledger_samples import term
from tests.testkit.ledger_workers import (
    Crew,
    Place,
    fill,
    findings,
    folder_in_memory,
    hold_and_settle,
    is_stopped,
    look,
    look_long,
    over_limit,
    sqlite_in,
)
from tests.testkit.waiting import comes_true

WRITERS = 16
REFUSALS = 5_000
LIMIT, LARGEST = 1_000_000, 20_000
LAB = (term("lab", limit=LIMIT), term("lab", limit=2 * LIMIT, unit=Unit.CARBON))
TEAM_A = term("team", account="team:a", limit=LIMIT // 20)
TEAM_B = term("team", account="team:b", limit=10 * LIMIT)


@pytest.fixture
def folder():
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def file(folder) -> Place:
    return sqlite_in(folder)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, folder) -> Place:
    if request.param == "sqlite":
        return sqlite_in(folder)
    return Place(folder=folder, url=request.getfixturevalue("postgres").new_database())


def test_sixteen_processes_at_the_limit_hold_all_of_it_and_no_more(place):
    place.open().close()
    reports = place.folder / "refused"
    with Crew() as crew:
        start = crew.barrier(WRITERS)
        for number in range(WRITERS):
            terms = (*LAB, (TEAM_A, TEAM_B)[number % 2])
            crew.start(fill, place, f"w{number}", terms, start, REFUSALS // WRITERS + 1, LARGEST, reports)
        assert crew.all_succeed(150)
    assert sum(map(int, reports.read_text().split())) >= REFUSALS
    with place.opened() as ledger:
        journal, balances = ledger.journal(), {balance.term.key: balance for balance in ledger.balances()}
        assert over_limit(journal, {key: balance.limit for key, balance in balances.items()}) == []
        assert {"lab", "team"} <= {row.decision.budget for row in ledger.decisions()}, "each of them has refused"
        for full in LAB:
            assert balances[full.key].committed >= 0.999 * full.limit
        assert findings(ledger) == ()
        held_under: dict[str, set[str]] = {}
        for row in journal:
            if row.kind == "hold":
                held_under.setdefault(row.hold_id, set()).add(f"{row.budget} {row.unit.value}")
        assert set(map(frozenset, held_under.values())) == {frozenset({"lab energy", "lab carbon", "team energy"})}


def engine_of(url):
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def check_then_write(url, start, amount, limit):
    """What others do: read what is left, think, then write."""
    engine = engine_of(url)
    start.wait(60)
    while True:
        with engine.connect() as connection:
            (used,) = connection.execute(text("SELECT used FROM naive")).one()
        if used + amount > limit:
            return
        time.sleep(random.uniform(0.005, 0.02))
        with engine.begin() as connection:
            connection.execute(text("UPDATE naive SET used = used + :amount"), {"amount": amount})


def test_the_same_processes_overspend_where_it_is_checked_first_and_written_later(place):
    engine = engine_of(place.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE naive (used BIGINT)"))
        connection.execute(text("INSERT INTO naive VALUES (0)"))
    with Crew() as crew:
        start = crew.barrier(WRITERS)
        for _ in range(WRITERS):
            crew.start(check_then_write, place.url, start, LIMIT // 20, LIMIT)
        assert crew.all_succeed(60)
    with engine.connect() as connection:
        (used,) = connection.execute(text("SELECT used FROM naive")).one()
    engine.dispose()
    assert used >= 1.2 * LIMIT


def test_sixteen_writers_beside_readers_never_hear_that_the_ledger_is_locked(place):
    place.open().close()
    reports = place.folder / "pairs"
    seconds = float(os.environ.get("GREEN_LOCKED_SECONDS", "10"))
    with Crew() as crew:
        start = crew.barrier(WRITERS + 2)
        for number in range(WRITERS):
            crew.start(hold_and_settle, place, f"w{number}", start, seconds, reports)
        crew.start(look, place, start, seconds)
        crew.start(look_long, place, start, seconds, 0.7)
        until = time.monotonic() + seconds
        while time.monotonic() < until:  # somebody presses Ctrl-Z, perhaps inside a transaction
            stopped = random.choice(crew.members)
            os.kill(stopped.pid, signal.SIGSTOP)
            time.sleep(random.uniform(0.05, 0.5))
            os.kill(stopped.pid, signal.SIGCONT)
            time.sleep(0.2)
        assert crew.all_succeed(120)
    pairs = [int(line.split()[0]) for line in reports.read_text().splitlines()]
    assert len(pairs) == WRITERS
    assert min(pairs) > 0
    with place.opened() as ledger:
        assert findings(ledger) == ()
        assert len(ledger.entries()) == sum(pairs)


def stop_in_turn(path):
    with Gate(path).passed():
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_process_that_is_stopped_in_its_turn_delays_each_writer_once_at_most(file):
    file.open().close()
    lock, reports = file.folder / "ledger.db.lock", file.folder / "pairs"
    with Crew() as crew:
        stopped = crew.start(stop_in_turn, lock)
        assert comes_true(lambda: is_stopped(stopped.pid), 30)
        start = crew.barrier(4)
        for number in range(4):
            crew.start(hold_and_settle, file, f"w{number}", start, GATE_TIMEOUT_SECONDS + 3, reports)
        crew.members.remove(stopped)
        assert crew.all_succeed(120)
        assert is_stopped(stopped.pid)
        crew.members.append(stopped)
    pairs = [int(line.split()[0]) for line in reports.read_text().splitlines()]
    assert min(pairs) >= 3, "each transaction has waited anew"
