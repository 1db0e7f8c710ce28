"""What a person is told to do about a limit that does not suffice."""

import pytest

from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.raising import way_to_raise


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
