"""``alerts send | list | test``, and the sender that a workflow starts at its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from mlflow_green.cli.doors import Place
from mlflow_green.cli.main import cli
from mlflow_green.clock import SystemClock
from mlflow_green.policy.document import load_policy
from mlflow_green.records import LetterState
from tests.testkit.alert_samples import WH, Spender, notify
from tests.testkit.books import ledger_in
from tests.testkit.mail_server import mail_server
from tests.testkit.receiver import receiver
from tests.testkit.snakemake_folder import SnakemakeFolder
from tests.testkit.waiting import comes_true

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH")  # of the mail server, which asks without TLS here

POLICY = f"""
version: 1
project: demo
budgets:
  - {{name: month, limit: 100 Wh, period: month, rules: [{notify(50, to="team, leads")}]}}
channels:
  team: {{webhook: "env:HOOK", secret: "env:HOOK_SECRET", quiet: 0s, allow: [http, private]}}
  leads: {{email: ana@lab.example, apprise: "env:APPRISE", quiet: 0s}}
"""
SECRETS = {"HOOK_SECRET": "s3cret-of-the-hook", "PW": "s3cret-of-the-mail", "token": "t0ken-in-the-url"}


class Commands:
    def __init__(self, folder):
        self.folder = folder
        (folder / "green.yaml").write_text(POLICY)
        self.environ = {"HOOK_SECRET": SECRETS["HOOK_SECRET"], "PW": SECRETS["PW"]}

    def __call__(self, *arguments):
        place = Place(cwd=self.folder, environ=self.environ)
        return CliRunner().invoke(cli, list(arguments), obj=place, catch_exceptions=False)

    def reach(self, server, mailbox):
        self.environ |= {
            "HOOK": server.url,
            "APPRISE": f"json://user:{SECRETS['token']}@127.0.0.1:{server.server_port}/",
            "MLFLOW_GREEN_SMTP": f"smtp://127.0.0.1:{mailbox.port}",
            "MLFLOW_GREEN_SMTP_USER": "green",
            "MLFLOW_GREEN_SMTP_PASSWORD": "env:PW",
        }

    def cross(self, wh=51):
        ledger = ledger_in(self.folder)
        Spender(ledger, load_policy(self.folder / "green.yaml"), SystemClock()).spend(wh * WH)
        ledger.close()


@pytest.fixture
def green(tmp_path):
    return Commands(tmp_path)


def test_alerts_are_sent_once_and_listed(green):
    green.cross()
    with receiver() as server, mail_server(asks_who=True) as mailbox:
        green.reach(server, mailbox)
        sent = green("alerts", "send")
        assert (sent.exit_code, len(sent.output.splitlines())) == (0, 3)
        assert green("alerts", "send").output == "There is nothing to send.\n"
    assert (len(server.received), len(mailbox.mails)) == (2, 1)
    listed = json.loads(green("alerts", "list", "--json").output)["alerts"]
    assert [row["state"] for row in listed] == ["delivered"] * 3
    assert "team webhook: mlflow-green: budget month has spent 50%" in green("alerts", "list").output


def test_a_channel_that_fails_is_said_and_the_exit_status_is_3(green):
    green.cross()
    with receiver([500]) as server, mail_server("550 nobody", asks_who=True) as mailbox:
        green.reach(server, mailbox)
        green.environ.pop("APPRISE")
        sent = green("alerts", "send")
    assert sent.exit_code == 3
    assert "team webhook: failed: HTTP 500, goes on at" in sent.output
    assert "leads email:ana@lab.example: dead: the mail server refuses it (550)" in sent.output
    assert "there is no variable APPRISE; export it" in sent.output
    assert "1 alert could not be delivered" in green("balance").output
    assert "given up  leads email:ana@lab.example" in green("alerts", "list").output


def test_nothing_that_is_kept_or_said_has_a_secret_in_it(green, caplog):
    caplog.set_level(0)
    green.cross()
    with receiver([500] * 2) as server, mail_server("450 later", asks_who=True) as mailbox:
        green.reach(server, mailbox)
        said = "".join(
            green("alerts", *words).output for words in (["send"], ["list"], ["list", "--json"], ["test", "leads"])
        )
        time.sleep(1)
        said += green("alerts", "send").output
    sent = b"".join(each.body for each in server.received) + b"".join(bytes(mail) for mail in mailbox.mails)
    kept = b"".join(path.read_bytes() for path in (green.folder / ".green").rglob("*") if path.is_file())
    assert sent
    assert mailbox.logins
    for secret in SECRETS.values():
        assert secret not in said + caplog.text
        assert secret.encode() not in sent + kept


def test_a_test_message_says_that_it_is_one(green):
    with receiver() as server, mail_server(asks_who=True) as mailbox:
        green.reach(server, mailbox)
        assert green("alerts", "test", "team").output == "team webhook: taken\n"
        green.environ["HOOK"] = "http://127.0.0.1:9/t0ken"
        failed = green("alerts", "test", "team")
    assert server.received[0].data["is_test"]
    assert (failed.exit_code, failed.output) == (3, "team webhook: failed: no answer: Connection refused\n")
    unknown = green("alerts", "test", "nobody")
    assert unknown.exit_code == 2
    assert "it has team, leads" in unknown.output


def test_where_nothing_was_metered_nothing_is_made(green):
    for words in (["send"], ["list"]):
        assert green("alerts", *words).exit_code == 0
    assert not (green.folder / ".green").exists()


def test_the_detached_sender_sends_after_its_parent_has_gone(green, monkeypatch):
    green.cross()
    with receiver() as server, mail_server(asks_who=True) as mailbox:
        green.reach(server, mailbox)
        for name, value in green.environ.items():
            monkeypatch.setenv(name, value)
        script = (
            "import sys, pathlib; from mlflow_green.alerts.child import start_sender;"
            "start_sender(pathlib.Path(sys.argv[1]), sys.argv[2])"
        )
        arguments = [str(green.folder / "green.yaml"), f"sqlite:///{green.folder / '.green/ledger.db'}"]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=60)
        assert comes_true(lambda: len(server.taken) == 2 and mailbox.mails, 30)
        ledger = ledger_in(green.folder)
        assert comes_true(lambda: len(ledger.rows("letter", LetterState.DELIVERED)) == 3, 30)
        ledger.close()


SNAKEFILE = """
    rule step:
        output: "out"
        shell: "for i in $(seq 300000); do :; done; touch {output}"
"""


def test_a_workflow_that_crosses_a_threshold_sends_it_without_waiting(tmp_path, monkeypatch):
    """The receiver answers only after Snakemake has ended."""
    with receiver(["hangs"]) as server:
        monkeypatch.setenv("HOOK", server.url)
        folder = SnakemakeFolder(
            tmp_path / "wf",
            SNAKEFILE,
            """
            budgets: [{name: month, limit: 1 uJ, period: month, rules: [{at: 50%, of: spent, do: notify, to: [team]}]}]
            channels: {team: {webhook: "env:HOOK", allow: [http, private]}}
            """,
        )
        run = folder.run("-c1")
        assert run.returncode == 0, run.output
        assert run.output.count("mlflow-green alerts send") == 1
        assert comes_true(lambda: server.received, 30)
    assert "has spent 50% of its energy limit" in server.received[0].data["subject"]
