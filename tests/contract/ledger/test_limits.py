"""Which limit counts, in every ledger: allowances, what a period inherits, and what was approved."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from mlflow_green.errors import AllowanceRefused, LedgerError
from mlflow_green.ledger.allowances import Reviewed
from mlflow_green.ledger.verify import verify
from mlflow_green.records import AlertRule, Batch, Mode, Rollover, TopUp, Unit
from tests.testkit.ledger_samples import (
    NOON,
    OWNER,
    SetClock,
    admit_anything,
    admit_what_fits,
    lose,
    open_at,
    open_on_share,
    request,
    settle,
    term,
    void,
)
from tests.testkit.limit_samples import HOUR, grant, limited, months, override, version

MONTH = term()
SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER = months()


def ask(ledger, name, amount, *terms):
    (answer,) = ledger.commit(Batch(requests=(request(name, amount, *terms),), owner=OWNER), admit_what_fits).answers
    return answer


def hold(ledger, name, amount, *terms):
    answer = ask(ledger, name, amount, *(terms or (MONTH,)))
    assert answer.hold is not None, answer.decision.reason
    return answer.hold


def close(ledger, *closings):
    return ledger.commit(Batch(closings=closings), admit_what_fits)


def spend(ledger, name, amount, *terms):
    """Use ``amount``, however little there is: facts are never refused."""
    held = hold(ledger, name, 0, *terms)
    close(ledger, settle(held, amount))
    return held


def limits(ledger, *terms):
    return [balance.limit for balance in ledger.balances(terms or (MONTH,))]


def inherited(ledger, *terms):
    return [balance.extra for balance in ledger.balances(terms)]


@pytest.fixture(autouse=True)
def the_books_close_whatever_a_test_did(ledger):
    yield
    assert [f for f in verify(ledger, lambda _owner: True) if "windows attributed" not in f] == []


# --- grants and overrides ----------------------------------------------------------------------------


def test_a_hold_that_cannot_be_is_told_with_the_limit_that_counts(ledger, give):
    large = limited(1_000_000_000)
    hold(ledger, "first", 0, large)
    give(grant(2_600_000_000))
    asked = Batch(requests=(request("over", 5_000_000_000, large),), owner=OWNER)
    with pytest.raises(LedgerError, match=r"its limit is 1\.00 Wh"):
        ledger.commit(asked, admit_anything)


def test_a_grant_is_room_for_a_hold_and_for_a_top_up(ledger, give):
    hold(ledger, "train", 90)
    assert ask(ledger, "sweep", 20, MONTH).hold is None
    give(grant(30))
    held = hold(ledger, "sweep", 20)
    asked = TopUp(hold_id=held.hold_id, amounts={Unit.ENERGY: 50})
    assert ledger.commit(Batch(top_ups=(asked,)), admit_what_fits).top_ups == ({Unit.ENERGY: 20},)
    assert limits(ledger) == [130]


def test_a_grant_opens_the_bucket_of_a_budget_that_nobody_used_yet(ledger, give):
    with pytest.raises(LedgerError, match="no budget month"):
        give(grant(30))
    give(grant(30), MONTH)
    hold(ledger, "train", 130)


def test_an_allowance_counts_once_however_often_it_is_told(ledger, give):
    for _ in range(2):
        give(grant(30), MONTH)
    assert limits(ledger) == [130]
    assert [row.delta_limit for row in ledger.journal()] == [30]


def test_an_expired_override_lowers_the_limit_and_never_touches_what_was_spent(ledger, clock, give):
    hold(ledger, "train", 100)
    give(override(20))
    (held,) = [hold(ledger, "sweep", 20)]
    close(ledger, settle(held, 20))
    clock.move(3600)
    (balance,) = ledger.balances([MONTH])
    assert (balance.limit, balance.committed, balance.available) == (100, 120, -20)
    assert ask(ledger, "more", 1, MONTH).hold is None


def test_all_overrides_together_add_at_most_their_part_of_the_limit(ledger, clock, give):
    give(override(15), MONTH, max_extra=Decimal("0.2"))
    with pytest.raises(AllowanceRefused, match="leaves"):
        give(override(6), max_extra=Decimal("0.2"))
    give(override(5), max_extra=Decimal("0.2"))
    clock.move(3600)
    give(override(20, NOON + 2 * HOUR), max_extra=Decimal("0.2"))
    assert limits(ledger) == [120]


def test_an_override_that_has_expired_already_is_refused(ledger, clock, give):
    clock.move(3600)
    with pytest.raises(AllowanceRefused, match="expired"):
        give(override(5), MONTH)
    assert ledger.allowances() == ledger.balances() == ()


def test_what_nobody_approved_counts_from_its_approval_on(ledger, as_role):
    asked = override(20, approved_by=None)
    ledger.allow(asked, MONTH)
    assert limits(ledger) == [100]
    assert ledger.journal() == ()
    approved = as_role("ana").approve(asked.allowance_id, "ana", max_extra=Decimal("0.2"))
    who = ledger.identity() or "bob"
    assert approved == replace(asked, approved_by="ana", requested_by=who) == ledger.allowances()[0]
    assert limits(ledger) == [120]
    assert [(row.kind, row.delta_limit, row.reason) for row in ledger.journal()] == [
        ("override", 20, "approved by ana: deadline")
    ]


def test_who_asks_cannot_approve(ledger, as_role):
    ledger.allow(grant(20, approved_by=None), MONTH)
    with pytest.raises(AllowanceRefused, match="ask another"):
        as_role("test").approve("grant of 20", "bob")
    assert limits(ledger) == [100]


def test_an_allowance_is_approved_once_and_only_while_it_lasts(ledger, clock, as_role):
    with pytest.raises(AllowanceRefused, match="nobody asked"):
        as_role("ana").approve("grant of 20", "ana")
    ledger.allow(override(20, approved_by=None), MONTH)
    ledger.allow(override(10, approved_by=None))
    as_role("ana").approve("override of 20", "ana")
    with pytest.raises(AllowanceRefused, match="counts already"):
        as_role("cleo").approve("override of 20", "cleo")
    with pytest.raises(AllowanceRefused, match="leaves"):
        as_role("cleo").approve("override of 10", "cleo", max_extra=Decimal("0.2"))
    clock.move(3600)
    with pytest.raises(AllowanceRefused, match="expired"):
        as_role("cleo").approve("override of 10", "cleo")


def test_a_name_that_nobody_verified_is_told_as_such_or_refused(ledger):
    if ledger.identity() is not None:
        with pytest.raises(AllowanceRefused, match="another role"):
            ledger.allow(grant(20, approved_by=None, approver="ana"), MONTH)
        assert ledger.allowances() == ()
        return
    ledger.allow(grant(20, approved_by=None, approver="ana"), MONTH)
    assert limits(ledger) == [120]
    assert "named by bob: ana, not verified" in ledger.journal()[0].reason
    (row,) = ledger.pending("alert", NOON)
    assert "ana, not verified" in row.payload["text"]


def test_each_raise_is_told_to_the_channels_of_the_budget(ledger, as_role):
    ledger.allow(override(20, approved_by=None), MONTH, to=["team"])
    as_role("ana").approve("override of 20", "ana", to=["team"])
    asked, raised = ledger.pending("alert", NOON)
    assert "budget approve override of 20" in asked.payload["text"]
    assert f"{ledger.identity() or 'bob'} raised month" in raised.payload["text"]
    assert "approved by ana: deadline" in raised.payload["text"]
    assert (raised.payload["to"], raised.payload["amount"], raised.payload["limit"]) == (["team"], 20, 120)


def test_thresholds_are_parts_of_the_limit_that_counts(ledger, give):
    watched = term(alerts=(AlertRule(at_ratio=0.8, of_committed=True, to=()),))
    give(grant(100), watched)
    assert ledger.commit(Batch(requests=(request("a", 159, watched),), owner=OWNER), admit_what_fits).alerts == ()
    told = ledger.commit(Batch(requests=(request("b", 1, watched),), owner=OWNER), admit_what_fits)
    assert len(told.alerts) == 1
    assert ledger.pending("alert", NOON)[-1].payload["limit"] == 200


def test_a_raised_limit_is_a_new_generation(ledger, as_role):
    def generation():
        return ledger.commit(Batch(), admit_what_fits).generation

    ledger.allow(grant(10, approved_by=None), MONTH)
    start = generation()
    as_role("ana").approve("grant of 10", "ana")
    assert generation() == start + 1


def test_a_decision_remembers_the_limit_that_it_saw(ledger, clock, give):
    give(override(20), MONTH)
    hold(ledger, "train", 110)
    clock.move(3600)
    assert ledger.decisions()[0].balances[0].limit == 120


# --- what a period inherits --------------------------------------------------------------------------


def test_a_new_period_inherits_a_part_of_what_was_unused(ledger):
    spend(ledger, "train", 40, OCTOBER)
    hold(ledger, "sweep", 115, NOVEMBER)
    assert inherited(ledger, NOVEMBER) == [15]
    (row,) = [row for row in ledger.journal() if row.kind == "rollover"]
    assert (row.period, row.delta_limit) == ("2026-11", 15)


def test_a_first_period_inherits_nothing(ledger):
    hold(ledger, "sweep", 100, NOVEMBER)
    assert inherited(ledger, NOVEMBER) == [0]
    assert ledger.allowances() == ()


def test_what_is_inherited_has_a_cap(ledger):
    _, october, november, _ = months(unused=1.0, cap=0.5)
    spend(ledger, "train", 10, october)
    hold(ledger, "sweep", 0, november)
    assert inherited(ledger, november) == [50]


@pytest.mark.parametrize(("carries", "limit"), [(True, 70), (False, 100)])
def test_an_overspend_is_carried_where_the_budget_says_so(ledger, carries, limit):
    _, october, november, _ = months(carries=carries)
    spend(ledger, "train", 130, october)
    hold(ledger, "sweep", 0, november)
    assert limits(ledger, november) == [limit]


def test_open_holds_count_as_spent_and_are_corrected_when_they_close(ledger):
    held = [hold(ledger, name, 30, OCTOBER) for name in ("a", "b", "c")]
    hold(ledger, "sweep", 0, NOVEMBER)
    assert inherited(ledger, NOVEMBER) == [2]
    close(ledger, settle(held[0], 10))
    assert inherited(ledger, NOVEMBER) == [7]
    close(ledger, void(held[1]))
    assert inherited(ledger, NOVEMBER) == [15]
    close(ledger, lose(held[2], used=30, charged=150))
    assert inherited(ledger, NOVEMBER) == [-60]
    assert ledger.adjust(held[2].hold_id, {Unit.ENERGY: -100}, "cgroup counter")
    assert inherited(ledger, NOVEMBER) == [10]


def test_a_correction_goes_through_the_whole_chain(ledger):
    late = hold(ledger, "late", 0, SEPTEMBER)
    for number, month in enumerate((OCTOBER, NOVEMBER, DECEMBER)):
        spend(ledger, f"s{number}", 100, month)
    assert limits(ledger, OCTOBER, NOVEMBER, DECEMBER) == [125, 100, 100]
    close(ledger, settle(late, 150))
    # 50 too much in September: October had only 50 and used 100, November and December had 50 each.
    assert limits(ledger, OCTOBER, NOVEMBER, DECEMBER) == [50, 50, 50]


def test_debts_are_passed_on_until_they_are_paid(ledger):
    spend(ledger, "train", 330, SEPTEMBER)
    for month in (OCTOBER, NOVEMBER, DECEMBER):
        hold(ledger, month.period, 0, month)
    assert limits(ledger, OCTOBER, NOVEMBER, DECEMBER) == [0, 0, 70]


def test_what_was_inherited_is_not_passed_on_again(ledger):
    for number, month in enumerate((SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER)):
        hold(ledger, f"s{number}", 0, month)
    assert limits(ledger, OCTOBER, NOVEMBER, DECEMBER) == [125, 125, 125]


def test_a_grant_rolls_over_and_an_override_does_not(ledger, clock, give):
    give(grant(40, period="2026-10"), OCTOBER)
    give(override(40, period="2026-10"))
    hold(ledger, "sweep", 0, NOVEMBER)
    assert inherited(ledger, NOVEMBER) == [35]
    clock.move(3600)
    hold(ledger, "more", 0, NOVEMBER)
    assert inherited(ledger, NOVEMBER) == [35]


def test_what_an_override_allowed_is_no_overspend(ledger, give):
    give(override(40, period="2026-10"), OCTOBER)
    spend(ledger, "train", 150, OCTOBER)
    hold(ledger, "sweep", 0, NOVEMBER)
    assert inherited(ledger, NOVEMBER) == [-10]


def test_an_approval_in_an_old_period_corrects_the_new_one(ledger, as_role):
    ledger.allow(grant(40, period="2026-10", approved_by=None), OCTOBER)
    hold(ledger, "sweep", 0, NOVEMBER)
    as_role("ana").approve("grant of 40", "ana")
    assert inherited(ledger, NOVEMBER) == [35]


def test_whoever_comes_first_opens_the_period_and_the_others_change_nothing(ledger):
    spend(ledger, "train", 40, OCTOBER)
    hold(ledger, "a", 0, NOVEMBER)
    none = replace(NOVEMBER, rollover=None)
    all_of_it = replace(
        NOVEMBER,
        rollover=Rollover(previous_period="2026-10", unused_ratio=1.0, cap_ratio=1.0, carries_overspend=False),
    )
    for number, told in enumerate((NOVEMBER, none, all_of_it)):
        hold(ledger, f"b{number}", 0, told)
    assert inherited(ledger, NOVEMBER) == [15]
    assert len(ledger.allowances()) == 1


def test_a_hold_is_guarded_by_what_is_inherited(ledger):
    spend(ledger, "train", 130, OCTOBER)
    assert ask(ledger, "sweep", 71, NOVEMBER).hold is None
    assert ask(ledger, "fits", 70, NOVEMBER).hold is not None


def test_each_unit_and_account_inherits_its_own(ledger):
    carbon = months(unit=Unit.CARBON, unused=1.0)
    other = months(account="project:other", unused=1.0)
    held = hold(ledger, "train", {}, OCTOBER, carbon[1], other[1])
    close(ledger, settle(held, 100, operational_micrograms_co2e=70))
    hold(ledger, "sweep", {}, NOVEMBER, carbon[2], other[2])
    assert inherited(ledger, NOVEMBER, carbon[2], other[2]) == [0, 30, 0]


# --- approved limits ----------------------------------------------------------------------------------


def test_a_raised_limit_counts_once_it_was_applied(ledger):
    hold(ledger, "train", 80)
    raised = limited(200)
    assert ask(ledger, "sweep", 30, raised).hold is None
    assert limits(ledger, raised) == [100]
    ledger.apply_policy(version("v2"), [raised], approved_by="ana")
    assert limits(ledger, raised) == [200]
    assert ledger.balances()[0].limit == 200
    hold(ledger, "sweep", 30, raised)


def test_a_running_workflow_keeps_its_own_limit_when_a_higher_one_was_applied(ledger):
    hold(ledger, "train", 80)
    ledger.apply_policy(version("v2"), [limited(200)], approved_by="ana")
    assert ask(ledger, "old", 30, MONTH).hold is None
    assert ask(ledger, "new", 30, limited(200)).hold is not None


def test_a_limit_that_is_lowered_when_a_run_starts_needs_an_apply_to_rise_again(ledger):
    hold(ledger, "train", 10)
    (counts,) = ledger.record_policy(version("v2"), [limited(50)])
    assert counts.limit == 50
    (counts,) = ledger.record_policy(version("v3"), [limited(100)])
    assert counts.limit == 50
    assert limits(ledger) == [50]


def test_a_limit_that_is_seen_first_counts_at_once_with_its_policy(ledger):
    (counts,) = ledger.record_policy(version("v1"), [MONTH])
    assert (counts.limit, counts.mode, counts.policy_sha256) == (100, Mode.HARD, "sha of v1")
    ledger.record_policy(version("v2"), [limited(200)])
    assert ledger.approved_limits() == (counts,)


def test_a_limit_that_a_step_told_first_gets_the_policy_of_the_next_run(ledger):
    hold(ledger, "train", 10)
    assert ledger.approved_limits()[0].policy_sha256 == ""
    for name in ("v1", "v2"):
        ledger.record_policy(version(name), [MONTH])
    assert ledger.approved_limits()[0].policy_sha256 == "sha of v1"


def test_a_loosened_mode_counts_once_it_was_applied(ledger):
    soft = term(mode=Mode.SOFT)
    ledger.record_policy(version("v1"), [MONTH])
    (counts,) = ledger.record_policy(version("v2"), [soft])
    assert counts.mode is Mode.HARD
    ledger.apply_policy(version("v2"), [soft], approved_by="ana", reason="trial is over")
    (counts,) = ledger.approved_limits()
    assert (counts.mode, counts.approved_by, counts.reason) == (Mode.SOFT, "ana", "trial is over")
    (counts,) = ledger.record_policy(version("v1"), [MONTH])
    assert counts.mode is Mode.HARD


def test_applying_a_policy_raises_the_limit_of_every_account_of_a_budget(ledger):
    ana, bob = term(account="user:ana"), term(account="user:bob")
    hold(ledger, "a", 10, ana)
    hold(ledger, "b", 10, bob)
    ledger.apply_policy(version("v2"), [replace(ana, limit=300)], approved_by="ana")
    assert limits(ledger, replace(ana, limit=300), replace(bob, limit=300)) == [300, 300]
    assert [balance.limit for balance in ledger.balances()] == [300, 300]


def test_applying_a_policy_is_told_once_and_one_that_changes_nothing_is_not(ledger):
    ledger.record_policy(version("v1"), [MONTH])
    ledger.apply_policy(version("v1"), [MONTH], approved_by="ana", to=["team"])
    assert ledger.pending("alert", NOON) == ()
    ledger.apply_policy(version("v2"), [limited(200)], approved_by="ana", to=["team"])
    (row,) = ledger.pending("alert", NOON)
    assert "ana applied policy" in row.payload["text"]


def test_a_policy_is_kept_once_as_it_was(ledger):
    ledger.record_policy(version("v1"))
    ledger.record_policy(replace(version("v1"), author="cleo"))
    ledger.record_policy(version("v2"))
    assert ledger.policies() == (version("v1"), version("v2"))


def test_a_lower_limit_of_the_next_period_changes_what_it_may_inherit(ledger):
    spend(ledger, "train", 40, OCTOBER)
    hold(ledger, "sweep", 0, NOVEMBER)
    ledger.record_policy(version("v2"), [replace(NOVEMBER, limit=20)])
    hold(ledger, "more", 0, replace(NOVEMBER, limit=20))
    assert inherited(ledger, NOVEMBER) == [10]


@pytest.mark.parametrize("open_again", [open_at, open_on_share], ids=["sqlite", "journal"])
def test_what_counts_survives_closing_the_ledger(tmp_path, open_again):
    clock = SetClock()
    ledger = open_again(tmp_path / "again", clock=clock) if open_again is open_on_share else open_again(tmp_path)
    ledger.allow(grant(30), MONTH)
    ledger.allow(override(5, approved_by=None))
    ledger.approve("override of 5", "ana")
    ledger.record_policy(version("v1"), [MONTH])
    before = (ledger.allowances(), ledger.approved_limits(), ledger.policies(), ledger.balances())
    ledger.close()
    ledger = open_again(tmp_path / "again", clock=clock) if open_again is open_on_share else open_again(tmp_path)
    assert (ledger.allowances(), ledger.approved_limits(), ledger.policies(), ledger.balances()) == before
    ledger.close()


def test_what_was_applied_stays_with_who_and_why_and_a_dropped_limit_is_gone(ledger):
    ledger.record_policy(version("v1"), [MONTH])
    ledger.apply_policy(version("v2"), [limited(200)], approved_by="ana", requested_by="bob", reason="more nodes")
    ledger.apply_policy(
        version("v3"),
        [],
        approved_by=None,
        requested_by="bob",
        approver="cleo",
        reviewed=Reviewed(drops=[MONTH.key[:3]]),
    )
    raised, removed = ledger.applied_limits()
    assert (raised.before, raised.after, raised.approved_by, raised.reason) == (100, 200, "ana", "more nodes")
    assert (removed.before, removed.before_mode, removed.after) == (200, Mode.HARD, None)
    assert (removed.requested_by, removed.approver, removed.approved_by) == ("bob", "cleo", None)
    assert ledger.approved_limits() == ()


def test_applying_a_policy_leaves_the_budget_of_another_project_that_has_its_name(ledger):
    other = term(account="project:other")
    hold(ledger, "o", 10, other)
    ledger.record_policy(version("v1"), [MONTH])
    ledger.apply_policy(version("v2"), [limited(300)], approved_by="ana")
    assert limits(ledger, limited(300), replace(other, limit=300)) == [300, 100]
    assert {limit.account: limit.limit for limit in ledger.approved_limits()} == {
        "project:demo": 300,
        "project:other": 100,
    }


def test_what_changed_since_somebody_agreed_is_not_applied(ledger):
    ledger.record_policy(version("v1"), [MONTH])
    seen = Reviewed(seen=ledger.approved_limits())
    ledger.record_policy(version("v2"), [limited(50)])
    with pytest.raises(AllowanceRefused, match="nothing was applied"):
        ledger.apply_policy(version("v3"), [limited(200)], approved_by="ana", reviewed=seen)
    assert [limit.limit for limit in ledger.approved_limits()] == [50]
    seen = Reviewed(seen=ledger.approved_limits())
    ledger.apply_policy(version("v3"), [limited(200)], approved_by="ana", reviewed=seen)
    assert [limit.limit for limit in ledger.approved_limits()] == [200]


def test_what_else_becomes_looser_is_kept_with_who_applied_it(ledger):
    ledger.record_policy(version("v1"), [MONTH])
    weekly = Reviewed(reshaped={"month": "period week instead of period month"})
    ledger.apply_policy(version("v2"), [MONTH], approved_by="ana", reason="sprints", reviewed=weekly, to=["team"])
    (applied,) = ledger.applied_limits()
    assert (applied.before, applied.after) == (100, 100)
    assert applied.reason == "period week instead of period month; sprints"
    (row,) = ledger.pending("alert", NOON)
    assert "period week instead of period month" in row.payload["text"]


def test_allowances_that_are_asked_for_together_count_all_or_not_at_all(ledger):
    fits, too_much = override(15, approved_by=None), override(30, approved_by=None)
    with pytest.raises(AllowanceRefused, match="leaves"):
        ledger.allow_all([(fits, MONTH), (too_much, MONTH)], max_extra=Decimal("0.2"))
    assert ledger.allowances() == ()
    ledger.allow_all([(fits, MONTH), (override(5, approved_by=None), MONTH)], max_extra=Decimal("0.2"))
    assert sorted(each.amount for each in ledger.allowances()) == [5, 15]
