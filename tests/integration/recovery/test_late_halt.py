"""A halt that comes between the end of a command and its being noted finds nothing to halt any more."""

from __future__ import annotations

import threading

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.metering.sampler import Sampler
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.run_command import HALTED, run_command
from mlflow_green.records import Outcome
from tests.testkit.recorder_parts import BOOK, FailingLedger, SimplePlanner, bookkeeper, ticket


class HaltsAtTheEnd(Recorder):
    """Its ticker decides to halt just when the command has ended by itself."""

    def end(self, ticket) -> None:
        ticket.halt_reason = "over its grant"
        super().end(ticket)


@pytest.mark.parametrize(
    ("script", "code", "outcome"), [("exit 0", 0, Outcome.SUCCEEDED), ("exit 3", HALTED, Outcome.HALTED)]
)
def test_a_command_that_had_finished_keeps_its_exit_code(script, code, outcome) -> None:
    ledger, said = FailingLedger(), []
    keeper = bookkeeper(ledger, SimplePlanner(enforces=True), said)
    keeper.start = lambda: None  # it runs already
    recorder = HaltsAtTheEnd(
        sampler=Sampler([], clock=SystemClock(), host="node1", boot_id="boot1", lock_path=None),
        bookkeeper=keeper,
        spool=None,
        enforcer=None,
        book=BOOK,
        clock=SystemClock(),
        say=said.append,
    )
    found = run_command(
        recorder,
        ticket("train"),
        ["sh", "-c", script],
        environment=lambda ticket: {},
        answered=threading.Event(),
        say=said.append,
    )
    assert found == code
    assert [entry.outcome for entry in ledger.entries()] == [outcome]
    assert ("halted" in said[-1]) == (code == HALTED)
