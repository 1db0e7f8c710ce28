"""What people see of a ledger's URL."""

import pytest

from mlflow_green.ledger.address import shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ana:hunter2@db/green",
        "postgres://ana:hunter2@db/green",
        "mysql://ana:hunter2@db/green",
        "no-such-kind://ana:hunter2@db/green",
        "postgresql://ana:hunt@er2@db/green",
    ],
)
def test_no_password_is_shown_whatever_the_kind_of_the_database(url):
    assert "er2" not in shown(url)
    assert "ana" in shown(url)


def test_a_file_is_shown_as_it_was_written():
    assert shown("sqlite:////srv/green/ledger.db") == "sqlite:////srv/green/ledger.db"
