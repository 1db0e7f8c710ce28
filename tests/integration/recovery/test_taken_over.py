"""Recovery takes a hold over before it ends and charges the step: nobody else can close it meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.recorder.recovery import recover
from mlflow_green.recorder.spool_session import begin_line, session_line
from mlflow_green.recorder.ticket import entry_of
from mlflow_green.records import Batch, Closing, ClosingKind, Outcome
from mlflow_green.spool import SpoolWriter
from tests.testkit.ledger_samples import OWNER, admit_anything, lose, request, term, usage
from tests.testkit.recorder_parts import BOOK, ticket

MONTH = term(limit=10**12)
USED = 7_000_000
RIVAL = replace(OWNER, pid=43)


class Crash:
    """A step of a process that is taken for dead: its hold, its spool, and a process of it that runs on."""

    def __init__(self, spool, ledger):
        self.ledger, self.spool, self.said = ledger, spool, []
        self.step = ticket("train")
        batch = Batch(requests=(request("train", 1000, MONTH, hold_id=self.step.ticket_id),), owner=OWNER)
        (answer,) = self.ledger.commit(batch, admit_anything).answers
        self.hold = self.step.hold = answer.hold
        self.step.decision = answer.decision
        self.step.began_at = SystemClock().now() - timedelta(minutes=10)
        self.step.usage, self.step.duration_seconds = usage(USED), 3.0
        writer = SpoolWriter(spool / "sampler1.jsonl")
        writer.append(session_line(OWNER, BOOK))
        writer.append(begin_line(self.step))
        writer.close()
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            env={**os.environ, "GREEN_HOLD_ID": self.hold.hold_id},
        )

    def recover(self, meanwhile):
        """``meanwhile()`` happens after the hold was taken over, before its process is ended."""

        def say(text):
            self.said.append(text)
            if text.startswith("ending"):
                assert [hold.epoch for hold in self.ledger.open_holds()] == [2]
                meanwhile()

        return recover(self.ledger, self.spool, host="node1", clock=SystemClock(), say=say)

    def settle(self):
        """What the owner does if it lives after all and the step ends."""
        entry = entry_of(self.step, Outcome.SUCCEEDED, BOOK, SystemClock().now())
        closing = Closing(kind=ClosingKind.SETTLE, hold_id=self.hold.hold_id, entry=entry, epoch=self.hold.epoch)
        return self.ledger.commit(Batch(closings=(closing,)), admit_anything).fenced

    @property
    def kinds(self):
        return [row.kind for row in self.ledger.journal()]

    @property
    def spent(self):
        return self.ledger.balances((MONTH,))[0].spent


class Haunted(MemoryLedger):
    """Before anybody takes a hold over, somebody else does."""

    def commit(self, batch, choose):
        if batch.adoptions:
            super().commit(Batch(adoptions=batch.adoptions, owner=RIVAL), choose)
        return super().commit(batch, choose)


@pytest.fixture(params=[MemoryLedger])
def crash(request, tmp_path):
    found = Crash(tmp_path, request.param(SystemClock()))
    yield found
    found.process.kill()
    found.process.wait()
    assert [text for text in verify(found.ledger, lambda _owner: True) if "windows attributed" not in text] == []


def test_an_owner_that_wakes_up_cannot_close_what_recovery_is_about_to_charge(crash) -> None:
    fenced = []
    assert crash.recover(lambda: fenced.extend(crash.settle())) == 1
    assert fenced == [crash.hold.hold_id]
    assert crash.kinds == ["hold", "lost"]
    assert crash.process.wait(10) != 0
    assert crash.spent > USED
    assert crash.settle() == ()
    assert crash.kinds == ["hold", "lost", "adjust"]
    assert crash.spent == USED, "what it metered is the truth, and it is charged once"


def test_of_two_recoveries_that_race_only_the_last_to_take_a_hold_over_closes_it(crash) -> None:
    rivals = []

    def take_over():
        batch = Batch(adoptions=(crash.hold.hold_id,), owner=RIVAL)
        rivals.extend(crash.ledger.commit(batch, admit_anything).adopted)

    assert crash.recover(take_over) == 0
    assert crash.ledger.open_holds() == tuple(rivals)
    assert len(list(crash.spool.iterdir())) == 1, "the other one needs what it says"
    closing = replace(lose(rivals[0], used=USED, charged=2 * USED), epoch=3)
    crash.ledger.commit(Batch(closings=(closing,)), admit_anything)
    assert crash.recover(lambda: None) == 1
    assert crash.kinds == ["hold", "lost"]
    assert crash.spent == 2 * USED


def test_a_recovery_that_dies_after_it_took_a_hold_over_leaves_it_to_the_next(crash) -> None:
    class Killed(BaseException):
        pass

    def die():
        raise Killed

    with pytest.raises(Killed):
        crash.recover(die)
    (left,) = crash.ledger.open_holds()
    assert left.owner.pid == os.getpid()
    assert recover(crash.ledger, crash.spool, host="node1", clock=SystemClock(), say=crash.said.append) == 1
    assert crash.kinds == ["hold", "lost"]
    assert list(crash.spool.iterdir()) == []


@pytest.mark.parametrize("crash", [Haunted], indirect=True)
def test_a_step_that_another_recovery_may_have_ended_is_charged_for_all_of_the_silence(crash) -> None:
    crash.process.kill()
    crash.process.wait()
    assert recover(crash.ledger, crash.spool, host="node1", clock=SystemClock(), say=crash.said.append) == 1
    assert crash.spent >= 10 * 600 * 10**6, "10 W for the ten minutes, not only for lease and grace"
