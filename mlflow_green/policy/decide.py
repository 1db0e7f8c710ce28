"""What happens to a step that asks to start; pure: the same policy, balances and request give the same decision.

In this order: it fits and is admitted; a cheaper tier that has an estimate fits; room will appear, so it waits; it is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction

from mlflow_green.policy.document import Budget, Policy, Rule, Verb
from mlflow_green.policy.forecast import ToAmounts, energy_only
from mlflow_green.policy.terms import period_end
from mlflow_green.records import Action, Balance, Decision, Estimate, HoldRequest, Mode, Unit
from mlflow_green.units import format_amount, microjoules

UNKNOWN_STEP_SECONDS = 60
_NO_ESTIMATE = Estimate(tier=None, amounts=None, source="no estimate")


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """One balance as a decision sees it: ``hard`` means that its limit holds even without a rule."""

    balance: Balance
    budget: Budget
    hard: bool


class _Stop(StrEnum):
    """What a step runs into. Waiting can help with the first three only."""

    LIMIT = "limit"
    WAIT_RULE = "wait rule"
    UNKNOWN_WAIT = "unknown wait"
    REFUSE_RULE = "refuse rule"
    UNKNOWN_REFUSE = "unknown refuse"
    NO_FACTOR = "no factor"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Obstacle:
    """Why a tier cannot run now. ``room`` is what is left below ``ceiling``; ``needed`` is ``None`` when not known."""

    stop: _Stop
    view: _View
    ceiling: int
    room: int
    needed: int | None
    patience_seconds: int = 0
    of_spent: bool = False

    @property
    def shortage_ratio(self) -> Fraction:
        """How far over the ceiling the step would go: the largest is the tightest."""
        return Fraction((self.needed or 0) - self.room, self.ceiling or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    action: Action
    estimate: Estimate
    needs: Mapping[Unit, int | None]
    obstacle: _Obstacle | None = None
    until: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A request with everything that its answer depends on."""

    request: HoldRequest
    views: tuple[_View, ...]
    now: datetime
    policy: Policy
    power_watts_max: float
    to_amounts: ToAmounts

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        return self.request.estimates or (_NO_ESTIMATE,)

    @property
    def unknown_amounts(self) -> Mapping[Unit, int]:
        """The most that a step holds which nothing is known about."""
        seconds = self.request.walltime_seconds or UNKNOWN_STEP_SECONDS
        return self.to_amounts(microjoules(self.power_watts_max * seconds))

    @property
    def waited(self) -> timedelta:
        since = self.request.waiting_since
        return self.now - since if since else timedelta()


def decide(
    policy: Policy,
    request: HoldRequest,
    balances: Sequence[Balance],
    *,
    now: datetime,
    power_watts_max: float,
    to_amounts: ToAmounts = energy_only,
) -> Decision:
    """The answer to one request, from the balances of its terms.

    ``power_watts_max`` is the most that the step can draw: a step that nothing is known about holds at most 60 s of it,
    or all of its wall time if it cannot ask for more later.
    ``to_amounts`` turns energy into the amounts of the other units. Budgets in mode observe never change the answer;
    ``would`` says what it would have been, had every budget been hard.
    """
    views = tuple(_View(balance=each, budget=policy.budget(each.term.budget), hard=True) for each in balances)
    question = _Question(
        request=request,
        views=views,
        now=now,
        policy=policy,
        power_watts_max=power_watts_max,
        to_amounts=to_amounts,
    )
    would = _answer(question)
    if all(each.term.mode is Mode.HARD for each in balances):
        return _decision(question, would, would)
    acting = tuple(
        replace(view, hard=view.balance.term.mode is Mode.HARD)
        for view in views
        if view.balance.term.mode is not Mode.OBSERVE
    )
    return _decision(question, _answer(replace(question, views=acting)), would)


# --- the order of answers -------------------------------------------------------------------------


def _answer(question: _Question) -> _Answer:
    start, cause = _first_tier(question)
    tried: list[tuple[Estimate, Mapping[Unit, int | None], list[_Obstacle]]] = []
    for index, estimate in enumerate(question.estimates[start:], start):
        if index > 0 and estimate.amounts is None:
            continue
        needs = _needs(question, estimate)
        obstacles = [found for view in question.views for found in _obstacles(view, estimate, needs)]
        if not obstacles:
            action = Action.DOWNGRADE if index > 0 else Action.ADMIT
            first = _tightest(tried[0][2]) if tried else cause
            return _Answer(action=action, estimate=estimate, needs=needs, obstacle=first)
        tried.append((estimate, needs, obstacles))
    return _wait_or_refuse(question, tried)


def _wait_or_refuse(
    question: _Question, tried: Sequence[tuple[Estimate, Mapping[Unit, int | None], list[_Obstacle]]]
) -> _Answer:
    """Wait if all that is in the way of one tier can go away in time: of the cheapest such tier, which fits first."""
    for estimate, needs, obstacles in reversed(tried):
        hopes = [_hope(question, obstacle) for obstacle in obstacles]
        if all(hopes):
            worst = _tightest(obstacles)
            until = hopes[obstacles.index(worst)] or ""
            return _Answer(action=Action.WAIT, estimate=estimate, needs=needs, obstacle=worst, until=until)
    estimate, needs, obstacles = tried[-1]
    hopeless = [obstacle for obstacle in obstacles if not _hope(question, obstacle)]
    return _Answer(action=Action.REFUSE, estimate=estimate, needs=needs, obstacle=_tightest(hopeless))


def _tightest(obstacles: Sequence[_Obstacle]) -> _Obstacle:
    return max(obstacles, key=lambda obstacle: obstacle.shortage_ratio)


def _first_tier(question: _Question) -> tuple[int, _Obstacle | None]:
    """Where downgrade rules let the search start, and the rule that asks for the cheapest."""
    start, cause = 0, None
    known = [index for index, each in enumerate(question.estimates) if each.amounts is not None]
    cheaper = [index for index in known if index > 0]
    if not cheaper:
        return start, cause
    dearest_needs = _needs(question, question.estimates[0])
    for view in question.views:
        for rule in view.budget.rules_that(Verb.DOWNGRADE):
            crossed = _crossing(view, rule, dearest_needs)
            if crossed is None:
                continue
            under = [i for i in cheaper if _crossing(view, rule, _needs(question, question.estimates[i])) is None]
            index = under[0] if under else cheaper[-1]
            if index > start:
                start, cause = index, crossed
    return start, cause


# --- what is in the way -----------------------------------------------------------------------------


def _needs(question: _Question, estimate: Estimate) -> Mapping[Unit, int | None]:
    """What the tier would hold in each unit: its estimate; an unknown step what there is, up to its unknown amounts."""
    units = {view.balance.term.unit for view in question.views} | {Unit.ENERGY}
    if estimate.amounts is not None:
        return {unit: estimate.amounts.get(unit) for unit in units}
    needs: dict[Unit, int | None] = {}
    unknown_amounts = question.unknown_amounts
    for unit in units:
        rooms = [
            _room(view, stop, ceiling)
            for view in question.views
            if view.balance.term.unit is unit
            for stop, ceiling, _ in _ceilings(view)
        ]
        amount = unknown_amounts.get(unit)
        needs[unit] = None if amount is None else max(0, min([amount, *rooms]))
    return needs


def _ceilings(view: _View) -> Iterator[tuple[_Stop, int, int]]:
    """What spent + held must not pass, with the reason and how long a step waits there, in seconds."""
    limit = view.balance.limit
    if view.hard:
        yield _Stop.LIMIT, limit, view.budget.max_wait_seconds
    for rule in view.budget.rules:
        if rule.base == "committed" and rule.do in {Verb.WAIT, Verb.REFUSE}:
            yield _stop_of(rule), rule.threshold(limit), _patience(view, rule)


def _room(view: _View, stop: _Stop, ceiling: int) -> int:
    """What a new hold may take below a ceiling; of the limit itself, only what no running step still waits for."""
    return ceiling - view.balance.committed - (view.balance.pending if stop is _Stop.LIMIT else 0)


def _stop_of(rule: Rule) -> _Stop:
    return _Stop.WAIT_RULE if rule.do is Verb.WAIT else _Stop.REFUSE_RULE


def _patience(view: _View, rule: Rule) -> int:
    return view.budget.max_wait_seconds if rule.for_seconds is None else rule.for_seconds


def _obstacles(view: _View, estimate: Estimate, needs: Mapping[Unit, int | None]) -> Iterator[_Obstacle]:
    balance, limit = view.balance, view.balance.limit
    needed, unknown = needs[balance.term.unit], estimate.amounts is None
    if unknown and view.budget.unknown_step != "admit":
        waits = view.budget.unknown_step == "wait"
        yield _Obstacle(
            stop=_Stop.UNKNOWN_WAIT if waits else _Stop.UNKNOWN_REFUSE,
            view=view,
            ceiling=limit,
            room=balance.available,
            needed=None,
            patience_seconds=view.budget.max_wait_seconds,
        )
        return
    if needed is None:
        if view.hard:
            yield _Obstacle(stop=_Stop.NO_FACTOR, view=view, ceiling=limit, room=balance.available, needed=None)
        return
    for stop, ceiling, patience in _ceilings(view):
        room = _room(view, stop, ceiling)
        if room < needed or (unknown and room <= 0):
            yield _Obstacle(
                stop=stop,
                view=view,
                ceiling=ceiling,
                room=room,
                needed=None if unknown else needed,
                patience_seconds=patience,
            )
    for rule in view.budget.rules:
        if rule.do in {Verb.WAIT, Verb.REFUSE} and rule.base == "spent":
            crossed = _crossing(view, rule, needs)
            if crossed is not None:
                yield replace(crossed, stop=_stop_of(rule), patience_seconds=_patience(view, rule))


def _crossing(view: _View, rule: Rule, needs: Mapping[Unit, int | None]) -> _Obstacle | None:
    """A rule that this need would set off: spent alone reaches its threshold, or spent + held + need passes it."""
    balance = view.balance
    ceiling, needed = rule.threshold(balance.limit), needs[balance.term.unit]
    of_spent = rule.base == "spent"
    room = ceiling - (balance.spent if of_spent else balance.committed)
    crossed = room <= 0 if of_spent else needed is not None and needed > room
    if not crossed:
        return None
    return _Obstacle(stop=_stop_of(rule), view=view, ceiling=ceiling, room=room, needed=needed, of_spent=of_spent)


def _hope(question: _Question, obstacle: _Obstacle) -> str | None:
    """In words, what may remove the obstacle while the step still has patience; ``None`` if nothing can."""
    if obstacle.stop not in {_Stop.LIMIT, _Stop.WAIT_RULE, _Stop.UNKNOWN_WAIT}:
        return None
    patience = timedelta(seconds=obstacle.patience_seconds) - question.waited
    if patience <= timedelta():
        return None
    balance = obstacle.view.balance
    least = obstacle.needed or 1
    if (
        (balance.held > 0 or balance.pending > 0)
        and not obstacle.of_spent
        and balance.spent + least <= obstacle.ceiling
    ):
        return "until other steps settle"
    if obstacle.stop is _Stop.UNKNOWN_WAIT:
        return None
    end = period_end(obstacle.view.budget.period, question.now, question.policy.zone)
    if end is not None and least <= obstacle.ceiling and end - question.now <= patience:
        return f"until the period ends, {end.astimezone(question.policy.zone):%Y-%m-%d %H:%M}"
    return None


# --- in words ---------------------------------------------------------------------------------------


def _decision(question: _Question, actual: _Answer, would: _Answer) -> Decision:
    reason = _reason(question, actual)
    if actual.action is Action.ADMIT and would.action is not Action.ADMIT:
        reason = f"{reason}; a hard budget would have answered {would.action}: {_reason(question, would)}"
    admitted = actual.action in {Action.ADMIT, Action.DOWNGRADE}
    obstacle = None if actual.action is Action.ADMIT else actual.obstacle
    return Decision(
        action=actual.action,
        would=would.action,
        tier=actual.estimate.tier,
        amounts=_held_amounts(question, actual) if admitted else {},
        reason=reason,
        estimate_source=actual.estimate.source,
        estimate_basis=actual.estimate.basis,
        estimate_low_microjoules=actual.estimate.low_microjoules,
        estimate_high_microjoules=actual.estimate.high_microjoules,
        estimate_level_ratio=actual.estimate.level_ratio,
        policy_sha256=question.policy.sha256,
        budget=obstacle.view.balance.term.budget if obstacle else None,
        unit=obstacle.view.balance.term.unit if obstacle else None,
        needed=obstacle.needed if obstacle else None,
        available=obstacle.room if obstacle else None,
    )


def _held_amounts(question: _Question, answer: _Answer) -> Mapping[Unit, int]:
    """What is held under every term, watched ones too; a unit that cannot be known holds nothing there."""
    if not question.views:
        return {}
    known = answer.estimate.amounts
    needs = answer.needs if known is None else known
    units = [Unit.ENERGY, *(view.balance.term.unit for view in question.views)]
    watched = question.unknown_amounts if known is None else {}
    return {unit: needs.get(unit, watched.get(unit)) or 0 for unit in dict.fromkeys(units)}


def _reason(question: _Question, answer: _Answer) -> str:
    label = question.request.step.label
    if answer.obstacle is None:
        return _fits(question, answer, label)
    ends: Mapping[Action, Callable[[], str]] = {
        Action.DOWNGRADE: lambda: f"{label} runs as tier {answer.estimate.tier}",
        Action.WAIT: lambda: f"{label} waits {answer.until}",
        Action.REFUSE: lambda: _refusal(question, label),
    }
    return f"{_what_is_short(answer.obstacle)}; {ends[answer.action]()}"


def _refusal(question: _Question, label: str) -> str:
    tiers = len(question.estimates) > 1
    waited = question.waited.total_seconds()
    end = f"{label} is refused, even as its cheapest tier" if tiers else f"{label} is refused"
    return f"{end}, after waiting {waited:.0f} s" if waited >= 1 else end


def _fits(question: _Question, answer: _Answer, label: str) -> str:
    if not question.views:
        return f"{label} falls under no budget"
    if answer.estimate.amounts is None:
        held = format_amount(Unit.ENERGY, answer.needs.get(Unit.ENERGY) or 0)
        more = "and asks for more" if question.request.walltime_seconds is None else "for all of its wall time"
        return f"{label} is admitted; nothing is known about its need, so it holds {held} {more}"
    least = min(question.views, key=lambda view: Fraction(view.balance.available, view.balance.limit or 1))
    term, needed = least.balance.term, answer.estimate.amounts.get(least.balance.term.unit)
    need = _amount(least, needed) if needed is not None else "an unknown amount"
    available = _amount(least, least.balance.available)
    return f"{term.budget}: {term.unit} {need} needed, {available} available; {label} is admitted"


def _what_is_short(obstacle: _Obstacle) -> str:
    view, term = obstacle.view, obstacle.view.balance.term
    limit = view.balance.limit
    if obstacle.stop in {_Stop.UNKNOWN_WAIT, _Stop.UNKNOWN_REFUSE}:
        verb = "wait" if obstacle.stop is _Stop.UNKNOWN_WAIT else "refuse"
        left = f"{_amount(view, obstacle.room)} available of {_amount(view, limit)}"
        return f"{term.budget}: {term.unit} needed is not known (unknown_step: {verb}), {left}"
    if obstacle.stop is _Stop.NO_FACTOR:
        left = f"{_amount(view, obstacle.room)} available of {_amount(view, limit)}"
        return f"{term.budget}: {term.unit} needed is not known, {left}; check 'site:' in green.yaml"
    of = f"{_amount(view, limit)}{_not_applied(view)}"
    if obstacle.ceiling != limit:
        of = f"{_percent(obstacle.ceiling, limit)} of {of}"
    if obstacle.of_spent:
        return f"{term.budget}: {term.unit} {_amount(view, view.balance.spent)} spent, the rule fires at {of}"
    needed = "an unknown amount" if obstacle.needed is None else _amount(view, obstacle.needed)
    return f"{term.budget}: {term.unit} {needed} needed, {_amount(view, obstacle.room)} available of {of}"


def _not_applied(view: _View) -> str:
    """That green.yaml says more than what counts, in brackets; empty where it does not."""
    term = view.balance.term
    says = max((limit.amount for limit in view.budget.limit if limit.unit is term.unit), default=term.limit)
    if says <= term.limit:
        return ""
    text = (
        f"green.yaml says {_amount(view, says)}, {_amount(view, term.limit)} counts until 'mlflow-green policy apply'"
    )
    return f" ({text})"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def _amount(view: _View, amount: int) -> str:
    return format_amount(view.balance.term.unit, max(0, amount), view.budget.currency)
