"""Rules that are wrong in one way each: the laws must see every one of them, or they see nothing.

A mutant changes the real rules while its context lasts; the docstring says what it breaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from unittest.mock import patch

from mlflow_green.ledger import allowances, closing, holding, posting, topping_up
from mlflow_green.ledger.holds import HoldState
from mlflow_green.ledger.working_books import WorkingBooks
from mlflow_green.policy import decide
from mlflow_green.recorder import planner, recovery
from mlflow_green.records import Action, Allowance, ClosingKind, Mode, Unit

MUTANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {}


def mutant(function: Callable[[ExitStack], None]) -> Callable[[ExitStack], None]:
    """Register the mutant under its function's name; the function enters its patches."""

    @contextmanager
    def mutated():
        with ExitStack() as patches:
            function(patches)
            yield

    MUTANTS[function.__name__] = mutated
    return function


def change(patches: ExitStack, owner: object, name: str, new: object) -> object:
    """Put ``new`` in the place of a rule; returns the rule."""
    old = getattr(owner, name)
    patches.enter_context(patch.object(owner, name, wraps(old)(new) if callable(old) and callable(new) else new))
    return old


@mutant
def held_is_ignored(patches: ExitStack) -> None:
    """Only what is spent counts, so that steps which start together overspend."""
    change(patches, WorkingBooks, "guard", lambda *_args, **_more: None)
    old = change(
        patches,
        planner.Planner,
        "choose",
        lambda self, request, balances: old(self, request, [replace(each, held=0) for each in balances]),
    )


@mutant
def a_repeated_request_holds_again(patches: ExitStack) -> None:
    """No idempotency: a request that is sent twice gets two holds."""

    def open_hold(rules, request, *more):
        count = sum(booked.hold.step == request.step for booked in rules.holds.values())
        return old(rules, replace(request, hold_id=f"{request.hold_id}{'+' * count}"), *more)

    change(patches, holding, "_repeated", lambda *_: None)
    old = change(patches, holding, "_open", open_hold)


@mutant
def a_closed_hold_is_closed_again(patches: ExitStack) -> None:
    """No compare-and-set on the state: a closing that is sent twice is charged twice."""

    def close(rules, closing):
        booked = rules.holds.get(closing.hold_id)
        if booked is None or booked.state is HoldState.HELD:
            return old(rules, closing)
        rules.holds[closing.hold_id] = replace(booked, state=HoldState.HELD, hold=replace(booked.hold, amounts={}))
        rules.entry_ids.discard(closing.entry.entry_id if closing.entry else None)
        return old(rules, closing)

    old = change(patches, posting, "close", close)


@mutant
def a_lost_hold_is_clipped_to_its_hold(patches: ExitStack) -> None:
    """A lost step that has overrun its hold is charged too little."""

    def lost(hold, session, **more):
        closing = old(hold, session, **more)
        charged = min(closing.entry.energy_charged_microjoules, hold.amounts.get(Unit.ENERGY, 0))
        return replace(closing, entry=replace(closing.entry, energy_charged_microjoules=charged))

    old = change(patches, recovery, "lost_after_silence", lost)


@mutant
def a_lost_hold_is_charged_its_last_reading(patches: ExitStack) -> None:
    """What a step used after its meter died is charged to nobody."""
    old = change(
        patches,
        recovery,
        "lost_after_silence",
        lambda hold, session, *, began_at, silent_until: old(hold, session, began_at=began_at, silent_until=began_at),
    )


@mutant
def the_silence_of_a_lost_hold_is_a_second(patches: ExitStack) -> None:
    """A step may outlive its meter for longer than it is charged."""
    change(patches, recovery, "SILENCE", timedelta(seconds=1))


@mutant
def an_expired_hold_is_released(patches: ExitStack) -> None:
    """The hold of a dead owner goes back to the budget as if nothing had been used."""

    def closings(*arguments):
        return [
            replace(closing, kind=ClosingKind.VOID, entry=None) if closing.kind is ClosingKind.LOST else closing
            for closing in old(*arguments)
        ]

    old = change(patches, recovery, "_closings", closings)


@mutant
def late_facts_are_dropped(patches: ExitStack) -> None:
    """The readings of a step that was given up too early change nothing."""
    change(patches, closing, "_correct", lambda *_: None)


@mutant
def a_settlement_is_clipped_to_its_hold(patches: ExitStack) -> None:
    """Joules beyond the hold are charged to nobody."""

    def close(rules, hold, closing):
        entry = closing.entry
        if entry is not None:
            least = min(entry.energy_charged_microjoules, hold.amounts.get(Unit.ENERGY, 0))
            closing = replace(closing, entry=replace(entry, energy_charged_microjoules=least))
        return old(rules, hold, closing)

    old = change(patches, closing, "_close_open", close)


@mutant
def units_are_mixed_up(patches: ExitStack) -> None:
    """What a step emits is charged to the budget of energy, and what it uses to that of carbon."""
    other = {Unit.ENERGY: Unit.CARBON, Unit.CARBON: Unit.ENERGY, Unit.MONEY: Unit.MONEY}
    old = change(
        patches, closing, "charged_sum", lambda entries: Counter({other[unit]: n for unit, n in old(entries).items()})
    )


@mutant
def an_ancestor_is_skipped(patches: ExitStack) -> None:
    """A step is held and charged under all its budgets but the last."""

    def open_hold(rules, request, *more):
        names = list(dict.fromkeys(term.budget for term in request.terms))
        kept = tuple(term for term in request.terms if term.budget in names[: max(1, len(names) - 1)])
        return old(rules, replace(request, terms=kept), *more)

    old = change(patches, holding, "_open", open_hold)


@mutant
def a_pipe_starts_by_halves(patches: ExitStack) -> None:
    """The members of a group are admitted one by one."""

    def answer(rules, members, opening):
        return rules, [holding._answer(rules, member, opening) for member in members]

    change(patches, holding, "_answer_group", answer)


@mutant
def a_threshold_is_told_by_level(patches: ExitStack) -> None:
    """An alert for every balance above the threshold, not for the one that crosses it."""
    old = change(patches, posting, "crossings", lambda rules, standing: old(rules, replace(standing, balances={})))


@mutant
def an_alert_is_told_once_for_ever(patches: ExitStack) -> None:
    """A threshold that is crossed again after falling back leaves no row."""

    def alerts(rules, standing):
        for alert in old(rules, standing):
            yield replace(alert, dedup=alert.dedup.rpartition("|")[0])

    old = change(patches, posting, "crossings", alerts)


@mutant
def an_alert_is_never_told(patches: ExitStack) -> None:
    """Crossings leave no row."""
    change(patches, posting, "crossings", lambda *_: iter(()))


@mutant
def a_void_charges_its_hold(patches: ExitStack) -> None:
    """A step that never began is charged what it held."""

    def close(rules, hold, closing):
        old(rules, hold, closing)
        if closing.kind is ClosingKind.VOID:
            for term in hold.terms:
                rules.move(term, hold.hold_id, "adjust", delta_spent=hold.amounts.get(term.unit, 0))

    old = change(patches, closing, "_close_open", close)


@mutant
def a_top_up_ignores_the_limit(patches: ExitStack) -> None:
    """A running step gets all that it asks for."""
    change(patches, topping_up, "_grant", lambda _rules, _hold, amounts: dict(amounts))
    change(patches, WorkingBooks, "guard", lambda *_args, **_more: None)


@mutant
def a_closed_hold_is_topped_up(patches: ExitStack) -> None:
    """A top-up that arrives late takes room for a step that is over."""

    def top_up(rules, asked):
        booked = rules.holds.get(asked.hold_id)
        if booked is not None:
            rules.holds[asked.hold_id] = replace(booked, state=HoldState.HELD)
        return old(rules, asked)

    old = change(patches, topping_up, "_top_up", top_up)


@mutant
def what_a_running_step_waits_for_is_taken(patches: ExitStack) -> None:
    """A new hold takes the room that a pending top-up needs."""
    old = change(patches, WorkingBooks, "guard", lambda rules, term, **_: old(rules, term))
    choose = change(
        patches,
        planner.Planner,
        "choose",
        lambda self, request, balances: choose(self, request, [replace(each, pending=0) for each in balances]),
    )


@mutant
def what_a_top_up_lacks_is_forgotten(patches: ExitStack) -> None:
    """A running step is not waited for."""
    old = change(patches, topping_up, "_top_up", lambda rules, asked: old(rules, replace(asked, may_finish=True)))


@mutant
def a_younger_step_comes_first(patches: ExitStack) -> None:
    """A top-up takes what an older step waits for."""

    def grant(rules, hold, amounts):
        wanting, rules.wanting = rules.wanting, {}
        granted = old(rules, hold, amounts)
        rules.wanting = wanting
        return granted

    old = change(patches, topping_up, "_grant", grant)


@mutant
def a_fence_is_ignored(patches: ExitStack) -> None:
    """Who has lost a hold to another owner closes it all the same."""
    for rules in (closing, topping_up):
        change(patches, rules, "is_fenced", lambda _hold, _epoch: False)


@mutant
def who_takes_a_hold_over_fences_nobody(patches: ExitStack) -> None:
    """A hold gets a new owner in its old epoch."""

    def adopt(rules, hold_id, owner):
        hold = old(rules, hold_id, owner)
        if hold is not None:
            hold = replace(hold, epoch=1)
            rules.holds[hold_id] = replace(rules.holds[hold_id], hold=hold)
        return hold

    old = change(patches, posting, "adopt", adopt)


@mutant
def the_first_loss_counts(patches: ExitStack) -> None:
    """A step that ran on after its owner was taken for dead is charged what was thought then."""

    def correct(rules, booked, closing, late):
        if closing.kind is not ClosingKind.LOST:
            old(rules, booked, closing, late)

    old = change(patches, closing, "_correct", correct)


@mutant
def a_hold_that_was_given_back_is_forgotten(patches: ExitStack) -> None:
    """What a step uses after its hold was voided by mistake is charged to nobody."""
    change(patches, closing, "GIVEN_UP", frozenset({HoldState.LOST}))


@mutant
def a_watched_budget_decides(patches: ExitStack) -> None:
    """A budget in mode observe makes steps wait and refuses them."""

    def choose(self, request, balances):
        hard = [replace(each, term=replace(each.term, mode=Mode.HARD)) for each in balances]
        return old(self, request, hard)

    old = change(patches, planner.Planner, "choose", choose)


@mutant
def a_full_budget_admits_what_is_cheap(patches: ExitStack) -> None:
    """A hold is admitted where a part of it fits."""
    change(patches, WorkingBooks, "guard", lambda *_args, **_more: None)
    old = change(
        patches,
        decide,
        "_obstacles",
        lambda view, estimate, needs: old(view, estimate, {unit: need and need // 2 for unit, need in needs.items()}),
    )


@mutant
def a_refused_step_runs(patches: ExitStack) -> None:
    """Waiting and refused steps get their hold at once."""

    def choose(self, request, balances):
        decision = old(self, request, balances)
        known = request.estimates[0].amounts if request.estimates else None
        if decision.admitted or known is None:
            return decision
        return replace(decision, action=Action.ADMIT, tier=request.estimates[0].tier, amounts=dict(known))

    old = change(patches, planner.Planner, "choose", choose)
    change(patches, WorkingBooks, "guard", lambda *_args, **_more: None)


@mutant
def a_decision_depends_on_chance(patches: ExitStack) -> None:
    """The same policy, balances and request give another reason each time."""
    calls = iter(range(10**9))
    old = change(patches, decide, "_reason", lambda *arguments: f"{old(*arguments)} ({next(calls)})")


@mutant
def a_promised_hold_is_charged_once_only(patches: ExitStack) -> None:
    """A step that ran without the ledger's word, and on after its owner was taken for dead, is not charged again."""

    def closings(session, holds, *more):
        known = {hold.hold_id for hold in holds}
        return [each for each in old(session, holds, *more) if each.hold_id in known or not is_promised(session, each)]

    def is_promised(session, closing):
        begun = session.begun.get(closing.hold_id)
        return closing.kind is ClosingKind.LOST and begun is not None and begun.hold is None

    old = change(patches, recovery, "_closings", closings)


@mutant
def a_rollover_is_lost(patches: ExitStack) -> None:
    """A period begins as if there had been none before it."""
    change(patches, allowances.Limits, "rollover", lambda *_: None)


@mutant
def a_rollover_is_never_corrected(patches: ExitStack) -> None:
    """What a step of the last period gives back when it is closed, or overspends, changes nothing any more."""
    change(patches, WorkingBooks, "_pass_on", lambda *_: None)


@mutant
def an_override_never_expires(patches: ExitStack) -> None:
    """What was allowed for a while is allowed for good."""
    change(patches, Allowance, "is_active", lambda self, _now: self.is_approved)


@mutant
def an_override_does_not_count(patches: ExitStack) -> None:
    """A limit that was raised for a while stays where it was: alerts and refusals come too early."""
    change(patches, Allowance, "is_active", lambda _self, _now: False)
