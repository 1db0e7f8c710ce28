"""A compacted ledger is smaller and says the same."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_green.cli.books import all_decisions, latest_decisions
from mlflow_green.errors import HoldClosed
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.waits import waits
from mlflow_green.records import Action, AlertRule, Batch, Domain, LetterState, Step, Unit, total_energy
from mlflow_green.reports.reliability import reliabilities
from mlflow_green.reports.totals import windows_of
from tests.testkit.ledger_samples import (
    NOON,
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
    window,
)
from tests.testkit.ledger_workers import folder_in_memory

HOUR = 3600
NOTHING = timedelta(0)
WATCHED = term(limit=100, alerts=(AlertRule(at_ratio=0.5, of_committed=True, to=("team",)),))
KINDS = ("mlflow", "alert", "notice", "letter")
POLICY = parse_policy(
    b"version: 1\nproject: demo\nbudgets: [{name: month, limit: 1 Wh, period: month, max_wait: 2h}]\n"
)


def ask(ledger, name, amount, run="run1", attempt=1, asked_at=NOON):
    asked = request(name, amount, WATCHED, attempt=attempt, requested_at=asked_at)
    asked = replace(asked, step=Step(workflow_run=run, name=name, attempt=attempt))
    (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_wait_or_refuse).answers
    return answer


def admit_wait_or_refuse(request, balances):
    """What does not fit waits; a step of 70 is refused, and may ask again."""
    decision = admit_what_fits(request, balances)
    if decision.action is Action.WAIT and request.estimates[0].amounts[Unit.ENERGY] == 70:
        return replace(decision, action=Action.REFUSE, would=Action.REFUSE)
    return decision


def post(ledger, *windows):
    ledger.commit(Batch(windows=windows), admit_what_fits)


def tick(number, sampler_id="sampler1", domain=Domain.CPU, *, start=None, last=None, coverage=1.0):
    """One window of a sampler that ticks once a second from noon on."""
    began = NOON + timedelta(seconds=number if start is None else start)
    ended = NOON + timedelta(seconds=(number if last is None else last) + 1)
    made = window(number, 10 * number, last=last, sampler_id=sampler_id, domain=domain)
    return replace(made, started_at=began, ended_at=ended, coverage_ratio=coverage)


@contextmanager
def made(kind, request):
    """A new ledger that can be compacted, and its clock."""
    clock = SetClock()
    server = request.getfixturevalue("postgres") if kind == "postgresql" else None
    url = server.new_database() if server else None
    with folder_in_memory() as folder:
        ledger = {
            "memory": lambda: MemoryLedger(clock),
            "sqlite": lambda: open_at(folder, clock=clock),
            "postgresql": lambda: open_url(url, clock=clock),
        }[kind]()
        try:
            yield ledger, clock
        finally:
            ledger.close()
    if url:
        server.drop_database(url)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def books(request):
    with made(request.param, request) as (ledger, clock):
        yield ledger, clock


@pytest.fixture
def ledger(books):
    return books[0]


@pytest.fixture
def clock(books):
    return books[1]


def test_what_was_delivered_goes_and_what_waits_or_was_given_up_stays(ledger, clock):
    for number in range(4):
        ledger.put("mlflow", f"entry:{number}", {"entry_id": str(number)})
    first, second, third, _ = ledger.pending("mlflow", clock.now())
    ledger.delivered(first.outbox_id)
    ledger.failed(second.outbox_id, None, "no such run")
    clock.move(2 * HOUR)
    ledger.delivered(third.outbox_id)

    done = ledger.compact(timedelta(hours=1))

    assert done.messages == {"mlflow": 1}
    assert [row.payload["entry_id"] for row in ledger.rows("mlflow", *LetterState)] == ["1", "2", "3"]


def test_the_number_of_a_message_is_never_given_again(ledger, clock):
    ledger.put("letter", "letter|demo|a|after 0", {})
    ledger.put("mlflow", "entry:1", {})
    numbers = [row.outbox_id for kind in ("letter", "mlflow") for row in ledger.pending(kind, clock.now())]
    for number in numbers:
        ledger.delivered(number)
    clock.move(HOUR)
    ledger.compact(NOTHING)
    ledger.put("mlflow", "entry:2", {})
    (row,) = ledger.pending("mlflow", clock.now())
    assert row.outbox_id > max(numbers)


def test_a_forecast_is_not_promised_again_though_it_was_told_long_ago(ledger, clock):
    forecast = "month|project:demo|energy|2026-11|1|forecast"
    ledger.put("alert", forecast, {"budget": "month"})
    ledger.put("alert", "another", {"budget": "month"})
    for row in ledger.pending("alert", clock.now()):
        ledger.delivered(row.outbox_id)
    clock.move(HOUR)
    ledger.compact(NOTHING)
    ledger.put("alert", forecast, {"budget": "month"})
    assert ledger.count("alert") == 0


def test_the_last_letter_to_an_address_stays(ledger, clock):
    for number in range(3):
        for address in ("team webhook", "leads webhook"):
            ledger.put("letter", f"letter|demo|{address}|after {number}", {"to": address, "number": number})
    for row in ledger.pending("letter", clock.now()):
        ledger.delivered(row.outbox_id)
    clock.move(HOUR)
    assert ledger.compact(NOTHING).messages == {"letter": 4}
    assert {row.payload["number"] for row in ledger.rows("letter", *LetterState)} == {2}


def test_of_a_step_that_waited_the_last_wait_and_the_answer_stay(ledger, clock):
    blocker = ask(ledger, "blocker", 70).hold
    for amount in (90, 80, 75):
        assert ask(ledger, "train", amount, asked_at=clock.now()).hold is None
        clock.move(60)
    ledger.commit(Batch(closings=(void(blocker),)), admit_what_fits)
    admitted = ask(ledger, "train", 75, asked_at=clock.now())
    before = ledger.decisions()
    clock.move(60)

    assert ledger.compact(timedelta(hours=1)).decisions == 0
    assert ledger.compact(NOTHING).decisions == 2

    left = ledger.decisions()
    assert left == (before[0], *before[3:])
    assert [row.decision.action for row in left[1:]] == [Action.WAIT, admitted.decision.action]


def test_of_a_step_that_waits_its_first_and_its_last_wait_stay(ledger, clock):
    ask(ledger, "blocker", 70)
    for amount in (90, 80, 75):
        ask(ledger, "train", amount, asked_at=clock.now())
        clock.move(60)
    _, first, _, last = ledger.decisions()
    ledger.compact(NOTHING)
    assert ledger.decisions()[1:] == (first, last)
    ask(ledger, "train", 75, asked_at=clock.now())
    assert len(ledger.decisions()) == 3, "the same answer given again is one row, also now"


def test_windows_of_a_sampler_that_is_over_become_one_a_domain(ledger, clock):
    coverages = (1.0, 0.5, 0.0)
    post(ledger, *(tick(number + 1, coverage=coverages[number]) for number in range(3)), tick(1, domain=Domain.GPU))
    clock.move(HOUR)
    assert ledger.compact(NOTHING).windows == 2

    (cpu,) = [each for each in ledger.node_windows() if each.domain is Domain.CPU]
    assert (cpu.sequence_first, cpu.sequence_last) == (1, 3)
    assert (cpu.started_at, cpu.ended_at) == (NOON + timedelta(seconds=1), NOON + timedelta(seconds=4))
    assert (cpu.attributed_microjoules, cpu.idle_microjoules, cpu.other_microjoules) == (60, 60, 30)
    assert cpu.energy == total_energy(tick(number).energy for number in (1, 2, 3))
    assert cpu.coverage_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("windows", "fewer"),
    [
        ((tick(1), tick(3)), 0),
        ((tick(1), tick(2, start=2.5)), 0),
        ((tick(1), tick(2, "sampler2")), 0),
        ((tick(1), tick(2), tick(4), tick(5)), 2),
        ((tick(1), tick(2), tick(7200, "sampler2")), 1),
        ((tick(1), tick(2), tick(7200)), 0),
    ],
    ids=["missing tick", "gap in time", "two samplers", "two parts", "another goes on", "it goes on itself"],
)
def test_only_windows_that_adjoin_are_joined_and_only_of_samplers_that_are_over(ledger, clock, windows, fewer):
    post(ledger, *windows)
    clock.move(HOUR)
    assert ledger.compact(NOTHING).windows == fewer


def test_windows_of_different_workflow_runs_are_not_joined(ledger, clock):
    post(ledger, *(tick(number) for number in range(10, 20)))
    for run, first, last in (("run1", 10, 13), ("run2", 16, 18)):
        span = {"started_at": NOON + timedelta(seconds=first), "ended_at": NOON + timedelta(seconds=last)}
        ledger.commit(Batch(closings=(settle(ask(ledger, "train", 1, run).hold, 1, **span),)), admit_what_fits)
    whole = nodes_by_run(ledger)
    clock.move(HOUR)
    assert ledger.compact(NOTHING).windows > 0
    assert nodes_by_run(ledger) == whole


def test_a_window_that_was_joined_is_not_posted_again(ledger, clock):
    post(ledger, tick(1), tick(2), tick(3), tick(5))
    clock.move(HOUR)
    ledger.compact(NOTHING)
    joined = ledger.node_windows()
    post(ledger, tick(2))
    post(ledger, tick(3), tick(5))
    post(ledger, tick(2, last=3))
    assert ledger.node_windows() == joined
    post(ledger, tick(4))
    assert ledger.posted_sequences("sampler1") == {Domain.CPU: ((1, 5),)}


def test_a_look_says_the_same_and_changes_nothing(ledger, clock):
    post(ledger, tick(1), tick(2))
    ledger.put("mlflow", "entry:1", {})
    ledger.put("mlflow", "entry:2", {})
    for row in ledger.pending("mlflow", clock.now()):
        ledger.delivered(row.outbox_id)
    clock.move(HOUR)
    looked = ledger.compact(NOTHING, only_look=True)
    assert (len(ledger.node_windows()), len(ledger.rows("mlflow", *LetterState))) == (2, 2)
    done = ledger.compact(NOTHING)
    assert (looked.messages, looked.windows) == (done.messages, done.windows) == ({"mlflow": 1}, 1)


def test_the_journal_of_a_share_only_grows(tmp_path):
    clock = SetClock()
    ledger = open_on_share(tmp_path, clock=clock)
    post(ledger, tick(1), tick(2))
    clock.move(HOUR)
    done = ledger.compact(NOTHING)
    assert (done.windows, len(ledger.node_windows())) == (0, 2)
    assert "journal" in done.kept
    ledger.close()


# --- any history -----------------------------------------------------------------------------------------


def nodes_by_run(ledger):
    """What a report about each run, and one about all, says of the nodes."""
    found = {}
    entries, windows = ledger.entries(), ledger.node_windows()
    for run in (None, *{entry.workflow_run for entry in entries}):
        own = windows_of([entry for entry in entries if run in {None, entry.workflow_run}], windows)
        parts = [(w.attributed_microjoules, w.idle_microjoules, w.other_microjoules) for w in own]
        found[run] = (total_energy(w.energy for w in own), tuple(map(sum, zip(*parts, strict=True))))
    return found


def said(ledger, clock):
    """Everything that must be as before."""
    decisions, entries, holds = ledger.decisions(), ledger.entries(), ledger.open_holds()
    names = sorted({row.step.name for row in decisions})
    waiting = waits(decisions, entries, holds, ledger.balances(), POLICY, now=clock.now(), is_live=lambda _run: True)
    told = all_decisions(decisions, entries)
    return {
        "balances": ledger.balances(),
        "books": (ledger.journal(), entries, ledger.facts(), ledger.booked_holds(), ledger.accounts()),
        "sequences": [ledger.posted_sequences(sampler) for sampler in SAMPLERS],
        "undelivered": [ledger.rows(kind, LetterState.PENDING, LetterState.DEAD) for kind in KINDS],
        "findings": verify(ledger, lambda _owner: True),
        "explained": [latest_decisions(told, name, None) for name in names],
        "last": {row.step.key: row for row in decisions},
        "waits": [(each.row, each.since, each.holders) for each in waiting],
        "reliability": reliabilities(decisions, entries),
        "history": [ledger.history("demo", name) for name in names],
        "nodes": nodes_by_run(ledger),
    }


def everything(ledger):
    letters = [ledger.rows(kind, *LetterState) for kind in KINDS]
    return ledger.decisions(), ledger.node_windows(), letters


SAMPLERS = ("sampler1", "sampler2")
small = st.integers(0, 3)
steps = st.one_of(
    st.tuples(st.just("ask"), small, st.sampled_from(["run1", "run2"]), st.sampled_from([20, 60, 70, 80])),
    st.tuples(st.just("close"), small, st.sampled_from([settle, lose, void]), st.integers(0, 9)),
    st.tuples(
        st.just("ticks"), st.sampled_from(SAMPLERS), st.sampled_from(list(Domain)[:2]), st.integers(0, 12), small
    ),
    st.tuples(st.just("letter"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("handled"), st.sampled_from(KINDS), st.booleans()),
    st.tuples(st.just("later"), st.sampled_from([1, 20, 300])),
)


class History:
    def __init__(self, ledger, clock):
        self.ledger, self.clock, self.open, self.letters = ledger, clock, [], 0

    def do(self, what, *how):
        getattr(self, what)(*how)

    def ask(self, number, run, amount):
        try:
            answer = ask(self.ledger, f"step{number}", amount, run, asked_at=self.clock.now())
        except HoldClosed:
            return
        if answer.hold is not None and answer.hold not in self.open:
            self.open.append(answer.hold)

    def close(self, number, how, used):
        if number < len(self.open):
            hold = self.open.pop(number)
            span = {"started_at": hold.opened_at, "ended_at": self.clock.now()}
            closing = how(hold) if how is void else how(hold, used, **({"charged": used + 1} if how is lose else span))
            self.ledger.commit(Batch(closings=(closing,)), admit_what_fits)

    def ticks(self, sampler, domain, first, count):
        post(self.ledger, *(tick(number, sampler, domain) for number in range(first, first + count)))

    def letter(self, address):
        self.letters += 1
        self.ledger.put("letter", f"letter|demo|{address}|after {self.letters}", {})

    def handled(self, kind, works):
        for row in self.ledger.pending(kind, self.clock.now())[:1]:
            if works:
                self.ledger.delivered(row.outbox_id)
            else:
                self.ledger.failed(row.outbox_id, None, "refused")

    def later(self, seconds):
        self.clock.move(seconds)


@pytest.mark.parametrize(("kind", "examples"), [("memory", 200), ("sqlite", 30), ("postgresql", 6)])
def test_any_history_says_the_same_after_it_was_compacted_and_compacting_again_does_nothing(kind, examples, request):
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        history=st.lists(steps, min_size=25, max_size=60),
        keep=st.sampled_from([0, 30, 600]),
        more=st.lists(steps, max_size=10),
    )
    def check(history, keep, more):
        with made(kind, request) as (ledger, clock), made("memory", request) as (model, other_clock):
            whole, plain = History(ledger, clock), History(model, other_clock)
            for step in (*history, ("later", 60)):
                whole.do(*step)
            before = said(ledger, clock)
            done = ledger.compact(timedelta(seconds=keep))
            assert said(ledger, clock) == before
            compacted = everything(ledger)
            again = ledger.compact(timedelta(seconds=keep))
            assert (again.messages, again.decisions, again.windows) == ({}, 0, 0), done
            assert everything(ledger) == compacted
            # What comes later finds the same books as in a ledger that was never compacted.
            for step in more:
                whole.do(*step)
            for step in (*history, ("later", 60), *more):
                plain.do(*step)
            assert sums(ledger) == sums(model)

    check()


def sums(ledger):
    return {
        "balances": ledger.balances(),
        "journal": [(row.kind, row.delta_held, row.delta_spent, row.at) for row in ledger.journal()],
        "sequences": [ledger.posted_sequences(sampler) for sampler in SAMPLERS],
        "nodes": sum(window.energy.microjoules for window in ledger.node_windows()),
        "waiting": [ledger.count(kind) for kind in KINDS],
    }
