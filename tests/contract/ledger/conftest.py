from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.ledger.memory import MemoryLedger
from tests.testkit.ledger_samples import SetClock, open_at, open_on_share, open_url

OPEN = {
    "memory": lambda folder, clock: MemoryLedger(clock),
    "sqlite": lambda folder, clock: open_at(folder, clock=clock),
    "journal": lambda folder, clock: open_on_share(folder, clock=clock),
}


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def database(postgres):
    """The URL of a PostgreSQL database of this test alone."""
    url = postgres.new_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(params=[*OPEN, "postgresql"])
def ledger(request, tmp_path, clock):
    if request.param == "postgresql":
        books = open_url(request.getfixturevalue("database"), clock=clock)
    else:
        books = OPEN[request.param](tmp_path, clock)
    yield books
    books.close()


@pytest.fixture
def as_role(request, ledger, clock):
    """The same ledger as another person sees it: on a file who that is, is said and not known."""
    opened = []

    def open_as(name):
        if ledger.identity() is None:
            return ledger
        url = request.getfixturevalue("postgres").as_role(request.getfixturevalue("database"), name)
        opened.append(open_url(url, clock=clock))
        return opened[-1]

    yield open_as
    for books in opened:
        books.close()


@pytest.fixture
def give(ledger, as_role):
    """Add an allowance that ana approves, at once or, where the ledger knows who does, afterwards."""

    def allow(allowance, term=None, **options):
        if ledger.identity() is None:
            ledger.allow(allowance, term, **options)
            return
        ledger.allow(replace(allowance, approved_by=None), term, **options)
        if not any(each.is_approved for each in ledger.allowances() if each.allowance_id == allowance.allowance_id):
            as_role("ana").approve(allowance.allowance_id, "ana", **options)

    return allow
