"""What a person is told to do about a limit that does not suffice."""

import pytest

from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.raising import percent_short_of, way_to_raise
from mlflow_green.records import Balance
from tests.testkit.ledger_samples import term


def budget(more="", period="month"):
    return parse_policy(
        f"version: 1\nproject: demo\nbudgets: [{{name: the lab, limit: 1 Wh, period: {period}, mode: hard{more}}}]".encode()
    ).budgets[0]


OVERRIDE = ", override: {approvers: ['user:ana', 'group:leads'], max_extra: 7.5%, expires: 48h}"


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (
            budget(OVERRIDE),
            "mlflow-green budget override 'the lab' 7.5% --until 48h --reason '...'   (approved by user:ana, group:leads)",
        ),
        (budget(), "mlflow-green budget grant 'the lab' 20% --reason '...'   (recorded as your own decision)"),
        (
            budget(OVERRIDE, "workflow"),
            "raise its limit in green.yaml for the next run, then: mlflow-green policy apply",
        ),
    ],
)
def test_only_what_the_budget_allows_is_advised(of, told):
    assert way_to_raise(of) == told


def test_a_short_override_is_advised_in_a_unit_that_is_taken():
    advised = way_to_raise(budget(OVERRIDE.replace("48h", "30min")))
    assert "--until 30min" in advised


def test_where_the_ledger_knows_who_writes_another_role_has_to_approve():
    assert way_to_raise(budget(), is_known=True).endswith("(approved by another role of the database)")


def test_as_much_is_advised_as_lets_the_step_in_below_the_rules_too():
    ruled = budget(", rules: [{at: 90%, of: committed, do: refuse}]")
    short = percent_short_of(ruled, Balance(term=term(limit=1_000), spent=1_379, held=0), 1)
    assert short == 54
    assert 0.9 * (1_000 + 10 * short) - 1_379 >= 1 > 0.9 * (1_000 + 10 * (short - 1)) - 1_379
    assert "grant 'the lab' 54%" in way_to_raise(ruled, percent_short=short)


def test_an_override_that_would_not_be_enough_is_not_advised():
    advised = way_to_raise(budget(OVERRIDE), percent_short=54)
    assert "budget override" not in advised
    assert "it lacks 54%, and an override adds 7.5% at most" in advised


def test_nothing_is_short_where_it_fits():
    assert percent_short_of(budget(), Balance(term=term(limit=1_000), spent=0, held=999), 1) == 0
