"""A ledger in files that all members of a group write: the umask decides, as for any other file."""

import os
import stat

import pytest

from mlflow_green.records import Batch
from mlflow_green.spool import SpoolWriter
from tests.testkit.ledger_samples import OWNER, SetClock, admit_what_fits, open_at, open_on_share, request, term


@pytest.fixture
def umask_002():
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_every_file_of_a_ledger_is_writable_for_the_group_where_the_umask_says_so(kind, umask_002, tmp_path):
    folder = tmp_path / "green"
    folder.mkdir()
    ledger = open_at(folder) if kind == "sqlite" else open_on_share(folder, clock=SetClock())
    ledger.commit(Batch(owner=OWNER, requests=[request("train", 1, term())]), admit_what_fits)
    spool = SpoolWriter(folder / "spool" / "run.jsonl")
    spool.append({})
    shared = [folder] if kind == "sqlite" else [folder / "share", folder / "spool"]  # a cache is one user's own
    files = [path for part in shared for path in part.rglob("*") if path.is_file()]
    ledger.close()
    spool.close()
    assert len(files) >= 3
    assert [path.name for path in files if not path.stat().st_mode & stat.S_IWGRP] == []
