"""Raising a limit from the command line, with a real ledger and a real policy file; people are played by their names."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from mlflow_green.bootstrap import agreed_policy, load_policy_for, open_session, policy_as_agreed
from mlflow_green.bootstrap import open_ledger as open_books
from mlflow_green.cli.doors import Doors, Place
from mlflow_green.cli.main import cli
from mlflow_green.clock import SystemClock
from mlflow_green.errors import AllowanceRefused
from mlflow_green.planning import plan_workload
from mlflow_green.records import Allowance, AllowanceKind, PlannedStep, Step, StepSpec, Workload
from tests.testkit.ledger_samples import term

POLICY = """\
version: 1
project: demo
budgets:
  - name: month
    limit: [5 kWh, 1 kgCO2e]
    period: month
    mode: {mode}
    rules: [{{at: 80%, do: notify, to: [team]}}]
    {override}
site: {{country: FRA}}
channels: {{team: {{webhook: "https://hooks.example/x"}}}}
"""
APPROVERS = 'override: {approvers: ["user:ana", "user:cleo"], max_extra: 20%, expires: 48h}'
KWH = 3_600_000_000_000


class Person(Doors):
    """The real doors, opened by somebody of that name."""

    def __init__(self, name):
        self.name = name

    def user_name(self):
        return self.name


@pytest.fixture
def settings(tmp_path):
    return Place(cwd=tmp_path, environ={}).settings()


@pytest.fixture
def write(tmp_path):
    def policy(limit="5 kWh", mode="hard", override=APPROVERS):
        text = POLICY.format(mode=mode, override=override).replace("5 kWh", limit)
        (tmp_path / "green.yaml").write_text(text)

    policy()
    return policy


@pytest.fixture
def run(tmp_path, write):
    def command(who, *arguments):
        place = Place(cwd=tmp_path, environ={}, doors=Person(who))
        return CliRunner().invoke(cli, list(arguments), obj=place, catch_exceptions=False)

    return command


@pytest.fixture
def told(run):
    def command(who, *arguments):
        result = run(who, *arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    return command


def refused(result, *words):
    assert result.exit_code == 77, result.output
    assert all(word in result.output for word in words), result.output


def limits(told):
    return {each["unit"]: each["limit"] for each in told("bob", "balance")["balances"]}


def start_a_run(tmp_path):
    """What the start of a workflow does with the policy; the policy that counts then, and what is said."""
    settings = Place(cwd=tmp_path, environ={}).settings()
    said, ledger = [], open_books(settings, SystemClock())
    policy = agreed_policy(ledger, load_policy_for(settings), "demo", SystemClock(), said.append)
    ledger.close()
    return policy, said


def test_somebody_asks_and_an_approver_agrees(run, told):
    (asked,) = told("bob", "budget", "override", "month", "0.5 kWh", "--reason", "deadline")["allowances"]
    assert asked["state"] == "pending"
    assert limits(told)["energy"] == 5 * KWH
    refused(run("bob", "budget", "approve", asked["allowance_id"]), "bob cannot approve", "user:ana or user:cleo")
    refused(run("dan", "budget", "approve", asked["allowance_id"]), "dan is no approver of month")
    result = run("ana", "budget", "approve", asked["allowance_id"])
    assert "bob raised month (project:demo," in result.output
    assert "approved by ana: deadline" in result.output
    assert limits(told) == {"energy": 5 * KWH + KWH // 2, "carbon": 10**9}
    assert "approved by ana: deadline" in run("bob", "balance").output


def test_a_named_approver_counts_at_once_and_is_told_as_not_verified(run, told, settings):
    result = run("bob", "budget", "override", "month", "20%", "--reason", "deadline", "--approver", "ana")
    assert result.output.count("named by bob: ana, not verified") == 2
    assert limits(told) == {"energy": 6 * KWH, "carbon": 12 * 10**8}
    assert "ana, not verified" in run("bob", "balance").output
    ledger = open_books(settings, SystemClock())
    assert all("ana, not verified" in row.reason for row in ledger.journal())
    assert [row.payload["to"] for row in ledger.pending("alert", SystemClock().now())] == [["team"]] * 2
    ledger.close()


def test_what_may_not_be_is_refused_with_what_to_do(run):
    ask = ("bob", "budget", "override", "month")
    refused(run(*ask, "0.5 kWh"), "--reason")
    refused(run(*ask, "0.5 kWh", "--reason", "x", "--approver", "bob"), "bob cannot approve what bob asks for")
    refused(run(*ask, "0.5 kWh", "--reason", "x", "--approver", "dan"), "dan is no approver")
    refused(run(*ask, "2 kWh", "--reason", "x", "--approver", "ana"), "20% to the 5.00 kWh", "leaves 1.00 kWh")
    refused(run(*ask, "0.5 kWh", "--reason", "x", "--until", "72h"), "expires: in green.yaml")
    for words, told in (("5 parsecs", "unknown unit"), ("5 EUR", "is no unit of month"), ("5", "not a quantity")):
        result = run(*ask, words, "--reason", "x")
        assert (result.exit_code, told in result.output) == (2, True), result.output
    assert run("bob", "budget", "grant", "year", "1 kWh").exit_code == 2
    refused(run("ana", "budget", "approve", "nothing"), "nobody asked")


def test_limits_of_several_units_are_raised_together_or_not_at_all(run, told):
    ask = ("bob", "budget", "override", "month")
    run(*ask, "0.2 kgCO2e", "--reason", "x", "--approver", "ana")
    result = run(*ask, "20%", "--reason", "x", "--approver", "ana")
    refused(result, "20% to the 1.00 kgCO2e of month")
    assert "raised month" not in result.output
    assert limits(told) == {"energy": 5 * KWH, "carbon": 12 * 10**8}


def test_all_that_is_to_be_approved_is_looked_at_before_any_of_it_counts(run, told):
    ask = ("bob", "budget", "override", "month", "0.2 kWh", "--reason", "x")
    one, other = (told(*ask)["allowances"][0]["allowance_id"] for _ in range(2))
    approve = ("ana", "budget", "approve")
    result = run(*approve, one, "nothing", one, "nope")
    refused(result, "nobody asked for nothing, nope", "none was approved")
    assert limits(told)["energy"] == 5 * KWH
    assert run(*approve, one, one).output.count("approved by ana") == 1
    refused(run(*approve, other, one), f"{one} counts already")
    assert limits(told)["energy"] == 5 * KWH + KWH // 5


def test_what_was_agreed_before_the_ledger_refused_more_is_told(run, told):
    ask = ("bob", "budget", "override", "month", "0.6 kWh", "--reason", "x")
    ids = [told(*ask)["allowances"][0]["allowance_id"] for _ in range(2)]
    refused(run("ana", "budget", "approve", *ids), "which leaves 400 Wh", "approved by ana")
    assert limits(told)["energy"] == 5 * KWH + 6 * KWH // 10


def test_without_approvers_a_lone_user_grants_to_himself_and_that_is_recorded(run, told, write):
    write(override="")
    refused(run("bob", "budget", "override", "month", "20%"), "has no override: in green.yaml")
    assert "by its own decision" in run("bob", "budget", "grant", "month", "1 kWh").output
    assert limits(told)["energy"] == 6 * KWH


def test_the_list_shows_what_is_active_pending_and_expired(run, told):
    assert "was ever raised" in run("bob", "budget", "list").output or run("bob", "budget", "list").exit_code == 0
    run("bob", "budget", "override", "month", "0.1 kWh", "--reason", "x", "--approver", "ana")
    run("bob", "budget", "grant", "month", "0.1 kWh", "--reason", "y")
    assert [each["state"] for each in told("bob", "budget", "list")["allowances"]] == ["active", "pending"]
    screen = run("bob", "budget", "list").output
    assert "override" in screen
    assert "not approved" in screen  # and in the next line of its column: yet


def test_a_budget_of_each_user_is_raised_for_one_of_them(run, told, write, tmp_path):
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("    period:", '    scope: {user: "*"}\n    period:'))
    run("bob", "budget", "grant", "month", "1 kWh", "--user", "eve", "--reason", "x", "--approver", "ana")
    (allowance,) = told("bob", "budget", "list")["allowances"]
    assert allowance["account"] == "user:eve"


def test_a_raised_limit_counts_after_an_approver_applied_it(run, told, write, tmp_path):
    start_a_run(tmp_path)
    write(limit="8 kWh")
    _, said = start_a_run(tmp_path)
    assert said == ["green.yaml says 8.00 kWh for month, 5.00 kWh counts until 'mlflow-green policy apply'"]
    dry = run("bob", "policy", "apply", "--dry-run").output
    assert "month (project:demo): 5.00 kWh energy, hard -> 8.00 kWh energy, hard" in dry
    assert "Nothing was applied" in dry
    refused(run("bob", "policy", "apply", "--reason", "x"), "bob is no approver")
    refused(run("ana", "policy", "apply"), "--reason")
    assert run("ana", "policy", "apply", "--reason", "more nodes").exit_code == 0
    assert start_a_run(tmp_path)[1] == []
    assert "Nothing changes" in run("ana", "policy", "apply", "--reason", "x").output


def test_whoever_edits_the_approvers_does_not_become_one(run, write, tmp_path):
    start_a_run(tmp_path)
    bobs = APPROVERS.replace("user:ana", "user:bob")
    for edited in ("", bobs):
        write(limit="8 kWh", override=edited)
        refused(run("bob", "policy", "apply", "--reason", "x"), "user:ana or user:cleo may")
    refused(run("dan", "budget", "grant", "month", "1 kWh", "--reason", "x", "--approver", "bob"), "bob is no approver")
    start_a_run(tmp_path)
    refused(run("bob", "policy", "apply", "--reason", "x"), "bob is no approver")
    assert run("cleo", "policy", "apply", "--reason", "ana left").exit_code == 0
    write(limit="9 kWh", override=bobs)
    start_a_run(tmp_path)
    assert run("bob", "policy", "apply", "--reason", "x").exit_code == 0


def test_who_wrote_a_policy_cannot_approve_it(run, write, tmp_path):
    start_a_run(tmp_path)
    write(limit="8 kWh")
    refused(run("ana", "policy", "apply", "--reason", "x"), "ana cannot approve what ana asks for", "user:cleo may")
    result = run("ana", "policy", "apply", "--reason", "x", "--approver", "cleo")
    assert result.exit_code == 0


def test_a_loosened_mode_counts_after_it_was_applied(run, write, tmp_path):
    start_a_run(tmp_path)
    write(mode="observe")
    policy, said = start_a_run(tmp_path)
    assert policy.budgets[0].mode == "hard"
    assert said == ["green.yaml says mode observe for month, mode hard counts until 'mlflow-green policy apply'"]
    run("ana", "policy", "apply", "--reason", "trial", "--approver", "cleo")
    assert start_a_run(tmp_path)[0].budgets[0].mode == "observe"


def test_a_plan_and_the_alerts_follow_the_mode_that_counts_and_record_nothing(run, write, tmp_path, settings):
    start_a_run(tmp_path)
    write(mode="observe")
    too_much = PlannedStep(
        step=Step(workflow_run="", name="big"), spec=StepSpec(energy_microjoules=9 * KWH), resources={}
    )
    planned = plan_workload(settings, Workload(steps=(too_much,), resources={}))
    assert [answer.action for answer in planned.answers] == ["refuse"]
    ledger = open_books(settings, SystemClock())
    assert policy_as_agreed(ledger, load_policy_for(settings), SystemClock()).budgets[0].mode == "hard"
    assert len(ledger.policies()) == 1
    ledger.close()


def test_a_part_of_a_limit_is_one_of_the_limit_that_counts(run, told, write, tmp_path):
    start_a_run(tmp_path)
    write(limit="500 kWh")
    run("bob", "budget", "grant", "month", "20%", "--reason", "x", "--approver", "ana")
    assert limits(told)["energy"] == 6 * KWH


def test_one_person_alone_applies_without_asking(run, told, write, tmp_path):
    write(override="")
    start_a_run(tmp_path)
    write(limit="8 kWh", override="")
    assert run("bob", "policy", "apply").exit_code == 0
    assert start_a_run(tmp_path)[1] == []


def test_a_limit_of_an_unused_period_is_shown_as_it_counts(told, write, tmp_path):
    start_a_run(tmp_path)
    write(limit="8 kWh")
    assert limits(told)["energy"] == 5 * KWH


def test_the_policy_of_every_run_is_kept_with_its_text(run, tmp_path, write, settings):
    policy, _ = start_a_run(tmp_path)
    start_a_run(tmp_path)
    ledger = open_books(settings, SystemClock())
    (version,) = ledger.policies()
    assert (version.sha256, version.text) == (policy.sha256, (tmp_path / "green.yaml").read_text())
    ledger.close()
    assert run("bob", "policy", "show", policy.sha256[:12]).output == version.text
    assert run("bob", "policy", "show", "beef").exit_code == 2


# --- budgets that a policy drops ------------------------------------------------------------------


@pytest.mark.parametrize("edit", [("name: month", "name: m2"), (", 1 kgCO2e]", "]")], ids=["renamed", "unit removed"])
def test_a_hard_budget_that_the_policy_drops_stops_every_run_until_it_was_applied(edit, run, tmp_path, settings):
    start_a_run(tmp_path)
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(AllowanceRefused, match=r"has no month \(project:demo: .* hard\) any more.*policy apply"):
        start_a_run(tmp_path)
    with pytest.raises(AllowanceRefused, match="has no month"):
        plan_workload(settings, Workload(steps=(), resources={}))
    dry = run("bob", "policy", "apply", "--dry-run").output
    assert "hard -> removed" in dry
    assert "--reason TEXT" in dry
    refused(run("bob", "policy", "apply", "--reason", "x"), "bob is no approver of month", "user:ana")
    assert run("ana", "policy", "apply", "--reason", "another name").exit_code == 0
    assert start_a_run(tmp_path)[1] == []


def test_a_workflow_does_not_run_unmetered_where_a_hard_budget_was_dropped(write, tmp_path):
    start_a_run(tmp_path)
    write(mode="observe")
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("name: month", "name: m2"))
    with pytest.raises(AllowanceRefused, match="nothing was started"):
        open_session(name="w", policy=None, host_problem=None, wake=print, say=print, cwd=tmp_path, environ={})


def test_a_budget_that_only_warns_is_dropped_with_a_line(run, write, tmp_path):
    write(mode="observe", override="")
    start_a_run(tmp_path)
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("name: month", "name: m2"))
    _, said = start_a_run(tmp_path)
    assert len(said) == 2
    assert all("green.yaml has no month" in line and "policy apply" in line for line in said)
    assert run("bob", "policy", "apply").exit_code == 0
    assert start_a_run(tmp_path)[1] == []


def test_the_budgets_of_another_project_in_a_shared_ledger_are_not_missed(run, write, tmp_path):
    start_a_run(tmp_path)
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("project: demo", "project: other").replace("name: month", "name: m2"))
    assert start_a_run(tmp_path)[1] == []
    shared = f"sqlite:///{tmp_path}/./.green/ledger.db"
    assert "month" not in run("bob", "--ledger", shared, "policy", "apply", "--dry-run").output


def test_a_project_of_another_name_drops_the_budgets_of_the_ledger_that_is_its_own(run, tmp_path):
    start_a_run(tmp_path)
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("project: demo", "project: other"))
    assert "month (project:demo): 5.00 kWh energy, hard -> removed" in run("bob", "policy", "apply", "--dry-run").output
    refused(run("bob", "policy", "apply", "--reason", "x"), "bob cannot approve", "user:ana")
    assert run("ana", "policy", "apply", "--reason", "another name", "--approver", "cleo").exit_code == 0
    assert start_a_run(tmp_path)[1] == []


def test_balance_says_which_budgets_the_policy_does_not_have(run, told, tmp_path):
    run("bob", "budget", "grant", "month", "1 kWh", "--reason", "x", "--approver", "ana")
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("name: month", "name: m2"))
    assert "month (project:demo, energy) is not in green.yaml" in run("bob", "balance").output.replace("\n", " ")
    assert {each["budget"]: each["in_policy"] for each in told("bob", "balance")["balances"]} == {
        "month": False,
        "m2": True,
    }


def test_balance_says_that_the_budgets_of_a_projects_earlier_name_were_removed(run, told, tmp_path):
    run("bob", "budget", "grant", "month", "1 kWh", "--reason", "x", "--approver", "ana")
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("project: demo", "project: other"))
    assert run("ana", "policy", "apply", "--reason", "another name", "--approver", "cleo").exit_code == 0
    shown = run("bob", "balance").output.replace("\n", " ")
    assert "month (project:demo, energy) is not in green.yaml" in shown
    assert "its removal was applied" in shown
    in_policy = {each["account"]: each["in_policy"] for each in told("bob", "balance")["balances"]}
    assert in_policy == {"project:demo": False, "project:other": True}


def test_everything_that_was_applied_stays_in_the_list(run, told, write, tmp_path):
    start_a_run(tmp_path)
    write(limit="8 kWh")
    answer = run("root", "policy", "apply", "--reason", "more nodes", "--approver", "ana").output
    assert "named by root: ana, not verified" in answer
    write(limit="9 kWh")
    run("cleo", "policy", "apply", "--reason", "and more", "--approver", "ana")
    first, second = told("bob", "budget", "list")["applied"]
    assert (first["before"], first["after"], first["requested_by"], first["approver"], first["reason"]) == (
        5 * KWH,
        8 * KWH,
        "root",
        "ana",
        "more nodes",
    )
    assert (second["before"], second["after"]) == (8 * KWH, 9 * KWH)
    screen = run("bob", "budget", "list").output
    assert "named by root: ana, not verified: more nodes" in screen
    assert "5.00 kWh energy, hard -> 8.00 kWh energy, hard" in screen


def test_an_amount_or_a_time_that_does_not_fit_is_told_in_a_sentence(run, write):
    for words in (("1e400 kWh",), ("0.1 kWh", "--until", "99999999999d"), ("0.1 kWh", "--until", "0001-01-01")):
        result = run("bob", "budget", "override", "month", *words, "--reason", "x")
        assert result.exit_code in {2, 77}, result.output
        assert "too much" in result.output or "not at" in result.output or "is no time" in result.output
    write(limit="2 GWh", override="")
    result = run("bob", "budget", "grant", "month", "10000%")
    assert (result.exit_code, "is too much" in result.output) == (2, True)
    assert run("bob", "run", "--energy", "1e400 kWh", "--", "true").exit_code == 2


def test_an_override_that_outlasts_its_period_says_when_that_ends(run, tmp_path):
    path = tmp_path / "green.yaml"
    path.write_text(path.read_text().replace("period: month", "period: day"))
    ask = ("bob", "budget", "override", "month", "0.1 kWh", "--reason", "x", "--approver", "ana", "--until")
    assert "It counts only in 20" in run(*ask, "48h").output
    assert "then it is over" not in run(*ask, "1s").output or "23:59:59" in f"{SystemClock().now():%H:%M:%S}"


@pytest.mark.parametrize("kind", [AllowanceKind.GRANT, AllowanceKind.OVERRIDE])
def test_what_was_added_to_a_period_that_is_over_is_expired(kind, run, told, settings):
    now = SystemClock().now()
    ends = now + timedelta(days=30) if kind is AllowanceKind.OVERRIDE else None
    past = term(budget="month", account="project:demo", period="2020-11")
    old = Allowance(
        allowance_id="old",
        kind=kind,
        budget="month",
        account="project:demo",
        unit=past.unit,
        period="2020-11",
        amount=KWH,
        made_at=now,
        expires_at=ends,
        requested_by="bob",
        approved_by="bob",
        reason="",
    )
    run("bob", "budget", "grant", "month", "0.1 kWh", "--reason", "x", "--approver", "ana")
    ledger = open_books(settings, SystemClock())
    ledger.allow(old, past)
    ledger.close()
    found = {each["allowance_id"] == "old": each["state"] for each in told("bob", "budget", "list")["allowances"]}
    assert found == {True: "expired", False: "active"}
    assert "2020-11)" not in run("bob", "balance").output
