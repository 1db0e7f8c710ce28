"""Whether a step that asks to start gets its hold: what was answered before, else what the policy chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from mlflow_green.errors import HoldClosed, LedgerError
from mlflow_green.ledger.holds import BookedHold, HoldState
from mlflow_green.ledger.ledger import Choose
from mlflow_green.ledger.messages import refused_message
from mlflow_green.ledger.working_books import WorkingBooks, under
from mlflow_green.records import Action, Answer, Balance, Decision, DecisionRow, Hold, HoldRequest, Owner, Term


@dataclass(frozen=True, slots=True)
class Opening:
    """What it takes to answer requests."""

    choose: Choose
    owner: Owner | None
    new_hold_id: Callable[[], str]


def answer_all(
    books: WorkingBooks, requests: Sequence[HoldRequest], opening: Opening
) -> tuple[WorkingBooks, tuple[Answer, ...]]:
    """The answers in the order of the requests, and the books to go on with."""
    answers: dict[int, Answer] = {}
    for members in _groups(requests):
        if len(members) == 1:
            index = members[0]
            answers[index] = _answer(books, requests[index], opening)
        else:
            books, group_answers = _answer_group(books, [requests[index] for index in members], opening)
            answers.update(zip(members, group_answers, strict=True))
    return books, tuple(answers[index] for index in range(len(requests)))


def _groups(requests: Sequence[HoldRequest]) -> Iterable[list[int]]:
    """The positions of each group's members; a request without a group is a group of one."""
    groups: dict[object, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(index if request.group is None else request.group, []).append(index)
    return groups.values()


def _answer_group(
    books: WorkingBooks, members: Sequence[HoldRequest], opening: Opening
) -> tuple[WorkingBooks, list[Answer]]:
    """All of them hold, or none: they are tried on a copy of the books."""
    trial = books.fork()
    answers: list[Answer] = []
    for member in members:
        answers.append(_answer(trial, member, opening, answers))
        if answers[-1].hold is None:
            blocking = answers[-1].decision
            return books, [_blocked(books, other, member, blocking) for other in members]
    return trial, answers


def _blocked(books: WorkingBooks, request: HoldRequest, blocker: HoldRequest, blocking: Decision) -> Answer:
    repeated = _repeated(books, request)
    if repeated is not None:
        return repeated
    decision = blocking
    if request is not blocker:
        reason = f"starts only together with {blocker.step.label}: {blocking.reason}"
        decision = replace(blocking, reason=reason)
    _record(books, request, decision, _balances_of(books, request), None)
    return Answer(decision=decision, hold=None)


def _answer(books: WorkingBooks, request: HoldRequest, opening: Opening, mates: Sequence[Answer] = ()) -> Answer:
    """The open hold of this key, or what ``choose`` says.

    ``mates`` are the members of its group that were answered before. To ``choose`` their holds look spent: they
    end together with this step, so nothing is to be hoped from waiting for them.
    """
    repeated = _repeated(books, request)
    if repeated is not None:
        return repeated
    balances = _balances_of(books, request)
    decision = opening.choose(request, [_as_spent(balance, mates) for balance in balances])
    if not decision.admitted:
        _record(books, request, decision, balances, None)
        return Answer(decision=decision, hold=None)
    hold = _open(books, request, decision, opening)
    _record(books, request, decision, balances, hold.hold_id)
    return Answer(decision=decision, hold=hold)


def _repeated(books: WorkingBooks, request: HoldRequest) -> Answer | None:
    """The answer to a request whose key has a hold already, ``None`` for a new one."""
    hold_id = books.id_by_step.get(request.step.key)
    if hold_id is None:
        return None
    booked = books.holds[hold_id]
    if booked.state is not HoldState.HELD:
        raise HoldClosed(
            f"hold {hold_id} of {request.step.label} (attempt {request.step.attempt}) is {booked.state.value}"
            " already; ask again with the next attempt number"
        )
    return Answer(decision=_decision_of(booked.hold), hold=booked.hold)


def _balances_of(books: WorkingBooks, request: HoldRequest) -> tuple[Balance, ...]:
    return tuple(under(term, books.balances[term.key]) for term in map(books.limits.counted, request.terms))


def _open(books: WorkingBooks, request: HoldRequest, decision: Decision, opening: Opening) -> Hold:
    if opening.owner is None:
        raise LedgerError(f"nobody owns the hold of {request.step.label}: a batch with requests names its owner")
    hold = replace(
        Hold.of_nothing(request, decision, opening.owner, hold_id=request.hold_id or opening.new_hold_id()),
        amounts=dict(decision.amounts),
        terms=tuple({term.key: books.limits.counted(term) for term in request.terms}.values()),
        opened_at=books.now,
    )
    for term in hold.terms:
        _hold_under(books, term, hold, decision)
    books.holds[hold.hold_id] = BookedHold(hold=hold, state=HoldState.HELD)
    books.id_by_step[request.step.key] = hold.hold_id
    books.opened.append(hold.hold_id)
    return hold


def _hold_under(books: WorkingBooks, term: Term, hold: Hold, decision: Decision) -> None:
    amount = hold.amounts.get(term.unit, 0)
    if amount < 0:
        raise LedgerError(f"{hold.step.label} cannot hold {amount} {term.unit.value}: an amount is at least 0")
    books.move(term, hold.hold_id, "hold", delta_held=amount, reason=decision.reason)
    if term.unit in hold.amounts:
        books.guard(term, keeps_free=books.balances[term.key].pending)


def _record(
    books: WorkingBooks, request: HoldRequest, decision: Decision, balances: tuple[Balance, ...], hold_id: str | None
) -> None:
    """Keep the decision with what it saw; the same answer given again is one row."""
    told = (decision.action, decision.reason)
    if hold_id is None and books.last_decisions.get(request.step.key) == told:
        return
    books.last_decisions[request.step.key] = told
    row = DecisionRow(
        at=min(books.now, request.requested_at),
        hold_id=hold_id,
        step=request.step,
        decision=decision,
        balances=balances,
    )
    books.decisions.append(row)
    if decision.action is Action.REFUSE:
        books.tell(refused_message(request, decision, balances))


def _as_spent(balance: Balance, mates: Sequence[Answer]) -> Balance:
    holds = [mate.hold for mate in mates if mate.hold and balance.term.key in {term.key for term in mate.hold.terms}]
    held = min(balance.held, sum(hold.amounts.get(balance.term.unit, 0) for hold in holds))
    return balance.moved(held=-held, spent=held) if held else balance


def _decision_of(hold: Hold) -> Decision:
    return Decision(
        action=hold.decision,
        would=hold.would_decision,
        tier=hold.tier,
        amounts=hold.amounts,
        reason="the same request was answered before and its hold is open",
    )
