"""Lines of a journal and rows that an older version wrote, without what it did not know."""

from __future__ import annotations

from mlflow_green.ledger import rows
from mlflow_green.ledger.change import Change
from mlflow_green.ledger.holds import BookedHold, HoldState
from mlflow_green.ledger.posting import post
from mlflow_green.ledger.standing import Standing
from mlflow_green.records import Balance, Batch, DecisionRow
from mlflow_green.spool import from_json, to_json
from tests.testkit.ledger_samples import NOON, OWNER, admit_what_fits, request, term


def effects_of_a_hold():
    batch = Batch(requests=(request("train", 5, term()),), owner=OWNER)
    return post(batch, Standing(generation=0), admit_what_fits, now=NOON, new_hold_id=lambda: "h1")


def without(line, *names):
    """The JSON without these names, wherever they are."""
    if isinstance(line, dict):
        return {name: without(part, *names) for name, part in line.items() if name not in names}
    return [without(part, *names) for part in line] if isinstance(line, list) else line


def test_a_line_without_epochs_and_unmet_top_ups_is_read():
    change = Change(at=NOON, effects=effects_of_a_hold())
    old = without(to_json(change), "epoch", "wanted", "policy_sha256", "adopted", "fenced", "pending", "extra")
    assert from_json(Change, old) == change


def test_a_hold_that_was_taken_over_and_waits_survives_the_journal_and_the_database():
    (booked,) = effects_of_a_hold().opened
    hold = from_json(type(booked.hold), to_json(booked.hold) | {"epoch": 3, "wanted": {"energy": 7}})
    assert rows.booked_hold_of(rows.hold_row(BookedHold(hold=hold, state=HoldState.HELD))).hold == hold
    assert (hold.epoch, list(hold.wanted.values())) == (3, [7])


def test_a_decision_without_what_was_pending_is_read():
    (decision,) = effects_of_a_hold().decisions
    seen = DecisionRow(
        at=NOON,
        hold_id=None,
        step=decision.step,
        decision=decision.decision,
        balances=(Balance(term=term(), spent=1, held=2, pending=3),),
    )
    assert rows.decision_row_of(rows.decision_row(seen)) == seen
    old = without(rows.decision_row(seen), "extra", "pending")
    assert rows.decision_row_of(old).balances == (Balance(term=term(), spent=1, held=2),)
