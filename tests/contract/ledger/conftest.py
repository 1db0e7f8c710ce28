from __future__ import annotations

import pytest

from mlflow_green.ledger.memory import MemoryLedger
from tests.testkit.ledger_samples import SetClock, open_at, open_on_share

OPEN = {
    "memory": lambda _folder, clock: MemoryLedger(clock),
    "sqlite": lambda folder, clock: open_at(folder, clock=clock),
    "journal": lambda folder, clock: open_on_share(folder, clock=clock),
}


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture(params=OPEN)
def ledger(request, tmp_path, clock):
    books = OPEN[request.param](tmp_path, clock)
    yield books
    books.close()
