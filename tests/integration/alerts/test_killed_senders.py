"""Senders that are killed, and a receiver that fails in every way: nothing is lost, nothing is told as new twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from threading import Event, Thread

from mlflow_green.alerts.delivery import Patience
from mlflow_green.alerts.webhook import verify_signature
from mlflow_green.clock import SystemClock
from mlflow_green.policy.document import load_policy
from mlflow_green.records import LetterState
from tests.integration.alerts.sender_process import sender_in
from tests.testkit.alert_samples import WH, Spender, notify
from tests.testkit.books import ledger_in
from tests.testkit.receiver import CLOSES, HANGS, receiver
from tests.testkit.waiting import comes_true

KILLS, CROSSINGS = 200, 40
CHANNELS = {"a": 0, "b": 0, "c": 1}
"""The quiet window of each, in seconds."""
FAILURES = [(429, {"Retry-After": "0"}), (429, {"Retry-After": "1"}), 500, 503, HANGS, CLOSES]


def policy_in(folder, crossings, monkeypatch):
    """A policy whose channels are signed webhooks, each with its quiet window."""
    monkeypatch.setenv("HOOK_SECRET", "a secret of the team")
    rules = notify(*range(1, crossings + 1), to=", ".join(CHANNELS))
    channels = "".join(
        f"  {name}: {{webhook: 'env:HOOK_{name}', secret: 'env:HOOK_SECRET', quiet: {quiet}s, allow: [http, private]}}\n"
        for name, quiet in CHANNELS.items()
    )
    (folder / "green.yaml").write_text(
        "version: 1\nproject: demo\n"
        f"budgets: [{{name: month, limit: 100 Wh, period: total, mode: soft, rules: [{rules}]}}]\n"
        f"channels:\n{channels}"
    )
    return load_policy(folder / "green.yaml")


def lead_to(server, monkeypatch):
    for name in CHANNELS:
        monkeypatch.setenv(f"HOOK_{name}", f"{server.url}&channel={name}")


def test_of_senders_that_work_at_the_same_time_each_letter_is_sent_by_one(tmp_path, monkeypatch):
    policy, ledger = policy_in(tmp_path, 10, monkeypatch), ledger_in(tmp_path)
    spender = Spender(ledger, policy, SystemClock())
    with receiver() as server:
        lead_to(server, monkeypatch)

        def serve():
            sender = sender_in(tmp_path, policy, Patience(), try_seconds=30)
            while not is_over.is_set():
                sender.send()

        is_over, threads = Event(), [Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            spender.spend(WH)
        assert comes_true(lambda: not any(ledger.count(kind) for kind in ("alert", "notice", "letter")), 60)
        is_over.set()
        for thread in threads:
            thread.join()
    ids = [each.letter_id for each in server.received]
    assert len(ids) == len(set(ids))
    told = [(each.path, alert_id) for each in server.received for alert_id in each.data["alert_ids"]]
    assert len(told) == len(set(told)) == 10 * len(CHANNELS)
    ledger.close()


def test_senders_killed_200_times_tell_every_crossing_and_none_twice(tmp_path, monkeypatch):
    chance = random.Random(7)
    policy = policy_in(tmp_path, CROSSINGS, monkeypatch)
    answers = (chance.choice(FAILURES) if chance.random() < 0.4 else 200 for _ in range(200))
    killed_while_sending = []

    def kill_some(number):
        if chance.random() < 0.5:
            with suppress(OSError, ValueError):
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
                killed_while_sending.append(number)

    with receiver(answers) as server:
        lead_to(server, monkeypatch)
        ledger = ledger_in(tmp_path)
        spender = Spender(ledger, policy, SystemClock())
        server.on_request = kill_some
        module = "tests.integration.alerts.sender_process"
        with subprocess.Popen(
            [sys.executable, "-m", module, str(tmp_path), str(KILLS), "3"], stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(CROSSINGS):
                spender.spend(WH)
                comes_true(lambda: process.poll() is not None, chance.uniform(0, 0.2))
            out, _ = process.communicate(timeout=200)
        assert out == f"killed {KILLS}\n"
        server.on_request = lambda _number: None
        sender = sender_in(tmp_path, policy)

        def all_is_told():
            sender.send()
            return not any(ledger.count(kind) for kind in ("alert", "notice", "letter"))

        assert comes_true(all_is_told, 30)
        promised = {(row.payload["channel"], row.payload["alert_id"]) for row in ledger.rows("notice", *LetterState)}
        assert ledger.rows("letter", LetterState.DEAD) == ()
        ledger.close()
    report(server, promised, killed_while_sending)


def report(server, promised, killed_while_sending):
    assert len(promised) == CROSSINGS * len(CHANNELS)
    told, letters_of, moments, bodies = set(), defaultdict(set), defaultdict(list), {}
    for each in server.received:
        assert is_signed(each)
        assert bodies.setdefault(each.letter_id, each.body) == each.body
        channel = each.path.rpartition("=")[2]
        for alert_id in each.data["alert_ids"]:
            letters_of[channel, alert_id].add(each.letter_id)
            if each.answer == 200:
                told.add((channel, alert_id))
        if each.answer == 200:
            moments[channel, each.letter_id].append(each.at)
    assert told == promised
    assert {len(letters) for letters in letters_of.values()} == {1}
    for name, quiet_seconds in CHANNELS.items():
        of_channel = [times for (channel, _), times in moments.items() if channel == name]
        for earlier, later in pairwise(of_channel):
            assert later[0] - earlier[-1] >= quiet_seconds
    duplicates = len(server.taken) - len(moments)
    assert duplicates, "no sender was killed between a letter and its mark: the test shows nothing"
    print(
        f"{KILLS} kills, {len(killed_while_sending)} of them while a letter was under way; {len(server.received)} requests,"
        f" {len(server.taken)} taken: {len(promised)} promises in {len(moments)} letters, {duplicates} duplicates"
    )


def is_signed(received):
    moment = datetime.fromtimestamp(received.at, UTC)
    return verify_signature(received.headers, received.body, "a secret of the team", moment)
