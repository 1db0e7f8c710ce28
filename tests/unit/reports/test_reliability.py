"""How often a step stayed within what was held for it, by kind of estimate."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.records import Action, Decision, Outcome, Unit
from mlflow_green.reports.explanation import explain_decision
from mlflow_green.reports.html import render_report
from mlflow_green.reports.reliability import reliabilities, wilson_interval
from mlflow_green.reports.tables import reliability_table, terminal
from mlflow_green.reports.wording import next_use_text
from tests.testkit.report_samples import START, WH, ToldBooks, decision_row, entry, estimated


def held(step, basis, held_wh, used_wh, outcome=Outcome.SUCCEEDED):
    energy = None if used_wh is None else estimated(int(used_wh * WH))
    done = replace(entry(step, energy=energy), outcome=outcome)
    decision = Decision(
        action=Action.ADMIT,
        would=Action.ADMIT,
        tier=None,
        amounts={Unit.ENERGY: int(held_wh * WH)},
        reason="fits",
        estimate_source="...",
        estimate_basis=basis,
    )
    return decision_row(done, decision), done


def books(*steps):
    rows, entries = zip(*steps, strict=True)
    return ToldBooks(told_entries=entries, told_decisions=rows)


STEPS = (
    *(held(f"a{n}", "p95", 2, 1) for n in range(18)),
    held("over", "p95", 2, 3),
    held("halted over its hold", "p95", 2, 3, Outcome.HALTED),
    held("b", "maximum x 1.3", 2, 2),
    held("c", "p95, scaled by input size", 2, 1),
)
NOT_KNOWN = (
    held("halted by another rule", "p95", 2, 1, Outcome.HALTED),
    held("failed early", "p95", 2, 1, Outcome.FAILED),
    held("lost", "p95", 2, 3, Outcome.LOST),
    held("nothing metered", "p95", 2, None),
    held("unknown step", "", 2, 3),
)


def found(steps):
    told = books(*steps)
    return {each.basis: each for each in reliabilities(told.decisions(), told.entries())}


def test_steps_are_counted_by_what_their_hold_came_from():
    by_basis = found(STEPS)
    assert list(by_basis) == ["p95", "maximum x 1.3", "p95, scaled by input size"]
    p95 = by_basis["p95"]
    assert (p95.steps, p95.kept, p95.kept_ratio, p95.promised_ratio) == (20, 18, 0.9, 0.95)
    assert by_basis["p95, scaled by input size"].promised_ratio == 0.95
    assert by_basis["maximum x 1.3"].promised_ratio is None
    assert by_basis["maximum x 1.3"].kept == 1, "exactly the hold is within it"


def test_steps_whose_need_is_not_known_do_not_count():
    assert found((*STEPS, *NOT_KNOWN)) == found(STEPS)


def test_the_interval_is_that_of_the_published_example():
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 has the score interval 0.2553 to 0.3662."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 10_000), st.data())
def test_the_interval_holds_the_part_and_stays_within_nothing_and_all(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_the_page_and_the_table_show_them(capsys):
    told = books(*STEPS)
    page = render_report(told, now=START)
    assert "<td>p95</td>" in page
    assert "[70%, 97%]" in page
    terminal().print(reliability_table(reliabilities(told.decisions(), told.entries())))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("p95 "))
    assert line.split() == ["p95", "20", "90%", "[70%,", "97%]", "95%"]


def test_a_ledger_without_estimates_shows_no_such_section():
    assert "How good the estimates were" not in render_report(books(*NOT_KNOWN), now=START)


def test_explain_shows_where_the_use_was_expected_and_in_how_many_cases(capsys):
    row, done = held("a", "maximum x 1.3", 2, 1)
    decision = replace(row.decision, estimate_low_microjoules=WH, estimate_high_microjoules=2 * WH)
    told = replace(row, decision=replace(decision, estimate_level_ratio=1 / 3))
    explain_decision(terminal(), told, done)
    assert "expected 1.00 Wh to 2.00 Wh in 33 % of cases, by the order of earlier runs" in capsys.readouterr().out
    open_end = replace(told.decision, estimate_high_microjoules=None)
    assert next_use_text(open_end) == "at least 1.00 Wh, no upper end is known, in 33 % of cases"
    assert next_use_text(row.decision) is None
