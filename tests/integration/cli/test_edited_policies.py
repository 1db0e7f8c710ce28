"""A green.yaml that somebody edits and nobody applies: what the ledger knows counts, whoever asks for a step."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import mlflow_green
from mlflow_green.bootstrap import agreed_policy, load_policy_for, open_ledger, open_session, policy_as_agreed
from mlflow_green.cli.doors import Place
from mlflow_green.cli.main import cli
from mlflow_green.clock import SystemClock
from mlflow_green.errors import AllowanceRefused, BudgetExceeded, BudgetUnkept, UnsupportedHost
from mlflow_green.planning import has_ledger
from mlflow_green.policy.terms import terms
from mlflow_green.records import Mode

HARD = """\
version: 1
project: demo
tracking: {jobs: none}
budgets:
  - {name: total, limit: [1 J], period: total, mode: hard}
"""
OBSERVES, RENAMED = HARD.replace("hard", "observe"), HARD.replace("name: total", "name: all")
OTHER_PROJECT = HARD.replace("project: demo", "project: other")
DROPPED = HARD[: HARD.index("budgets:")]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    for name in ("MLFLOW_GREEN_LEDGER", "MLFLOW_GREEN_POLICY", "GREEN_HOLD_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.chdir(tmp_path)
    return lambda: Place(cwd=tmp_path, environ={}).settings()


@pytest.fixture
def start(settings, tmp_path):
    """Start a workflow with this policy; what counts of it, and what is said."""

    def with_policy(text, user=None):
        (tmp_path / "green.yaml").write_text(text)
        said, ledger = [], open_ledger(settings(), SystemClock())
        try:
            policy = agreed_policy(ledger, load_policy_for(settings()), "demo", SystemClock(), said.append)
        finally:
            ledger.close()
        return policy, said

    return with_policy


@pytest.fixture
def green(tmp_path, settings):
    def command(*arguments):
        return CliRunner().invoke(cli, list(arguments), obj=Place(cwd=tmp_path, environ={}), catch_exceptions=False)

    return command


def left_a_mark(tmp_path):
    return (tmp_path / "ran").exists()


# --- every way in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edited",
    [OBSERVES, RENAMED, DROPPED, OTHER_PROJECT.replace("1 J", "9 kWh")],
    ids=["loosened", "renamed", "dropped", "other-project"],
)
def test_a_command_does_not_run_past_a_hard_budget_that_was_edited_away(edited, start, green, tmp_path):
    start(HARD)
    (tmp_path / "green.yaml").write_text(edited)
    result = green("run", "--energy", "5 Wh", "--", "touch", "ran")
    assert (result.exit_code, left_a_mark(tmp_path)) == (77, False), result.output


@pytest.mark.parametrize(
    ("edited", "error"), [(OBSERVES, BudgetExceeded), (DROPPED, AllowanceRefused)], ids=["loosened", "dropped"]
)
def test_a_block_does_not_start_past_a_hard_budget_that_was_edited_away(edited, error, start, tmp_path):
    start(HARD)
    (tmp_path / "green.yaml").write_text(edited)
    with pytest.raises(error), mlflow_green.meter("train", energy="5 Wh"):
        (tmp_path / "ran").touch()
    assert not left_a_mark(tmp_path)


def test_a_hard_budget_outlives_the_green_yaml_that_set_it(start, green, tmp_path):
    start(HARD)
    (tmp_path / "green.yaml").unlink()
    result = green("run", "--", "touch", "ran")
    assert (result.exit_code, left_a_mark(tmp_path)) == (77, False), result.output
    assert "has no total (project:demo" in result.output


def test_a_command_of_another_project_is_none_of_this_projects_budgets(start, green, tmp_path):
    start(HARD)
    assert green("run", "--project", "other", "--", "touch", "ran").exit_code == 0
    assert left_a_mark(tmp_path)


def test_the_hard_budget_of_another_project_in_a_shared_ledger_stops_nobody(start, green, tmp_path):
    start(HARD)
    (tmp_path / "green.yaml").write_text(OTHER_PROJECT.replace("hard", "observe"))
    shared = f"sqlite:///{tmp_path}/./.green/ledger.db"
    result = green("--ledger", shared, "run", "--energy", "5 Wh", "--", "touch", "ran")
    assert (result.exit_code, left_a_mark(tmp_path)) == (0, True), result.output


def test_a_block_whose_hard_budget_cannot_be_kept_does_not_start(start, tmp_path):
    start(HARD)
    (tmp_path / "green.yaml").write_text(OBSERVES)
    (tmp_path / ".green" / "spool").write_text("in the way")
    with pytest.raises(BudgetUnkept, match="hard budget cannot be kept"), mlflow_green.meter("train"):
        (tmp_path / "ran").touch()
    assert not left_a_mark(tmp_path)


def test_a_workflow_that_cannot_be_enforced_does_not_start_where_only_the_ledger_knows_of_a_hard_budget(
    start, tmp_path
):
    start(HARD)
    (tmp_path / "green.yaml").write_text(OBSERVES)
    with pytest.raises(UnsupportedHost, match="this Snakemake is too new"):
        open_session(name="w", policy=None, host_problem="this Snakemake is too new", wake=print, say=print, environ={})


def test_past_decisions_are_explained_beside_a_green_yaml_that_cannot_be_read(start, green, tmp_path):
    start(HARD)
    assert green("run", "--energy", "5 Wh", "--step", "train", "--", "true").exit_code == 77
    assert "mlflow-green budget grant total" in green("explain", "train").output
    (tmp_path / "green.yaml").write_text("budgets: [{")
    result = green("explain", "train")
    assert (result.exit_code, "train: refuse" in result.output) == (0, True), result.output
    assert "budget grant" not in result.output


# --- without a ledger, or with one that nobody can read -----------------------------------------------


def test_where_there_is_no_ledger_none_is_made_to_look_for_budgets(green, settings, tmp_path):
    (tmp_path / "green.yaml").write_text(OBSERVES)
    assert green("run", "--", "touch", "ran").exit_code == 0
    assert left_a_mark(tmp_path)
    assert not has_ledger(settings())


@pytest.mark.parametrize(("answer", "code"), [("admit", 0), ("refuse", 3)])
def test_a_ledger_that_cannot_be_read_is_told_and_green_yaml_says_what_happens(answer, code, green, tmp_path):
    (tmp_path / "green.yaml").write_text(OBSERVES.replace("observe", f"soft, ledger_down: {answer}"))
    (tmp_path / ".green").mkdir()
    (tmp_path / ".green" / "ledger.db").write_bytes(b"no ledger at all" * 100)
    result = green("run", "--", "touch", "ran")
    assert (result.exit_code, left_a_mark(tmp_path)) == (code, code == 0), result.output
    assert ("Whether a hard budget was applied there is not known" in result.output) == (code == 0)
    assert ("lets no step start without it" in result.output) == (code != 0)


def test_a_workflow_whose_ledger_cannot_be_read_says_that_it_does_not_know_what_was_applied(settings, tmp_path):
    (tmp_path / "green.yaml").write_text(OBSERVES)
    (tmp_path / ".green").mkdir()
    (tmp_path / ".green" / "ledger.db").write_bytes(b"no ledger at all" * 100)
    said = []
    opened = open_session(name="w", policy=None, host_problem=None, wake=print, say=said.append, environ={})
    assert opened is None
    assert "Whether a hard budget was applied there is not known" in said[0]


# --- what of an edit counts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (("period: total", "period: day"), "green.yaml says period day for total, period total counts until"),
        (
            ("period: total", 'scope: {user: "*"}, period: total'),
            "green.yaml says scope {user: *} for total, scope {project: demo} counts until",
        ),
        (
            ("mode: hard", "mode: hard, ledger_down: admit"),
            "green.yaml says ledger_down admit for total, ledger_down refuse counts until",
        ),
        (
            ("mode: hard", "mode: hard, max_wait: 48h, rules: [{at: 80%, do: refuse}]"),
            "green.yaml says max_wait 172800 s for total, max_wait 86400 s counts until",
        ),
        (("[1 J]", "[2 J]"), "green.yaml says 556 uWh for total, 278 uWh counts until"),
    ],
    ids=["period", "scope", "ledger_down", "max_wait", "limit"],
)
def test_what_loosens_a_hard_budget_counts_once_it_was_applied(edit, line, start, green, settings):
    applied, _ = start(HARD)
    edited = HARD.replace(*edit)
    counts, said = start(edited)
    assert [each[: len(line)] for each in said] == [line]
    assert buckets(counts) == buckets(applied)
    ledger = open_ledger(settings(), SystemClock())
    assert buckets(policy_as_agreed(ledger, load_policy_for(settings()), SystemClock())) == buckets(applied)
    ledger.close()
    assert green("policy", "apply", "--reason", "x").exit_code == 0
    counts, said = start(edited)
    assert said == []
    assert counts.budgets[0].model_dump(exclude={"scope"}) == load_policy_for(settings()).budgets[0].model_dump(
        exclude={"scope"}
    )


def buckets(policy):
    now = SystemClock().now()
    return [
        (each.key, each.mode)
        for each in terms(policy, project="demo", user="bob", org=None, now=now, workflow_run="next")
    ]


def test_the_balance_shows_the_bucket_that_counts(start, green):
    start(HARD)
    start(HARD.replace("period: total", "period: day"))
    shown = json.loads(green("balance", "--json").output)["balances"]
    assert [(each["budget"], each["period"]) for each in shown] == [("total", "total")]


def test_a_reshaped_budget_is_applied_by_an_approver_and_stays_in_the_list(start, green):
    approved = HARD.replace("mode: hard", 'mode: hard, override: {approvers: ["user:ana"], max_extra: 20%}')
    start(approved)
    start(approved.replace("period: total", "period: day"))
    dry = green("policy", "apply", "--dry-run").output
    assert "278 uWh energy, hard, period day instead of period total" in " ".join(dry.split())
    assert green("policy", "apply", "--reason", "x").exit_code == 77
    assert green("policy", "apply", "--reason", "agreed", "--approver", "ana").exit_code == 0
    assert "period day instead of period total; agreed" in " ".join(green("budget", "list").output.split())


def test_what_a_budget_of_each_user_was_counts_for_one_who_was_never_seen(start, monkeypatch):
    each = HARD.replace("period: total", 'scope: {user: "*"}, period: total')
    start(each)
    monkeypatch.setattr("mlflow_green.bootstrap.user_name", lambda: "carol")
    counts, _ = start(each.replace("period: total", "period: day").replace("1 J", "9 J"))
    assert [(each.period, each.limit[0].amount) for each in counts.budgets] == [("total", 1_000_000)]
    with pytest.raises(AllowanceRefused, match="has no total"):
        start(DROPPED)


def test_a_budget_that_only_observed_may_become_another_hard_one_at_once_and_then_stays(start):
    start(OBSERVES)
    weekly = HARD.replace("period: total", "period: week")
    assert start(weekly)[0].budgets[0].period == "week"
    counts, said = start(HARD)
    assert (counts.budgets[0].period, counts.budgets[0].mode) == ("week", Mode.HARD)
    assert said == ["green.yaml says period total for total, period week counts until 'mlflow-green policy apply'"]


def test_a_stricter_budget_counts_at_once(start):
    start(HARD)
    stricter = HARD.replace("mode: hard", "mode: hard, unknown_step: refuse, max_wait: 1h")
    counts, said = start(stricter)
    assert (counts.budgets[0].unknown_step, counts.budgets[0].max_wait_seconds, said) == ("refuse", 3600, [])


def test_the_zone_of_the_periods_counts_once_it_was_applied(start):
    monthly = HARD.replace("period: total", "period: month")
    start(monthly)
    counts, said = start(monthly.replace("project: demo", "project: demo\ntimezone: Pacific/Kiritimati"))
    assert counts.timezone == "UTC"
    assert len(said) == 1
    assert "Pacific/Kiritimati" in said[0]
