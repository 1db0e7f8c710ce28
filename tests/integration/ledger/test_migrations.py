"""A ledger of an older version: it is brought to this one whole or not at all, and keeps what it says."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner

from mlflow_green.cli.doors import Place
from mlflow_green.cli.main import cli
from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger import schema
from mlflow_green.ledger.migrations import migrate, run_scripts
from mlflow_green.ledger.sql import open_store
from mlflow_green.ledger.sqlite import forget_host
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, Unit
from tests.testkit.ledger_samples import OWNER, admit_what_fits, open_at, open_on_share, open_url, request, settle, term

ROOT = Path(__file__).parents[3]
OLD = Path(__file__).with_name("version1")
"""A SQLite ledger and a journal as version 1 wrote them: closed and open holds, a top-up, a loss, a correction."""

HOST = {"hostname": "node1", "boot": "boot1"}
NO_MOUNTS = Path("/no-mountinfo")


@pytest.fixture
def old_ledger(tmp_path):
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((OLD / "ledger.sql").read_text())
    return path


def columns_of(path):
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in tables}


def rows_of(path, columns):
    """Every row, but the version of the tables."""
    with closing(sqlite3.connect(path)) as connection:
        rows = {}
        for table, names in columns.items():
            listed = ", ".join(f'"{name}"' for name in names if name != "schema_version")
            rows[table] = connection.execute(f"SELECT {listed} FROM {table} ORDER BY rowid").fetchall()
        return rows


def version_of(path):
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT schema_version FROM meta").fetchone()[0]


def sums(ledger):
    return {balance.term.unit: (balance.spent, balance.held) for balance in ledger.balances()}


def differences(connection):
    """Where the tables are not those of ``schema.metadata``, triggers aside."""

    def defaults_differ(_context, _found_column, _column, found, _default, wanted):
        if found is not None and found.startswith("nextval"):  # PostgreSQL's way to number rows
            return False
        found, wanted = (value and value.partition("::")[0].strip("(')") for value in (found, wanted))
        return found != wanted

    options = {"version_table": schema.REVISION_TABLE, "compare_server_default": defaults_differ}
    return compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)


# --- a file ---------------------------------------------------------------------------------------------


def test_an_old_ledger_is_upgraded_when_it_is_opened_and_says_what_it_said(old_ledger, tmp_path):
    columns = columns_of(old_ledger)
    before = rows_of(old_ledger, columns)
    ledger = open_at(tmp_path, **HOST)
    assert version_of(old_ledger) == schema.SCHEMA_VERSION
    assert rows_of(old_ledger, columns) == before
    assert sums(ledger) == {Unit.ENERGY: (62, 10), Unit.CARBON: (7, 5)}
    assert verify(ledger, lambda _owner: True) == ()
    (running,) = ledger.open_holds()
    ledger.commit(Batch(closings=(settle(running, 3, sampler_id=None),)), admit_what_fits)
    again = Batch(requests=(request("again", 5, term(limit=100)),), owner=OWNER)
    assert ledger.commit(again, admit_what_fits).answers[0].hold
    assert sums(ledger)[Unit.ENERGY] == (65, 5)
    assert verify(ledger, lambda _owner: True) == ()
    ledger.close()


def test_the_old_file_is_kept_beside_the_new_one(old_ledger, tmp_path):
    columns, before = columns_of(old_ledger), rows_of(old_ledger, columns_of(old_ledger))
    open_at(tmp_path, **HOST).close()
    assert version_of(tmp_path / "ledger.db.v1") == 1
    assert columns_of(tmp_path / "ledger.db.v1") == columns
    assert rows_of(tmp_path / "ledger.db.v1", columns) == before


@pytest.mark.parametrize("at", ["SqliteStore.keep_copy", "migrations.run_scripts"])
def test_after_kill_nine_in_the_middle_the_old_file_is_there_and_the_next_one_upgrades_it(at, old_ledger, tmp_path):
    columns = columns_of(old_ledger)
    before = rows_of(old_ledger, columns)
    script = f"""
import os, signal
from mlflow_green.ledger import migrations
from mlflow_green.ledger.migrations.__main__ import SqliteStore, main
whole = {at}
def half(*arguments):
    whole(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
{at} = half
main()
"""
    environ = {**os.environ, "MLFLOW_GREEN_LEDGER": f"sqlite:///{old_ledger}"}
    died = subprocess.run([sys.executable, "-c", script], env=environ, cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert version_of(old_ledger) == 1
    assert columns_of(old_ledger) == columns
    open_at(tmp_path, **HOST).close()
    assert version_of(old_ledger) == schema.SCHEMA_VERSION
    assert rows_of(old_ledger, columns) == before


def test_of_four_processes_that_open_an_old_ledger_one_upgrades_it_and_all_go_on(old_ledger, tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.testkit.ledger_samples import *;"
        "open_at(Path(sys.argv[1]), hostname='node1', boot='boot1').put('alert', sys.argv[2], {})"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, tmp_path, str(n)], cwd=ROOT) for n in range(4)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    ledger = open_at(tmp_path, **HOST)
    assert ledger.count("alert") == 1 + 4  # one is the old ledger's
    assert version_of(tmp_path / "ledger.db.v1") == 1
    ledger.close()


def test_an_upgrade_that_fails_says_why_and_leaves_the_file_as_it_was(old_ledger, tmp_path):
    (tmp_path / "ledger.db.v1").mkdir()  # in the way of the copy
    with pytest.raises(LedgerUnavailable, match=r"schema 1.*Is a directory.*as it was.*ledger migrate"):
        open_at(tmp_path, **HOST)
    assert version_of(old_ledger) == 1


def test_a_ledger_of_another_host_is_not_upgraded(old_ledger, tmp_path):
    with pytest.raises(LedgerUnavailable, match="belongs to host node1"):
        open_at(tmp_path, hostname="node2", boot="boot2")
    assert version_of(old_ledger) == 1


def test_a_journal_of_version_one_is_read(tmp_path):
    open_on_share(tmp_path).close()
    (journal,) = (tmp_path / "share" / "ledger.journal").glob("*.jsonl")
    journal.write_bytes((OLD / "1.jsonl").read_bytes())
    ledger = open_on_share(tmp_path)
    assert sums(ledger) == {Unit.ENERGY: (62, 10), Unit.CARBON: (7, 5)}
    assert len(ledger.open_holds()) == 1
    assert verify(ledger, lambda _owner: True) == ()
    ledger.close()


# --- the tables -------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def new_store(request, tmp_path):
    """Makes stores of empty databases."""
    urls = []
    opened = []

    def make():
        if request.param == "sqlite":
            urls.append(f"sqlite:///{tmp_path / str(len(urls))}.db")
        else:
            urls.append(request.getfixturevalue("postgres").new_database())
        opened.append(open_store(urls[-1], mountinfo_path=NO_MOUNTS))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def triggers(connection):
    tables = {"sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"}
    tables["postgresql"] = "SELECT tgname, tgtype FROM pg_trigger WHERE NOT tgisinternal"
    return set(map(tuple, connection.exec_driver_sql(tables[connection.dialect.name])))


def test_the_migrated_tables_are_those_of_a_new_ledger(new_store):
    migrated, made = new_store(), new_store()
    made.prepare()
    with migrated.writing() as connection:
        run_scripts(connection, 0, migrated.schema_version)
    assert migrated.version() == migrated.schema_version
    with migrated.reading() as one, made.reading() as other:
        assert differences(one) == []
        assert differences(other) == []
        assert triggers(one) == triggers(other)
        stamps = [connection.execute(schema.revision.select()).all() for connection in (one, other)]
        assert stamps[0] == stamps[1] == [(schema.revision_of(migrated.schema_version),)]


def test_an_old_ledger_in_postgresql_is_upgraded_by_the_owner_of_its_tables(postgres):
    url = postgres.new_database()
    store = open_store(url, mountinfo_path=NO_MOUNTS)
    with store.writing() as connection:
        run_scripts(connection, 0, 1)
    with pytest.raises(LedgerUnavailable, match=r"schema 1, this one needs \d\).*owner.*'mlflow-green ledger migrate'"):
        open_url(url)
    postgres.execute("CREATE ROLE borrower LOGIN PASSWORD 'b'")
    postgres.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO borrower", url=url)
    theirs = postgres.url_of(url.partition("@/")[2].partition("?")[0], "borrower", "b")
    with_rights_only = open_store(theirs, mountinfo_path=NO_MOUNTS)
    with pytest.raises(LedgerUnavailable, match="run it as the role that owns the tables"):
        migrate(with_rights_only)
    with_rights_only.close()
    assert store.version() == 1
    assert migrate(store).before == 1
    assert migrate(store).before == store.schema_version
    store.close()
    ledger = open_url(url)
    batch = Batch(requests=(request("train", 5, term()),), owner=OWNER)
    assert ledger.commit(batch, admit_what_fits).answers[0].hold
    ledger.close()


# --- the command --------------------------------------------------------------------------------------------


def run_migrate(folder, *options, **environ):
    place = Place(cwd=folder, environ=environ)
    return CliRunner().invoke(cli, ["ledger", "migrate", *options], obj=place)


def test_the_command_looks_first_and_then_upgrades(old_ledger, tmp_path):
    forget_host(str(old_ledger))
    environ = {"MLFLOW_GREEN_LEDGER": f"sqlite:///{old_ledger}"}
    looked = run_migrate(tmp_path, "--check", **environ)
    assert (looked.exit_code, version_of(old_ledger)) == (1, 1)
    assert "is of schema 1" in looked.stdout
    done = run_migrate(tmp_path, **environ)
    assert (done.exit_code, version_of(old_ledger)) == (0, schema.SCHEMA_VERSION)
    assert f"from schema 1 to {schema.SCHEMA_VERSION}; the file as it was is {old_ledger}.v1" in done.stdout
    again = json.loads(run_migrate(tmp_path, "--check", "--json", **environ).stdout)
    assert again == {"before": schema.SCHEMA_VERSION, "version": schema.SCHEMA_VERSION, "current": True, "copy": None}


def test_the_command_makes_the_tables_of_a_new_ledger_in_postgresql(postgres, tmp_path):
    url = postgres.new_database()
    assert "has no tables yet" in run_migrate(tmp_path, "--check", MLFLOW_GREEN_LEDGER=url).stdout
    done = run_migrate(tmp_path, MLFLOW_GREEN_LEDGER=url)
    assert (done.exit_code, "has its tables now" in done.stdout) == (0, True)
    assert run_migrate(tmp_path, "--check", MLFLOW_GREEN_LEDGER=url).exit_code == 0


def test_where_nothing_was_metered_there_is_nothing_to_upgrade_and_no_file_is_made(tmp_path):
    assert run_migrate(tmp_path).exit_code == 0
    told = json.loads(run_migrate(tmp_path, "--json").stdout)
    assert told == {"before": None, "version": schema.SCHEMA_VERSION, "current": True, "copy": None}
    assert list(tmp_path.iterdir()) == []


def test_opening_a_file_loads_neither_alembic_nor_the_driver_of_another_database(old_ledger, tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.testkit.ledger_samples import open_at\n"
        "open_at(Path(sys.argv[1]), hostname='node1', boot='boot1').close()\n"
        "print({'alembic', 'psycopg'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
    assert version_of(old_ledger) == schema.SCHEMA_VERSION
