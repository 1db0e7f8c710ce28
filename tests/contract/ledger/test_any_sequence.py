"""Any sequence of transactions does to every ledger what it does to a model of plain dicts.

More examples, longer: ``pytest tests/contract/ledger/test_any_sequence.py --hypothesis-profile=long``.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlflow_green.errors import HoldClosed, LedgerError
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.records import AlertRule, Batch, Hold, Mode, TopUp, Unit
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

MONTH = term(limit=100, alerts=(AlertRule(at_ratio=0.5, of_committed=False, to=("team",)),))
YEAR = term("year", limit=150, alerts=(AlertRule(at_ratio=0.8, of_committed=True, to=("team",)),))
CARBON = term("month", unit=Unit.CARBON, limit=60)
ADVICE = term("advice", limit=10, mode=Mode.SOFT)
TERMS = (MONTH, YEAR, CARBON, ADVICE)
BOTH = (Unit.ENERGY, Unit.CARBON)
GIVEN_UP = {"lose", "void"}
amounts = st.integers(0, 70)


@dataclass
class Held:
    """An open hold, as the model has it."""

    hold: Hold
    terms: tuple
    amounts: dict[Unit, int]
    wanted: dict[Unit, int] = field(default_factory=dict)

    @property
    def age(self):
        return (self.hold.opened_at, self.hold.hold_id)


@dataclass
class Closed:
    """A hold that is over. ``charged`` is what each of its units paid in the end."""

    hold: Hold
    terms: tuple
    how: str
    closing: object
    charged: dict[Unit, int]
    reasons: set[str] = field(default_factory=set)


class Books(RuleBasedStateMachine):
    """``spent`` maps a budget to what was charged to it; budgets are the keys, by position in ``TERMS``."""

    def make(self):
        raise NotImplementedError

    @initialize()
    def start(self):
        self.ledger = self.make()
        self.held: dict[str, Held] = {}
        self.closed: dict[str, Closed] = {}
        self.spent = dict.fromkeys(range(len(TERMS)), 0)
        self.steps = self.crossed = 0
        self.past: set[tuple[int, float]] = set()

    # --- the model ---------------------------------------------------------------------------------

    def held_under(self, budget):
        unit = TERMS[budget].unit
        return sum(held.amounts.get(unit, 0) for held in self.held.values() if TERMS[budget] in held.terms)

    def room(self, budget):
        return TERMS[budget].limit - self.spent[budget] - self.held_under(budget)

    def pending(self, budget, older_than=None):
        """What steps wait for under a hard budget: all of them, or only those that are older than this one."""
        if TERMS[budget].mode is not Mode.HARD:
            return 0
        return sum(
            held.wanted.get(TERMS[budget].unit, 0)
            for held in self.held.values()
            if TERMS[budget] in held.terms and held.wanted and (older_than is None or held.age < older_than.age)
        )

    def fits(self, wanted, terms):
        """A budget that facts have overrun has no room, not even for nothing; nor has what others wait for."""
        hard = [budget for budget, each in enumerate(TERMS) if each in terms and each.mode is Mode.HARD]
        return all(wanted.get(TERMS[budget].unit, 0) <= self.room(budget) - self.pending(budget) for budget in hard)

    def grant(self, held, asked, may_finish):
        """What a top-up gets: all units shrink alike; the rest is waited for."""
        shares = [(1, 1)]
        for budget, each in enumerate(TERMS):
            if each in held.terms and each.mode is Mode.HARD and asked[each.unit]:
                shares.append((max(0, self.room(budget) - self.pending(budget, held)), asked[each.unit]))
        room, of = min(shares, key=lambda share: share[0] / share[1])
        granted = {unit: amount * min(room, of) // of for unit, amount in asked.items()}
        held.amounts = {unit: held.amounts.get(unit, 0) + granted[unit] for unit in asked}
        held.wanted = {} if may_finish else {unit: asked[unit] - granted[unit] for unit in asked}
        return granted

    def charge(self, terms, amounts):
        for budget, each in enumerate(TERMS):
            if each in terms:
                self.spent[budget] += amounts.get(each.unit, 0)

    def reached(self):
        """The alerts that the model's balances are past."""
        return {
            (budget, alert.at_ratio)
            for budget, each in enumerate(TERMS)
            for alert in each.alerts
            if 10 * (self.spent[budget] + self.held_under(budget) * alert.of_committed)
            >= round(10 * alert.at_ratio) * each.limit
        }

    def commit(self, **parts):
        return self.ledger.commit(Batch(owner=OWNER, **parts), admit_what_fits)

    # --- what may happen ---------------------------------------------------------------------------

    @rule(
        asked=st.lists(
            st.tuples(amounts, amounts, st.sets(st.sampled_from(range(len(TERMS))))), min_size=1, max_size=3
        ),
        pipe=st.booleans(),
    )
    def ask(self, asked, pipe):
        requests, expected, before = [], [], dict(self.held)
        for energy, carbon, chosen in asked:
            self.steps += 1
            name = f"s{self.steps}"
            terms = tuple(TERMS[budget] for budget in sorted(chosen))
            wanted = {Unit.ENERGY: energy, Unit.CARBON: carbon}
            requests.append(request(name, wanted, *terms, group="pipe" if pipe else None))
            expected.append(self.fits(wanted, terms))
            if expected[-1]:
                self.held[name] = Held(None, terms, wanted)
        if pipe and not all(expected):
            self.held, expected = before, [False] * len(expected)
        answers = self.commit(requests=tuple(requests)).answers
        assert [answer.hold is not None for answer in answers] == expected
        for answer in answers:
            if answer.hold:
                self.held[answer.hold.step.name].hold = answer.hold

    @precondition(lambda self: self.held)
    @rule(data=st.data(), wanted=amounts)
    def ask_again(self, data, wanted):
        """An open key has its hold already, whatever is asked for now."""
        name = data.draw(st.sampled_from(sorted(self.held)))
        (answer,) = self.commit(requests=(request(name, wanted, *self.held[name].terms),)).answers
        assert answer.hold.hold_id == self.held[name].hold.hold_id
        assert answer.hold.amounts == self.held[name].amounts

    @precondition(lambda self: self.closed)
    @rule(data=st.data(), wanted=amounts)
    def ask_for_what_is_over(self, data, wanted):
        name = data.draw(st.sampled_from(sorted(self.closed)))
        with pytest.raises(HoldClosed):
            self.commit(requests=(request(name, wanted, *self.closed[name].terms),))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), used=amounts, carbon=amounts, extra=amounts, how=st.sampled_from(["settle", "lose", "void"]))
    def close(self, data, used, carbon, extra, how):
        name = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(name)
        closing, charged = ending(held.hold, used, carbon, extra, how)
        self.charge(held.terms, charged)
        self.commit(closings=(closing, closing))
        self.closed[name] = Closed(held.hold, held.terms, how, closing, charged)

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def close_again(self, data):
        over = self.closed[data.draw(st.sampled_from(sorted(self.closed)))]
        if over.how in {"settle", "void"} or not over.reasons:  # else it is new evidence, and replaces the other
            self.commit(closings=(over.closing,))

    @precondition(lambda self: any(over.how in GIVEN_UP for over in self.closed.values()))
    @rule(data=st.data(), used=amounts, carbon=amounts)
    def learn_what_a_step_used_that_was_given_up(self, data, used, carbon):
        """Its owner was not dead: what it says is the truth."""
        names = sorted(name for name, over in self.closed.items() if over.how in GIVEN_UP)
        over = self.closed[data.draw(st.sampled_from(names))]
        closing, charged = ending(over.hold, used, carbon, 0, "settle")
        self.charge(over.terms, {unit: charged[unit] - over.charged.get(unit, 0) for unit in charged})
        self.commit(closings=(closing,))
        over.charged = over.charged | charged
        over.how, over.closing = f"{over.how}, corrected", closing

    @precondition(lambda self: any(over.how in GIVEN_UP for over in self.closed.values()))
    @rule(data=st.data(), used=amounts, extra=amounts)
    def lose_once_more(self, data, used, extra):
        """A loss counts in full if it read more than the first, or if the step was thought not to have begun."""
        names = sorted(name for name, over in self.closed.items() if over.how in GIVEN_UP)
        over = self.closed[data.draw(st.sampled_from(names))]
        closing, charged = ending(over.hold, used, 0, extra, "lose")
        known = over.charged.get(Unit.ENERGY, 0)
        read_before = over.closing.entry.total.microjoules if over.closing.entry else -1
        due = max(known, charged[Unit.ENERGY] if used > read_before else used)
        self.charge(over.terms, {Unit.ENERGY: due - known})
        over.charged[Unit.ENERGY] = due
        self.commit(closings=(closing,))

    @precondition(lambda self: self.closed)
    @rule(data=st.data(), more=st.integers(-70, 70))
    def adjust(self, data, more):
        name = data.draw(st.sampled_from(sorted(self.closed)))
        over, reason = self.closed[name], f"evidence {more}"
        under = [budget for budget, each in enumerate(TERMS) if each in over.terms and each.unit is Unit.ENERGY]
        known = reason in over.reasons
        if not known and (over.how.startswith("void") or any(self.spent[budget] + more < 0 for budget in under)):
            with pytest.raises(LedgerError):
                self.ledger.adjust(over.hold.hold_id, {Unit.ENERGY: more}, reason)
            return
        counts = self.ledger.adjust(over.hold.hold_id, {Unit.ENERGY: more}, reason)
        assert counts == (not known)
        if counts and more and under:
            over.reasons.add(reason)
            over.charged[Unit.ENERGY] = over.charged.get(Unit.ENERGY, 0) + more
            self.charge(over.terms, {Unit.ENERGY: more})

    @precondition(lambda self: self.held)
    @rule(data=st.data(), energy=st.integers(0, 40), carbon=st.integers(0, 40), may_finish=st.booleans())
    def top_up(self, data, energy, carbon, may_finish):
        held = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        asked = {Unit.ENERGY: energy, Unit.CARBON: carbon}
        top_up = TopUp(hold_id=held.hold.hold_id, amounts=asked, epoch=held.hold.epoch, may_finish=may_finish)
        assert self.commit(top_ups=(top_up,)).top_ups == (self.grant(held, asked, may_finish),)

    @precondition(lambda self: len(self.held) > 1)
    @rule(data=st.data(), energy=st.integers(1, 40))
    def top_up_two(self, data, energy):
        """The older one is served first, whoever asked first."""
        names = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=2, max_size=2, unique=True))
        asked = {Unit.ENERGY: energy, Unit.CARBON: 1}
        expected = {}
        for name in sorted(names, key=lambda name: self.held[name].age):
            expected[name] = self.grant(self.held[name], asked, may_finish=False)
        top_ups = tuple(TopUp(hold_id=self.held[name].hold.hold_id, amounts=asked) for name in names)
        assert self.commit(top_ups=top_ups).top_ups == tuple(expected[name] for name in names)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), used=amounts, how=st.sampled_from(["settle", "lose", "void"]))
    def take_over(self, data, used, how):
        """Who had the hold before gets nothing more for it, and does not close it."""
        held = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        old, heir = held.hold, replace(OWNER, pid=held.hold.owner.pid + 1)
        (adopted,) = self.ledger.commit(Batch(adoptions=(old.hold_id,), owner=heir), admit_what_fits).adopted
        assert (adopted.owner, adopted.epoch) == (heir, old.epoch + 1)
        closing, _ = ending(old, used, used, 0, how)
        top_up = TopUp(hold_id=old.hold_id, amounts={Unit.ENERGY: 1}, epoch=old.epoch)
        committed = self.commit(closings=(replace(closing, epoch=old.epoch),), top_ups=(top_up,))
        assert (committed.fenced, committed.top_ups) == ((old.hold_id,), ({Unit.ENERGY: 0},))
        held.hold = adopted

    @precondition(lambda self: self.closed)
    @rule(data=st.data(), wanted=st.integers(1, 40))
    def top_up_what_is_over(self, data, wanted):
        over = self.closed[data.draw(st.sampled_from(sorted(self.closed)))]
        batch = self.commit(top_ups=(TopUp(hold_id=over.hold.hold_id, amounts={Unit.ENERGY: wanted}),))
        assert batch.top_ups == ({Unit.ENERGY: 0},)

    # --- what always holds -------------------------------------------------------------------------

    @invariant()
    def balances_are_those_of_the_model(self):
        if hasattr(self, "ledger"):
            for budget, balance in enumerate(self.ledger.balances(TERMS)):
                assert (balance.spent, balance.held) == (self.spent[budget], self.held_under(budget)), TERMS[budget]
                assert balance.pending == self.pending(budget)

    @invariant()
    def each_crossing_is_one_message(self):
        """A rule is one transaction, so what is past a threshold after it and was not before has crossed."""
        if hasattr(self, "ledger"):
            now = self.reached()
            self.crossed += len(now - self.past)
            self.past = now
            assert self.ledger.count("alert") == self.crossed

    @invariant()
    def the_books_close(self):
        if hasattr(self, "ledger"):
            assert [f for f in verify(self.ledger, lambda _owner: True) if "windows attributed" not in f] == []
            assert {hold.step.name for hold in self.ledger.open_holds()} == set(self.held)


def ending(hold, used, carbon, extra, how):
    """How a hold is closed, and what each unit is charged for it."""
    if how == "settle":
        return settle(hold, used, operational_micrograms_co2e=carbon), {Unit.ENERGY: used, Unit.CARBON: carbon}
    if how == "lose":
        return lose(hold, used, used + extra), {Unit.ENERGY: used + extra}
    return void(hold), {}


class MemoryBooks(Books):
    def make(self):
        return MemoryLedger(SetClock())


class StoredBooks(Books):
    """A ledger that may be closed and opened again, and that two processes may have open: they take turns."""

    def open(self):
        raise NotImplementedError

    @rule()
    def open_again(self):
        self.ledger.close()
        self.ledger = self.open()

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.clear()


class SharedBooks(StoredBooks):
    def make(self):
        self.other = None
        return self.open()

    @rule()
    def another_process_goes_on(self):
        self.other, self.ledger = self.ledger, self.other or self.open()

    def teardown(self):
        if getattr(self, "other", None):
            self.other.close()
        super().teardown()


class SqliteBooks(SharedBooks):
    def make(self):
        self.folder = Path(tempfile.mkdtemp())
        return super().make()

    def open(self):
        return open_at(self.folder)

    def clear(self):
        shutil.rmtree(self.folder)


class JournalBooks(StoredBooks):
    """One host at a time has it open; its cache may be lost."""

    def make(self):
        self.folder = Path(tempfile.mkdtemp())
        return self.open()

    def open(self):
        return open_on_share(self.folder)

    @rule()
    def lose_the_cache(self):
        self.ledger.close()
        shutil.rmtree(self.folder / "cache of login1")
        self.ledger = self.open()

    def clear(self):
        shutil.rmtree(self.folder)


class PostgresBooks(SharedBooks):
    server = None

    def make(self):
        self.url = self.server.new_database()
        return super().make()

    def open(self):
        return open_url(self.url)

    def clear(self):
        self.server.drop_database(self.url)


@pytest.mark.parametrize(
    ("machine", "examples"), [(MemoryBooks, 60), (SqliteBooks, 25), (JournalBooks, 15), (PostgresBooks, 10)]
)
def test_any_sequence_of_transactions_does_what_the_model_does(machine, examples, request):
    if machine is PostgresBooks:
        machine.server = request.getfixturevalue("postgres")
    case, long = machine.TestCase, settings.get_current_profile_name() == "long"
    case.settings = settings(
        max_examples=500 if long else examples,
        stateful_step_count=50 if long else 30,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()
