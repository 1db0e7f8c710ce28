"""Under PostgreSQL the database knows who asked for an allowance and who approved it, whatever a program says."""

from __future__ import annotations

import psycopg
import pytest

from tests.testkit.ledger_samples import SetClock, open_url, term
from tests.testkit.limit_samples import grant


def test_postgresql_itself_knows_who_asked_and_who_approved(postgres):
    database = postgres.new_database()
    ledger = open_url(database, clock=SetClock())
    ledger.allow(grant(30, approved_by=None), term())
    by_hand = "UPDATE allowances SET approved_by = 'ana'"
    with pytest.raises(psycopg.errors.RaiseException, match="role test asked for this allowance itself"):
        postgres.execute(by_hand, url=database)
    ben = postgres.as_role(database, "ben")
    postgres.execute("UPDATE allowances SET approved_by = 'ana', requested_by = 'cleo', amount = 1", url=ben)
    with pytest.raises(psycopg.errors.RaiseException, match="never changes"):
        postgres.execute("DELETE FROM allowances", url=ben)
    (allowance,) = ledger.allowances()
    assert (allowance.requested_by, allowance.approved_by, allowance.amount) == ("test", "ben", 30)
    with pytest.raises(psycopg.errors.RaiseException, match="afterwards"):
        postgres.execute(
            "INSERT INTO allowances SELECT 'x', kind, budget, account, unit, period, 9, made_at, expires_at, 'bob',"
            " approver, 'ana', reason FROM allowances",
            url=database,
        )
    ledger.close()
