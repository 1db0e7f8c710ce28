"""A statement given to SQLite's driver directly does what it does through SQLAlchemy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import bindparam, create_engine, insert, or_, select, update

from mlflow_green.ledger import schema
from mlflow_green.ledger.statement import Command, Query

LETTERS = schema.outbox.c
SELECT = select(schema.outbox).where(
    or_(LETTERS.dedup.in_(bindparam("dedups", expanding=True)), LETTERS.tries == 7),
    LETTERS.kind.in_(bindparam("kinds", expanding=True)),
    LETTERS.next_try <= bindparam("now"),
)
UPDATE = (
    update(schema.outbox)
    .where(LETTERS.dedup == bindparam("key"))
    .values(tries=LETTERS.tries + bindparam("more"), payload=bindparam("new_payload", type_=LETTERS.payload.type))
)
ZONES = [UTC, timezone(timedelta(hours=2))]
AT = st.builds(datetime.fromtimestamp, st.integers(0, 2**32), st.sampled_from(ZONES))
JSON = st.recursive(st.none() | st.integers(-(2**60), 2**60) | st.text(), st.lists) | st.dictionaries(
    st.text(), st.none()
)
NAMES = st.sampled_from("abcdefg")
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "dedup": NAMES,
            "kind": st.sampled_from(["letter", "mlflow"]),
            "payload": JSON,
            "state": st.just("pending"),
            "next_try": AT,
            "tries": st.integers(0, 9),
            "error": st.none() | st.text(),
        }
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row["dedup"],
)
CHANGES = st.lists(
    st.fixed_dictionaries({"key": NAMES, "more": st.integers(0, 9), "new_payload": JSON}), min_size=1, max_size=4
)
WANTED = st.fixed_dictionaries(
    {"dedups": st.lists(NAMES, max_size=5), "kinds": st.lists(st.sampled_from(["letter", "mlflow"])), "now": AT}
)

INSERTING, CHANGING, FINDING = Command(insert(schema.outbox)), Command(UPDATE), Query(SELECT)


@pytest.fixture(scope="module")
def connection():
    with create_engine("sqlite://").connect() as connection:
        schema.outbox.create(connection)
        connection.commit()
        yield connection


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, changes=CHANGES, wanted=WANTED)
def test_rows_are_written_changed_and_found_as_sqlalchemy_would(connection, rows, changes, wanted):
    with connection.begin() as transaction:
        connection.execute(insert(schema.outbox), rows)
        met = connection.execute(UPDATE, changes).rowcount
        found = connection.execute(SELECT, wanted).mappings().all()
        transaction.rollback()
    with connection.begin() as transaction:
        INSERTING.run(connection, *rows)
        assert CHANGING.run(connection, *changes) == met
        assert FINDING.mappings(connection, wanted) == found
        assert [tuple(row) for row in FINDING.rows(connection, wanted)] == [tuple(row.values()) for row in found]
        transaction.rollback()


def test_a_value_that_is_left_out_is_an_error_and_never_that_of_the_call_before(connection):
    CHANGING.run(connection, {"key": "a", "more": 1, "new_payload": None})
    with pytest.raises(KeyError, match="more"):
        CHANGING.run(connection, {"key": "a", "new_payload": None})


def test_a_list_that_the_statement_itself_has_is_a_constant(connection):
    found = select(LETTERS.dedup).where(LETTERS.kind.in_(["letter", "mail"]), LETTERS.state == bindparam("state"))
    rest = {"payload": None, "state": "pending", "next_try": datetime(2026, 11, 22, tzinfo=UTC), "tries": 0}
    with connection.begin() as transaction:
        INSERTING.run(connection, *({"dedup": kind, "kind": kind, **rest} for kind in ("letter", "mail", "mlflow")))
        finding = Query(found.order_by(LETTERS.dedup))
        assert [tuple(row) for row in finding.rows(connection, {"state": "pending"})] == [("letter",), ("mail",)]
        transaction.rollback()
