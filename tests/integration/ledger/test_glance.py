"""Whether a ledger may know a hard budget, asked without opening it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlflow_green.ledger.glance import may_know_hard
from mlflow_green.records import Mode
from tests.testkit.ledger_samples import open_at, open_on_share, term
from tests.testkit.limit_samples import version

OPEN = {"sqlite": (open_at, ""), "journal": (open_on_share, "share")}


@pytest.mark.parametrize("kind", OPEN)
def test_a_ledger_is_known_by_its_hard_limits_also_while_it_is_written(kind, tmp_path):
    open_in, folder = OPEN[kind]
    url = f"sqlite:///{tmp_path / folder / 'ledger.db'}"
    ledger = open_in(tmp_path)
    ledger.record_policy(version("v1"), [term(mode=Mode.SOFT)])
    assert not may_know_hard(url)
    ledger.record_policy(version("v2"), [term("other")])
    assert may_know_hard(url)
    ledger.close()
    files = set(tmp_path.rglob("*"))
    assert may_know_hard(url)
    assert set(tmp_path.rglob("*")) == files


def test_what_only_opening_it_tells_may_be_hard_and_what_is_not_there_is_not(tmp_path):
    (tmp_path / "broken.db").write_bytes(b"no ledger at all" * 100)
    assert may_know_hard(f"sqlite:///{tmp_path / 'broken.db'}")
    assert may_know_hard("postgresql://nobody@nowhere/green")
    assert not may_know_hard(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == [tmp_path / "broken.db"]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:////tmp/a\0b"])
def test_what_is_no_address_of_a_file_may_be_hard_so_that_opening_it_says_so(url):
    assert may_know_hard(url)


@pytest.mark.parametrize("closed", ["ledger.journal", "."])
def test_a_folder_that_may_not_be_looked_into_may_hold_a_hard_limit(closed, tmp_path, monkeypatch):
    (tmp_path / "ledger.journal").mkdir()
    (tmp_path / "ledger.journal" / "1.jsonl").touch()
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above may be closed too
    assert not as_anybody("sqlite:///ledger.db")
    (tmp_path / closed).chmod(0o000 if closed == "." else 0o311)
    try:
        assert as_anybody("sqlite:///ledger.db")
    finally:
        (tmp_path / closed).chmod(0o700)


def as_anybody(url):
    """What a user says for whom a closed folder is closed, as it is not for root."""
    child = os.fork()
    if not child:
        if os.getuid() == 0:
            os.setuid(65534)
        os._exit(may_know_hard(url))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_looking_loads_nothing_heavy(tmp_path):
    open_at(tmp_path).close()
    code = (
        "import sys; from mlflow_green.ledger.glance import may_know_hard\n"
        f"print(may_know_hard({f'sqlite:///{tmp_path}/ledger.db'!r}), 'sqlalchemy' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )
