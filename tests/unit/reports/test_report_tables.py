import io
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
from rich.console import Console

from mlflow_green.records import Action, Allowance, AllowanceKind, Mode, Outcome, Unit
from mlflow_green.reports.tables import allowance_table, balance_bar, balance_table, jobs_table, rules_table, terminal
from mlflow_green.reports.wording import wildcard_values
from tests.testkit.ledger_samples import NOON
from tests.testkit.report_samples import (
    ENERGY_TERM,
    WH,
    entry,
    pipeline_balances,
    pipeline_entries,
    pipeline_facts,
    pipeline_windows,
)


def shown(table, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def jobs(width=120):
    return shown(jobs_table(pipeline_entries(), pipeline_facts(), pipeline_windows(), width=width), width)


def line_of(text, *words):
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_a_job_is_shown_with_its_energy_interval_and_method():
    line = line_of(jobs(), "train", "gbm", "50.0 mWh")
    assert "[16.7, 150] est." in line
    assert "3.36 mg" in line
    assert "2.84" in line
    assert "12.3 k" in line
    assert "4.13 M" in line


def test_a_refused_job_has_no_energy_rather_than_zero():
    line = line_of(jobs(), "sweep")
    assert "refuse" in line
    assert "mWh" not in line
    assert " - " in line


def test_a_budget_that_only_watches_shows_what_it_would_have_done():
    assert "would downgrade" in line_of(jobs(), "mlp", "full")


def test_jobs_idle_and_other_are_lines_of_their_own():
    text = jobs()
    assert "380 mWh" in line_of(text, "All jobs")
    assert "200 mWh" in line_of(text, "Idle node")
    assert "20.0 mWh" in line_of(text, "Other")
    assert "600 mWh [200, 1799] est." in line_of(text, "Whole node")


def test_without_windows_nothing_is_said_of_the_node():
    assert "Idle" not in shown(jobs_table(pipeline_entries(), {}))


def test_what_a_lost_job_was_charged_beyond_its_reading_is_said():
    assert "Lost steps were charged 2.22 mWh more than was metered." in " ".join(jobs().split())


@pytest.mark.parametrize("width", [80, 100, 120])
def test_every_job_stays_on_one_line_at_usual_widths(width):
    lines = jobs(width).splitlines()
    assert all(len(line) <= width for line in lines)
    body = lines[2 : 2 + len(pipeline_entries())]
    assert [line.split()[0] for line in body] == [e.step for e in pipeline_entries()]


def test_a_narrow_terminal_keeps_the_method_and_names_what_it_leaves_out():
    text = jobs(80)
    assert "est." in line_of(text, "gbm", "50.0 mWh")
    assert "MACs" not in text.splitlines()[0]
    assert "A wider terminal also shows: Density, MACs" in " ".join(text.split())


def test_a_column_about_which_nothing_is_known_is_not_shown():
    head = shown(jobs_table([entry("clean")], {})).splitlines()[0]
    assert "Tier" not in head
    assert "Params" not in head
    assert "Energy" in head


def test_an_empty_table_says_that_nothing_is_known():
    assert "-" in line_of(shown(jobs_table([], {})), "All jobs")
    assert "0" in line_of(shown(rules_table([])), "All rules")


def test_another_metric_takes_the_place_of_mape():
    item = entry("train")
    text = shown(jobs_table([item], {item.hold_id: {"quality/accuracy": 0.913}}))
    assert "accuracy" in text.splitlines()[0]
    assert "0.913" in text


@pytest.mark.parametrize("width", [80, 120])
def test_rules_go_from_the_dearest_to_the_cheapest_with_their_share(width):
    text = shown(rules_table(pipeline_entries(), width=width), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.index("train ") < text.index("train_long") < text.index("evaluate")
    line = line_of(text, "train ", "83%")
    assert "314 mWh" in line
    assert "[105, 941] est." in line
    assert "█████" in line
    assert "<1%" in line_of(text, "predict")


@pytest.mark.parametrize("width", [80, 120])
def test_a_rule_says_how_its_jobs_were_answered_other_than_by_a_plain_yes(width):
    tiny = {"decision": Action.DOWNGRADE, "tier": "tiny"}
    refused = {"decision": Action.REFUSE, "outcome": Outcome.REFUSED, "energy": None}
    jobs = [entry("train", f"n={n}", **more) for n, more in enumerate([{}, tiny, tiny, refused])]
    text = shown(rules_table([*jobs, entry("fit", **tiny), entry("plot")], width=width), width)
    said = " ".join(text.split())
    assert all(len(line) <= width for line in text.splitlines())
    assert "train: 2 of 4 downgraded to tiny, 1 of 4 refused; fit: downgraded to tiny." in said
    assert "plot:" not in said


def test_room_that_running_steps_wait_for_is_shown_where_there_is_some():
    balances = pipeline_balances()
    assert "Pending" not in shown(balance_table(balances))
    asked = replace(balances[0], pending=WH // 4)
    text = shown(balance_table([asked, *balances[1:]]))
    assert "Pending" in text
    assert "250 mWh" in line_of(text, asked.term.budget, asked.term.unit.value)


@pytest.mark.parametrize("width", [80, 120])
def test_a_balance_shows_limit_spent_held_and_available(width):
    text = shown(balance_table(pipeline_balances(), width=width), width)
    line = line_of(text, "project-month", "energy")
    assert len(line) <= width
    for amount in ("1.00 Wh", "382 mWh", "100 mWh", "518 mWh", "48%"):
        assert amount in line
    assert "80.0 mg" in line_of(text, "project-month", "CO2e")


def test_on_a_narrow_terminal_a_balance_keeps_its_mode_and_drops_the_bar():
    assert " hard " in line_of(shown(balance_table(pipeline_balances(), width=80), 80), "project-month", "energy")


def test_on_a_narrow_terminal_a_raise_keeps_until_when_and_why():
    made = Allowance(
        allowance_id="0123456789abcdef", kind=AllowanceKind.OVERRIDE, budget="project-month", account="project:demo",
        unit=Unit.ENERGY, period="2026-11", amount=WH, made_at=NOON, requested_by="bob", approver="ana",
        reason="the paper of the year", expires_at=NOON + timedelta(hours=9),
    )  # fmt: skip
    text = shown(allowance_table([made], NOON, width=80), 80)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("0123456789ab", "project-month", "1.00 Wh", "2026-11-21", "21:00", "Reason", "paper", "year"):
        assert word in text


def test_what_was_spent_before_stands_beside_what_is_spent_now():
    now = pipeline_balances()
    before = [replace(now[0], spent=WH // 10)]
    text = shown(balance_table(now, before))
    assert text.splitlines()[0].split()[5:7] == ["Before", "Spent"]
    assert "100 mWh" in line_of(text, "energy")


def test_an_overspent_budget_has_a_full_bar_and_a_negative_rest():
    over = replace(pipeline_balances()[0], spent=2 * WH, held=0)
    assert balance_bar(over, 10).plain == "█" * 10
    assert "-1.00 Wh" in shown(balance_table([over]))


def test_an_overspent_budget_is_red_unless_it_only_watches():
    over = replace(pipeline_balances()[0], spent=2 * WH)
    watched = replace(over, term=replace(ENERGY_TERM, mode=Mode.OBSERVE))
    assert "red" in str(balance_bar(over, 10).spans)
    assert "red" not in str(balance_bar(watched, 10).spans)


def test_text_in_square_brackets_is_shown_as_it_is():
    text = shown(jobs_table([entry("[red]x[/red]", outcome=Outcome.FAILED)], {}))
    assert "[red]x[/red]" in text


def test_off_a_terminal_there_are_no_colours_and_120_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    file = io.StringIO()
    console = terminal(file)
    console.print(jobs_table(pipeline_entries(), pipeline_facts(), width=console.width))
    assert console.width == 120
    assert "\x1b" not in file.getvalue()


def test_wildcards_are_shortened_to_their_values_and_then_cut():
    assert wildcard_values("model=mlp,seed=1", 12) == "mlp,1"
    assert wildcard_values("model=gradient_boosting", 8) == "gradien…"


def test_the_tables_import_nothing_heavy():
    code = (
        "import sys, mlflow_green, mlflow_green.reports.tables\n"
        "heavy = {'pandas', 'numpy', 'mlflow', 'sqlalchemy', 'jinja2', 'matplotlib', 'codecarbon'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
