"""Which budgets a step falls under, and when their periods begin and end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.policy.document import Period, Reserve, parse_policy
from mlflow_green.policy.terms import (
    is_over,
    period_end,
    period_key,
    previous_period_key,
    reserve_for,
    terms,
    without_ledger,
)
from mlflow_green.records import Action, AlertRule, Batch, Mode, Rollover, Unit
from tests.testkit.ledger_samples import OWNER, admit_what_fits, request

PARIS = ZoneInfo("Europe/Paris")
POLICY = parse_policy(
    b"""
version: 1
project: vision
timezone: Asia/Tokyo
site: {country: JPN}
budgets:
  - {name: mine, limit: [1 kWh, 2 kgCO2e], period: month, mode: hard, reserve: p50}
  - {name: lab, scope: {org: lab}, limit: 9 kWh, period: total, reserve: max}
  - {name: each, scope: {project: vision, user: "*"}, limit: 1 Wh, period: week}
  - {name: other, scope: {project: genomics}, limit: 1 Wh, period: day}
  - name: run
    limit: 1 Wh
    period: workflow
    rules:
      - {at: 50%, of: spent, do: notify, to: t}
      - {at: 80%, do: notify, to: t}
      - {at: 90%, of: forecast, do: notify, to: t}
channels: {t: {email: a@b.example}}
"""
)
NEW_YEAR_IN_TOKYO = datetime(2026, 12, 31, 15, 0, tzinfo=UTC)
ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Paris",
        "America/Sao_Paulo",  # its clocks went forward at midnight
        "Asia/Beirut",
        "Pacific/Apia",  # had no 30 December 2011
        "Asia/Kathmandu",
        "America/Havana",  # has midnight twice
    ]
)
EPOCH = datetime(1990, 1, 1, tzinfo=UTC)
MOMENTS = st.timedeltas(timedelta(), timedelta(days=45 * 365)).map(lambda since: EPOCH + since)
DATED = [Period.DAY, Period.WEEK, Period.MONTH, Period.QUARTER, Period.YEAR]


def found(**changes):
    facts = {"project": "vision", "user": "ana", "org": "lab", "now": NEW_YEAR_IN_TOKYO, "workflow_run": "w1"} | changes
    return {(term.budget, term.unit): term for term in terms(POLICY, **facts)}


def test_a_step_falls_under_every_matching_budget_once_for_each_unit():
    assert list(found()) == [
        ("mine", Unit.ENERGY),
        ("mine", Unit.CARBON),
        ("lab", Unit.ENERGY),
        ("each", Unit.ENERGY),
        ("run", Unit.ENERGY),
    ]


def test_the_account_names_only_the_levels_of_the_scope():
    accounts = {budget: term.account for (budget, _), term in found().items()}
    assert accounts == {
        "mine": "project:vision",
        "lab": "org:lab",
        "each": "project:vision/user:ana",
        "run": "project:vision",
    }


def test_a_budget_for_each_user_is_another_bucket_for_another_user():
    assert found(user="ben")["each", Unit.ENERGY].key != found()["each", Unit.ENERGY].key
    assert found(user="ben")["mine", Unit.ENERGY].key == found()["mine", Unit.ENERGY].key


def test_a_slash_in_a_name_is_not_a_level_of_the_account():
    assert found(user="a/b")["each", Unit.ENERGY].account == "project:vision/user:a%2Fb"


def test_an_organisation_that_is_not_known_is_the_one_that_the_budget_names():
    assert found(org=None)["lab", Unit.ENERGY].account == "org:lab"
    assert ("lab", Unit.ENERGY) not in found(org="another")


def test_periods_follow_the_time_zone_of_the_policy():
    periods = {budget: term.period for (budget, _), term in found().items()}
    assert periods == {"mine": "2027-01", "lab": "total", "each": "2026-W53", "run": "workflow:w1"}


def test_notify_rules_become_alerts_of_what_is_spent_or_committed():
    assert found()["run", Unit.ENERGY].alerts == (
        AlertRule(at_ratio=0.5, of_committed=False, to=("t",)),
        AlertRule(at_ratio=0.8, of_committed=True, to=("t",)),
    )
    assert found()["run", Unit.ENERGY].mode is Mode.OBSERVE


def test_the_most_cautious_budget_says_what_is_reserved():
    assert reserve_for(POLICY, tuple(found().values())) is Reserve.MAX
    assert reserve_for(POLICY, (found()["mine", Unit.ENERGY],)) is Reserve.P50
    assert reserve_for(POLICY, ()) is Reserve.P95


@pytest.mark.parametrize(
    ("period", "key"),
    [("day", "2026-11-21"), ("week", "2026-W47"), ("month", "2026-11"), ("quarter", "2026-Q4"), ("year", "2026")],
)
def test_each_period_has_its_name(period, key):
    assert period_key(Period(period), datetime(2026, 11, 21, 9, tzinfo=UTC), UTC, "w") == key


def test_a_day_is_23_hours_long_when_the_clocks_go_forward():
    paris, before = ZoneInfo("Europe/Paris"), datetime(2026, 3, 28, 23, 30, tzinfo=UTC)
    assert period_end(Period.DAY, before, paris) == datetime(2026, 3, 29, 22, 0, tzinfo=UTC)
    assert period_end(Period.DAY, before - timedelta(hours=1), paris) == datetime(2026, 3, 28, 23, 0, tzinfo=UTC)


def test_a_workflow_and_a_total_have_no_end_that_a_clock_brings():
    assert period_end(Period.WORKFLOW, NEW_YEAR_IN_TOKYO, UTC) is None
    assert period_end(Period.TOTAL, NEW_YEAR_IN_TOKYO, UTC) is None


def test_a_day_is_25_hours_long_when_the_clocks_go_back():
    paris, before = ZoneInfo("Europe/Paris"), datetime(2026, 10, 24, 22, 0, tzinfo=UTC)
    assert period_end(Period.DAY, before, paris) == before + timedelta(hours=25)
    assert period_end(Period.DAY, before + timedelta(hours=24, minutes=59), paris) == before + timedelta(hours=25)


def test_a_day_that_goes_on_after_a_minute_of_the_next_ends_a_second_time():
    zone, first_midnight = ZoneInfo("America/St_Johns"), datetime(2010, 11, 7, 2, 30, tzinfo=UTC)  # 00:01 was 23:01
    again = first_midnight + timedelta(minutes=30)
    assert [period_key(Period.DAY, at, zone, "w") for at in (first_midnight, again)] == ["2010-11-07", "2010-11-06"]
    assert period_end(Period.DAY, again, zone) == first_midnight + timedelta(hours=1)


@pytest.mark.parametrize(
    ("period", "now", "key", "end"),
    [
        ("week", datetime(2027, 1, 3, 23, 59, tzinfo=UTC), "2026-W53", datetime(2027, 1, 4, tzinfo=UTC)),
        ("week", datetime(2024, 12, 30, tzinfo=UTC), "2025-W01", datetime(2025, 1, 6, tzinfo=UTC)),
        ("quarter", datetime(2026, 3, 31, 23, 59, tzinfo=UTC), "2026-Q1", datetime(2026, 4, 1, tzinfo=UTC)),
        ("quarter", datetime(2026, 12, 31, tzinfo=UTC), "2026-Q4", datetime(2027, 1, 1, tzinfo=UTC)),
        ("month", datetime(2028, 2, 29, 12, tzinfo=UTC), "2028-02", datetime(2028, 3, 1, tzinfo=UTC)),
        ("year", datetime(2026, 12, 31, 23, 59, tzinfo=UTC), "2026", datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_weeks_quarters_and_years_end_where_the_calendar_says(period, now, key, end):
    assert period_key(Period(period), now, UTC, "w") == key
    assert period_end(Period(period), now, UTC) == end


@given(st.sampled_from(DATED), MOMENTS, ZONES, st.floats(0, 1))
def test_a_period_has_one_name_from_any_instant_to_its_end(period, now, zone_name, part):
    zone = ZoneInfo(zone_name)
    end = period_end(period, now, zone)
    between = now + part * (end - now - timedelta(microseconds=1))
    assert period_key(period, between, zone, "w") == period_key(period, now, zone, "w")
    assert period_end(period, between, zone) == end


@given(MOMENTS.filter(lambda now: now.year > 2011), ZONES)
def test_days_follow_each_other_without_a_gap_and_last_23_to_25_hours(now, zone_name):
    zone = ZoneInfo(zone_name)
    starts = [period_end(Period.DAY, now, zone)]
    for _ in range(8):
        starts.append(period_end(Period.DAY, starts[-1], zone))
    assert {end - start for start, end in pairwise(starts)} <= {timedelta(hours=hours) for hours in (23, 24, 25)}
    assert len({period_key(Period.DAY, start, zone, "w") for start in starts}) == len(starts)


@given(st.sampled_from(DATED), MOMENTS, ZONES)
def test_the_name_changes_exactly_when_the_period_ends(period, now, zone_name):
    zone = ZoneInfo(zone_name)
    end = period_end(period, now, zone)
    key = period_key(period, now, zone, "w")
    assert end > now
    assert period_key(period, end - timedelta(microseconds=1), zone, "w") == key
    assert period_key(period, end, zone, "w") != key


@given(st.sampled_from(DATED), MOMENTS, ZONES)
def test_the_period_before_is_the_one_that_ends_when_this_one_begins(period, now, zone_name):
    zone = ZoneInfo(zone_name)
    before = previous_period_key(period, now, zone)
    assert before == previous_period_key(period, period_end(period, now, zone) - timedelta(microseconds=1), zone)
    assert previous_period_key(period, period_end(period, now, zone), zone) == period_key(period, now, zone, "w")
    assert before < period_key(period, now, zone, "w")


def test_a_workflow_and_a_total_follow_nothing():
    assert previous_period_key(Period.WORKFLOW, NEW_YEAR_IN_TOKYO, UTC) is None
    assert previous_period_key(Period.TOTAL, NEW_YEAR_IN_TOKYO, UTC) is None


def rollovers(said, now=NEW_YEAR_IN_TOKYO):
    text = f"version: 1\nproject: x\ntimezone: Asia/Tokyo\nbudgets: [{{name: a, limit: 1 Wh, {said}}}]"
    facts = {"project": "x", "user": "ana", "org": None, "now": now, "workflow_run": "w1"}
    return terms(parse_policy(text.encode()), **facts)[0].rollover


def test_a_budget_that_rolls_over_names_the_period_before_in_its_own_time_zone():
    assert rollovers("period: month, rollover: {unused: 25%, cap: 50%, overspend: forgive}") == Rollover(
        previous_period="2026-12", unused_ratio=0.25, cap_ratio=0.5, carries_overspend=False
    )
    assert rollovers("period: week, rollover: {unused: 10%}").previous_period == "2026-W52"
    assert rollovers("period: day, rollover: {overspend: carry}") == Rollover(
        previous_period="2026-12-31", unused_ratio=0.0, cap_ratio=1.0, carries_overspend=True
    )
    assert rollovers("period: month") is None


SEVERAL = parse_policy(
    b"""
version: 1
project: x
budgets:
  - {name: watched, limit: 1 Wh, period: day}
  - {name: patient, limit: 1 Wh, period: day, mode: hard, ledger_down: wait, max_wait: 2h}
  - {name: hasty, limit: 1 Wh, period: day, mode: soft, ledger_down: wait, max_wait: 1h}
  - {name: strict, scope: {user: root}, limit: 1 Wh, period: day, mode: hard}
"""
)


def answered(user, minutes):
    facts = {"project": "x", "user": user, "org": None, "now": NEW_YEAR_IN_TOKYO, "workflow_run": "w1"}
    return without_ledger(SEVERAL, terms(SEVERAL, **facts), timedelta(minutes=minutes))


def test_without_a_ledger_the_strictest_budget_of_the_step_answers_and_patience_ends():
    assert answered("ana", 0) is Action.WAIT
    assert answered("ana", 59) is Action.WAIT
    assert answered("ana", 60) is Action.REFUSE
    assert answered("root", 0) is Action.REFUSE
    assert without_ledger(SEVERAL, (), timedelta()) is Action.ADMIT


def test_a_star_is_one_bucket_in_the_ledger_for_each_value_with_the_whole_limit_for_each():
    policy = parse_policy(
        b"""
version: 1
project: vision
budgets:
  - {name: users, scope: {user: "*"}, limit: 10 J, period: total, mode: hard}
  - {name: projects, scope: {project: "*"}, limit: 15 J, period: total, mode: hard}
"""
    )
    ledger = MemoryLedger(SystemClock())

    def held(name, user, project):
        facts = {"project": project, "user": user, "org": None, "now": NEW_YEAR_IN_TOKYO, "workflow_run": "w"}
        asked = replace(request(name, 10_000_000), terms=terms(policy, **facts), project=project, user=user)
        (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
        return answer.decision.admitted

    assert held("a", "ana", "vision")
    assert not held("b", "ana", "speech"), "ana's own limit is full, in whatever project"
    assert not held("c", "ben", "vision"), "ben has a limit of his own, but his project's has only 5 J left"
    assert held("d", "ben", "speech")
    assert {(balance.term.account, balance.held) for balance in ledger.balances()} == {
        ("user:ana", 10_000_000),
        ("user:ben", 10_000_000),
        ("project:vision", 10_000_000),
        ("project:speech", 10_000_000),
    }


@given(st.integers(1, 100 * 366 * 86_400), st.sampled_from(Period))
def test_a_period_is_over_when_it_ends_and_not_before(seconds, period):
    now = datetime(2000, 1, 2, tzinfo=UTC) + timedelta(seconds=seconds)
    name, end = period_key(period, now, PARIS, "run"), period_end(period, now, PARIS)
    assert not is_over(name, now, PARIS)
    assert end is None or is_over(name, end, PARIS)
    assert end is None or not is_over(name, end - timedelta(seconds=1), PARIS)
