from __future__ import annotations

import pytest

from mlflow_green.ledger.memory import MemoryLedger
from tests.testkit.ledger_samples import SetClock, open_at


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path, clock):
    books = MemoryLedger(clock) if request.param == "memory" else open_at(tmp_path, clock=clock)
    yield books
    books.close()
