"""Whatever is held, used, granted and told late in a chain of periods: limits are those of a model of twenty lines."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, Mode
from tests.testkit.ledger_samples import OWNER, SetClock, admit_what_fits, open_at, open_on_share, request, settle, void
from tests.testkit.limit_samples import HOUR, grant, months, override

amounts = st.integers(0, 130)


class Periods(RuleBasedStateMachine):
    """``charged`` and ``held`` are by month; ``raised`` has what was granted and overridden in each."""

    def make(self):
        raise NotImplementedError

    @initialize(
        unused=st.sampled_from([0.0, 0.1, 0.25, 1.0]),
        cap=st.sampled_from([0.0, 0.3, 1.0]),
        carries=st.booleans(),
        mode=st.sampled_from([Mode.HARD, Mode.SOFT]),
    )
    def start(self, unused, cap, carries, mode):
        self.clock = SetClock()
        self.ledger = self.make()
        self.months = months(unused=unused, cap=cap, carries=carries, mode=mode)
        self.unused, self.cap, self.carries = Fraction(str(unused)), Fraction(str(cap)), carries
        self.opened, self.count, self.held, self.closed = set(), 0, {}, []
        self.charged = dict.fromkeys(range(4), 0)
        self.granted = dict.fromkeys(range(4), 0)
        self.overrides = {month: [] for month in range(4)}

    # --- the model --------------------------------------------------------------------------------

    def committed(self, month):
        return self.charged[month] + sum(amount for _, amount, of in self.held.values() if of == month)

    def inherited(self, month):
        if {month, month - 1} - self.opened:
            return 0
        before = month - 1
        gift = self.inherited(before)
        own = 100 + self.granted[before] + min(0, gift)
        left = min(int(self.unused * max(0, own - self.committed(before))), int(self.cap * 100))
        allowed = 100 + self.granted[before] + gift + sum(amount for amount, _ in self.overrides[before])
        debt = max(0, self.committed(before) - allowed) if self.carries else 0
        return left - debt

    def limit(self, month):
        active = sum(amount for amount, until in self.overrides[month] if until > self.clock.now())
        return max(0, 100 + self.granted[month] + self.inherited(month) + active)

    # --- what happens -------------------------------------------------------------------------------

    @rule(month=st.integers(0, 3), amount=amounts)
    def hold(self, month, amount):
        self.count += 1
        asked = request(f"s{self.count}", amount, self.months[month])
        (answer,) = self.ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
        self.opened.add(month)
        fits = self.months[month].mode is not Mode.HARD or self.committed(month) + amount <= self.limit(month)
        assert (answer.hold is not None) == fits
        if answer.hold:
            self.held[self.count] = (answer.hold, amount, month)

    @rule(data=st.data(), used=amounts, is_void=st.booleans())
    def close(self, data, used, is_void):
        if self.held:
            hold, _, month = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
            self.ledger.commit(Batch(closings=(void(hold) if is_void else settle(hold, used),)), admit_what_fits)
            if not is_void:
                self.charged[month] += used
                self.closed.append((hold, month))

    @rule(data=st.data(), more=amounts)
    def adjust(self, data, more):
        if self.closed:
            hold, month = data.draw(st.sampled_from(self.closed))
            self.count += 1
            self.ledger.adjust(hold.hold_id, {self.months[month].unit: more}, f"evidence {self.count}")
            self.charged[month] += more

    @rule(month=st.integers(0, 3), amount=st.integers(1, 60), for_hours=st.integers(0, 2))
    def allow(self, month, amount, for_hours):
        self.count += 1
        values = {"allowance_id": str(self.count), "period": self.months[month].period}
        until = self.clock.now() + for_hours * HOUR
        allowance = override(amount, until, **values) if for_hours else grant(amount, **values)
        self.ledger.allow(replace(allowance, approved_by=None), self.months[month])
        self.opened.add(month)
        self.ledger.approve(allowance.allowance_id, "ana")
        if for_hours:
            self.overrides[month].append((amount, until))
        else:
            self.granted[month] += amount

    @rule()
    def an_hour_passes(self):
        self.clock.move(3600)

    # --- what always holds --------------------------------------------------------------------------

    @invariant()
    def limits_are_those_of_the_model(self):
        if hasattr(self, "ledger"):
            for month in self.opened:
                (balance,) = self.ledger.balances([self.months[month]])
                assert (balance.committed, balance.limit) == (self.committed(month), self.limit(month))

    @invariant()
    def the_sum_over_periods_is_the_journal(self):
        if hasattr(self, "ledger"):
            journal, balances = self.ledger.journal(), self.ledger.balances()
            assert sum(row.delta_spent for row in journal) == sum(self.charged.values())
            assert sum(balance.spent for balance in balances) == sum(self.charged.values())
            always = sum(b.extra for b in balances) + sum(
                amount for some in self.overrides.values() for amount, until in some if until <= self.clock.now()
            )
            assert sum(row.delta_limit for row in journal) == always
            assert [f for f in verify(self.ledger, lambda _owner: True) if "windows attributed" not in f] == []


class MemoryPeriods(Periods):
    def make(self):
        return MemoryLedger(self.clock)


class SqlitePeriods(Periods):
    def make(self):
        self.folder = Path(tempfile.mkdtemp())
        return self.open()

    def open(self):
        return open_at(self.folder, clock=self.clock)

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.folder)


class JournalPeriods(SqlitePeriods):
    def open(self):
        return open_on_share(self.folder, clock=self.clock)

    @rule()
    def rebuild(self):
        self.ledger.close()
        shutil.rmtree(self.folder / "cache of login1")
        self.ledger = self.open()


@pytest.mark.parametrize(("machine", "examples"), [(MemoryPeriods, 60), (SqlitePeriods, 12), (JournalPeriods, 6)])
def test_limits_of_a_chain_of_periods_are_those_of_the_model(machine, examples):
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()
