"""Commands that raise a limit: ``budget grant``, ``override``, ``approve`` and ``list``."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

from mlflow_green.cli.doors import Books, Place
from mlflow_green.cli.output import NO_HISTORY, console, json_option, opened, print_json
from mlflow_green.clock import SystemClock
from mlflow_green.errors import AllowanceRefused, PolicyError, SettingsError
from mlflow_green.records import Allowance, AllowanceKind, Term

if TYPE_CHECKING:
    from mlflow_green.policy.document import Budget, Override, Policy
    from mlflow_green.settings import Settings

Command = Callable[..., None]


@click.group()
def budget() -> None:
    """Raise a limit, for its period or for a time, and see what was raised."""


def _common(command: Command) -> Command:
    for option in (
        click.argument("amount"),
        click.argument("budget_name", metavar="BUDGET"),
        click.option("--reason", default="", help="Why; it is kept and told."),
        click.option("--approver", metavar="NAME", help="Who has agreed. Without one, 'budget approve' follows."),
        click.option("--user", help="Whose limit, of a budget with user: '*'; yours by default."),
        click.option("--project", help="Whose limit, of a budget with project: '*'; this project's by default."),
    ):
        command = option(command)
    return json_option(command)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a command is asked for, as it was typed."""

    kind: AllowanceKind
    budget_name: str
    amount: str
    reason: str
    approver: str | None
    user: str | None
    project: str | None
    until: str | None = None


@budget.command()
@_common
@click.pass_obj
def grant(place: Place, /, *, as_json: bool, **asked: Any) -> None:
    """Add AMOUNT ("1 kWh", or "20%") to BUDGET until its period ends."""
    _raise(place, _Asked(kind=AllowanceKind.GRANT, **asked), as_json=as_json)


@budget.command()
@_common
@click.option("--until", metavar="TIME", help="'72h' or '2026-11-24T18:00'; the policy's expires by default.")
@click.pass_obj
def override(place: Place, /, *, as_json: bool, **asked: Any) -> None:
    """Add AMOUNT ("1 kWh", or "20%") to BUDGET for a time, within its max_extra."""
    _raise(place, _Asked(kind=AllowanceKind.OVERRIDE, **asked), as_json=as_json)


def _raise(place: Place, asked: _Asked, *, as_json: bool) -> None:
    from mlflow_green.policy.raising import amounts_of, channels_of, governing
    from mlflow_green.policy.terms import period_end

    settings = place.settings()
    policy = place.doors.load_policy(settings)
    own = _budget_of(policy, asked.budget_name)
    terms = _terms(policy, own, project=asked.project, user=asked.user or place.doors.user_name())
    amounts_of(asked.amount, own, terms)  # a wrong one is told before a ledger is made for it
    with opened(place, settings, creates=True) as books:
        assert books is not None
        amounts = amounts_of(asked.amount, own, [balance.term for balance in books.balances(terms)])
        rules = governing(own.name, policy, books.approved_limits(), books.policies())
        together = [
            (_allowance(place, books, asked, term, amounts[term.unit], rules, policy), term)
            for term in terms
            if term.unit in amounts
        ]
        books.allow_all(together, max_extra=rules.max_extra if rules else None, to=channels_of(own))
        raised = [allowance for allowance, _ in together]
        _tell(raised, as_json=as_json)
    ends = period_end(own.period, SystemClock().now(), policy.zone)
    if not as_json and ends and any(each.expires_at and each.expires_at > ends for each in raised):
        click.echo(f"It counts only in {terms[0].period}, which ends {ends:%Y-%m-%d %H:%M} UTC; then it is over.")


def _allowance(
    place: Place, books: Books, asked: _Asked, term: Term, amount: int, rules: Override | None, policy: Policy
) -> Allowance:
    """What is asked for, with who agrees to it. Raises ``AllowanceRefused``."""
    from mlflow_green.policy.raising import agreement, check_reason, expiry

    check_reason(rules, asked.reason)
    now, expires_at = SystemClock().now(), None
    if asked.kind is AllowanceKind.OVERRIDE:
        if rules is None:
            raise AllowanceRefused(
                f"{asked.budget_name} has no override: in green.yaml, so nobody may raise it for a time; add one,"
                " e.g. override: {approvers: \"user:ana\", max_extra: 20%}, or use 'mlflow-green budget grant'"
            )
        expires_at = expiry(asked.until, rules, now, policy)
    requester = who(place, books)
    agreed = agreement(
        term.budget,
        rules,
        requester=requester,
        approver=asked.approver,
        groups_of=groups_of,
        is_known=books.identity() is not None,
    )
    return Allowance(
        allowance_id=uuid4().hex[:12],
        kind=asked.kind,
        budget=term.budget,
        account=term.account,
        unit=term.unit,
        period=term.period,
        amount=amount,
        made_at=now,
        requested_by=requester,
        reason=asked.reason,
        expires_at=expires_at,
        approver=agreed.approver,
        approved_by=agreed.approved_by,
    )


def _budget_of(policy: Policy, name: str) -> Budget:
    from mlflow_green.policy.document import Period

    try:
        found = policy.budget(name)
    except KeyError:
        names = ", ".join(each.name for each in policy.budgets) or "none"
        raise SettingsError(f"green.yaml has no budget {name!r}; it has: {names}") from None
    if found.period is Period.WORKFLOW:
        raise AllowanceRefused(
            f"{name} starts afresh with each workflow run, so there is nothing to add to; raise its limit in"
            " green.yaml, then 'mlflow-green policy apply'"
        )
    return found


def _terms(policy: Policy, budget: Budget, *, project: str | None, user: str) -> list[Term]:
    from mlflow_green.policy.terms import terms

    now = SystemClock().now()
    found = terms(policy, project=project or policy.project, user=user, org=None, now=now, workflow_run="")
    own = [term for term in found if term.budget == budget.name]
    if not own:
        raise SettingsError(
            f"budget {budget.name} is not for project {project or policy.project} and user {user}; name them with"
            " --project and --user"
        )
    return own


@budget.command()
@click.argument("allowance_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@click.pass_obj
def approve(place: Place, allowance_ids: tuple[str, ...], as_json: bool) -> None:
    """Agree to what somebody else asked for; you must be one of the budget's approvers."""
    from mlflow_green.ledger.allowances import check_open
    from mlflow_green.policy.raising import channels_of, check_approver, governing

    settings = place.settings()
    policy = place.doors.load_policy(settings)
    with opened(place, settings) as books:
        known = {each.allowance_id: each for each in books.allowances()} if books else {}
        ids = tuple(dict.fromkeys(allowance_ids))
        unknown = [each for each in ids if each not in known]
        if books is None or unknown:
            raise AllowanceRefused(
                f"nobody asked for {', '.join(unknown)}; 'mlflow-green budget list' shows what was; none was approved"
            )
        name = who(place, books)
        approved, versions = books.approved_limits(), books.policies()
        checked = []  # all of them, before the first one counts
        for asked in map(known.__getitem__, ids):
            own = _budget_of(policy, asked.budget)
            rules = governing(asked.budget, policy, approved, versions)
            check_open(asked)
            check_approver(asked.budget, rules, asked.requested_by, name, groups_of)
            checked.append((asked, rules.max_extra if rules else None, channels_of(own)))
        with _told(as_json=as_json) as agreed:
            for asked, most, channels in checked:
                agreed.append(books.approve(asked.allowance_id, name, max_extra=most, to=channels))


@budget.command("list")
@json_option
@click.pass_obj
def list_(place: Place, as_json: bool) -> None:
    """Everything that was added to a limit, inherited, asked for, or applied."""
    from mlflow_green.ledger.allowances import applied_text
    from mlflow_green.reports.export import allowance_to_json, applied_to_json
    from mlflow_green.reports.tables import allowance_table

    now, settings = SystemClock().now(), place.settings()
    zone = zone_of(place, settings)
    with opened(place, settings) as books:
        allowances = books.allowances() if books else ()
        applied = books.applied_limits() if books else ()
    if as_json:
        listed = [allowance_to_json(each, now, zone) for each in allowances]
        print_json({"allowances": listed, "applied": [applied_to_json(each) for each in applied]})
    elif books is None:
        click.echo(NO_HISTORY)
    elif not allowances and not applied:
        click.echo("No limit was ever raised here.")
    if as_json:
        return
    if allowances:
        out = console()
        out.print(allowance_table(allowances, now, width=out.width, zone=zone))
    for each in applied:
        click.echo(applied_text(each))


@contextmanager
def _told(*, as_json: bool) -> Iterator[list[Allowance]]:
    """What is put into the list is told in the end, also when something after it is refused: it counts all the same."""
    done: list[Allowance] = []
    try:
        yield done
    finally:
        if done:
            _tell(done, as_json=as_json)


def _tell(allowances: Sequence[Allowance], *, as_json: bool) -> None:
    from mlflow_green.ledger.allowances import allowance_text
    from mlflow_green.reports.export import allowance_to_json

    if as_json:
        now = SystemClock().now()
        print_json({"allowances": [allowance_to_json(each, now) for each in allowances]})
    else:
        for allowance in allowances:
            click.echo(f"{allowance.allowance_id}: {allowance_text(allowance)}")


def zone_of(place: Place, settings: Settings) -> tzinfo:
    """The time zone of the policy's periods; UTC where the policy cannot be read."""
    try:
        return place.doors.load_policy(settings).zone
    except PolicyError:
        return UTC


def who(place: Place, books: Books) -> str:
    """Whom the ledger knows to be writing; where it knows nobody, the name of the uid, never $USER."""
    return books.identity() or place.doors.user_name()


def groups_of(name: str) -> list[str]:
    """The groups that this system puts the user into; none for a name that it does not know."""
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        return []
    return [_group_name(gid) for gid in os.getgrouplist(name, account.pw_gid)]


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
