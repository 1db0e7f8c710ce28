"""What concurrent clients of one budget are told is what some serial order of their operations gives."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import pytest

from mlflow_green.records import Batch
from tests.simulation.history import Operation, anomalies
from tests.testkit.ledger_samples import OWNER, admit_what_fits, open_at, open_url, request, settle, term

LIMIT = 100
MONTH = term(limit=LIMIT)
CLIENTS, OPERATIONS = 4, 12


def spend(ledger, name, seed, operations, barrier):
    """Hold and settle at random; what was asked and answered goes into ``operations``, with the hold's id."""
    dice, held = random.Random(f"{seed} {name}"), []
    barrier.wait()
    for number in range(OPERATIONS):
        called_ns = time.monotonic_ns()
        if held and dice.random() < 0.4:
            hold, used = held.pop(0), dice.randrange(20)
            ledger.commit(Batch(closings=(settle(hold, used),)), admit_what_fits)
            delta, asked, available = used - sum(hold.amounts.values()), None, None
        else:
            asked = dice.randrange(1, 40)
            batch = Batch(requests=(request(f"{name}-{number}", asked, MONTH),), owner=OWNER)
            (answer,) = ledger.commit(batch, admit_what_fits).answers
            hold, available = answer.hold, answer.decision.available
            delta = asked if hold else None
            held += [hold] if hold else []
        returned_ns = time.monotonic_ns()
        kind = "settle" if asked is None else "hold"
        operation = Operation(
            client=name,
            called_ns=called_ns,
            returned_ns=returned_ns,
            delta=delta,
            row=None,
            asked=asked,
            available=available,
        )
        operations.append((operation, (hold.hold_id, kind) if hold else None))


def history(open_ledger, seed):
    """The operations of some clients that spend from one budget at the same time."""
    ledgers = [open_ledger() for _ in range(CLIENTS)]
    operations, barrier = [], threading.Barrier(CLIENTS)
    threads = [
        threading.Thread(target=spend, args=(ledger, f"c{number}", seed, operations, barrier))
        for number, ledger in enumerate(ledgers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = {(row.hold_id, row.kind): row for row in ledgers[0].journal()}
    for ledger in ledgers:
        ledger.close()
    found = [replace(each, row=rows.pop(wrote).journal_id) if wrote else each for each, wrote in operations]
    assert len(found) == CLIENTS * OPERATIONS, "every client came to its end"
    assert not rows, "nothing was written that nobody was told of"
    return found


def check(open_ledger, seed):
    operations = history(open_ledger, seed)
    assert list(anomalies(operations, LIMIT)) == []
    assert any(each.row is None for each in operations), "nothing was refused: the budget is too large to be tested"
    overlaps = sum(
        one.client != other.client and one.called_ns < other.called_ns < one.returned_ns
        for one in operations
        for other in operations
    )
    assert overlaps > CLIENTS, "nothing overlaps: the clients took turns"


@pytest.mark.parametrize("seed", range(20))
def test_a_history_of_concurrent_clients_is_linearisable(tmp_path, seed):
    check(lambda: open_at(tmp_path), seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_history_of_concurrent_clients_of_postgresql_is_linearisable(postgres, seed):
    url = postgres.new_database()
    check(lambda: open_url(url), seed)
    postgres.drop_database(url)


def hold(called_ns, returned_ns, row, amount=60):
    return Operation(client="a", called_ns=called_ns, returned_ns=returned_ns, delta=amount, row=row, asked=amount)


def refusal(called_ns, returned_ns, available, asked=60):
    return Operation(
        client="b", called_ns=called_ns, returned_ns=returned_ns, delta=None, row=None, asked=asked, available=available
    )


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param((hold(1, 2, row=1), hold(3, 4, row=2)), id="two that do not fit together"),
        pytest.param(
            (hold(1, 2, row=2, amount=10), hold(3, 4, row=1, amount=10)), id="the later one was written first"
        ),
        pytest.param((refusal(1, 2, available=40), hold(3, 4, row=1)), id="refused for what came later"),
        pytest.param((hold(1, 2, row=1), refusal(3, 4, available=100)), id="what came before was not seen"),
        pytest.param((hold(1, 2, row=1, amount=10), refusal(3, 4, available=90)), id="refused though there was room"),
    ],
)
def test_the_check_sees_an_answer_that_no_serial_order_gives(operations):
    assert list(anomalies(operations, LIMIT)) != []


def test_an_answer_that_overlaps_may_come_before_or_after():
    assert list(anomalies((hold(1, 5, row=1), refusal(3, 4, available=40)), LIMIT)) == []
    assert list(anomalies((hold(1, 5, row=1), refusal(3, 4, available=100, asked=101)), LIMIT)) == []
