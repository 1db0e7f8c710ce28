"""Which limit counts: the budget's own, as far as it was approved, and what allowances add to it. Pure rules.

A grant raises one bucket, which ends with its period; an override raises it for a time; a rollover is what a period
inherits from the one before. What was added to a limit never changes what was spent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

from mlflow_green.errors import AllowanceRefused
from mlflow_green.ledger.forked import forked
from mlflow_green.records import (
    Allowance,
    AllowanceKind,
    AppliedLimit,
    ApprovedLimit,
    Balance,
    BucketKey,
    Mode,
    Rollover,
    Term,
    Unit,
)
from mlflow_green.units import exact, format_amount

LimitKey = tuple[str, str, str]

_STRICTNESS = (Mode.OBSERVE, Mode.SOFT, Mode.HARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The sums of a bucket's approved allowances: ``overridden`` ever, ``active`` the part of it that counts now."""

    granted: int = 0
    inherited: int = 0
    overridden: int = 0
    active: int = 0
    rollovers: int = 0

    @property
    def total(self) -> int:
        """What is added to the limit now."""
        return self.granted + self.inherited + self.active

    def plus(self, allowance: Allowance, now: datetime | None) -> Extras:
        if not allowance.is_approved:
            return self
        amount = allowance.amount
        if allowance.kind is AllowanceKind.GRANT:
            return replace(self, granted=self.granted + amount)
        if allowance.kind is AllowanceKind.ROLLOVER:
            return replace(self, inherited=self.inherited + amount, rollovers=self.rollovers + 1)
        active = amount if now is not None and allowance.is_active(now) else 0
        return replace(self, overridden=self.overridden + amount, active=self.active + active)


NOTHING = Extras()


def extras_of(allowances: Iterable[Allowance], now: datetime | None = None) -> dict[BucketKey, Extras]:
    """The extras of every bucket that an allowance names; without ``now`` no override is active."""
    extras: dict[BucketKey, Extras] = {}
    for allowance in allowances:
        key = allowance.key
        extras[key] = extras.get(key, NOTHING).plus(allowance, now)
    return extras


# --- rollover -------------------------------------------------------------------------------------


def inheritance(rollover: Rollover, limit: int, previous: Balance, extras: Extras) -> int:
    """What a bucket with this ``limit`` inherits from ``previous``, whose allowances sum to ``extras``.

    min(unused x unused_ratio, cap_ratio x limit) - overspend, each product rounded down. Unused is what is left of the
    previous limit and its grants, less the debt that it had inherited: what it inherited itself is not passed on a
    second time, and an override not at all. Overspend is what was committed beyond all of them, for an override allowed
    what it allowed. What is still held counts as spent.
    """
    own = previous.term.limit + extras.granted + min(0, extras.inherited)
    allowed = previous.term.limit + extras.granted + extras.inherited + extras.overridden
    unused, overspend = max(0, own - previous.committed), max(0, previous.committed - allowed)
    gained = min(_part(rollover.unused_ratio, unused), _part(rollover.cap_ratio, limit))
    return gained - overspend if rollover.carries_overspend else gained


def _part(ratio: float, amount: int) -> int:
    return int(exact(ratio) * amount)


def previous_key(term: Term) -> BucketKey | None:
    """The bucket that this one inherits from; only an earlier one, so that a chain of them ends."""
    if term.rollover is None or term.rollover.previous_period >= term.period:
        return None
    return (*limit_key(term), term.rollover.previous_period)


# --- approved limits --------------------------------------------------------------------------------


def limit_key(term: Term) -> LimitKey:
    budget, account, unit, _period = term.key
    return (budget, account, unit)


def counted(term: Term, approved: ApprovedLimit | None) -> Term:
    """The term with the limit that counts: what ``green.yaml`` says, at most what was approved."""
    if approved is None or term.limit <= approved.limit:
        return term
    return replace(term, limit=approved.limit)


def stricter(one: Mode, other: Mode) -> Mode:
    return max(one, other, key=_STRICTNESS.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """What applying a policy does to one limit.

    ``before`` is ``None`` for one that was never seen, ``after`` for one that the policy does not have; never both.
    ``reshaped`` says what else of its budget becomes looser, e.g. ``"period week instead of period month"``.
    """

    before: ApprovedLimit | None
    after: ApprovedLimit | None
    reshaped: str = ""

    @property
    def limit(self) -> ApprovedLimit:
        """The one that there is; of two the new one."""
        limit = self.after or self.before
        assert limit is not None
        return limit

    @property
    def moves(self) -> bool:
        """Whether anything of it becomes another, and not only the version that says so."""
        before, after = self.before, self.after
        if before is None or after is None or self.reshaped:
            return True
        return (before.limit, before.mode) != (after.limit, after.mode)

    @property
    def loosens(self) -> bool:
        """Whether somebody has to agree: more may be spent, or less is enforced."""
        before, after = self.before, self.after
        if before is None or after is None:
            return after is None
        if self.reshaped:
            return True
        return after.limit > before.limit or stricter(before.mode, after.mode) != after.mode


def told(
    terms: Iterable[Term], approved: Mapping[LimitKey, ApprovedLimit], *, sha256: str, now: datetime
) -> tuple[ApprovedLimit, ...]:
    """What counts at once of a policy that comes into use: limits that were never seen, and stricter ones.

    Where a budget only observed until now, it is this version that says first how it acts.
    """
    written = []
    for term in terms:
        known = approved.get(limit_key(term))
        after = ApprovedLimit.first(term, sha256, now)
        if known is not None:
            limit, mode = min(known.limit, term.limit), stricter(known.mode, term.mode)
            if (limit, mode) == (known.limit, known.mode) and known.policy_sha256:
                continue
            says_first = not known.policy_sha256 or (known.mode is Mode.OBSERVE and mode is not known.mode)
            version = sha256 if says_first else known.policy_sha256
            after = replace(known, limit=limit, mode=mode, at=now, policy_sha256=version)
        written.append(after)
    return tuple(written)


def changes(
    terms: Iterable[Term],
    approved: Mapping[LimitKey, ApprovedLimit],
    *,
    sha256: str,
    now: datetime,
    approved_by: str = "",
    reason: str = "",
    reshaped: Mapping[str, str] = MappingProxyType({}),
) -> tuple[LimitChange, ...]:
    """What applying a policy does, for every account of a budget: with ``user: "*"`` each user has one.

    ``reshaped`` says of a budget what else becomes looser than it was.
    """
    found: dict[LimitKey, LimitChange] = {}
    for term in terms:
        known = {
            key: each
            for key, each in approved.items()
            if (each.budget, each.unit) == (term.budget, term.unit) and are_of_one_budget(each.account, term.account)
        }
        for key, before in known.items():
            if (before.limit, before.mode, before.policy_sha256) != (term.limit, term.mode, sha256):
                after = replace(
                    before,
                    limit=term.limit,
                    mode=term.mode,
                    at=now,
                    policy_sha256=sha256,
                    approved_by=approved_by,
                    reason=reason,
                )
                found[key] = LimitChange(before=before, after=after, reshaped=reshaped.get(term.budget, ""))
        if limit_key(term) not in known:
            found[limit_key(term)] = LimitChange(before=None, after=ApprovedLimit.first(term, sha256, now))
    return tuple(found.values())


def are_of_one_budget(account: str, other: str) -> bool:
    """Whether two accounts differ in their user alone: another project may call a budget by the same name."""
    levels, others = (_without_user(each) for each in (account, other))
    return levels == others


def _without_user(account: str) -> list[str]:
    return ["user" if part.startswith("user:") else part for part in account.split("/")]


class Agreed(NamedTuple):
    """Who asked for a policy to be applied, who agreed, and why; as in an ``Allowance``."""

    requested_by: str
    approver: str | None
    approved_by: str | None
    reason: str

    @property
    def name(self) -> str:
        return self.approved_by or f"{self.approver} (named by {self.requested_by}, not verified)"


class Reviewed(NamedTuple):
    """What whoever applies a policy has looked at, beside its limits and modes.

    ``drops`` are the keys of approved limits that it does not have. ``reshaped`` says, by budget, what else becomes
    looser. ``seen`` are all approved limits as they were then; ``None`` for whatever they are.
    """

    drops: Collection[LimitKey] = ()
    reshaped: Mapping[str, str] = MappingProxyType({})
    seen: Collection[ApprovedLimit] | None = None


UNREVIEWED = Reviewed()


def applied_limit(change: LimitChange, agreed: Agreed, *, at: datetime, sha256: str) -> AppliedLimit:
    """What is kept of a change for good."""
    before, after, limit = change.before, change.after, change.limit
    return AppliedLimit(
        at=at,
        budget=limit.budget,
        account=limit.account,
        unit=limit.unit,
        before=before.limit if before else None,
        before_mode=before.mode if before else None,
        after=after.limit if after else None,
        after_mode=after.mode if after else None,
        policy_sha256=sha256,
        **agreed._replace(reason="; ".join(filter(None, (change.reshaped, agreed.reason))))._asdict(),
    )


# --- one batch --------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Limits:
    """What decides which limits count, while one batch is worked through, and what of it is to be written."""

    now: datetime
    extras: dict[BucketKey, Extras]
    approved: dict[LimitKey, ApprovedLimit]
    followers: dict[BucketKey, tuple[BucketKey, ...]] = field(default_factory=dict)
    made: list[Allowance] = field(default_factory=list)
    agreed: list[Allowance] = field(default_factory=list)
    written: list[ApprovedLimit] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        extras: Mapping[BucketKey, Extras],
        approved: Mapping[LimitKey, ApprovedLimit],
        terms: Iterable[Term],
        now: datetime,
    ) -> Limits:
        limits = cls(now=now, extras=dict(extras), approved=dict(approved))
        for term in terms:
            limits.follow(term)
        return limits

    def __copy__(self) -> Limits:
        return forked(self)

    def follow(self, term: Term) -> None:
        """This bucket inherits from another one from now on."""
        previous = previous_key(term)
        if previous is not None:
            self.followers[previous] = (*self.followers.get(previous, ()), term.key)

    def of_bucket(self, key: BucketKey) -> Extras:
        return self.extras.get(key, NOTHING)

    def counted(self, term: Term) -> Term:
        """The term with the limit that counts; one that was never seen counts at once."""
        key = limit_key(term)
        if key not in self.approved:
            self.write(ApprovedLimit.first(term, "", self.now))
        return counted(term, self.approved[key])

    def write(self, limit: ApprovedLimit) -> None:
        self.approved[limit.key] = limit
        self.written.append(limit)

    def add(self, allowance: Allowance) -> None:
        """Count this allowance from now on, if it is approved."""
        self.extras[allowance.key] = self.of_bucket(allowance.key).plus(allowance, self.now)

    def rollover(self, balance: Balance, previous: Balance) -> Allowance | None:
        """The allowance that is missing for the bucket to have inherited what it should; ``None`` if none is."""
        term = balance.term
        if term.rollover is None:
            return None
        extras = self.of_bucket(term.key)
        missing = inheritance(term.rollover, term.limit, previous, self.of_bucket(previous.term.key)) - extras.inherited
        if not missing:
            return None
        why = "correction of what" if extras.rollovers else "what"
        return Allowance(
            allowance_id=uuid5(NAMESPACE_OID, "|".join((*term.key, str(extras.rollovers)))).hex,
            kind=AllowanceKind.ROLLOVER,
            budget=term.budget,
            account=term.account,
            unit=term.unit,
            period=term.period,
            amount=missing,
            made_at=self.now,
            requested_by="",
            reason=f"{why} is inherited from {term.rollover.previous_period}",
        )


# --- what people ask for ----------------------------------------------------------------------------


def check_open(allowance: Allowance) -> None:
    """Raise ``AllowanceRefused`` if somebody has agreed to this already."""
    if allowance.is_approved:
        raise AllowanceRefused(f"{allowance.allowance_id} counts already, {agreement_text(allowance)}")


def check(allowance: Allowance, balance: Balance, extras: Extras, now: datetime, max_extra: Decimal | None) -> None:
    """Whether this may count from now on.

    ``max_extra`` is the part of the budget's own limit that all overrides which count now may add together.

    Raises:
        AllowanceRefused: it has expired, or the overrides would add too much.
    """
    if allowance.expires_at is not None and allowance.expires_at <= now:
        raise AllowanceRefused(f"the override {allowance.allowance_id} has expired; ask for a new one")
    if allowance.kind is not AllowanceKind.OVERRIDE or max_extra is None:
        return
    most = int(Fraction(max_extra) * balance.term.limit)
    if extras.active + allowance.amount > most:
        of, left, asked = (
            format_amount(allowance.unit, amount)
            for amount in (balance.term.limit, max(0, most - extras.active), allowance.amount)
        )
        raise AllowanceRefused(
            f"overrides may add {max_extra:.0%} to the {of} of {allowance.budget}, which leaves {left}, and this one is"
            f" {asked}; ask for at most that, or wait until another one expires ('mlflow-green budget list')"
        )


def agreement_text(allowance: Allowance | AppliedLimit) -> str:
    """Who agreed, and how that is known."""
    if allowance.approved_by == allowance.requested_by:
        return "by its own decision"
    if allowance.approved_by:
        return f"approved by {allowance.approved_by}"
    if allowance.approver:
        return f"named by {allowance.requested_by}: {allowance.approver}, not verified"
    return "not approved yet"


def allowance_text(allowance: Allowance) -> str:
    """One sentence for people: who raised what, until when, who agreed, why."""
    amount = format_amount(allowance.unit, allowance.amount)
    until = f" until {allowance.expires_at:%Y-%m-%d %H:%M} UTC" if allowance.expires_at else ""
    where = f"{allowance.budget} ({allowance.account}, {allowance.period})"
    verb = "raised" if allowance.is_approved else "asks to raise"
    why = f": {allowance.reason}" if allowance.reason else ""
    text = (
        f"{allowance.requested_by} {verb} {where} by {amount} {allowance.unit}{until}, {agreement_text(allowance)}{why}"
    )
    if allowance.is_approved:
        return text
    return f"{text}. Somebody else agrees with 'mlflow-green budget approve {allowance.allowance_id}'"


def change_text(change: LimitChange) -> str:
    """What happens to one limit, and to its mode."""
    name = f"{change.limit.budget} ({change.limit.account})"
    old, new = (_limit_text(each.unit, each.limit, each.mode) if each else "" for each in (change.before, change.after))
    text = _moved(old, new) if old != new else new
    return f"{name}: {text}, {change.reshaped}" if change.reshaped else f"{name}: {text}"


def applied_text(applied: AppliedLimit) -> str:
    """One sentence for people: what was applied, when, who agreed, why."""
    old, new = (
        _limit_text(applied.unit, amount, mode) if amount is not None and mode else ""
        for amount, mode in ((applied.before, applied.before_mode), (applied.after, applied.after_mode))
    )
    why = f": {applied.reason}" if applied.reason else ""
    return (
        f"{applied.at:%Y-%m-%d %H:%M} UTC {applied.requested_by or 'somebody'} applied policy"
        f" {applied.policy_sha256[:12]}, {agreement_text(applied)}{why}."
        f" {applied.budget} ({applied.account}): {_moved(old, new)}"
    )


def _limit_text(unit: Unit, amount: int, mode: Mode) -> str:
    return f"{format_amount(unit, amount)} {unit}, {mode}"


def _moved(old: str, new: str) -> str:
    if not old:
        return f"{new}, seen for the first time"
    return f"{old} -> {new}" if new else f"{old} -> removed"
