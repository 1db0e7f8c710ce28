"""What ends a step that nobody can be asked about: its grant, in every unit that a budget counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.enforce import leashes
from mlflow_green.policy.leash import Interval, Leash, leash_pulled
from mlflow_green.recorder.late_hold import promised_hold
from mlflow_green.records import Mode, Unit
from tests.testkit.ledger_samples import OWNER, request, term

WH = 3_600_000_000
G = 1_000_000
USED = {Unit.ENERGY: Interval(9 * WH, 10 * WH, 11 * WH)}


def pulled(used, granted, *taken: Leash) -> str | None:
    return leash_pulled(taken, used, granted, "train[seed=1]", 12.4)


@pytest.mark.parametrize(
    ("enforce", "holds_at", "pulled_at"),
    [("low", 9 * WH, 9 * WH - 1), ("point", 10 * WH, 10 * WH - 1), ("high", 11 * WH, 11 * WH - 1)],
)
def test_a_step_may_use_all_of_its_grant_and_not_more(enforce, holds_at, pulled_at) -> None:
    leash = Leash(budget="b", unit=Unit.ENERGY, enforce=enforce)
    assert pulled(USED, {Unit.ENERGY: holds_at}, leash) is None
    assert f"({enforce})" in (pulled(USED, {Unit.ENERGY: pulled_at}, leash) or "")


@pytest.mark.parametrize(
    ("unit", "scale", "currency", "words"),
    [
        (Unit.ENERGY, WH, None, "used energy 12.0 Wh (point) of 8.00 Wh granted"),
        (Unit.CARBON, G, None, "used carbon 12.0 gCO2e (point) of 8.00 gCO2e granted"),
        (Unit.MONEY, G, "EUR", "used money 12.00 EUR (point) of 8.00 EUR granted"),
    ],
)
def test_the_reason_names_budget_step_unit_and_both_amounts(unit, scale, currency, words) -> None:
    leash = Leash(budget="month", unit=unit, enforce="point", currency=currency)
    used = {unit: Interval(11 * scale, 12 * scale, 13 * scale)}
    assert pulled(used, {unit: 8 * scale}, leash) == f"month: train[seed=1] {words}, after 12 s; it is halted"


def test_a_unit_without_a_reading_or_without_a_grant_pulls_nothing() -> None:
    leash = Leash(budget="b", unit=Unit.CARBON, enforce="low")
    assert pulled(USED, {Unit.CARBON: 0}, leash) is None
    assert pulled({Unit.CARBON: Interval(1, 1, 1)}, {Unit.ENERGY: 0}, leash) is None


def test_the_first_leash_that_is_over_is_the_reason() -> None:
    wide, tight = (
        Leash(budget=name, unit=Unit.ENERGY, enforce=end) for name, end in (("wide", "low"), ("tight", "high"))
    )
    assert (pulled(USED, {Unit.ENERGY: 10 * WH}, wide, tight) or "").startswith("tight: ")


@pytest.mark.parametrize(
    ("mode", "overrun", "count"), [("hard", "halt", 1), ("hard", "finish", 0), ("observe", "halt", 0)]
)
def test_only_a_hard_budget_that_does_not_let_steps_finish_has_a_leash(mode, overrun, count) -> None:
    policy = parse_policy(
        "version: 1\nproject: demo\nbudgets:\n"
        f"  - {{name: month, mode: {mode}, overrun: {overrun}, period: total, limit: 1 Wh}}".encode()
    )
    falls_under = (term("month", mode=Mode(mode)),)
    hold = replace(promised_hold(request("train", 1, hold_id="hold1"), OWNER), terms=falls_under)
    assert len(leashes(policy, hold)) == count
