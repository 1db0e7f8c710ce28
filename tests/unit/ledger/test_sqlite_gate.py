from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.address import ledger_path
from mlflow_green.ledger.sqlite import wal_is_safe


@pytest.mark.parametrize("version", [(3, 51, 3), (3, 53, 4), (4, 0, 0), (3, 50, 7), (3, 50, 9), (3, 44, 6)])
def test_wal_is_used_where_its_bug_is_fixed(version):
    assert wal_is_safe(version)


@pytest.mark.parametrize(
    "version", [(3, 40, 1), (3, 51, 2), (3, 51, 0), (3, 50, 6), (3, 44, 5), (3, 45, 0), (3, 49, 9)]
)
def test_wal_is_not_used_where_it_can_corrupt(version):
    assert not wal_is_safe(version)


def test_a_relative_and_an_absolute_url_name_a_file():
    assert ledger_path("sqlite:///a/b.db") == Path("a/b.db")
    assert ledger_path("sqlite:////a/b.db") == Path("/a/b.db")


@pytest.mark.parametrize("url", ["/a/b.db", "postgresql://host/db", "sqlite://", "sqlite:///:memory:", ""])
def test_what_is_not_a_file_is_refused_with_an_example(url):
    with pytest.raises(LedgerUnavailable, match=r"sqlite:////absolute/path/ledger.db"):
        ledger_path(url)
