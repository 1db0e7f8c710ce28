"""A ledger in a real PostgreSQL: what its users may see of crashes, rights, wrong settings and lost connections."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from mlflow_green.alerts.delivery import Fate, Sender
from mlflow_green.clock import SystemClock
from mlflow_green.errors import ChannelFailed, LedgerError, LedgerUnavailable
from mlflow_green.ledger.shared_clock import SharedClock
from mlflow_green.ledger.verify import verify
from mlflow_green.recorder.recovery import recover
from mlflow_green.records import Batch, Fact, LetterState
from tests.testkit.alert_samples import WH, ScriptedPost, Spender, notify, policy
from tests.testkit.ledger_samples import NOON, OWNER, admit_what_fits, open_url, request, settle, term, window
from tests.testkit.postgres import PASSWORD, CutAtCommit, postgres_server
from tests.testkit.waiting import comes_true

ROOT = Path(__file__).parents[3]
BUDGET = term(limit=100)


@pytest.fixture
def url(postgres):
    database = postgres.new_database()
    yield database
    postgres.drop_database(database)


@pytest.fixture
def ledger(url):
    books = open_url(url)
    yield books
    books.close()


def hold(ledger, name="train", amount=5, **more):
    batch = Batch(requests=(request(name, amount, BUDGET, **more),), owner=OWNER)
    return ledger.commit(batch, admit_what_fits).answers[0].hold


def closes(ledger):
    return [text for text in verify(ledger, lambda _owner: True) if "windows attributed" not in text] == []


# --- crashes ------------------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_a_crash_of_the_server_and_the_open_ledger_goes_on():
    with postgres_server(durable=True) as server:
        ledger = open_url(server.new_database())
        for n in range(2):
            held = hold(ledger, f"train{n}")
            server.crash()
            with pytest.raises(LedgerUnavailable, match=r"cannot read the ledger postgresql://test@.*pg_isready"):
                ledger.balances()
            server.start()
            ledger.commit(Batch(closings=(settle(held, 3),)), admit_what_fits)
            server.crash()
            server.start()
        assert ledger.balances()[0].spent == 6
        assert closes(ledger)
        ledger.close()


def test_a_server_that_was_restarted_between_two_calls_is_not_noticed():
    with postgres_server() as server:
        ledger = open_url(server.new_database())
        held = hold(ledger)
        server.stop()
        server.start()
        assert ledger.open_holds() == (held,)
        ledger.close()


def test_a_session_that_ends_in_the_middle_of_a_transaction_leaves_nothing(ledger, postgres):
    def choose(request, balances):
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mlflow-green'"
        )
        return admit_what_fits(request, balances)

    batch = Batch(requests=(request("train", 5, BUDGET),), owner=OWNER)
    with pytest.raises(LedgerUnavailable, match="nothing was written"):
        ledger.commit(batch, choose)
    assert ledger.open_holds() == ()
    assert hold(ledger) is not None


@pytest.mark.parametrize("cuts", ["before", "after"])
def test_a_connection_lost_at_commit_leaves_it_open_whether_it_was_written_and_saying_it_again_is_safe(
    cuts, url, postgres
):
    folder = Path(tempfile.mkdtemp(prefix="green-cut-"))
    network = CutAtCommit(postgres, folder)
    try:
        ledger = open_url(network.url_of(url))
        first = hold(ledger, "first")
        batch = Batch(
            closings=(settle(first, 3),),
            windows=(window(1, 3),),
            facts=(Fact(hold_id=first.hold_id, name="quality/mape", value=0.5),),
            requests=(request("second", 7, BUDGET),),
            owner=OWNER,
        )
        network.cuts = cuts
        with pytest.raises(LedgerUnavailable, match="whether it was written is not known; saying it again is safe"):
            ledger.commit(batch, admit_what_fits)
        network.cuts = None
        (answer,) = ledger.commit(batch, admit_what_fits).answers
        assert ledger.open_holds() == (answer.hold,)
        assert [(b.spent, b.held) for b in ledger.balances()] == [(3, 7)]
        assert [row.kind for row in ledger.journal()] == ["hold", "settle", "hold"]
        assert (len(ledger.entries()), len(ledger.node_windows()), ledger.count("mlflow")) == (1, 1, 1)
        assert closes(ledger)
        ledger.close()
    finally:
        network.close()
        shutil.rmtree(folder)


def test_the_server_ends_a_write_transaction_that_idles_for_a_minute(ledger):
    with ledger._store.writing() as connection:
        shown = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one()
    assert shown == "1min"


def test_an_acknowledged_transaction_is_on_disk_even_where_the_database_is_set_to_be_careless(url, postgres):
    postgres.execute("ALTER ROLE test SET synchronous_commit = off")
    try:
        ledger = open_url(url)
        with ledger._store.writing() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
        ledger.close()
    finally:
        postgres.execute("ALTER ROLE test RESET synchronous_commit")


# --- many at once -------------------------------------------------------------------------------------


def test_four_processes_that_open_a_new_ledger_at_once_make_one(url):
    script = (
        "import sys; from tests.testkit.ledger_samples import *; open_url(sys.argv[1]).put('alert', sys.argv[2], {})"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, url, str(n)], cwd=ROOT) for n in range(4)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    ledger = open_url(url)
    assert ledger.count("alert") == 4
    ledger.close()


def test_what_is_read_in_a_snapshot_belongs_together_and_holds_up_no_writer(ledger, url):
    other = open_url(url)
    with ledger.snapshot():
        assert ledger.open_holds() == ()
        hold(other)
        assert ledger.open_holds() == ()
        assert ledger.balances() == ()
    assert len(ledger.open_holds()) == 1
    other.close()


def test_a_writer_that_waits_for_another_one_and_is_cancelled_says_what_to_look_at(ledger, url, postgres):
    caught = []

    def write():
        try:
            hold(other)
        except LedgerUnavailable as error:
            caught.append(str(error))

    def cancel():
        return postgres.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

    other = open_url(url)
    with ledger._store.writing():
        waiting = threading.Thread(target=write)
        waiting.start()
        assert comes_true(cancel, 30)
        waiting.join(timeout=30)
    assert "cannot write" in caught[0]
    assert "nothing was written" in caught[0]
    assert "pg_stat_activity" in caught[0]
    assert hold(other) is not None
    other.close()


# --- what it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["UPDATE journal SET delta_held = 0", "DELETE FROM journal", "TRUNCATE journal"])
def test_not_even_the_administrator_changes_a_row_of_the_journal_by_mistake(statement, ledger, url, postgres):
    hold(ledger)
    with pytest.raises(psycopg.errors.RaiseException, match="the journal only grows"):
        postgres.execute(statement, url=url)
    with (
        pytest.raises(LedgerError, match="refused it: the journal only grows") as caught,
        ledger._store.writing() as connection,
    ):
        connection.exec_driver_sql(statement)
    assert not isinstance(caught.value, LedgerUnavailable)
    assert closes(ledger)


def test_amounts_and_texts_that_cannot_be_kept_are_refused_and_nothing_is_written(ledger):
    with pytest.raises(LedgerError, match=r"2\*\*63 - 1.*nothing was written"):
        ledger.commit(Batch(requests=(request("huge", 1, term(limit=2**63)),), owner=OWNER), admit_what_fits)
    with pytest.raises(LedgerError, match=r"no NUL character"):
        hold(ledger, "a\0b")
    with pytest.raises(LedgerError, match=r"more than about 2,700 bytes"):
        hold(ledger, "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(4000)))
    assert ledger.balances() == ()
    assert hold(ledger, "x" * 3000) is not None


def test_the_database_of_another_program_is_left_alone(url, postgres):
    postgres.execute("CREATE TABLE experiments (id int)", url=url)
    with pytest.raises(LedgerUnavailable, match=r"another program \(experiments.*createdb green"):
        open_url(url)
    assert postgres.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", url=url) == [(1,)]


def test_a_ledger_of_a_newer_version_is_left_alone(url, postgres):
    open_url(url).close()
    postgres.execute("UPDATE meta SET schema_version = 99", url=url)
    with pytest.raises(LedgerUnavailable, match=r"newer mlflow-green.*pip install --upgrade"):
        open_url(url)


@pytest.mark.parametrize(
    ("user", "password", "database", "advice"),
    [
        ("test", "wrong-secret", "postgres", r"password authentication failed.*PGPASSWORD.*pgpass"),
        ("nobody", "wrong-secret", "postgres", r"PGPASSWORD"),
        ("test", PASSWORD, "nowhere", r"does not exist.*createdb"),
    ],
)
def test_a_wrong_setting_is_explained_and_the_password_is_nowhere(user, password, database, advice, postgres):
    with pytest.raises(LedgerUnavailable, match=advice) as caught:
        open_url(postgres.url_of(database, user, password))
    error = caught.value
    while error is not None:
        assert password not in str(error)
        error = error.__cause__


def test_a_server_that_is_not_there_is_named_with_the_way_to_look_for_it():
    with pytest.raises(LedgerUnavailable, match=r"postgresql://ana@127.0.0.1:1/green: .*refused.*pg_isready") as caught:
        open_url("postgresql+psycopg2://ana:secret@127.0.0.1:1/green")
    assert "secret" not in str(caught.value)


def test_without_the_driver_the_message_says_how_to_get_it():
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from tests.testkit.ledger_samples import open_url\n"
        "open_url('postgresql://ana:secret@127.0.0.1:1/green')"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "pip install 'mlflow-green[postgres]'" in ran.stderr.splitlines()[-1]
    assert "secret" not in ran.stderr.splitlines()[-1]


# --- who, and when ------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", ["env:GREEN_PASSWORD", ""])
def test_the_password_may_come_from_the_environment(says, url, postgres, monkeypatch):
    monkeypatch.setenv("GREEN_PASSWORD" if says else "PGPASSWORD", PASSWORD)
    database = url.partition("@/")[2]
    open_url(f"postgresql://test:{says}@/{database}" if says else f"postgresql://test@/{database}").close()


def test_a_password_that_is_kept_nowhere_is_refused():
    with pytest.raises(LedgerUnavailable, match="there is no variable NO_SUCH"):
        open_url("postgresql://test:env:NO_SUCH@db/green")


@pytest.fixture
def role(url, postgres):
    """A role without any rights on the tables, and its URL."""
    open_url(url).close()
    name = "reader"
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'r'")
    yield name, postgres.url_of(url.partition("@/")[2].partition("?")[0], name, "r")
    postgres.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}", url=url)


def test_a_role_that_may_only_read_reads_and_is_told_which_right_writing_needs(role, url, postgres):
    name, theirs = role
    with pytest.raises(LedgerUnavailable, match=rf"cannot read .*permission denied.*GRANT green_reader TO {name}"):
        open_url(theirs)
    postgres.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}", url=url)
    ledger = open_url(theirs)
    assert ledger.identity() == name
    assert ledger.balances() == ()
    with pytest.raises(LedgerUnavailable, match=rf"nothing was written; .*GRANT green_spender TO {name}"):
        hold(ledger)
    ledger.close()


def test_a_role_that_may_not_make_tables_is_told_which_right_that_needs(postgres, url):
    postgres.execute("CREATE ROLE maker LOGIN PASSWORD 'r'")
    try:
        with pytest.raises(LedgerUnavailable, match="GRANT USAGE, CREATE ON SCHEMA public TO maker"):
            open_url(postgres.url_of(url.partition("@/")[2].partition("?")[0], "maker", "r"))
    finally:
        postgres.execute("DROP ROLE maker")


def test_rows_are_dated_by_the_clock_of_the_server(url):
    class WrongClock(SystemClock):
        def now(self):
            return NOON.replace(year=1999)

    ledger = open_url(url, clock=WrongClock())
    before = datetime.now(UTC)
    hold(ledger)
    (row,) = ledger.journal()
    assert before <= row.at <= datetime.now(UTC)
    ledger.close()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_sender_whose_clock_is_an_hour_off_sends_neither_early_nor_late_nor_twice(hours, url):
    class WrongClock(SystemClock):
        def now(self):
            return super().now() + timedelta(hours=hours)

    def sender(clock, channel):
        books = open_url(url, clock=clock)
        opened.append(books)
        return Sender(books, policy(notify(50)), channel, SharedClock(books, clock))

    class Refusing:
        def carry(self, address, letter):
            assert wrong.send() == ()  # this one is being sent
            raise ChannelFailed("HTTP 500")

    opened = []
    carried = ScriptedPost(SystemClock())
    wrong, right = sender(WrongClock(), carried), sender(SystemClock(), Refusing())
    Spender(opened[1], policy(notify(50)), SystemClock()).spend(50 * WH)
    assert [report.fate for report in right.send()] == [Fate.FAILED]
    assert [report.fate for report in wrong.send()] == [Fate.WAITING]  # for the time to try it again
    (letter,) = opened[0].rows("letter", LetterState.PENDING)
    opened[1].failed(letter.outbox_id, opened[1].now(), "no need to wait")
    assert [report.fate for report in wrong.send()] == [Fate.SENT]
    assert right.send() == wrong.send() == ()
    (letter,) = opened[0].rows("letter", LetterState.DELIVERED)
    assert abs(letter.due_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert len(carried.carried) == 1
    for books in opened:
        books.close()


def test_only_the_host_of_a_dead_owner_closes_its_holds(ledger, tmp_path):
    held = hold(ledger)
    said = []
    assert not ledger.excludes_other_hosts
    assert recover(ledger, tmp_path, host="another", clock=SystemClock(), say=said.append) == 0
    assert ledger.open_holds() == (held,)
    assert recover(ledger, tmp_path, host=OWNER.host, clock=SystemClock(), say=said.append) == 1
    assert ledger.open_holds() == ()
    assert ledger.balances()[0].spent == 5
