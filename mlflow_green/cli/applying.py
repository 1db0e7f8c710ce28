"""What ``policy apply`` does: who may, what changes, and the one transaction that changes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mlflow_green.cli.budget import groups_of, who
from mlflow_green.cli.doors import Books, Place
from mlflow_green.cli.output import opened
from mlflow_green.clock import SystemClock
from mlflow_green.errors import AllowanceRefused, SettingsError
from mlflow_green.settings import POLICY_NAME

if TYPE_CHECKING:
    from mlflow_green.ledger.allowances import LimitChange
    from mlflow_green.policy.document import Policy


class Applied(NamedTuple):
    """What applying changes, in words; who agreed to it, if it was applied; and whether a reason is still missing."""

    changes: tuple[str, ...]
    agreed: str = ""
    wants_reason: bool = False


class _Agreed(NamedTuple):
    """``requested_by`` used this policy first; the others as in an ``Allowance``."""

    requested_by: str
    approver: str | None
    approved_by: str | None


def applied(place: Place, *, approver: str | None, reason: str, dry_run: bool) -> Applied:
    """Apply the policy file, unless ``dry_run``; what changes.

    Raises:
        AllowanceRefused: somebody else has to agree; the message says who.
    """
    from mlflow_green.ledger.allowances import LimitChange, Reviewed, change_text, changes
    from mlflow_green.policy.loosening import applied_budgets, reshaped
    from mlflow_green.policy.raising import channels_of, dropped, terms_of_accounts
    from mlflow_green.records import PolicyVersion

    settings = place.settings()
    policy = place.doors.load_policy(settings)
    if settings.policy_path is None:
        raise SettingsError(f"there is no {POLICY_NAME} here or in a folder above; 'mlflow-green init' writes one")
    now = SystemClock().now()
    with opened(place, settings, creates=True) as books:
        assert books is not None
        approved = {limit.key: limit for limit in books.approved_limits()}
        user = place.doors.user_name()
        found = terms_of_accounts(policy, approved.values(), project=policy.project, user=user, now=now)
        gone = dropped(policy, approved.values(), found, books.policies, is_own=settings.has_own_ledger)
        shaped = reshaped(policy, applied_budgets(policy, approved.values(), books.policies))
        changed = (
            *changes(found, approved, sha256=policy.sha256, now=now, reshaped=shaped),
            *(LimitChange(before=limit, after=None) for limit in gone),
        )
        texts = tuple(change_text(change) for change in changed if change.moves)
        if dry_run:
            return Applied(texts, wants_reason=not reason.strip() and _wants_reason(books, policy, changed))
        version = PolicyVersion(sha256=policy.sha256, text=policy.text, author=who(place, books), at=now)
        agreed = _agreed(place, books, policy, changed, approver, reason)
        told = dict.fromkeys(name for budget in policy.budgets for name in channels_of(budget))
        # What was looked at here is looked at again where it is written: nobody came between.
        reviewed = Reviewed(drops=[limit.key for limit in gone], reshaped=shaped, seen=tuple(approved.values()))
        books.apply_policy(version, found, **agreed._asdict(), reason=reason, to=tuple(told), reviewed=reviewed)
    return Applied(texts, agreed=_agreed_text(agreed))


def _agreed(
    place: Place, books: Books, policy: Policy, changed: Sequence[LimitChange], approver: str | None, reason: str
) -> _Agreed:
    """Who agrees to what this policy loosens. Raises ``AllowanceRefused``."""
    from mlflow_green.policy.raising import check_approver, check_reason, governing

    me = who(place, books)
    if approver not in {None, me} and books.identity() is not None:
        raise AllowanceRefused(
            f"this ledger knows who writes, so {me} cannot speak for {approver}; {approver} runs this"
        )
    authors = {version.sha256: version.author for version in books.policies()}
    requester = authors.get(policy.sha256, me)
    name = approver or me
    for budget in _loosened(books, policy, changed):
        rules = governing(budget, policy, books.approved_limits(), books.policies())
        if rules is not None:
            check_reason(rules, reason)
            check_approver(budget, rules, requester, name, groups_of)
    if name != me:
        return _Agreed(requested_by=me, approver=name, approved_by=None)
    return _Agreed(requested_by=requester, approver=None, approved_by=me)


def _agreed_text(agreed: _Agreed) -> str:
    if agreed.approver:
        return f"named by {agreed.requested_by}: {agreed.approver}, not verified"
    return f"by {agreed.approved_by}"


def _wants_reason(books: Books, policy: Policy, changed: Iterable[LimitChange]) -> bool:
    from mlflow_green.policy.raising import governing

    rules = (
        governing(budget, policy, books.approved_limits(), books.policies())
        for budget in _loosened(books, policy, changed)
    )
    return any(each is not None and each.reason == "required" for each in rules)


def _loosened(books: Books, policy: Policy, changed: Iterable[LimitChange]) -> Iterable[str]:
    """The budgets of which more may be spent, less is enforced, or others may agree to that."""
    from mlflow_green.policy.raising import governing

    now = {budget.name: budget.override for budget in policy.budgets}
    changed = tuple(changed)
    for name in dict.fromkeys(change.limit.budget for change in changed):
        loosens = any(change.loosens for change in changed if change.limit.budget == name)
        if loosens or governing(name, policy, books.approved_limits(), books.policies()) != now.get(name):
            yield name
