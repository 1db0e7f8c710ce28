"""Every trouble of the disk is one clear message; then nothing was written, and it goes on when the trouble goes."""

from __future__ import annotations

import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger import sqlite as sqlite_file
from mlflow_green.ledger.posting import post
from mlflow_green.ledger.sqlite import forget_host
from mlflow_green.ledger.standing import Standing
from mlflow_green.ledger.transaction import write
from mlflow_green.ledger.verify import verify
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.ticket import entry_of
from mlflow_green.records import Action, Batch, Closing, ClosingKind, Outcome
from tests.testkit.ledger_samples import (
    NOON,
    OWNER,
    SetClock,
    admit_what_fits,
    open_at,
    request,
    settle,
    term,
    usage,
)
from tests.testkit.nobody import as_nobody
from tests.testkit.recorder_parts import BOOK, bookkeeper, ticket

HAS_WAL = sqlite_file.wal_is_safe(sqlite3.sqlite_version_info[:3])


def hold_one(ledger, name, amount=5):
    (answer,) = ledger.commit(
        Batch(requests=(request(name, amount, term(limit=10**9)),), owner=OWNER), admit_what_fits
    ).answers
    return answer.hold


def hold_until_it_fails(ledger, acknowledged):
    for n in range(1000):
        acknowledged.append(hold_one(ledger, f"{n}-" + "x" * 3000))


def closes(ledger):
    return [text for text in verify(ledger, lambda _owner: True) if "windows attributed" not in text] == []


@contextmanager
def open_folder():
    """A folder that everybody can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_named_with_the_cause_and_a_way_out():
    with open_folder() as folder:
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(LedgerUnavailable) as caught:
            open_at(folder / "state")
        assert str(folder / "state" / "ledger.db") in str(caught.value)
        assert "Permission denied" in str(caught.value)
        assert "MLFLOW_GREEN_LEDGER" in str(caught.value)


@pytest.mark.skipif(HAS_WAL, reason="SQLite reads a WAL file only where it may write beside it")
def test_a_ledger_that_cannot_be_written_can_still_be_read():
    with open_folder() as folder:
        open_at(folder).close()
        for path in (*folder.iterdir(), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with as_nobody():
            ledger = open_at(folder)
            assert ledger.balances() == ()
            with pytest.raises(LedgerUnavailable, match="cannot write"):
                hold_one(ledger, "train")
        ledger.close()


@contextmanager
def files_no_longer_than(size_bytes):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_after_a_write_that_did_not_fit_nothing_happened_and_the_ledger_goes_on(tmp_path):
    ledger = open_at(tmp_path)
    held = hold_one(ledger, "before")
    size_bytes = (tmp_path / "ledger.db").stat().st_size
    acknowledged = [held]
    with files_no_longer_than(size_bytes), pytest.raises(LedgerUnavailable, match="nothing was written"):
        hold_until_it_fails(ledger, acknowledged)
    assert list(ledger.open_holds()) == acknowledged
    assert closes(ledger)
    ledger.commit(Batch(closings=(settle(held, 3),)), admit_what_fits)
    assert hold_one(ledger, "after") is not None
    assert len(ledger.open_holds()) == len(acknowledged)
    assert closes(ledger)
    ledger.close()


@pytest.mark.parametrize(
    ("answer", "meanwhile"), [("admit", Action.ADMIT), ("wait", Action.WAIT), ("refuse", Action.REFUSE)]
)
def test_while_nothing_can_be_written_a_step_does_what_its_budget_says_and_is_charged_later(
    tmp_path, answer, meanwhile
):
    ledger = open_at(tmp_path)
    policy = f"{{name: a, limit: 1 Wh, period: total, mode: hard, ledger_down: {answer}}}"
    planner = Planner(parse_policy(f"version: 1\nproject: demo\nbudgets: [{policy}]".encode()), BOOK, "run1")
    keeper = bookkeeper(ledger, planner, [])
    keeper.ask([ticket("before")])
    assert keeper.flush(10)
    step = ticket("x" * 5000)
    with files_no_longer_than((tmp_path / "ledger.db").stat().st_size):
        keeper.ask([step])
        keeper.flush(10)
        assert step.decision.action is meanwhile
    if meanwhile is Action.ADMIT:
        step.began_at, step.usage = NOON, usage(7)
        entry = entry_of(step, Outcome.SUCCEEDED, BOOK, NOON)
        keeper.settle(step, Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry))
    keeper.recheck()
    assert keeper.flush(10)
    assert step.admitted == (meanwhile is not Action.REFUSE)
    assert [balance.spent for balance in ledger.balances()] == [7 if meanwhile is Action.ADMIT else 0]
    assert len(ledger.open_holds()) == (2 if meanwhile is Action.WAIT else 1)
    assert closes(ledger)
    keeper.stop(10)
    ledger.close()


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk):
    ledger = open_at(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    acknowledged = []
    with pytest.raises(LedgerUnavailable, match=r"(?i)full.*nothing was written; free some space"):
        hold_until_it_fails(ledger, acknowledged)
    assert list(ledger.open_holds()) == acknowledged
    ballast.unlink()
    acknowledged.append(hold_one(ledger, "after"))
    assert list(ledger.open_holds()) == acknowledged
    assert closes(ledger)
    ledger.close()


def test_a_second_host_is_refused_and_told_what_to_do(tmp_path):
    open_at(tmp_path, hostname="login1", boot="a").close()
    with pytest.raises(LedgerUnavailable, match=r"belongs to host login1 and this is node7.*MLFLOW_GREEN_LEDGER"):
        open_at(tmp_path, hostname="node7", boot="b")
    open_at(tmp_path, hostname="login1", boot="c").close()


def test_a_ledger_that_moved_for_good_can_be_taken_over(tmp_path):
    open_at(tmp_path, hostname="old", boot="a").close()
    forget_host(str(tmp_path / "ledger.db"))
    open_at(tmp_path, hostname="new", boot="b").close()
    with pytest.raises(LedgerUnavailable, match="belongs to host new"):
        open_at(tmp_path, hostname="old", boot="a")


def test_containers_of_one_machine_share_a_ledger_whatever_their_names(tmp_path):
    open_at(tmp_path, hostname="container1", boot="a").close()
    open_at(tmp_path, hostname="container2", boot="a").close()


def test_hosts_that_know_no_boot_id_are_told_apart_by_name(tmp_path):
    open_at(tmp_path, hostname="one", boot="unknown").close()
    with pytest.raises(LedgerUnavailable):
        open_at(tmp_path, hostname="two", boot="unknown")


def test_the_name_of_this_machine_is_the_default(tmp_path):
    open_at(tmp_path).close()
    (host,) = sqlite3.connect(tmp_path / "ledger.db").execute("SELECT host FROM meta").fetchone()
    assert host == socket.gethostname()


def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path):
    open_at(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE meta SET schema_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerUnavailable, match=r"newer mlflow-green.*pip install --upgrade"):
        open_at(tmp_path)


def test_the_database_of_another_program_is_left_alone(tmp_path):
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("CREATE TABLE experiments (id INTEGER)")
    connection.close()
    with pytest.raises(LedgerUnavailable, match="another program's database"):
        open_at(tmp_path)


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"this is a text file, not a database" * 50)
    with pytest.raises(LedgerUnavailable, match=r"not a database.*MLFLOW_GREEN_LEDGER"):
        open_at(tmp_path)


@pytest.mark.parametrize("damage_at", [0, 8192])
def test_a_damaged_ledger_at_its_default_place_is_to_be_restored_and_no_other_is_advised(tmp_path, damage_at):
    open_at(tmp_path / ".green").close()
    with (tmp_path / ".green" / "ledger.db").open("r+b") as file:
        file.seek(damage_at)
        file.write(b"\xff" * 40_960)
    with pytest.raises(LedgerUnavailable, match=r"damaged.*hard budget until a backup.*ledger verify") as raised:
        open_at(tmp_path / ".green").booked_holds()
    assert "MLFLOW_GREEN_LEDGER" not in str(raised.value)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerUnavailable, match="unable to open"):
        open_at(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(LedgerUnavailable, match="cannot open the ledger"):
        open_at(tmp_path / "state")


def test_the_journal_cannot_be_changed_even_by_hand(tmp_path):
    ledger = open_at(tmp_path)
    hold_one(ledger, "train")
    ledger.close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    for change in ("UPDATE journal SET delta_held = 0", "DELETE FROM journal"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            connection.execute(change)


def test_an_amount_above_what_the_file_can_keep_is_one_clear_error(tmp_path):
    ledger = open_at(tmp_path)
    with pytest.raises(LedgerError, match=r"2\*\*63"):
        ledger.commit(Batch(requests=(request("huge", 1, term(limit=2**63)),), owner=OWNER), admit_what_fits)
    assert hold_one(ledger, "train") is not None
    ledger.close()


def test_a_policy_that_raises_leaves_the_ledger_as_it_was(tmp_path):
    ledger = open_at(tmp_path)
    held = hold_one(ledger, "train")

    def broken(_request, _balances):
        raise KeyError("tier")

    batch = Batch(closings=(settle(held, 1),), requests=(request("b", 1, term(limit=10**9)),), owner=OWNER)
    with pytest.raises(KeyError):
        ledger.commit(batch, broken)
    assert ledger.open_holds() == (held,)
    ledger.close()


def test_a_ledger_opened_in_one_thread_is_used_in_another(tmp_path):
    ledger = open_at(tmp_path)
    worker = threading.Thread(target=hold_one, args=(ledger, "train"))
    worker.start()
    worker.join()
    assert len(ledger.open_holds()) == 1
    ledger.close()


def test_a_writer_waits_for_another_that_does_not_know_the_lock_file(tmp_path):
    ledger = open_at(tmp_path)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE meta SET generation = 10")
    done = threading.Timer(0.2, lambda: other.execute("COMMIT"))
    done.start()
    batch = Batch(requests=(request("train", 5, term()),), owner=OWNER)
    assert ledger.commit(batch, admit_what_fits).generation == 11
    done.join()
    other.close()
    ledger.close()


def test_the_guard_refuses_what_was_decided_on_balances_of_yesterday(tmp_path):
    ledger = open_at(tmp_path)
    budget = term(limit=100)
    batch = Batch(requests=(request("a", 80, budget),), owner=OWNER)
    before = ledger.balances([budget])[0]
    ledger.commit(batch, admit_what_fits)
    late = replace(batch, requests=(request("b", 30, budget),))
    stale = Standing(generation=1, balances={budget.key: before})
    effects = post(late, stale, admit_what_fits, now=SetClock().now(), new_hold_id=lambda: "b")
    engine = sqlite_file.sqlite_engine(tmp_path / "ledger.db")
    with engine.connect() as connection, pytest.raises(LedgerError, match="impossible"):
        write(connection, effects, {budget.key: 1}, SetClock().now())
    engine.dispose()
    assert ledger.balances([budget])[0].held == 80
    ledger.close()


def test_a_file_is_in_wal_mode_only_where_that_is_safe(tmp_path):
    ledger = open_at(tmp_path)
    hold_one(ledger, "train")
    (mode,) = sqlite3.connect(tmp_path / "ledger.db").execute("PRAGMA journal_mode").fetchone()
    assert (mode == "wal") == HAS_WAL
    ledger.close()


@pytest.mark.skipif(HAS_WAL, reason="this SQLite keeps WAL files safe")
def test_a_file_that_another_python_keeps_in_wal_mode_is_refused_at_once(tmp_path):
    open_at(tmp_path).close()
    other = sqlite3.connect(tmp_path / "ledger.db")
    other.execute("PRAGMA journal_mode = wal")
    other.execute("SELECT * FROM meta").fetchall()
    with pytest.raises(LedgerUnavailable, match=r"(?s)WAL mode.*one Python for all"):
        open_at(tmp_path)
    other.close()
    open_at(tmp_path).close()


def test_the_ledger_imports_nothing_that_costs_users_time():
    script = (
        "import sys, mlflow_green.ledger.sql, mlflow_green.ledger.memory, mlflow_green.ledger.verify;"
        "heavy = {'pandas', 'numpy', 'alembic', 'mlflow', 'matplotlib', 'codecarbon', 'sklearn', 'pydantic'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
