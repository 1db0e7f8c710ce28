"""How much of an edited ``green.yaml`` counts before it is applied: where it is looser, what was applied; pure.

Whatever is edited in a budget, the steps that are admitted are some of those that the applied policy admits. One
exception: a step that nothing is known of holds what there is, and where that is less it may escape a downgrade. What
a site or a step is said to be counts at once, and another project, file or ledger is named, not edited.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from mlflow_green.errors import PolicyError
from mlflow_green.policy.document import Budget, Policy, RolloverDocument, Rule, Scope, Verb, parse_policy
from mlflow_green.policy.raising import dropped, line, not_applied, terms_of_accounts, with_stricter_modes
from mlflow_green.policy.terms import terms
from mlflow_green.policy.values import Limit
from mlflow_green.records import ApprovedLimit, Mode, PolicyVersion, Term

_ANSWERS = ("admit", "wait", "refuse")
_FROM_LOOSE_TO_STRICT = {
    "mode": tuple(Mode),
    "unknown_step": _ANSWERS,
    "overrun": ("finish", "halt"),
    "enforce": ("low", "point", "high"),
}
_AS_APPLIED = ("scope", "period", "rollover", "reserve")
"""Which bucket a step counts in, what that inherits, and how much is held: none of it has a stricter end."""

_TOLD = {
    **{name: name for name in (*_AS_APPLIED, "unknown_step", "overrun", "enforce", "ledger_down", "rules")},
    "max_wait_seconds": "max_wait",
}
"""What is told of a budget beside its limits and its mode, by the name that it has in the file."""


class AppliedBudget(NamedTuple):
    """A budget as the version says that was applied last, or that was seen first; with the zone of its periods."""

    budget: Budget
    timezone: str
    sha256: str


class Counting(NamedTuple):
    """``policy`` with what counts of it, and the ``terms`` of the payer under it.

    ``lines`` say what green.yaml says and does not count yet. ``dropped`` is what it does not have any more.
    """

    policy: Policy
    terms: tuple[Term, ...]
    lines: tuple[str, ...]
    dropped: tuple[ApprovedLimit, ...]


# --- one budget -----------------------------------------------------------------------------------


def counting_budget(applied: Budget, edited: Budget) -> Budget:
    """What counts of an edited budget: wherever it is not stricter, what was applied.

    A budget that only observes admits everything, so that another one counts at once. Whom a rule notifies, and who
    approves, is not decided here.
    """
    if applied.mode is Mode.OBSERVE:
        return edited
    stricter = {
        name: max(getattr(applied, name), getattr(edited, name), key=order.index)
        for name, order in _FROM_LOOSE_TO_STRICT.items()
    }
    kept = {name: getattr(applied, name) for name in _AS_APPLIED}
    missed = tuple(rule for rule in applied.rules if rule.do is not Verb.NOTIFY and rule not in edited.rules)
    counting = edited.model_copy(
        update={
            **stricter,
            **kept,
            "limit": _lower(applied.limit, edited.limit),
            "max_wait_seconds": min(applied.max_wait_seconds, edited.max_wait_seconds),
            "rules": (*edited.rules, *missed),
        }
    )
    answer = max(applied.without_ledger, edited.without_ledger, key=_ANSWERS.index)
    return counting if counting.without_ledger == answer else counting.model_copy(update={"ledger_down": answer})


def _lower(applied: Iterable[Limit], edited: Iterable[Limit]) -> tuple[Limit, ...]:
    """For each unit that is limited still the lower limit."""
    known = {limit.unit: limit for limit in applied}
    return tuple(min(known.get(limit.unit, limit), limit, key=lambda each: each.amount) for limit in edited)


def loosened(applied: Budget, edited: Budget) -> Iterator[tuple[str, str]]:
    """What the edited budget says, and what counts; without limits and modes, which are told by account."""
    counts = counting_budget(applied, edited)
    for name, word in _TOLD.items():
        if getattr(counts, name) != getattr(edited, name):
            yield _words(word, getattr(edited, name)), _words(word, getattr(counts, name))


def _words(name: str, value: object) -> str:
    if isinstance(value, Scope | RolloverDocument):
        said = value.model_dump(exclude_none=True)
        return f"{name} {{{', '.join(f'{key}: {each}' for key, each in said.items())}}}"
    if isinstance(value, tuple):
        acting = [f"{each.do} at {each.at:.0%}" for each in value if isinstance(each, Rule) and each.do != Verb.NOTIFY]
        return f"{name} {' and '.join(acting)}" if acting else f"no {name}"
    if value is None:
        return f"no {name}"
    return f"{name} {value} s" if name == "max_wait" else f"{name} {value}"


# --- a policy -------------------------------------------------------------------------------------


def applied_budgets(
    policy: Policy, approved: Collection[ApprovedLimit], versions: Callable[[], Iterable[PolicyVersion]]
) -> Mapping[str, AppliedBudget]:
    """The budgets of the policy's project as they were applied, by name; none where that is this very version.

    Of all accounts' versions one that acts goes before one that observes, what was applied before what was only seen,
    and of that the first. The zone is one for all: that of the first that acts, so that none added later moves it.
    """
    if all(limit.policy_sha256 in {"", policy.sha256} for limit in approved):
        return {}
    known = {version.sha256: version for version in versions()}
    kept = [limit for limit in approved if limit.policy_sha256 in known]
    kept.sort(key=lambda limit: (not limit.approved_by, known[limit.policy_sha256].at))
    parsed: dict[str, Policy | None] = {}
    seen: list[AppliedBudget] = []
    for name, sha256 in dict.fromkeys((limit.budget, limit.policy_sha256) for limit in kept):
        if sha256 not in parsed:
            parsed[sha256] = policy if sha256 == policy.sha256 else _of_project(policy.project, known[sha256].text)
        said = parsed[sha256]
        budget = next((each for each in said.budgets if each.name == name), None) if said else None
        if said and budget:
            seen.append(AppliedBudget(_scoped(budget, said.project), said.timezone, sha256))
    seen.sort(key=lambda each: each.budget.mode is Mode.OBSERVE)
    return {each.budget.name: each._replace(timezone=seen[0].timezone) for each in reversed(seen)}


def _of_project(project: str, text: str) -> Policy | None:
    """An earlier version; ``None`` if it is of another project, or knew other words."""
    try:
        policy = parse_policy(text.encode())
    except PolicyError:
        return None
    return policy if policy.project == project else None


def _scoped(budget: Budget, project: str) -> Budget:
    """A budget without a scope is its project's, so to say that changes nothing."""
    return budget if budget.scope != Scope() else budget.model_copy(update={"scope": Scope(project=project)})


def with_what_was_applied(policy: Policy, applied: Mapping[str, AppliedBudget]) -> Policy:
    """The policy with the budgets that count, in the zone that their periods were applied in."""
    acting = {name: each for name, each in applied.items() if each.budget.mode is not Mode.OBSERVE}
    budgets = tuple(
        counting_budget(acting[each.name].budget, _scoped(each, policy.project)) if each.name in acting else each
        for each in policy.budgets
    )
    zone = next((each.timezone for each in acting.values()), policy.timezone)
    return policy.model_copy(update={"budgets": budgets, "timezone": zone})


def counting(
    policy: Policy,
    approved: Iterable[ApprovedLimit],
    versions: Callable[[], Iterable[PolicyVersion]],
    *,
    project: str,
    user: str,
    now: datetime,
    is_own: bool = False,
) -> Counting:
    """What counts of a policy for who pays, by what the ledger knows as applied; ``is_own`` as for ``dropped``."""
    approved = tuple(approved)

    def terms_of(policy: Policy) -> tuple[Term, ...]:
        return terms(policy, project=project, user=user, org=None, now=now, workflow_run="next")

    applied = applied_budgets(policy, approved, versions)
    # Of a budget for each user, what was applied counts for one too who was never seen, but not for one who observes.
    said = terms_of(policy.model_copy(update={"budgets": tuple(each.budget for each in applied.values())}))
    observed = _observed(said, approved)
    applied = {name: each for name, each in applied.items() if name not in observed}
    unseen = (ApprovedLimit.first(each, applied[each.budget].sha256, now) for each in said if each.budget in applied)
    counts = with_what_was_applied(policy, applied)
    limits = {**{limit.key: limit for limit in unseen}, **{limit.key: limit for limit in approved}}
    found = terms_of(counts)
    kept, payer = found, {"project": project, "user": user}
    if is_own:
        kept = terms_of_accounts(counts, limits.values(), project=policy.project, user=user, now=now)
        payer = {"user": user}
    return Counting(
        policy=with_stricter_modes(counts, limits, found),
        terms=found,
        lines=(*not_applied(policy, limits, found), *_lines(policy, counts, applied)),
        dropped=dropped(policy, limits.values(), kept, versions, payer=payer, is_own=is_own),
    )


def _observed(found: Iterable[Term], approved: Iterable[ApprovedLimit]) -> set[str]:
    """The budgets that have only ever observed in the accounts of these terms."""
    modes: dict[tuple[str, str], set[Mode]] = {}
    for limit in approved:
        modes.setdefault((limit.budget, limit.account), set()).add(limit.mode)
    return {term.budget for term in found if modes.get((term.budget, term.account)) == {Mode.OBSERVE}}


def reshaped(policy: Policy, applied: Mapping[str, AppliedBudget]) -> Mapping[str, str]:
    """By budget, what applying the policy loosens beside limits and modes: what counts then, and what counts now."""
    found = {}
    for budget in policy.budgets:
        was = applied.get(budget.name)
        if was is not None and was.budget.mode is not Mode.OBSERVE:
            said = [*loosened(was.budget, _scoped(budget, policy.project))]
            if was.timezone != policy.timezone:
                said.append((f"timezone {policy.timezone}", f"timezone {was.timezone}"))
            if said:
                found[budget.name] = ", ".join(f"{says} instead of {counts}" for says, counts in said)
    return found


def _lines(policy: Policy, counts: Policy, applied: Mapping[str, AppliedBudget]) -> Iterator[str]:
    for budget in policy.budgets:
        if budget.name in applied:
            for says, what_counts in loosened(applied[budget.name].budget, _scoped(budget, policy.project)):
                yield line(budget.name, says, what_counts)
    if counts.timezone != policy.timezone:
        yield line("its periods", f"timezone {policy.timezone}", counts.timezone)
