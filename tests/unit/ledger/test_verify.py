"""Each law is broken on purpose, one at a time, in a ledger that closes otherwise."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.records import AllowanceKind, Batch, Domain, Unit
from tests.testkit.ledger_samples import (
    OWNER,
    SetClock,
    admit_what_fits,
    energy,
    request,
    settle,
    term,
    void,
    window,
)
from tests.testkit.limit_samples import grant, months


class Edited:
    """Real books of which one page was changed."""

    def __init__(self, books, **pages):
        self.books, self.pages = books, pages

    def __getattr__(self, name):
        return self.pages.get(name) or getattr(self.books, name)

    def snapshot(self):
        return nullcontext()


def alive(_owner):
    return True


@pytest.fixture
def books():
    ledger = MemoryLedger(SetClock())
    requests = (request("a", 10, term()), request("b", 20, term(), term("year", limit=900)), request("c", 5, term()))
    a, b, c = (answer.hold for answer in ledger.commit(Batch(requests=requests, owner=OWNER), admit_what_fits).answers)
    batch = Batch(
        closings=(settle(a, 8), settle(b, 30), void(c)), windows=(window(1, 18), window(2, 20, last=4), window(5, 0))
    )
    ledger.commit(batch, admit_what_fits)
    return ledger


def findings(books, owner_alive=alive, **pages):
    return verify(Edited(books, **pages), owner_alive)


def journal_with(books, kind, **changes):
    rows = list(books.journal())
    index = next(n for n, row in enumerate(rows) if row.kind == kind)
    rows[index] = replace(rows[index], **changes)
    return lambda: tuple(rows)


def test_sound_books_close(books):
    assert findings(books) == ()


def test_a_balance_that_is_not_the_sum_of_its_journal(books):
    wrong = [replace(balance, spent=balance.spent + 1) for balance in books.balances()]
    assert any("its journal sums to" in text for text in findings(books, balances=lambda: tuple(wrong)))


def test_a_budget_without_a_balance(books):
    assert any("does not exist" in text for text in findings(books, balances=lambda: books.balances()[:1]))


def test_a_hold_closed_twice(books):
    rows = (*books.journal(), replace(books.journal()[-1], journal_id=99, delta_held=0))
    assert any("2 closing rows" in text for text in findings(books, journal=lambda: rows))


def test_a_hold_that_was_not_released_whole(books):
    assert any(
        "holds 1 by its journal" in text
        for text in findings(books, journal=journal_with(books, "settle", delta_held=-9))
    )


def test_a_balance_that_was_negative_on_the_way(books):
    assert any("below zero" in text for text in findings(books, journal=journal_with(books, "hold", delta_held=-10)))


def test_a_charge_that_the_entry_does_not_know(books):
    assert any(
        "its entries say" in text for text in findings(books, journal=journal_with(books, "settle", delta_spent=9))
    )


def test_a_settled_hold_without_an_entry(books):
    assert any("has no entry" in text for text in findings(books, entries=lambda: books.entries()[:1]))


def test_an_entry_of_a_void_hold_that_nobody_was_charged_for(books):
    void_id = next(row.hold_id for row in books.journal() if row.kind == "void")
    stray = replace(books.entries()[0], entry_id="stray", hold_id=void_id)
    texts = findings(books, entries=lambda: (*books.entries(), stray))
    assert any(f"hold {void_id} was charged 0 mWh" in text for text in texts), texts


def test_an_entry_posted_twice(books):
    twice = (*books.entries(), books.entries()[0])
    assert any("posted 2 times" in text for text in findings(books, entries=lambda: twice))


def test_an_entry_that_its_hold_was_not_charged_for(books):
    more = (*books.entries(), replace(books.entries()[0], entry_id="again"))
    assert any("its entries say" in text for text in findings(books, entries=lambda: more))


def test_shares_that_do_not_sum_to_what_was_attributed(books):
    entries = list(books.entries())
    entries[0] = replace(entries[0], energy={Domain.CPU: energy(7)}, energy_charged_microjoules=8)
    texts = findings(books, entries=lambda: tuple(entries))
    assert [text for text in texts if "sampler1, cpu" in text and "37 microjoules" in text and "38 microjoules" in text]


def test_a_domain_that_no_window_knows(books):
    entries = list(books.entries())
    entries[0] = replace(entries[0], energy={**entries[0].energy, Domain.GPU: energy(4)})
    assert any("sampler1, gpu" in text for text in findings(books, entries=lambda: tuple(entries)))


def test_shares_are_not_judged_while_a_hold_of_that_host_is_open(books):
    books.commit(Batch(windows=(window(6, 5),)), admit_what_fits)
    assert len(findings(books)) == 1
    books.commit(Batch(requests=(request("d", 1, term()),), owner=OWNER), admit_what_fits)
    assert findings(books) == ()


def test_an_uncoordinated_meter_makes_no_claim_about_sums(books):
    hold = books.commit(Batch(requests=(request("d", 1, term()),), owner=OWNER), admit_what_fits).answers[0].hold
    books.commit(Batch(closings=(settle(hold, 9, sampler_id=None),)), admit_what_fits)
    assert findings(books) == ()


def test_overlapping_windows(books):
    windows = (*books.node_windows(), window(4, 0))
    assert any("overlap" in text for text in findings(books, node_windows=lambda: windows))


def test_an_open_hold_whose_owner_is_gone(books):
    books.commit(Batch(requests=(request("d", 1, term()),), owner=OWNER), admit_what_fits)
    (text,) = findings(books, owner_alive=lambda owner: owner != OWNER)
    assert "process 42 on node1, is gone" in text


def test_an_account_without_the_one_above_it(books):
    accounts = {"project:demo": "org:gone"}
    (text,) = findings(books, accounts=lambda: accounts)
    assert text == "account project:demo is below org:gone, which does not exist"


def test_a_budget_of_an_account_that_does_not_exist(books):
    assert any("of an account that does not exist" in text for text in findings(books, accounts=lambda: {"x": None}))


def holds_with(books, **changes):
    booked = books.booked_holds()[0]
    return lambda: (replace(booked, hold=replace(booked.hold, **changes)), *books.booked_holds()[1:])


def test_a_closed_hold_that_still_wants_more(books):
    (text,) = findings(books, booked_holds=holds_with(books, wanted={Unit.ENERGY: 3}))
    assert "is settled and still wants" in text


def test_an_open_hold_that_wants_nothing_by_name(books):
    books.commit(Batch(requests=(request("d", 1, term()),), owner=OWNER), admit_what_fits)
    booked = books.booked_holds()[-1]
    wanting = replace(booked, hold=replace(booked.hold, wanted={Unit.ENERGY: 0}))
    (text,) = findings(books, booked_holds=lambda: (*books.booked_holds()[:-1], wanting))
    assert "an amount is above 0" in text


def test_a_hold_without_an_epoch(books):
    (text,) = findings(books, booked_holds=holds_with(books, epoch=0))
    assert "has epoch 0" in text


def test_a_row_that_breaks_its_own_rules_is_a_finding_not_a_crash(books):
    def broken():
        return (replace(window(1, 1), attributed_microjoules=2),)

    (text,) = findings(books, node_windows=broken)
    assert "breaks its own rules" in text


def test_a_limit_that_the_journal_does_not_explain_is_found(books):
    books.allow(grant(30))
    assert findings(books) == ()
    assert any("allowances sum to 30" in found for found in findings(books, journal=lambda: books.journal()[:-1]))
    pending = (grant(30, approved_by=None),)
    assert any("adds 30" in found for found in findings(books, allowances=lambda: pending))


def test_a_period_that_did_not_inherit_what_it_should_is_found(books):
    november, december = months()[2:]
    for number, month in enumerate((november, december)):
        books.commit(Batch(requests=(request(f"m{number}", 1, month),), owner=OWNER), admit_what_fits)
    assert findings(books) == ()
    balances = tuple(replace(each, spent=50) if each.term.key == november.key else each for each in books.balances())
    assert any("leaves it" in found for found in findings(books, balances=lambda: balances))


def test_an_inheritance_that_no_period_left_is_found(books):
    forged = grant(30, kind=AllowanceKind.ROLLOVER, approved_by=None)
    row = replace(books.journal()[0], hold_id=None, kind="rollover", delta_held=0, delta_spent=0, delta_limit=30)
    pages = {"allowances": lambda: (forged,), "journal": lambda: (*books.journal(), row)}
    texts = findings(books, **pages)
    assert any("inherited 30" in text and "leaves it 0" in text for text in texts), texts
