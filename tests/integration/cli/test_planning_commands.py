"""``policy replay`` and ``why-waiting`` on a real ledger, as a user calls them."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from mlflow_green.cli.doors import Place
from mlflow_green.cli.main import cli
from mlflow_green.clock import SystemClock
from mlflow_green.ledger.sql import open_ledger
from mlflow_green.policy.document import parse_policy
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Batch, Closing, ClosingKind, Domain, Step, StepSpec
from tests.testkit.ledger_samples import OWNER, energy
from tests.testkit.report_samples import entry
from tests.testkit.workloads import BOOK, WH

POLICY = """\
version: 1
project: demo
budgets:
  - {name: lab, limit: LIMIT, period: total, mode: hard, reserve: declared, max_wait: 2h}
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "green.yaml").write_text(POLICY.replace("LIMIT", "10 Wh"))
    return Place(cwd=tmp_path, environ={})


@pytest.fixture
def green(place):
    def invoke(*arguments):
        return CliRunner().invoke(cli, list(arguments), obj=place, catch_exceptions=False, env={"COLUMNS": "80"})

    return invoke


@pytest.fixture
def ledger(place):
    settings = place.settings()
    ledger = open_ledger(settings.ledger_url, mountinfo_path=settings.mountinfo_path, clock=SystemClock())
    yield ledger
    ledger.close()


def settle(ledger, name, energy_wh, days_ago):
    started = datetime.now(UTC) - timedelta(days=days_ago)
    used = round(energy_wh * WH)
    ran = replace(
        entry(name),
        entry_id=f"{name}-{days_ago}",
        hold_id=None,
        project="demo",
        energy={Domain.CPU: energy(used)},
        energy_charged_microjoules=used,
        started_at=started,
        ended_at=started + timedelta(minutes=10),
        tier=None,
    )
    ledger.commit(Batch(closings=(Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=ran),)), admit_at_nothing)


def ask(ledger, place, name, energy_wh):
    planner, clock = Planner(parse_policy(place.settings().policy_path.read_bytes()), BOOK, "run"), SystemClock()
    ticket = Ticket(step=Step(workflow_run="run", name=name), spec=StepSpec(energy_microjoules=round(energy_wh * WH)))
    asked = planner.request(ticket, ledger, clock.now())
    ledger.commit(Batch(requests=(asked,), owner=OWNER), planner.choose)


def test_a_replay_says_what_a_new_policy_would_have_saved(place, ledger, green):
    for name, energy_wh, days_ago in (("old", 100, 40), ("train", 3, 20), ("sweep", 4, 10), ("train", 1, 5)):
        settle(ledger, name, energy_wh, days_ago)
    file = place.cwd / "new.yaml"
    file.write_text(POLICY.replace("LIMIT", "105 Wh"))
    done = green("policy", "replay", str(file))
    assert done.exit_code == 3
    assert "would have refused 1 step, which saves 4.00 Wh; of the 3 steps from " in " ".join(done.stdout.split())
    told = json.loads(green("policy", "replay", str(file), "--json").stdout)
    assert [(step["step"], step["answer"]) for step in told["steps"]] == [
        ("train", "admit"),
        ("sweep", "refuse"),
        ("train", "admit"),
    ]
    assert told["saved_refused_microjoules"] == 4 * WH
    since = f"{datetime.now(UTC) - timedelta(days=7):%Y-%m-%d}"
    later = green("policy", "replay", str(file), "--since", since)
    assert (later.exit_code, "of the 1 step from" in " ".join(later.stdout.split())) == (3, True)
    generous = green("policy", "replay", str(place.cwd / "green.yaml"), "--since", since, "--until", since + "T01:00")
    assert (generous.exit_code, generous.stdout.count("No step of known energy ran")) == (0, 1)


def test_a_replay_changes_nothing(place, ledger, green):
    settle(ledger, "train", 3, 2)
    before = ledger.entries(), ledger.journal(), ledger.decisions(), ledger.balances()
    green("policy", "replay", str(place.cwd / "green.yaml"))
    assert before == (ledger.entries(), ledger.journal(), ledger.decisions(), ledger.balances())


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--since", "yesterday"], "is no date"), (["--since", "2026-02-01", "--until", "2026-01-01"], "is not before")],
)
def test_a_replay_of_no_time_is_a_wrong_call(place, green, options, said):
    done = green("policy", "replay", str(place.cwd / "green.yaml"), *options)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_wrong_policy_is_not_replayed(place, green):
    file = place.cwd / "wrong.yaml"
    file.write_text("version: 1\nproject: demo\nbudgetz: []\n")
    done = green("policy", "replay", str(file))
    assert done.exit_code == 1
    assert "did you mean 'budgets'" in done.stderr


def test_why_waiting_names_the_holder_and_what_happens_next(place, ledger, green):
    ask(ledger, place, "train", 8)
    ask(ledger, place, "sweep", 4)
    done = green("why-waiting")
    assert done.exit_code == 1
    text = " ".join(done.stdout.split())
    assert "sweep: waits for lab" in text
    assert "held by train 8.00 Wh (ana on node1, since" in text
    assert "2.00 Wh available of 10.0 Wh" in text
    assert "at the latest" in text
    told = json.loads(green("why-waiting", "sweep", "--json").stdout)["waiting"]
    assert [(each["needed"], each["available"], each["holders"][0]["amount"]) for each in told] == [
        (4 * WH, 2 * WH, 8 * WH)
    ]
    assert green("why-waiting", "train").exit_code == 0


def test_where_nothing_waits_why_waiting_says_so_and_makes_no_file(place, green):
    done = green("why-waiting")
    assert (done.exit_code, done.stdout) == (0, "Nothing waits.\n")
    assert not (place.cwd / ".green").exists()
