from __future__ import annotations

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
