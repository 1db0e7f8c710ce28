"""PostgreSQL itself lets only members of ``green_approver`` raise what counts, whatever a client sends."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_green.cli.doors import Place
from mlflow_green.cli.main import cli
from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger.allowances import Reviewed
from mlflow_green.ledger.migrations import migrate, run_scripts
from mlflow_green.ledger.sql import SqlLedger, open_store
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, Fact, Mode, TopUp, Unit
from tests.testkit.ledger_samples import OWNER, SetClock, admit_what_fits, open_url, request, settle, term, window
from tests.testkit.limit_samples import grant, limited, months, override, version

HOW_TO = Path(__file__).parents[3] / "docs/howto/postgres.md"
OCTOBER, NOVEMBER = months("rolls", unused=0.5, cap=0.5)[1:3]
MONTH = term()
DROPS_MONTH = Reviewed(drops=[MONTH.key[:3]])
OWNS, SPENDS, SPENDS_TOO, APPROVES, READS, STRANGER = "green_owner", "dora", "dan", "erik", "lena", "steve"


class Server:
    """A ledger, and the roles of the how-to."""

    def __init__(self, postgres, url):
        self.postgres = postgres
        self.url = url
        self._name = url.partition("@/")[2].partition("?")[0]
        self._opened = []

    def url_of(self, role):
        return self.postgres.url_of(self._name, role, "pass")

    def open(self, role):
        self._opened.append(open_url(self.url_of(role)))
        return self._opened[-1]

    def connect(self, role):
        return psycopg.connect(self.url_of(role), autocommit=True, prepare_threshold=None)

    def close(self):
        for ledger in self._opened:
            ledger.close()


def how_to():
    """What the administrator types, then the owner of the tables, then the administrator again."""
    return re.findall(r"```sql\n(.*?)```", HOW_TO.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def roles(postgres):
    make_roles, _rights, membership = how_to()
    people = (OWNS, SPENDS, SPENDS_TOO, APPROVES, READS, STRANGER)
    for role in people:
        postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pass'")
    postgres.execute(make_roles, membership, f"GRANT green_spender TO {SPENDS_TOO}")
    yield
    for role in (*people, "green_approver", "green_spender", "green_reader"):
        postgres.execute(f"DROP ROLE {role}")


@pytest.fixture
def server(postgres, roles):
    """The rights are those that the how-to gives, typed by the owner of the tables."""
    database = postgres.new_database()
    postgres.execute(f"ALTER SCHEMA public OWNER TO {OWNS}", url=database)
    made = Server(postgres, database)
    made.open(OWNS)
    postgres.execute(how_to()[1], url=made.url_of(OWNS))
    yield made
    made.close()
    postgres.drop_database(database)


def hold(ledger, name, amount, *terms):
    batch = Batch(requests=(request(name, amount, *(terms or (MONTH,))),), owner=OWNER)
    return ledger.commit(batch, admit_what_fits).answers[0].hold


def spend(ledger, name, amount, *terms):
    ledger.commit(
        Batch(closings=(settle(hold(ledger, name, amount, *terms), amount, sampler_id=None),)), admit_what_fits
    )


def limit_of(ledger, wanted=MONTH):
    """What counts where the policy of who asks would allow anything."""
    return ledger.balances([replace(wanted, limit=10**12)])[0].limit


# --- the how-to ---------------------------------------------------------------------------------------


def test_with_the_rights_of_the_how_to_spenders_spend_readers_read_and_strangers_do_nothing(server, caplog):
    spender = server.open(SPENDS)
    held = hold(spender, "train", 5)
    fact = Fact(hold_id=held.hold_id, name="quality/mape", value=0.5)
    topped = spender.commit(Batch(top_ups=(TopUp(hold_id=held.hold_id, amounts={Unit.ENERGY: 2}),)), admit_what_fits)
    assert topped.top_ups == ({Unit.ENERGY: 2},)
    closing = replace(settle(held, 3), epoch=None)
    spender.commit(Batch(closings=(closing,), windows=(window(1, 3),), facts=(fact,)), admit_what_fits)
    spender.commit(Batch(facts=(fact,)), admit_what_fits)
    spender.adjust(held.hold_id, {Unit.ENERGY: 1}, "evidence")
    row = spender.pending("mlflow", spender._clock.now())[0]
    assert spender.claim(row.outbox_id, spender._clock.now(), spender._clock.now())
    spender.delivered(row.outbox_id)
    assert verify(spender, lambda _owner: True) == ()
    reader = server.open(READS)
    assert (reader.identity(), reader.balances()[0].spent) == (READS, 4)
    with pytest.raises(LedgerUnavailable, match=rf"permission denied.*GRANT green_spender TO {READS}"):
        hold(reader, "another", 1)
    logging.getLogger("psycopg").warning("error ignored terminating %r: %s", "a pipeline", "what was told already")
    assert caplog.messages == []
    with pytest.raises(LedgerUnavailable, match=rf"permission denied.*GRANT green_reader TO {STRANGER}"):
        server.open(STRANGER)


def test_what_the_how_to_gives_can_be_given_again_after_more_was_given(server):
    server.postgres.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO green_spender", url=server.url)
    server.postgres.execute(how_to()[1], url=server.url_of(OWNS))
    with server.connect(SPENDS) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("UPDATE allowances SET amount = 1")


def test_what_the_database_leaves_to_its_clients_is_told_while_there_is_no_role(server, postgres, tmp_path):
    def said(*command):
        place = Place(cwd=tmp_path, environ={"MLFLOW_GREEN_LEDGER": server.url_of(SPENDS)})
        return " ".join(CliRunner().invoke(cli, command, obj=place).stdout.split())

    ledger = server.open(SPENDS)
    told = "has no role green_approver, so who may approve is checked by clients only"
    assert ledger.unguarded() == ""
    assert told not in said("ledger", "verify")
    postgres.execute("ALTER ROLE green_approver RENAME TO another_role")
    try:
        assert told in said("ledger", "verify")
        assert told in said("doctor")
        ledger.record_policy(version("first"), [MONTH])
        ledger.apply_policy(version("more"), [limited(300)], approved_by=SPENDS)
        assert limit_of(ledger) == 300
    finally:
        postgres.execute("ALTER ROLE another_role RENAME TO green_approver")


# --- who may ------------------------------------------------------------------------------------------


def test_every_spender_registers_and_lowers_a_limit_and_only_a_member_raises_loosens_or_drops_it(server):
    spender, approver = server.open(SPENDS), server.open(APPROVES)
    hold(spender, "first", 1)
    spender.record_policy(version("first"), [MONTH])
    spender.record_policy(version("less"), [limited(60)])
    assert limit_of(spender) == 60
    for attempt in (
        lambda books: books.apply_policy(version("more"), [limited(90)], approved_by=APPROVES),
        lambda books: books.apply_policy(version("soft"), [replace(limited(60), mode=Mode.SOFT)], approved_by=APPROVES),
        lambda books: books.apply_policy(version("none"), [], approved_by=APPROVES, reviewed=DROPS_MONTH),
    ):
        with pytest.raises(LedgerError, match=f"refused it: role {SPENDS} is no member of green_approver") as caught:
            attempt(spender)
        assert "nothing was written" in str(caught.value)
    assert (limit_of(spender), spender.applied_limits()) == (60, ())
    approver.apply_policy(version("more"), [limited(90)], approved_by=SPENDS, approver="lena")
    (applied,) = approver.applied_limits()
    assert (limit_of(spender), applied.approved_by, applied.approver) == (90, APPROVES, None)
    with pytest.raises(LedgerError, match="only a member may apply another policy to month"):
        spender.apply_policy(version("less again"), [limited(80)], approved_by=SPENDS)
    spender.record_policy(version("less again"), [limited(80)])
    assert limit_of(spender) == 80
    assert {each.policy_sha256 for each in spender.approved_limits()} == {version("more").sha256}
    assert {each.author for each in spender.policies()} == {SPENDS, APPROVES}
    assert verify(spender, lambda _owner: True) == ()


def test_only_a_member_who_did_not_ask_approves_an_allowance(server):
    spender, other, approver = server.open(SPENDS), server.open(SPENDS_TOO), server.open(APPROVES)
    spender.allow(grant(30, approved_by=None), MONTH)
    with pytest.raises(LedgerUnavailable, match="permission denied"):
        other.approve("grant of 30", SPENDS_TOO)
    server.postgres.execute("GRANT UPDATE ON allowances TO green_spender", url=server.url)
    with pytest.raises(LedgerError, match=f"role {SPENDS_TOO} is no member of green_approver, and only a member may"):
        other.approve("grant of 30", SPENDS_TOO)
    approver.allow(override(5, approved_by=None), MONTH)
    with pytest.raises(LedgerError, match="asked for"):
        approver.approve("override of 5", APPROVES)
    assert limit_of(spender) == 100
    assert approver.approve("grant of 30", APPROVES).approved_by == APPROVES
    assert limit_of(spender) == 130
    assert verify(spender, lambda _owner: True) == ()


def test_a_spender_carries_over_what_a_period_leaves_and_corrects_it(server):
    spender = server.open(SPENDS)
    spend(spender, "old", 33, OCTOBER)
    late = hold(spender, "late", 20, OCTOBER)
    spend(spender, "new", 1, NOVEMBER)
    assert limit_of(spender, NOVEMBER) == 100 + 23
    spender.commit(Batch(closings=(settle(late, 100, sampler_id=None),)), admit_what_fits)
    assert limit_of(spender, NOVEMBER) == 100 - 33
    assert verify(spender, lambda _owner: True) == ()


# --- raw SQL ------------------------------------------------------------------------------------------

_ROW = "budget, account, unit"
_APPROVED = f"{_ROW}, limit_amount, mode, at, policy_sha256, approved_by, reason"
_CHANGE = "at, budget, account, unit, before_amount, before_mode, after_amount, after_mode, policy_sha256, requested_by"
_FORGED = ["'forged', approved_by, reason", "policy_sha256, 'erik', reason", "policy_sha256, approved_by, 'forged'"]
ATTEMPTS = [
    "UPDATE approved_limits SET limit_amount = limit_amount + 1",
    "UPDATE approved_limits SET mode = 'observe'",
    "UPDATE approved_limits SET budget = 'another'",
    "DELETE FROM approved_limits",
    (
        f"WITH old AS (DELETE FROM approved_limits RETURNING *) INSERT INTO approved_limits ({_APPROVED}) SELECT {_ROW},"
        " 900, mode, at, policy_sha256, approved_by, reason FROM old"
    ),
    (
        f"INSERT INTO approved_limits SELECT {_ROW}, 900, mode, at, policy_sha256, approved_by, reason FROM approved_limits"
        " ON CONFLICT (budget, account, unit) DO UPDATE SET limit_amount = 900"
    ),
    *(
        f"WITH old AS (DELETE FROM approved_limits RETURNING *) INSERT INTO approved_limits ({_APPROVED}) SELECT {_ROW},"
        f" limit_amount - 1, mode, at, {changed} FROM old"
        for changed in _FORGED
    ),
    *(
        f"UPDATE approved_limits SET (limit_amount, policy_sha256, approved_by, reason) = (limit_amount - 1, {changed})"
        for changed in _FORGED
    ),
    *(
        f"INSERT INTO approved_limits ({_APPROVED}) SELECT budget, account, 'carbon', 1, mode, at, {changed} FROM"
        " approved_limits"
        for changed in _FORGED[1:]
    ),
    "BEGIN; DELETE FROM approved_limits; SET CONSTRAINTS ALL IMMEDIATE; COMMIT",
    (
        "CREATE TEMP TABLE approved_limits AS SELECT * FROM public.approved_limits;"
        " UPDATE public.approved_limits SET limit_amount = 900"
    ),
    (
        "CREATE TEMP TABLE pg_roles (rolname text, oid oid); SET search_path = pg_temp, public;"
        " UPDATE public.approved_limits SET limit_amount = 900"
    ),
    "MERGE INTO approved_limits USING (SELECT 1) AS one ON true WHEN MATCHED THEN UPDATE SET limit_amount = 900",
    (
        f"INSERT INTO limit_changes ({_CHANGE}, reason) SELECT at, {_ROW}, 1, 'hard', 2, 'hard', '', '', '' FROM"
        " approved_limits"
    ),
    (
        f"INSERT INTO limit_changes ({_CHANGE}, reason) SELECT at, {_ROW}, 1, 'hard', NULL, NULL, '', '', '' FROM"
        " approved_limits"
    ),
    (
        f"INSERT INTO limit_changes ({_CHANGE}, reason) SELECT at, {_ROW}, 1, 'hard', NULL, 'hard', '', '', '' FROM"
        " approved_limits"
    ),
    "UPDATE limit_changes SET after_amount = 1",
    "DELETE FROM limit_changes",
    "UPDATE allowances SET approved_by = 'erik'",
    "UPDATE allowances SET amount = 900",
    "UPDATE allowances SET kind = 'rollover'",
    "DELETE FROM allowances",
    *(
        f"INSERT INTO allowances SELECT 'forged', '{kind}', 'month', account, unit, period, 900, made_at, expires_at,"
        f" 'x', {approver}, reason FROM allowances WHERE kind = 'grant'"
        for kind, approver in [("grant", "NULL, 'erik'"), ("override", "'erik', NULL"), ("rollover", "NULL, NULL")]
    ),
    "UPDATE journal SET delta_spent = 0",
    "DELETE FROM journal",
    *(
        f"INSERT INTO journal (at, bucket_id, kind, delta_held, delta_spent, reason, delta_limit) SELECT at, bucket_id,"
        f" '{kind}', 0, 0, 'forged', {amount} FROM journal LIMIT 1"
        for kind, amount in [("rollover", 900), ("grant", 30), ("hold", 1), ("override", 0)]
    ),
    (
        "INSERT INTO journal (at, hold_id, bucket_id, kind, delta_held, delta_spent, reason, delta_limit)"
        " SELECT at, 'x', bucket_id, kind, 0, 0, 'forged', delta_limit FROM journal WHERE kind = 'grant'"
    ),
    "UPDATE policies SET text = 'version: 9'",
    "DELETE FROM policies",
    "DELETE FROM buckets",
    "UPDATE buckets SET limit_amount = 900",
    "UPDATE buckets SET previous_period = '2026-01', rollover = '{}'",
    (
        "INSERT INTO buckets (budget, account, unit, period, limit_amount, mode, alerts, spent, held)"
        " SELECT budget, account, unit, '2027-01', 900, mode, alerts, 0, 0 FROM buckets WHERE budget = 'month'"
    ),
    *(
        f"TRUNCATE {table} CASCADE"
        for table in ("approved_limits", "limit_changes", "allowances", "journal", "policies")
    ),
    "TRUNCATE buckets CASCADE",
    (
        "BEGIN; INSERT INTO buckets (budget, account, unit, period, limit_amount, mode, alerts, spent, held,"
        " previous_period, rollover) SELECT budget, account, unit, '2026-12', 1, mode, alerts, 0, 0, period,"
        ' \'{"unused_ratio": 1, "cap_ratio": 9, "carries_overspend": false, "previous_period": "2026-10"}\''
        " FROM buckets WHERE budget = 'rolls' AND period = '2026-10';"
        " INSERT INTO allowances SELECT 'forged', 'rollover', budget, account, unit, period, 9, '2026-12-01', NULL, '',"
        " NULL, NULL, '' FROM buckets WHERE period = '2026-12'; COMMIT"
    ),
    "ALTER TABLE approved_limits DISABLE TRIGGER ALL",
    "DROP TRIGGER approved_limits_by_role ON approved_limits",
    "CREATE OR REPLACE FUNCTION green_only_approvers(what text) RETURNS void LANGUAGE sql AS ''",
    "CREATE FUNCTION public.harmless() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP TABLE approved_limits",
    "ALTER TABLE approved_limits OWNER TO dora",
    "SET session_replication_role = replica",
    "SET ROLE green_approver",
    "SET ROLE green_owner",
    "SET SESSION AUTHORIZATION erik",
    "GRANT green_approver TO dora",
    "ALTER ROLE green_approver RENAME TO nobody",
    "DROP ROLE green_approver",
]
"""What a spender with a database client of his own may try."""

CARELESS = "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO green_spender"


def books_of(server):
    """Balances, limits, allowances and what was applied; two spenders and an approver were at work."""
    spender, approver = server.open(SPENDS), server.open(APPROVES)
    spend(spender, "old", 40, OCTOBER)
    hold(spender, "new", 10, NOVEMBER)
    hold(spender, "train", 10)
    spender.record_policy(version("first"), [MONTH])
    approver.apply_policy(version("more"), [limited(200)], approved_by=APPROVES)
    spender.allow(grant(30, approved_by=None), MONTH)
    approver.approve("grant of 30", APPROVES)
    spender.allow(override(7, approved_by=None), MONTH)
    return spender


@pytest.mark.parametrize("rights", ["SELECT 1", CARELESS], ids=["rights of the how-to", "careless rights"])
def test_nothing_that_a_spender_types_by_hand_raises_forges_or_unlocks_anything(rights, server):
    spender = books_of(server)
    before = (spender.balances(), spender.journal(), spender.allowances(), spender.approved_limits())
    server.postgres.execute(rights, url=server.url)
    done = []
    with server.connect(SPENDS) as connection:
        for attempt in ATTEMPTS:
            with suppress(psycopg.Error):
                connection.execute(attempt)
                done.append(attempt)
            connection.execute("ROLLBACK")
            connection.execute("DISCARD ALL")
    assert done == []
    assert (spender.balances(), spender.journal(), spender.allowances(), spender.approved_limits()) == before
    assert verify(spender, lambda _owner: True) == ()


def test_a_spender_says_first_what_only_observed_or_was_in_no_version_and_dates_no_policy_back(server):
    spender = server.open(SPENDS)
    hold(spender, "before any policy", 1)
    observed = replace(OCTOBER, mode=Mode.OBSERVE)
    for text, of_october in (("first", observed), ("acts", OCTOBER), ("another", OCTOBER)):
        spender.record_policy(version(text), [MONTH, of_october])
    said_by = {limit.budget: limit.policy_sha256 for limit in spender.approved_limits()}
    assert said_by == {"month": version("first").sha256, "rolls": version("acts").sha256}
    with server.connect(SPENDS) as connection:
        connection.execute("INSERT INTO policies (sha256, text, author, at) VALUES ('old', '', '', '1970')")
    assert {each.sha256: each.at for each in spender.policies()}["old"] == max(each.at for each in spender.policies())


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_two_transactions_side_by_side_cannot_both_carry_over_what_is_there_once(isolation, server):
    spender = server.open(SPENDS)
    spend(spender, "old", 40, OCTOBER)
    bucket = "budget, account, unit, '2026-11', 100, mode, alerts, 0, 0, '2026-10', rollover FROM buckets"
    with server.connect(SPENDS) as one, server.connect(SPENDS) as other:
        one.execute(
            "INSERT INTO buckets (budget, account, unit, period, limit_amount, mode, alerts, spent, held,"
            f" previous_period, rollover) SELECT {bucket}"
        )
        for number, connection in enumerate((one, other)):
            connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")
            connection.execute(
                "INSERT INTO allowances SELECT %s, 'rollover', budget, account, unit, '2026-11', 30, opened_at, NULL,"
                " '', NULL, NULL, '' FROM buckets JOIN accounts USING (account) LIMIT 1",
                [f"forged {number}"],
            )
        other.execute("SET lock_timeout = '50ms'")
        for command in ("SET CONSTRAINTS ALL IMMEDIATE", "COMMIT"):
            for connection in (one, other):
                with suppress(psycopg.Error):
                    connection.execute(command)
    assert limit_of(spender, NOVEMBER) == (130 if isolation == "READ COMMITTED" else 100)


AMOUNTS = st.integers(-20, 300)
MODES = st.sampled_from(["observe", "soft", "hard"])
BUDGETS = st.sampled_from(["month", "rolls", "another"])
PERIODS = st.sampled_from(["2026-09", "2026-10", "2026-11", "2026-12"])
KINDS = st.sampled_from(["grant", "override", "rollover"])
STATEMENTS = st.one_of(
    st.builds("UPDATE approved_limits SET limit_amount = {} WHERE budget = '{}'".format, AMOUNTS, BUDGETS),
    st.builds("UPDATE approved_limits SET limit_amount = limit_amount - 1, mode = '{}'".format, MODES),
    st.builds("UPDATE approved_limits SET policy_sha256 = '', mode = '{}'".format, MODES),
    st.builds("DELETE FROM approved_limits WHERE budget = '{}'".format, BUDGETS),
    st.builds(
        "INSERT INTO approved_limits VALUES ('{}', 'project:demo', 'energy', {}, '{}', '2026-11-01', '', '', '')".format,
        BUDGETS,
        AMOUNTS,
        MODES,
    ),
    st.builds(
        "INSERT INTO allowances SELECT gen_random_uuid(), '{}', '{}', account, unit, '{}', {}, '2026-11-01',"
        " '2099-01-01', '', NULL, NULL, '' FROM buckets LIMIT 1".format,
        KINDS,
        BUDGETS,
        PERIODS,
        AMOUNTS,
    ),
    st.builds("UPDATE allowances SET approved_by = 'erik', amount = {}, kind = '{}'".format, AMOUNTS, KINDS),
    st.builds("DELETE FROM allowances WHERE amount <> {}".format, AMOUNTS),
    st.builds(
        "INSERT INTO buckets (budget, account, unit, period, limit_amount, mode, alerts, spent, held, previous_period,"
        " rollover) SELECT '{}', account, unit, '{}', {}, mode, alerts, 0, 0, '{}', '{{\"unused_ratio\": 9,"
        ' "cap_ratio": 9, "carries_overspend": false, "previous_period": "2026-10"}}\' FROM buckets LIMIT 1'.format,
        BUDGETS,
        PERIODS,
        AMOUNTS,
        PERIODS,
    ),
    st.builds("UPDATE buckets SET limit_amount = {} WHERE budget = '{}'".format, AMOUNTS, BUDGETS),
    st.builds("UPDATE buckets SET spent = {} WHERE period = '{}'".format, st.integers(0, 300), PERIODS),
    st.builds(
        "INSERT INTO journal (at, bucket_id, kind, delta_held, delta_spent, reason, delta_limit)"
        " SELECT '2026-11-01', bucket_id, '{}', 0, 0, '', {} FROM buckets".format,
        KINDS,
        AMOUNTS,
    ),
    st.sampled_from(["BEGIN", "COMMIT", "SAVEPOINT s", "ROLLBACK TO s", "SET CONSTRAINTS ALL IMMEDIATE"]),
    st.sampled_from(ATTEMPTS),
)


TABLES = ("allowances", "approved_limits", "buckets", "journal", "limit_changes", "policies")


def keep(server):
    """Statements that put every row back as it is now; the triggers sleep meanwhile."""
    copies = [f"CREATE TABLE kept.{table} AS TABLE {table}" for table in TABLES]
    server.postgres.execute("CREATE SCHEMA kept", *copies, url=server.url)
    rows = [f"INSERT INTO {table} TABLE kept.{table}" for table in TABLES]
    return ("SET session_replication_role = replica", f"TRUNCATE {', '.join(TABLES)}", *rows)


def test_whatever_a_spender_sends_in_any_order_what_may_be_spent_never_rises(server):
    """A budget with rollover is bounded: it inherits what its period before leaves, and that is what spenders say."""
    spender = books_of(server)
    server.postgres.execute(CARELESS, url=server.url)
    reset = keep(server)
    december = months("rolls", unused=0.5, cap=0.5)[3]
    plain = {MONTH: 230, replace(MONTH, period="2026-12"): 200}
    rolling = (OCTOBER, NOVEMBER, december)

    @settings(
        max_examples=500 if settings.get_current_profile_name() == "long" else 25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STATEMENTS, max_size=12))
    def law(statements):
        server.postgres.execute(*reset, url=server.url)
        with suppress(psycopg.Error), server.connect(SPENDS) as connection:  # which commits at its end
            for statement in statements:
                with suppress(psycopg.Error):
                    connection.execute(statement)
        assert all(limit_of(spender, each) <= most for each, most in plain.items())
        assert all(limit_of(spender, each) <= 2 * 100 for each in rolling)
        approved = {limit.budget: limit for limit in spender.approved_limits()}
        assert (approved["month"].policy_sha256, approved["month"].approved_by) == (version("more").sha256, APPROVES)
        assert (approved["month"].mode, approved["rolls"].mode) == (Mode.HARD, Mode.HARD)
        own = {"month": 200, "rolls": 100}
        assert all(b.term.limit <= own[b.term.budget] for b in spender.balances() if b.term.budget in own)

    try:
        law()
    finally:
        server.postgres.execute("DROP SCHEMA kept CASCADE", url=server.url)


# --- older ledgers ------------------------------------------------------------------------------------


def test_a_ledger_of_version_two_keeps_what_it_says_and_is_guarded_after_the_upgrade(postgres, roles):
    database = postgres.new_database()
    postgres.execute(f"ALTER SCHEMA public OWNER TO {OWNS}", url=database)
    server = Server(postgres, database)
    store = open_store(server.url_of(OWNS), mountinfo_path=Path("/no-mountinfo"))
    with store.writing() as connection:
        run_scripts(connection, 0, 2)
    old = SqlLedger(store, SetClock())
    spend(old, "old", 40, OCTOBER)
    hold(old, "new", 10, NOVEMBER)
    old.allow(grant(30, approved_by=None), MONTH)
    old.record_policy(version("first"), [MONTH])
    old.apply_policy(version("more"), [limited(200)], approved_by="somebody")
    views = (
        "balances",
        "journal",
        "allowances",
        "approved_limits",
        "applied_limits",
        "policies",
        "open_holds",
        "entries",
    )
    before = [getattr(old, view)() for view in views]
    with pytest.raises(LedgerUnavailable, match=r"schema 2, this one needs 3\).*'mlflow-green ledger migrate'"):
        server.open(OWNS)
    assert migrate(store).before == 2
    assert store.version() == 3
    assert [getattr(old, view)() for view in views] == before
    postgres.execute(how_to()[1], url=server.url_of(OWNS))
    spender, approver = server.open(SPENDS), server.open(APPROVES)
    with pytest.raises(LedgerError, match="no member of green_approver"):
        spender.apply_policy(version("even more"), [limited(300)], approved_by=SPENDS)
    approver.approve("grant of 30", APPROVES)
    spend(spender, "next", 5, NOVEMBER)
    assert verify(spender, lambda _owner: True) == ()
    server.close()
    old.close()
    postgres.drop_database(database)


def test_version_three_leaves_a_sqlite_ledger_as_it_is(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'ledger.db'}", mountinfo_path=Path("/no-mountinfo"))
    store.prepare()
    everything = "SELECT name, sql FROM sqlite_master UNION SELECT 'version', schema_version FROM meta"
    with store.writing() as connection:
        before = connection.exec_driver_sql(everything).all()
        run_scripts(connection, 2, 3)
        assert connection.exec_driver_sql(everything).all() == before
    store.close()
