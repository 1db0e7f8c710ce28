"""``ledger compact`` as a user calls it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from mlflow_green.cli.doors import Doors, Place
from mlflow_green.cli.main import cli
from mlflow_green.ledger.compaction import Compaction
from mlflow_green.ledger.memory import MemoryLedger
from tests.testkit.ledger_samples import SetClock, open_on_share


class DoorsTo(Doors):
    def __init__(self, ledger):
        self.ledger = ledger

    def open_reader(self, settings):
        return self.ledger


@pytest.fixture
def green(tmp_path):
    (tmp_path / ".green").mkdir()
    (tmp_path / ".green/ledger.db").touch()

    def invoke(ledger, *arguments):
        place = Place(cwd=tmp_path, environ={}, doors=DoorsTo(ledger))
        return CliRunner().invoke(cli, ["ledger", "compact", *arguments], obj=place, catch_exceptions=False)

    return invoke


@pytest.fixture
def ledger():
    """Two messages were delivered ten days ago."""
    clock = SetClock()
    ledger = MemoryLedger(clock)
    for number in range(3):
        ledger.put("mlflow", f"entry:{number}", {"entry_id": str(number)})
    for row in ledger.pending("mlflow", clock.now())[:2]:
        ledger.delivered(row.outbox_id)
    clock.move(timedelta(days=10).total_seconds())
    return ledger


def test_it_says_what_went_and_a_dry_run_what_would_go(green, ledger):
    assert "Would go: 2 mlflow messages. Nothing was changed." in green(ledger, "--keep", "5d", "--dry-run").output
    looked = json.loads(green(ledger, "--keep", "5d", "--dry-run", "--json").output)
    done = json.loads(green(ledger, "--keep", "5d", "--json").output)
    assert done == {**looked, "dry_run": False}
    assert done["messages"] == {"mlflow": 2}
    assert done["keep_seconds"] == 432_000
    assert "Nothing had to go." in green(ledger, "--keep", "5d").output


def test_what_is_younger_than_keep_stays(green, ledger):
    assert json.loads(green(ledger, "--json").output)["messages"] == {}
    assert json.loads(green(ledger, "--keep", "2w", "--json").output)["messages"] == {}


@pytest.mark.parametrize(
    ("keep", "said"),
    [("1h", "1d to 36500d"), ("0d", "1d to 36500d"), ("5215w", "is too much"), ("99999999w", "is too much")],
)
def test_a_keep_that_senders_or_the_calendar_cannot_have_is_refused(green, ledger, keep, said):
    result = green(ledger, "--keep", keep)
    assert result.exit_code == 2
    assert said in result.output


def test_a_file_that_could_not_shrink_is_said_with_exit_status_3(green, ledger):
    class Full(MemoryLedger):
        def compact(self, keep, *, only_look=False):
            return Compaction(messages={}, decisions=1, windows=0, bytes_before=5000, bytes_after=5000, problem="full")

    result = green(Full(SetClock()))
    assert result.exit_code == 3
    assert "Gone: 1 superseded answers" in result.output
    assert "the rows are gone, and the file is as large as before: full" in result.output


def test_a_journal_on_a_share_is_left_alone_with_the_reason(green, tmp_path):
    result = green(open_on_share(tmp_path))
    assert result.exit_code == 0
    assert result.output.startswith("Nothing was changed: on a network file system the ledger is a journal")


def test_where_nothing_was_metered_it_says_so(tmp_path):
    place = Place(cwd=tmp_path, environ={})
    result = CliRunner().invoke(cli, ["ledger", "compact", "--json"], obj=place, catch_exceptions=False)
    assert (result.exit_code, json.loads(result.output)["messages"]) == (0, {})
    assert not (tmp_path / ".green").exists()


def test_the_real_ledger_of_a_folder_is_compacted(green, tmp_path):
    place = Place(cwd=tmp_path, environ={})
    done = CliRunner().invoke(cli, ["ledger", "compact"], obj=place, catch_exceptions=False)
    assert done.exit_code == 0
    assert "Nothing had to go. The ledger took" in done.output
