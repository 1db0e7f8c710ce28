import pytest

from mlflow_green.records import Action, Outcome
from mlflow_green.reports.wording import decision_text, energy_text, metric_title, outcome_text, quality_metric
from mlflow_green.units import format_count, format_energy_interval, format_money
from tests.testkit.report_samples import entry, estimated, hold_id


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0"), (337, "337"), (12_300, "12.3 k"), (4_130_000, "4.13 M"), (2e9, "2.00 G")]
)
def test_counts_have_three_digits_and_a_prefix(count, text):
    assert format_count(count) == text


def test_an_interval_is_in_the_unit_of_its_value():
    assert format_energy_interval(15_120_000, 5_040_000, 3 * 3_600_000_000) == "4.20 mWh [1.40, 3000]"


@pytest.mark.parametrize(("amount", "text"), [(None, "-"), (2_500_000, "2.50 EUR"), (12_345, "0.0123 EUR")])
def test_money_keeps_small_amounts_visible(amount, text):
    assert format_money(amount, "EUR") == text


def test_an_energy_is_never_shown_without_its_method():
    assert energy_text(estimated(15_120_000)) == "4.20 mWh [1.40, 12.6] est."
    assert energy_text(None) == "-"


def test_a_decision_that_only_watched_says_would():
    assert decision_text(entry("a", would=Action.REFUSE)) == "would refuse"
    assert decision_text(entry("a", decision=Action.DOWNGRADE)) == "downgrade"


def test_success_is_short_and_every_other_outcome_is_named():
    assert [outcome_text(outcome) for outcome in Outcome][:3] == ["ok", "failed", "halted"]


def test_mape_is_preferred_and_otherwise_the_most_frequent_metric():
    entries = [entry("a"), entry("b")]
    accuracy = {hold_id("a"): {"quality/loss": 1.0, "quality/accuracy": 0.9}, hold_id("b"): {"quality/accuracy": 0.8}}
    assert quality_metric(entries, accuracy) == "quality/accuracy"
    assert quality_metric(entries, {**accuracy, hold_id("b"): {"quality/mape": 3.0}}) == "quality/mape"
    assert quality_metric(entries, {}) is None


def test_short_metrics_are_abbreviations():
    assert (metric_title("quality/mape"), metric_title("quality/accuracy")) == ("MAPE", "accuracy")
