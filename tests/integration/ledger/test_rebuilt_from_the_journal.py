"""However a process dies and whatever becomes of the cache: the books are those of all that was acknowledged."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.records import AlertRule, Batch, Fact, LetterState, TopUp, Unit
from tests.testkit.ledger_samples import (
    NOON,
    OWNER,
    SetClock,
    admit_what_fits,
    die,
    entry,
    journal_path,
    let_lapse,
    lose,
    open_on_share,
    request,
    settle,
    term,
    void,
    window,
)

MONTH = term(limit=200, alerts=(AlertRule(at_ratio=0.1, of_committed=False, to=("team",)),))
YEAR = term("year", limit=300)
CARBON = term(unit=Unit.CARBON, limit=100)

amounts = st.integers(0, 40)
closers = {
    "settle": lambda hold, used: settle(hold, used, operational_micrograms_co2e=used),
    "requeued": lambda hold, used: replace(settle(hold, used), earlier=(entry(hold, 2, entry_id=f"1-{hold.hold_id}"),)),
    "lose": lambda hold, used: lose(hold, used=used, charged=used + 3),
    "void": lambda hold, _used: void(hold),
}


def pages(ledger):
    return {
        "balances": {balance.term.key: balance for balance in ledger.balances()},
        "journal": ledger.journal(),
        "entries": ledger.entries(),
        "open holds": ledger.open_holds(),
        "windows": ledger.node_windows(),
        "facts": ledger.facts(),
        "decisions": ledger.decisions(),
        "letters": [ledger.rows(kind, *LetterState) for kind in ("mlflow", "alert", "notice")],
        "ticks": ledger.posted_sequences("sampler1"),
    }


class Crashes(RuleBasedStateMachine):
    """Every change is done to both ledgers; ``model`` never crashes."""

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.clock = SetClock()
        self.model = MemoryLedger(self.clock)
        self.host, self.count = "login1", 0
        self.ledger = self.open()

    def open(self):
        return open_on_share(self.folder, host=self.host, clock=self.clock)

    @property
    def cache(self):
        return self.folder / f"cache of {self.host}"

    @rule(
        wanted=amounts,
        terms=st.sets(st.sampled_from([MONTH, YEAR, CARBON]), min_size=1),
        how=st.sampled_from(["commit", "die after the append", "die in the append"]),
        part=st.floats(0, 0.999),
    )
    def ask(self, wanted, terms, how, part):
        self.count += 1
        asked = request(f"s{self.count}", {Unit.ENERGY: wanted, Unit.CARBON: wanted}, *terms, hold_id=f"h{self.count}")
        batch = Batch(requests=(asked,), windows=(window(self.count, wanted),), owner=OWNER)
        self.do(lambda ledger: ledger.commit(batch, admit_what_fits), how, part)

    @rule(
        data=st.data(),
        used=amounts,
        by=st.sampled_from(sorted(closers)),
        how=st.sampled_from(["commit", "die after the append", "die in the append"]),
    )
    def close_one(self, data, used, by, how):
        if self.model.open_holds():
            closing = closers[by](data.draw(st.sampled_from(self.model.open_holds())), used)
            batch = Batch(closings=(closing, closing), facts=(Fact(hold_id=closing.hold_id, name="n", value=used / 7),))
            self.do(lambda ledger: ledger.commit(batch, admit_what_fits), how)

    @rule(data=st.data(), more=amounts, how=st.sampled_from(["commit", "die after the append"]))
    def correct(self, data, more, how):
        charged = [posted.hold_id for posted in self.model.entries()]
        if charged:
            hold_id = data.draw(st.sampled_from(charged))
            self.do(lambda ledger: ledger.adjust(hold_id, {Unit.ENERGY: more}, f"evidence {more}"), how)

    @rule(more=amounts, how=st.sampled_from(["commit", "die after the append"]))
    def top_up(self, more, how):
        asked = tuple(TopUp(hold_id=hold.hold_id, amounts={Unit.ENERGY: more}) for hold in self.model.open_holds())
        self.do(lambda ledger: ledger.commit(Batch(top_ups=asked), admit_what_fits), how)

    @rule(
        becomes=st.sampled_from(["delivered", "failed", "given up", "claimed", "replaced"]),
        how=st.sampled_from(["commit", "die after the append"]),
    )
    def deliver(self, becomes, how):
        self.count += 1
        count = self.count
        self.do(lambda ledger: ledger.put("alert", f"note {count}", {"text": "hello"}), how)
        number, later = self.model.rows("alert", LetterState.PENDING)[0].outbox_id, NOON.replace(hour=15)
        fact = Fact(hold_id="h1", name="mlflow/run_id", value="r")
        changes = {
            "delivered": lambda ledger: ledger.delivered(number, [fact]),
            "failed": lambda ledger: ledger.failed(number, later, "no answer"),
            "given up": lambda ledger: ledger.failed(number, None, "no such address"),
            "claimed": lambda ledger: ledger.claim(number, NOON, later),
            "replaced": lambda ledger: ledger.replace([number], "notice", {f"a {count}": {"n": 1}, f"b {count}": {}}),
        }
        self.do(changes[becomes], how)

    def do(self, change, how, part=0.5):
        """The change in both ledgers; a process that dies in the append never got its acknowledgement."""
        if how == "commit":
            change(self.ledger)
            change(self.model)
            return
        before, size = self.folder / "cache before", journal_path(self.folder).stat().st_size
        shutil.copytree(self.cache, before)
        change(self.ledger)
        die(self.ledger)
        shutil.rmtree(self.cache)
        before.rename(self.cache)
        journal = journal_path(self.folder)
        line = journal.read_bytes()[size:]
        if how == "die in the append" and line:
            with journal.open("r+b") as file:
                file.truncate(size + int(part * len(line)))
        else:
            change(self.model)
        self.ledger = self.open()

    @rule()
    def lose_the_cache(self):
        self.ledger.close()
        shutil.rmtree(self.cache)
        self.ledger = self.open()

    @rule(other=st.sampled_from(["login1", "login2"]), dies=st.booleans())
    def go_on_elsewhere(self, other, dies):
        if dies:
            die(self.ledger)
            let_lapse(self.folder)
        else:
            self.ledger.close()
        self.host = other
        self.ledger = self.open()

    @invariant()
    def the_books_are_those_of_the_model(self):
        if hasattr(self, "ledger"):
            assert pages(self.ledger) == pages(self.model)

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.folder)


def test_after_any_crash_the_books_are_those_of_what_was_acknowledged():
    case = Crashes.TestCase
    case.settings = settings(
        max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()
