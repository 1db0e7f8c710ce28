import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
from click.testing import CliRunner

from mlflow_green.bootstrap import Ran
from mlflow_green.cli.doctor import cpu_name
from mlflow_green.cli.doors import Doors, Place
from mlflow_green.cli.main import cli
from mlflow_green.clock import SystemClock
from mlflow_green.errors import BudgetExceeded, LedgerUnavailable, StepHalted
from mlflow_green.ledger.sql import open_ledger
from mlflow_green.records import (
    Action,
    Batch,
    Closing,
    ClosingKind,
    Decision,
    Estimate,
    Fact,
    HoldRequest,
    Outcome,
    Owner,
    Step,
    StepSpec,
    Unit,
)
from tests.testkit.ledger_samples import die, lease_path, let_lapse, open_on_share
from tests.testkit.report_samples import CARBON_TERM, ENERGY_TERM, START, WH, entry

DEAD = Owner(host="elsewhere", boot_id="b", pid=1, started_ticks=1)


class RunDoors(Doors):
    """Doors whose ``run`` ends as it was told."""

    def __init__(self, end):
        self.end = end

    def run_command(self, settings, argv, *, project, step, energy):
        if isinstance(self.end, Exception):
            raise self.end
        return Ran(self.end, None)


@pytest.fixture
def place(tmp_path):
    return Place(cwd=tmp_path, environ={})


@pytest.fixture
def green(place):
    def invoke(*arguments):
        return CliRunner().invoke(cli, list(arguments), obj=place, catch_exceptions=False)

    return invoke


@pytest.fixture
def books(place):
    """A ledger with two settled trainings, one of them downgraded, and a refused sweep."""
    settings = place.settings()
    ledger = open_ledger(settings.ledger_url, mountinfo_path=settings.mountinfo_path, clock=SystemClock())
    settle(ledger, "train", "model=mlp", Action.DOWNGRADE, "full does not fit; half does", tier="half")
    settle(ledger, "train", "model=ridge", Action.ADMIT, "fits")
    refusal = refuse(ledger, "sweep")
    yield ledger
    assert refusal.action is Action.REFUSE
    ledger.close()


def request(name, wildcards=""):
    return HoldRequest(
        step=Step(workflow_run="run-2", name=name, wildcards=wildcards),
        project="load-forecast",
        user="uid:1000",
        spec=StepSpec(),
        estimates=(Estimate(tier=None, amounts={Unit.ENERGY: WH // 10, Unit.CARBON: 1}, source="declared"),),
        terms=(ENERGY_TERM, CARBON_TERM),
        requested_at=START,
    )


@pytest.fixture
def on_share(place, tmp_path, monkeypatch):
    """The working folder is on a network file system, and its ledger is that of ``open_on_share`` of this folder."""
    place.cwd = tmp_path / "share"
    place.cwd.mkdir()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {place.cwd} rw - nfs4 server:/share rw\n")
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path / "runtime"))
    place.environ = {
        "MLFLOW_GREEN_MOUNTINFO": str(mounts),
        "MLFLOW_GREEN_LEDGER": f"sqlite:///{place.cwd / 'ledger.db'}",
    }
    return tmp_path


def settle(ledger, name, wildcards, action, reason, tier=None):
    decision = Decision(
        action=action,
        would=action,
        tier=tier,
        amounts={Unit.ENERGY: WH // 10, Unit.CARBON: 1},
        reason=reason,
        estimate_source="maximum of 3 runs x 1.3",
        policy_sha256="ab" * 32,
    )
    done = ledger.commit(Batch(requests=(request(name, wildcards),), owner=DEAD), lambda *_: decision)
    hold = done.answers[0].hold
    item = entry(name, wildcards, tier=tier, decision=action, reason=reason, sampler_id=None)
    item = replace(item, hold_id=hold.hold_id, entry_id=f"e-{name}-{wildcards}")
    facts = (Fact(hold_id=hold.hold_id, name="quality/mape", value=2.5),)
    ledger.commit(
        Batch(closings=(Closing(kind=ClosingKind.SETTLE, hold_id=hold.hold_id, entry=item),), facts=facts),
        lambda *_: None,
    )


def refuse(ledger, name):
    decision = Decision(
        action=Action.REFUSE,
        would=Action.REFUSE,
        tier=None,
        amounts={},
        reason="project-month needs 2.00 Wh and has 900 mWh",
        budget="project-month",
        unit=Unit.ENERGY,
        needed=2 * WH,
        available=9 * WH // 10,
    )
    answer = ledger.commit(Batch(requests=(request(name),), owner=DEAD), lambda *_: decision).answers[0]
    item = entry(
        name, energy=None, outcome=Outcome.REFUSED, decision=Action.REFUSE, reason=decision.reason, sampler_id=None,
        started_at=START + timedelta(minutes=1), ended_at=START + timedelta(minutes=1),
    )  # fmt: skip
    ledger.commit(Batch(closings=(Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=item),)), lambda *_: None)
    return answer.decision


# --- with nothing there ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["balance"], ["ledger", "verify"], ["report"]])
def test_before_anything_was_metered_a_command_says_how_to_begin_and_makes_no_file(green, place, command):
    done = green(*command)
    assert done.exit_code == 0
    assert "Nothing has been metered here yet" in done.stdout
    assert list(place.cwd.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["balance"], {"balances": []}),
        (["ledger", "verify"], {"ok": True, "entries": 0, "findings": [], "unguarded": ""}),
        (["report"], {"entries": [], "balances": [], "estimates": [], "html": None}),
        (["sync"], {"left": 0}),
    ],
)
def test_before_anything_was_metered_json_is_still_json(green, command, answer):
    assert json.loads(green(*command, "--json").stdout) == answer


def test_an_export_of_nothing_is_empty_on_standard_output(green):
    done = green("ledger", "export")
    assert (done.exit_code, done.stdout) == (0, "")


# --- init and policy ----------------------------------------------------------------------------------


def test_init_writes_six_lines_that_policy_check_accepts(green, place):
    assert green("init", "--country", "FRA", "--project", "load-forecast").exit_code == 0
    assert len((place.cwd / "green.yaml").read_text().splitlines()) == 6
    checked = json.loads(green("policy", "check", "--json").stdout)
    assert checked["ok"]
    assert (checked["project"], checked["budgets"]) == ("load-forecast", ["project-month"])


@pytest.mark.parametrize("project", ["no", "1.5", "with: colon", 'quo"te', "#x", "ümlaut"])
def test_init_quotes_a_project_that_yaml_would_misread(green, project):
    assert green("init", "--project", project).exit_code == 0
    assert json.loads(green("policy", "check", "--json").stdout)["project"] == project


def test_init_never_overwrites(green, place):
    (place.cwd / "green.yaml").write_text("mine")
    done = green("init")
    assert done.exit_code == 2
    assert "was not touched" in done.stderr
    assert (place.cwd / "green.yaml").read_text() == "mine"


def test_init_with_an_unknown_country_writes_nothing_and_says_why(green, place):
    done = green("init", "--country", "XYZ")
    assert done.exit_code == 2
    assert "XYZ" in done.stderr
    assert not (place.cwd / "green.yaml").exists()


def test_init_may_name_a_cloud_region_and_only_one_place(green, place):
    assert green("init", "--cloud", "aws:eu-west-3", "--country", "FRA").exit_code == 2
    done = green("init", "--cloud", "aws:eu-west3")
    assert "did you mean aws:eu-west-3" in done.stderr
    assert not (place.cwd / "green.yaml").exists()
    assert green("init", "--cloud", "aws:eu-west-3").exit_code == 0
    assert "g/kWh (aws:eu-west-3)" in green("doctor").stdout


def test_policy_check_shows_every_problem_with_its_place(green, place):
    (place.cwd / "green.yaml").write_text(
        "version: 1\nprojekt: x\nbudgets:\n  - {name: a, limit: 5 foo, period: month}\n"
    )
    done = green("policy", "check")
    assert done.exit_code == 1
    assert "green.yaml:2" in done.stdout
    assert "green.yaml:4" in done.stdout
    assert json.loads(green("policy", "check", "--json").stdout)["ok"] is False


def test_policy_check_notes_what_a_channel_lacks_here_and_is_content(green, place):
    channels = (
        "channels: {a: {email: ana@lab.example}, b: {webhook: 'env:NO_SUCH'}, c: {webhook: 'https://10.0.0.1/x'}}"
    )
    (place.cwd / "green.yaml").write_text(f"version: 1\nproject: x\n{channels}\n")
    done = green("policy", "check")
    assert done.exit_code == 0, done.stdout
    notes = [line for line in done.stdout.splitlines() if line.startswith("Note: ")]
    assert [note.split(": ")[1] for note in notes] == ["channel a", "channel b", "channel c"]
    assert "MLFLOW_GREEN_SMTP is not set" in notes[0]
    assert "NO_SUCH" in notes[1]
    assert "allow: [private]" in notes[2]


def test_policy_check_without_a_file_says_what_to_do(green):
    done = green("policy", "check")
    assert done.exit_code == 2
    assert "mlflow-green init" in done.stderr


# --- reading the ledger ----------------------------------------------------------------------------------


def test_balance_shows_what_is_spent_and_left(green, books):
    assert "992 mWh" in green("balance").stdout
    told = json.loads(green("balance", "--json").stdout)["balances"]
    energy = next(each for each in told if each["unit"] == "energy")
    assert energy["limit"] - energy["spent"] - energy["held"] - energy["pending"] == energy["available"]
    assert energy["spent"] == 2 * (WH // 250)


def test_balance_shows_a_budget_that_nobody_has_used_yet(green, place):
    (place.cwd / "green.yaml").write_text(
        "version: 1\nproject: p\nbudgets: [{name: fresh, limit: 5 kWh, period: total, mode: hard}]\n"
    )
    assert "fresh" in green("balance").stdout
    (told,) = json.loads(green("balance", "--json").stdout)["balances"]
    assert (told["budget"], told["spent"], told["held"], told["available"]) == ("fresh", 0, 0, 5000 * WH)


def test_explain_shows_reason_estimate_policy_and_the_balances_it_saw(green, books):
    done = green("explain", "train[model=mlp]")
    assert done.exit_code == 0
    for words in (
        "downgrade",
        "full does not fit; half does",
        "maximum of 3 runs x 1.3",
        "abababababab",
        "project-month",
    ):
        assert words in done.stdout
    assert "ridge" not in done.stdout


def test_explain_of_a_rule_covers_all_its_wildcards(green, books):
    told = json.loads(green("explain", "train", "--json").stdout)["decisions"]
    assert {each["wildcards"] for each in told} == {"model=mlp", "model=ridge"}
    assert {each["outcome"] for each in told} == {"succeeded"}


def test_explain_of_a_refusal_names_budget_needed_and_available(green, books):
    assert "project-month (energy): needed 2.00 Wh, available 900 mWh" in green("explain", "sweep").stdout


def test_explain_of_an_unknown_step_names_those_it_knows(green, books):
    done = green("explain", "trian")
    assert done.exit_code == 1
    assert "train[model=mlp]" in done.stderr


def test_explain_of_something_that_is_no_step_is_a_usage_error(green):
    assert green("explain", "train[").exit_code == 2


def test_verify_is_silent_about_books_that_close(green, books):
    done = green("ledger", "verify")
    assert (done.exit_code, done.stdout) == (0, "The books close: 3 entries, no findings.\n")


def test_verify_exits_1_when_something_does_not_close(green, books, place):
    with sqlite3.connect(place.cwd / ".green" / "ledger.db") as database:
        database.execute("UPDATE buckets SET spent = spent + 1")
    done = green("ledger", "verify", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 1
    assert not told["ok"]
    assert "project-month" in told["findings"][0]


def test_export_writes_one_object_a_line(green, books):
    lines = [json.loads(line) for line in green("ledger", "export").stdout.splitlines()]
    assert [line["step"] for line in lines] == [e.step for e in books.entries()]
    assert all(isinstance(line["energy_charged_microjoules"], int) for line in lines)
    assert green("ledger", "export", "--nodes").stdout == ""


def test_report_shows_tables_and_writes_the_page(green, books, place):
    done = green("report")
    page = place.cwd / ".green" / "report.html"
    assert done.exit_code == 0
    assert "full does not fit; half does" in page.read_text()
    assert f"Report: {page}" in done.stdout
    assert "MLflow: no store in this folder" in done.stdout
    assert "4.00 mWh [1.33, 12.0] est." in " ".join(done.stdout.split())


def test_report_names_the_mlflow_store_that_the_workflow_wrote(green, books, place):
    (place.cwd / "green.yaml").write_text("version: 1\nproject: load-forecast\n")
    (place.cwd / "mlflow.db").touch()
    assert green("report").stdout.endswith("MLflow: mlflow ui\n")
    project, place.cwd = place.cwd, place.cwd / "sub folder"
    place.cwd.mkdir()
    assert green("report").stdout.endswith(f"MLflow: cd {project} && mlflow ui\n")
    (place.cwd / "mlruns").mkdir()
    assert green("report").stdout.endswith("MLflow: mlflow ui\n")
    place.environ = {"MLFLOW_TRACKING_URI": "sqlite:////data/my runs.db"}
    assert green("report").stdout.endswith("MLflow: mlflow ui --backend-store-uri 'sqlite:////data/my runs.db'\n")
    place.environ = {"MLFLOW_TRACKING_URI": "https://mlflow.example"}
    assert green("report").stdout.endswith("MLflow: open https://mlflow.example\n")


def test_report_json_has_entries_balances_and_the_place_of_the_page(green, books, tmp_path):
    told = json.loads(green("report", "--json", "--html", str(tmp_path / "x.html"), "--workflow-run", "last").stdout)
    assert (len(told["entries"]), len(told["balances"])) == (3, 2)
    assert told["html"] == str(tmp_path / "x.html")


def test_the_ledger_option_wins_over_the_working_directory(green, books, place, tmp_path_factory):
    url = place.settings().ledger_url
    place.cwd = tmp_path_factory.mktemp("elsewhere")
    assert "project-month" in green("--ledger", url, "balance").stdout


def test_the_entries_function_reads_the_same_ledger(books, place, monkeypatch):
    import mlflow_green

    monkeypatch.chdir(place.cwd)
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop("MLFLOW_GREEN_LEDGER", None)
    frame = mlflow_green.entries()
    assert list(frame["step"]) == [e.step for e in books.entries()]


# --- run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "code"), [(0, 0), (7, 7), (76, 76), (BudgetExceeded("x: refused"), 77), (StepHalted("x: halted"), 76)]
)
def test_run_exits_with_the_commands_own_status_or_ours(green, place, end, code):
    place.doors = RunDoors(end)
    done = green("run", "--", "train", "--help")
    assert done.exit_code == code
    if isinstance(end, Exception):
        assert done.stderr == f"mlflow-green: {end}\n"


def test_run_without_a_command_is_a_usage_error(green):
    assert green("run").exit_code == 2


def test_run_refuses_an_energy_without_a_unit_before_it_starts(green, place):
    place.doors = RunDoors(0)
    done = green("run", "--energy", "5", "--", "true")
    assert done.exit_code == 2
    assert "5 kWh" in done.stderr


# --- errors ---------------------------------------------------------------------------------------------------


def test_an_unusable_ledger_is_one_message_and_exit_status_3(green, place):
    (place.cwd / ".green").mkdir()
    (place.cwd / ".green" / "ledger.db").write_text("this is not a database, " * 100)
    done = green("balance")
    assert done.exit_code == 3
    assert done.stderr.startswith("mlflow-green: ")
    assert "Traceback" not in done.output


def test_a_missing_policy_file_is_a_usage_error(green):
    done = green("--policy", "nowhere.yaml", "balance")
    assert done.exit_code == 2
    assert "nowhere.yaml" in done.stderr


def test_a_page_that_cannot_be_written_is_one_message(green, books, tmp_path):
    (tmp_path / "file").write_text("")
    done = green("report", "--html", str(tmp_path / "file" / "x.html"))
    assert done.exit_code == 3
    assert "cannot use" in done.stderr


def test_the_errors_of_the_environment_have_their_own_status(green, place):
    place.doors = RunDoors(LedgerUnavailable("the disk is full; free some space"))
    assert green("run", "--", "true").exit_code == 3


# --- doctor -----------------------------------------------------------------------------------------------------


def test_doctor_says_what_is_measured_where_and_by_which_programs(green, place):
    told = json.loads(green("doctor", "--json").stdout)
    assert told["devices"], told["notes"]
    assert {device["method"] for device in told["devices"]} <= {"measured", "estimated"}
    assert told["programs"]["mlflow"]["in_range"]
    assert told["programs"]["snakemake"]["in_range"]
    assert told["ledger"]["url"].startswith("sqlite:///")
    assert "no green.yaml" in green("doctor").stdout


def test_doctor_describes_the_machine(green):
    told = json.loads(green("doctor", "--json").stdout)["machine"]
    assert set(told) == {"cpu_name", "cores_physical", "cores_logical", "memory_gib"}
    assert told["cores_logical"] >= (told["cores_physical"] or 1) >= 1
    assert told["memory_gib"] == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, abs=0.1
    )
    shown = green("doctor").stdout
    assert shown.startswith("Machine ")
    assert f"{told['cores_logical']} logical" in shown


def test_a_cpu_without_a_name_has_none():
    assert cpu_name("processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\n") == (
        "AMD EPYC 7763 64-Core Processor"
    )
    assert cpu_name("processor\t: 0\nCPU part\t: 0xd0c\n") is None


def test_doctor_names_a_broken_policy_as_a_problem(green, place):
    (place.cwd / "green.yaml").write_text("version: 1\n")
    done = green("doctor", "--json")
    assert done.exit_code == 1
    assert "project" in json.loads(done.stdout)["problems"][0]


def test_doctor_names_a_ledger_that_cannot_be_used(green, place):
    (place.cwd / ".green").mkdir()
    (place.cwd / ".green" / "ledger.db").write_text("this is not a database, " * 100)
    done = green("doctor", "--json")
    assert done.exit_code == 1
    assert "ledger.db" in json.loads(done.stdout)["problems"][0]


def test_doctor_names_a_network_file_system_before_a_ledger_is_there(green, place, tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text("1 0 0:1 / / rw - nfs4 server:/home rw\n")
    place.environ = {"MLFLOW_GREEN_MOUNTINFO": str(mounts)}
    done = green("doctor", "--json")
    assert done.exit_code == 1
    assert "nfs4" in json.loads(done.stdout)["problems"][0]


def test_doctor_says_where_the_ledger_of_a_share_is_and_makes_nothing(green, on_share, place, tmp_path):
    told = json.loads(green("doctor", "--json").stdout)["ledger"]
    assert told["journal"] == str(place.cwd / "ledger.journal")
    assert told["cache"].startswith(str(tmp_path / "runtime"))
    assert told["held_by"] is None
    shown = " ".join(green("doctor").stdout.split())
    assert f"the journal {told['journal']}, on a network file system (nfs4), for one host at a time" in shown
    assert f"its cache on this host is {told['cache']}" in shown
    assert "nothing was metered here yet" in shown
    assert list(place.cwd.iterdir()) == []
    assert not (tmp_path / "runtime").exists()


@pytest.mark.parametrize("lapsed", [False, True])
def test_doctor_says_who_has_a_ledger_and_does_not_take_it_away(green, on_share, place, lapsed):
    ledger = open_on_share(on_share, host="login1")
    if lapsed:
        die(ledger)
        let_lapse(on_share)
    before = lease_path(on_share).read_text()
    done = green("doctor", "--json")
    told = json.loads(done.stdout)["ledger"]
    assert told["held_by"]["host"] == "login1"
    assert told["held_by"]["since"].startswith("20")
    assert (told["held_by"]["last_sign_of_life_seconds"] > 3000) is lapsed
    shown = " ".join(green("doctor").stdout.split())
    if lapsed:
        assert "host login1 has not released the ledger" in shown
        assert "the next command here takes it over" in shown
    else:
        assert "is in use by host login1, since 20" in shown
        assert "work there, or wait" in shown
        assert "in use by host login1" in green("balance").stderr
        ledger.close()
    assert done.exit_code == green("doctor").exit_code == 0
    assert lease_path(on_share).read_text() == ("" if not lapsed else before)


def test_a_reading_command_finds_the_history_of_a_share(green, on_share):
    ledger = open_on_share(on_share, host="login1")
    settle(ledger, "train", "model=mlp", Action.ADMIT, "fits")
    ledger.close()
    assert "project-month" in green("balance").stdout
    assert green("ledger", "verify").stdout == "The books close: 1 entry, no findings.\n"
    assert json.loads(green("doctor", "--json").stdout)["ledger"]["waiting_for_mlflow"] == 1


def test_doctor_says_how_much_waits_for_mlflow(green, books):
    assert json.loads(green("doctor", "--json").stdout)["ledger"]["waiting_for_mlflow"] == books.count("mlflow") > 0


# --- as a program ----------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom mlflow_green.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "heavy = {'pandas', 'numpy', 'mlflow', 'sqlalchemy', 'jinja2', 'matplotlib', 'codecarbon', 'pydantic', 'rich'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_ends_the_export_quietly(books, place):
    refused = [
        entry(f"step{n}", energy=None, outcome=Outcome.REFUSED, decision=Action.REFUSE, reason="no room " * 60)
        for n in range(300)
    ]
    closings = tuple(Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=each) for each in refused)
    books.commit(Batch(closings=closings), lambda *_: None)
    command = f"{sys.executable} -m mlflow_green.cli ledger export | head -c 10 >/dev/null"
    done = subprocess.run(command, shell=True, cwd=place.cwd, capture_output=True, text=True, check=False)
    assert done.stderr == ""
