"""Whether there is a ledger to read is known without making one, however its URL is written."""

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.sql import open_ledger
from mlflow_green.planning import has_ledger
from mlflow_green.settings import load_settings


@pytest.fixture
def settings(tmp_path):
    def of(url):
        return load_settings(tmp_path, {}, ledger_url=url.format(tmp_path))

    return of


@pytest.mark.parametrize("url", ["sqlite:///{}/a.db", "sqlite+pysqlite:///{}/a.db", "sqlite:///{}/a.db?timeout=5"])
def test_a_file_is_found_once_it_is_there(settings, url):
    found = settings(url)
    assert not has_ledger(found)
    open_ledger(found.ledger_url, mountinfo_path=found.mountinfo_path, clock=SystemClock()).close()
    assert has_ledger(found)


def test_a_database_on_a_server_is_asked_itself(settings):
    assert has_ledger(settings("postgresql://ana@nowhere.invalid/green"))
