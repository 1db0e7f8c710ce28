"""``explain`` answers for every step, also for those that fell under no budget and so asked nobody."""

from __future__ import annotations

from mlflow_green.cli.books import all_decisions
from mlflow_green.records import Action, Outcome
from tests.testkit.report_samples import entry as sample_entry


def test_a_step_without_a_decision_row_is_explained_by_its_entry():
    entry = sample_entry("train", "model=mlp")
    (row,) = all_decisions([], [entry])
    assert (row.step.label, row.decision.action, row.hold_id) == ("train[model=mlp]", Action.ADMIT, entry.hold_id)
    assert row.decision.reason == "train[model=mlp] falls under no budget"


def test_a_step_with_a_decision_row_is_explained_once():
    entry = sample_entry("train")
    rows = all_decisions([], [entry])
    assert all_decisions(rows, [entry]) == rows


def test_a_refused_step_has_no_hold_and_only_its_decision_row():
    assert (
        all_decisions([], [sample_entry("sweep", outcome=Outcome.REFUSED, decision=Action.REFUSE, energy=None)]) == []
    )
