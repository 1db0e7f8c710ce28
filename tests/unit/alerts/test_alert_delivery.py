"""From a crossed threshold to a letter that was taken, with a clock that is moved by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import count, pairwise
from random import Random

import pytest

from mlflow_green.alerts.delivery import Fate, Patience, Sender
from mlflow_green.alerts.standing import Standings
from mlflow_green.errors import ChannelFailed
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.policy.document import parse_policy
from mlflow_green.records import Action, Batch, LetterState, Outcome, Unit
from tests.testkit.alert_samples import WH, ScriptedPost, Spender, hours, notify, policy
from tests.testkit.ledger_samples import OWNER, SetClock, admit_what_fits, request, settle


class Alerts:
    """One ledger under one policy, its spender and its sender."""

    def __init__(self, ledger, clock, rules):
        self.ledger, self.clock, self.policy = ledger, clock, rules
        self.spend, self.refuse = (spender := Spender(ledger, rules, clock)).spend, spender.refuse
        self.post = ScriptedPost(clock)
        self.ids = count()

    def sender(self, post=None, books=None):
        return Sender(
            books or self.ledger,
            self.policy,
            post or self.post,
            self.clock,
            random=Random(1),
            new_id=lambda: f"id{next(self.ids)}",
        )

    def send(self):
        return [(str(report.address), report.fate) for report in self.sender().send()]

    def moments(self, address="team webhook"):
        """When the address took a letter, and how many alerts that told."""
        return [(at, len(letter.data["alert_ids"])) for at, to, letter in self.post.carried if to == address]

    def letters(self, *states):
        return self.ledger.rows("letter", *states)


@pytest.fixture
def alerts():
    clock = SetClock()
    return lambda rules: Alerts(MemoryLedger(clock), clock, rules)


def refuse(*_):
    return ChannelFailed("HTTP 500")


def test_a_crossing_is_told_once_to_every_address_of_its_channels(alerts):
    it = alerts(policy(notify(50, to="team, leads")))
    it.spend(49 * WH)
    assert it.send() == []
    it.spend(2 * WH)
    addresses = ["team webhook", "leads email:ana@lab.example", "leads email:bo@lab.example"]
    assert it.send() == [(address, Fate.SENT) for address in addresses]
    assert it.send() == []
    assert len(set(it.post.alert_ids())) == 1
    assert len({letter.letter_id for _, _, letter in it.post.carried}) == 3


def test_a_stopped_step_counts_in_the_bucket_that_stopped_it_alone(alerts):
    both = policy(notify(50), mode="hard").text.replace("100 Wh", "[100 Wh, 5 kgCO2e]")
    rules = parse_policy(both.replace("project: demo", "project: demo\nsite: {country: FRA}").encode())
    it = alerts(rules)
    found = Spender(it.ledger, rules, it.clock).terms()
    asked = request("train", {Unit.ENERGY: WH, Unit.CARBON: 1}, *found)
    (answer,) = it.ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
    reason = "month: train used energy 2.00 Wh of 1.00 Wh granted"
    halted = settle(answer.hold, WH, outcome=Outcome.HALTED, reason=reason)
    it.ledger.commit(Batch(closings=(halted,)), admit_what_fits)
    elsewhere = [replace(term, account="project:other") for term in found]
    refusing = lambda *asked: replace(admit_what_fits(*asked), action=Action.REFUSE)  # noqa: E731
    it.ledger.commit(Batch(requests=(request("sweep", 200 * WH, *elsewhere),), owner=OWNER), refusing)
    standings = Standings(it.ledger, rules, it.clock.now())
    stopped = {term.unit: standings.of(term.key, counts_stopped=True).stopped for term in found}
    assert stopped == {Unit.ENERGY: {("halted", "run1"): 1}, Unit.CARBON: {}}


def test_all_refusals_of_a_run_are_one_message_in_a_quiet_window(alerts):
    it = alerts(policy(notify(50), mode="hard"))
    told = lambda: [  # noqa: E731
        (at, [alert["steps"] for alert in letter.data["alerts"]]) for at, _, letter in it.post.carried
    ]
    for _ in range(100):
        it.refuse(200 * WH)
    it.send()
    assert told() == [(0, [100])]
    for _ in range(9):
        it.clock.move(60)
        it.refuse(200 * WH)
        it.send()
    assert told() == [(0, [100])]
    it.clock.move(hours(1))
    it.send()
    assert told()[1:] == [(540 + hours(1), [109])]
    it.clock.move(hours(1))
    assert it.send() == []


def test_an_address_that_fails_repeats_nothing_to_the_others(alerts):
    it = alerts(policy(notify(50, to="leads")))
    it.post.fails = lambda address, _letter: refuse() if "ana" in str(address) else None
    it.spend(50 * WH)
    it.send()
    for _ in range(3):
        it.clock.move(hours(1))
        it.send()
    assert [to for _, to, _ in it.post.carried] == ["leads email:bo@lab.example"]
    it.post.fails = lambda _address, _letter: None
    it.clock.move(hours(1))
    assert it.send() == [("leads email:ana@lab.example", Fate.SENT)]
    assert len({letter_id for _, to, letter_id in it.post.tried if "ana" in to}) == 1


def test_in_a_quiet_window_alerts_gather_for_one_message(alerts):
    it = alerts(policy(notify(10, 20, 30, 40)))
    for _ in range(4):
        it.spend(10 * WH)
        it.send()
        it.clock.move(60)
    assert it.send() == [("team webhook", Fate.WAITING)]
    it.clock.move(hours(1))
    assert it.send() == [("team webhook", Fate.SENT)]
    (first, one), (second, three) = it.moments()
    assert (one, three) == (1, 3)
    assert second - first >= hours(1)
    assert len(set(it.post.alert_ids())) == 4


def test_the_window_begins_when_the_message_was_taken(alerts):
    it = alerts(policy(notify(10, 20)))
    it.post.fails = refuse
    it.spend(10 * WH)
    it.send()
    it.spend(10 * WH)
    it.clock.move(hours(2))
    assert ("team webhook", Fate.WAITING) in it.send()  # behind the one that is not taken yet
    it.post.fails = lambda _address, _letter: None
    it.clock.move(hours(1))
    it.send()
    it.clock.move(hours(0.9))
    it.send()
    it.clock.move(hours(0.1))
    it.send()
    assert it.moments() == [(hours(3), 1), (hours(4), 1)]


def test_a_digest_gathers_from_the_first_alert_on(alerts):
    it = alerts(policy(notify(10, 20), channels="channels: {team: {email: [ana@lab.example], digest: 7d}}"))
    it.spend(10 * WH)
    it.send()
    it.clock.move(hours(100))
    it.spend(10 * WH)
    assert it.send() == [("team email:ana@lab.example", Fate.WAITING)]
    it.clock.move(hours(68))
    it.send()
    assert it.moments("team email:ana@lab.example") == [(hours(168), 2)]


@pytest.mark.parametrize(("mode", "percent", "at"), [("soft", 100, 18), ("hard", 90, 18), ("hard", 100, 9)])
def test_only_a_hard_budget_that_is_used_up_breaks_the_quiet_hours(alerts, mode, percent, at):
    channel = "channels: {team: {email: [ana@lab.example], quiet_hours: '22:00-07:00'}}"
    it = alerts(policy(notify(percent), mode=mode, channels=channel))
    it.clock.move(hours(9))  # 22:00 in Paris, where it is one hour later than UTC
    it.spend(100 * WH)
    it.send()
    it.clock.move(hours(9))
    it.send()
    assert it.moments("team email:ana@lab.example") == [(hours(at), 1)]


def test_the_pauses_grow_to_an_hour_and_after_a_day_the_letter_is_dead(alerts):
    it = alerts(policy(notify(50)))
    it.post.fails = refuse
    it.spend(50 * WH)
    fates = []
    while not fates or fates[-1] == Fate.FAILED:
        ((_, fate),) = it.send()
        fates.append(fate)
        waiting = it.letters(LetterState.PENDING)
        if waiting:
            it.clock.move((waiting[0].due_at - it.clock.now()).total_seconds())
    assert fates[-1] == Fate.DEAD
    tried = [at for at, _, _ in it.post.tried]
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert 0.5 <= pauses[0] <= 1
    assert all(1800 <= pause <= 3600 for pause in pauses[12:])
    assert hours(24) <= tried[-1] <= hours(25)
    (dead,) = it.letters(LetterState.DEAD)
    assert dead.error == "HTTP 500"


@pytest.mark.parametrize(("asked", "pause"), [(7.0, 7), (1e9, 3600)])
def test_a_receiver_that_asks_for_a_pause_gets_it_up_to_an_hour(alerts, asked, pause):
    it = alerts(policy(notify(50)))
    it.post.fails = lambda *_: ChannelFailed("HTTP 429", retry_after_seconds=asked)
    it.spend(50 * WH)
    it.send()
    (letter,) = it.letters(LetterState.PENDING)
    assert (letter.due_at - it.clock.now()).total_seconds() == pause


def test_a_channel_that_left_the_policy_gets_nothing_and_that_can_be_seen(alerts):
    it = alerts(policy(notify(50)))
    it.spend(50 * WH)
    it.policy = policy("", channels="")
    assert it.send() == [("team", Fate.DEAD)]
    (row,) = it.ledger.rows("notice", LetterState.DEAD)
    assert "no team any more" in row.error


def test_the_alerts_of_another_policy_are_left_to_its_sender(alerts):
    it = alerts(policy(notify(50)))
    it.ledger.put("alert", "other", {"budget": "somebody else's", "to": ["team"], "text": "x"})
    assert it.send() == []
    assert it.ledger.count("alert") == 1


def test_a_sender_that_dies_before_it_marks_a_letter_sends_it_again_with_the_same_id(alerts):
    class Killed(BaseException):
        pass

    class Dies(ScriptedPost):
        def carry(self, address, letter):
            super().carry(address, letter)
            raise Killed

    it = alerts(policy(notify(50)))
    it.spend(50 * WH)
    dying = Dies(it.clock)
    with pytest.raises(Killed):
        it.sender(dying).send()
    assert it.send() == []  # it is still claimed
    it.clock.move(Patience().lease)
    it.send()
    (_, _, first), (_, _, second) = dying.carried + it.post.carried
    assert (first.letter_id, first.data) == (second.letter_id, second.data)


class Interrupted:
    """Books in which something happens right after a sender has looked at the letters."""

    def __init__(self, ledger, happens):
        self._ledger, self._happens = ledger, happens

    def __getattr__(self, name):
        return getattr(self._ledger, name)

    def rows(self, kind, *states):
        found = self._ledger.rows(kind, *states)
        if kind == "letter" and self._happens:
            happens, self._happens = self._happens, None
            happens()
        return found


def test_of_two_senders_only_one_writes_to_an_address_in_its_window(alerts):
    it = alerts(policy(notify(10, 20)))
    it.spend(10 * WH)

    def another_sends_and_a_second_threshold_is_crossed():
        it.send()
        it.spend(10 * WH)
        it.sender()._address_alerts()

    it.sender(books=Interrupted(it.ledger, another_sends_and_a_second_threshold_is_crossed)).send()
    it.send()
    assert it.moments() == [(0, 1)]
    it.clock.move(hours(1))
    it.send()
    assert it.moments() == [(0, 1), (hours(1), 1)]


def test_of_two_senders_only_one_tells_an_alert(alerts):
    it = alerts(policy(notify(10)))
    it.spend(10 * WH)
    it.sender(books=Interrupted(it.ledger, it.send)).send()
    assert it.moments() == [(0, 1)]


def test_a_forecast_beyond_the_limit_is_told_once(alerts):
    it = alerts(policy(notify(100, of="forecast")))
    it.clock.move(-hours(20 * 24))  # the first of the month
    for _ in range(10):
        it.spend(6 * WH)
        it.clock.move(hours(24))
        it.send()
    ((_, _, letter),) = it.post.carried
    assert "is expected to spend 100% of its energy limit" in letter.subject
    (alert,) = letter.data["alerts"]
    assert alert["forecast"]["spent_low"] >= 100 * WH


def test_a_forecast_needs_five_active_days(alerts):
    it = alerts(policy(notify(1, of="forecast")))
    it.clock.move(-hours(20 * 24))
    for _ in range(4):
        it.spend(6 * WH)
        it.clock.move(hours(48))
        it.send()
    assert it.post.carried == []
    it.spend(6 * WH)
    it.clock.move(hours(24))
    it.send()
    assert len(it.post.carried) == 1


def test_letters_go_on_after_a_compaction_took_the_earlier_ones(alerts):
    it = alerts(policy(notify(10, 20, 30, 40, 50, 60, 70, 80)))
    for _ in range(8):
        it.spend(10 * WH)
        it.send()
        it.clock.move(hours(24))
        if len(it.moments()) == 4:
            assert it.ledger.compact(timedelta(hours=1)).messages["letter"] == 3
    assert [count for _, count in it.moments()] == [1] * 8


def test_the_quiet_window_goes_on_after_a_compaction(alerts):
    it = alerts(policy(notify(10, 20)))
    it.spend(10 * WH)
    it.send()
    it.clock.move(60)
    it.ledger.compact(timedelta(0))
    it.spend(10 * WH)
    assert ("team webhook", Fate.WAITING) in it.send()
