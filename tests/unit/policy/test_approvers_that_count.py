"""Whose approval counts for a budget, whatever the versions say that other accounts were first seen with."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.raising import governing
from mlflow_green.records import ApprovedLimit, Mode, PolicyVersion, Unit

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def said(approver, hours):
    text = (
        "version: 1\nproject: demo\nbudgets: [{name: month, limit: 1 Wh, period: month, mode: hard, override:"
        f" {{approvers: 'user:{approver}', max_extra: 5%}}}}]"
    )
    return PolicyVersion(sha256=approver, text=text, author="dora", at=NOON + timedelta(hours=hours))


def row(version, user, approved_by=""):
    return ApprovedLimit(
        budget="month",
        account=f"project:demo/user:{user}",
        unit=Unit.ENERGY,
        limit=1,
        mode=Mode.HARD,
        at=NOON,
        policy_sha256=version.sha256,
        approved_by=approved_by,
    )


def test_what_was_applied_goes_before_what_was_first_seen_earlier_and_that_before_what_was_seen_later():
    first, applied, later = said("ana", 0), said("erik", 1), said("dora", 2)
    versions = (later, first, applied)
    seen = [row(first, "ana"), row(later, "dora")]
    current = parse_policy(later.text.encode())
    for approved, counts in ((seen, "user:ana"), ([*seen, row(applied, "lena", "erik")], "user:erik")):
        for order in permutations(approved):
            rules = governing("month", current, order, versions)
            assert rules is not None
            assert list(rules.approvers) == [counts]
