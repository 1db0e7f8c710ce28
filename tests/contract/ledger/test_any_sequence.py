"""Any sequence of batches does to every ledger what it does to a model of thirty lines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, Mode, TopUp, Unit
from tests.testkit.ledger_samples import (
    OWNER,
    SetClock,
    admit_what_fits,
    lose,
    open_at,
    open_on_share,
    open_url,
    request,
    settle,
    term,
    void,
)

MONTH = term(limit=100)
YEAR = term("year", limit=150)
CARBON = term("month", unit=Unit.CARBON, limit=60)
ADVICE = term("advice", limit=10, mode=Mode.SOFT)
TERMS = (MONTH, YEAR, CARBON, ADVICE)
amounts = st.integers(0, 70)


class Books(RuleBasedStateMachine):
    """``held`` maps a step to its hold, amounts and terms; ``spent`` maps a budget to what was charged.

    ``wanted`` maps a step to the energy that its last top-up asked for and did not get.
    """

    def make(self):
        raise NotImplementedError

    @initialize()
    def start(self):
        self.ledger = self.make()
        self.held, self.closed, self.spent, self.steps = {}, {}, dict.fromkeys(TERMS, 0), 0
        self.wanted = {}

    def committed(self, budget):
        return self.spent[budget] + sum(a.get(budget.unit, 0) for _, a, terms in self.held.values() if budget in terms)

    def pending(self, budget, names=None):
        """What running steps wait for under a hard budget, all of them or only those that are named."""
        if budget.unit is not Unit.ENERGY or budget.mode is not Mode.HARD:
            return 0
        chosen = self.wanted if names is None else names
        return sum(self.wanted.get(name, 0) for name in chosen if budget in self.held[name][2])

    def fits(self, wanted, terms):
        """A budget that facts have overrun has no room, not even for nothing; what others wait for is no room."""
        hard = [t for t in terms if t.mode is Mode.HARD]
        return all(self.committed(t) + self.pending(t) + wanted[t.unit] <= t.limit for t in hard)

    @rule(
        asked=st.lists(st.tuples(amounts, amounts, st.sets(st.sampled_from(TERMS))), min_size=1, max_size=3),
        pipe=st.booleans(),
    )
    def ask(self, asked, pipe):
        requests, expected, before = [], [], dict(self.held)
        for energy, carbon, chosen in asked:
            self.steps += 1
            terms = tuple(t for t in TERMS if t in chosen)
            wanted = {Unit.ENERGY: energy, Unit.CARBON: carbon}
            group = "pipe" if pipe else None
            requests.append(request(f"s{self.steps}", wanted, *terms, group=group))
            expected.append(self.fits(wanted, terms))
            if expected[-1]:
                self.held[f"s{self.steps}"] = (None, wanted, terms)
        if pipe and not all(expected):
            self.held, expected = before, [False] * len(expected)
        answers = self.ledger.commit(Batch(requests=tuple(requests), owner=OWNER), admit_what_fits).answers
        assert [answer.hold is not None for answer in answers] == expected
        for answer in answers:
            if answer.hold:
                self.held[answer.hold.step.name] = (answer.hold, *self.held[answer.hold.step.name][1:])

    @rule(data=st.data(), used=amounts, carbon=amounts, extra=amounts, how=st.sampled_from(["settle", "lose", "void"]))
    def close(self, data, used, carbon, extra, how):
        if not self.held:
            return
        name = data.draw(st.sampled_from(sorted(self.held)))
        hold, _, terms = self.held.pop(name)
        self.wanted.pop(name, None)
        closing = {
            "settle": settle(hold, used, operational_micrograms_co2e=carbon),
            "lose": lose(hold, used, used + extra),
            "void": void(hold),
        }[how]
        charged = {
            "settle": {Unit.ENERGY: used, Unit.CARBON: carbon},
            "lose": {Unit.ENERGY: used + extra},
            "void": {},
        }[how]
        for budget in terms:
            self.spent[budget] += charged.get(budget.unit, 0)
        self.ledger.commit(Batch(closings=(closing, closing)), admit_what_fits)
        self.closed[name] = (closing, terms, how)

    @rule(data=st.data())
    def close_again(self, data):
        if self.closed:
            closing, _, _ = self.closed[data.draw(st.sampled_from(sorted(self.closed)))]
            self.ledger.commit(Batch(closings=(closing,)), admit_what_fits)

    @rule(data=st.data(), more=amounts)
    def adjust(self, data, more):
        charged = sorted(name for name, (_, _, how) in self.closed.items() if how != "void")
        if charged:
            closing, terms, _ = self.closed[data.draw(st.sampled_from(charged))]
            if self.ledger.adjust(closing.hold_id, {Unit.ENERGY: more}, f"evidence {more}"):
                for budget in terms:
                    self.spent[budget] += more if budget.unit is Unit.ENERGY else 0

    @rule(data=st.data(), wanted=st.integers(1, 40), may_finish=st.booleans())
    def top_up(self, data, wanted, may_finish):
        if not self.held:
            return
        name = data.draw(st.sampled_from(sorted(self.held)))
        hold, held, terms = self.held[name]
        hard = [t for t in terms if t.mode is Mode.HARD and t.unit is Unit.ENERGY]
        age = {other: (each.opened_at, each.hold_id) for other, (each, _, _) in self.held.items()}
        older = [other for other in self.wanted if age[other] < age[name]]
        rooms = [max(0, t.limit - self.committed(t) - self.pending(t, older)) for t in hard]
        room = min([wanted, *rooms])
        asked = TopUp(hold_id=hold.hold_id, amounts={Unit.ENERGY: wanted}, may_finish=may_finish)
        assert self.ledger.commit(Batch(top_ups=(asked,)), admit_what_fits).top_ups == ({Unit.ENERGY: room},)
        self.held[name] = (hold, {**held, Unit.ENERGY: held.get(Unit.ENERGY, 0) + room}, terms)
        self.wanted[name] = 0 if may_finish else wanted - room

    @invariant()
    def balances_are_those_of_the_model(self):
        if hasattr(self, "ledger"):
            for budget, balance in zip(TERMS, self.ledger.balances(TERMS), strict=True):
                assert balance.spent == self.spent[budget]
                assert balance.committed == self.committed(budget)
                assert balance.pending == self.pending(budget)

    @invariant()
    def the_books_close(self):
        if hasattr(self, "ledger"):
            assert [f for f in verify(self.ledger, lambda _owner: True) if "windows attributed" not in f] == []
            assert {hold.step.name for hold in self.ledger.open_holds()} == set(self.held)


class MemoryBooks(Books):
    def make(self):
        return MemoryLedger(SetClock())


class SqliteBooks(Books):
    def make(self):
        self.folder = Path(tempfile.mkdtemp())
        return self.open()

    def open(self):
        return open_at(self.folder)

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.folder)


class JournalBooks(SqliteBooks):
    def open(self):
        return open_on_share(self.folder)

    @rule()
    def rebuild(self):
        self.ledger.close()
        shutil.rmtree(self.folder / "cache of login1")
        self.ledger = self.open()


class PostgresBooks(Books):
    server = None

    def make(self):
        self.url = self.server.new_database()
        return open_url(self.url)

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.server.drop_database(self.url)


@pytest.mark.parametrize(
    ("machine", "examples"), [(MemoryBooks, 60), (SqliteBooks, 25), (JournalBooks, 15), (PostgresBooks, 15)]
)
def test_any_sequence_of_batches_does_what_the_model_does(machine, examples, request):
    if machine is PostgresBooks:
        machine.server = request.getfixturevalue("postgres")
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()
