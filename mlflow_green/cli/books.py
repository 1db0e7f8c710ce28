"""Commands about the ledger as a whole: ``balance``, ``explain`` and the group ``ledger``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from mlflow_green.cli import exit_codes
from mlflow_green.cli.alerts import dead_count
from mlflow_green.cli.budget import zone_of
from mlflow_green.cli.doors import Place
from mlflow_green.cli.output import NO_HISTORY, console, json_option, opened, print_json, print_json_line
from mlflow_green.clock import SystemClock
from mlflow_green.errors import PolicyError
from mlflow_green.records import Action, Decision, DecisionRow, Entry, Step
from mlflow_green.units import SECONDS, format_bytes, format_number_of, parse_seconds

if TYPE_CHECKING:
    from mlflow_green.cli.doors import Books
    from mlflow_green.ledger.compaction import Compaction
    from mlflow_green.records import Balance
    from mlflow_green.settings import Settings

KEEP_SECONDS_MIN = SECONDS["d"]  # longer than any sender of messages holds on to one
KEEP_SECONDS_MAX = 36_500 * SECONDS["d"]

_STEP = re.compile(r"^(?P<name>[^\[\]]+)(?:\[(?P<wildcards>[^\[\]]*)\])?$")


@click.command()
@json_option
@click.pass_obj
def balance(place: Place, as_json: bool) -> None:
    """What is spent, held and left in each budget, and what was added to its limit."""
    from mlflow_green.ledger.allowances import allowance_text
    from mlflow_green.policy.raising import allowance_state
    from mlflow_green.reports.export import balance_to_json
    from mlflow_green.reports.tables import balance_table

    settings = place.settings()
    unknown: tuple[Balance, ...] = ()
    with opened(place, settings) as books:
        balances = books.balances() if books else ()
        approved = {limit.key for limit in books.approved_limits()} if books else set()
        allowances = books.allowances() if books else ()
        undeliverable = dead_count(books) if books else 0
        if settings.policy_path is not None:
            unknown = place.doors.unknown_to_policy(settings, balances, approved)
            unused = place.doors.unused_balances(settings, balances, books)
            balances += books.balances([each.term for each in unused]) if books and unused else unused
    if as_json:
        print_json({"balances": [{**balance_to_json(each), "in_policy": each not in unknown} for each in balances]})
    elif books is None and not balances:
        click.echo(NO_HISTORY)
    elif not balances:
        click.echo("There is no budget. Budgets are set in green.yaml; 'mlflow-green init' writes one.")
    else:
        out = console()
        out.print(balance_table(balances, width=out.width))
        now, zone, current = SystemClock().now(), zone_of(place, settings), {each.term.key for each in balances}
        for each in allowances:
            if allowance_state(each, now, zone) != "expired" and each.requested_by and each.key in current:
                out.print(allowance_text(each))
        for key in dict.fromkeys(each.term.key[:3] for each in unknown):
            applied = "nobody applied that" if key in approved else "its removal was applied"
            out.print(f"{key[0]} ({key[1]}, {key[2]}) is not in green.yaml, so nothing is charged to it; {applied}")
    if undeliverable:
        click.echo(
            f"{format_number_of(undeliverable, 'alert')} could not be delivered; 'mlflow-green alerts list' shows why.",
            err=True,
        )


@click.command()
@click.argument("step", required=False)
@json_option
@click.pass_obj
def explain(place: Place, step: str | None, as_json: bool) -> None:
    """Why a step got its answers; without STEP, every answer there was.

    STEP is a rule, or a rule with wildcards, 'train[model=mlp]': then the latest answer of each step is shown.
    """
    from mlflow_green.reports.explanation import explain_decision
    from mlflow_green.reports.export import decision_to_json

    named = step_named(step) if step else None
    settings = place.settings()
    with opened(place, settings) as books:
        entries = books.entries() if books else ()
        decisions = all_decisions(books.decisions(), entries) if books else []
        versions = {version.sha256: version for version in books.policies()} if books else {}
        way_out = _ways_out(place, settings, books) if books else _no_way_out
    found = latest_decisions(decisions, *named) if named else decisions
    by_hold = {entry.hold_id: entry for entry in entries if entry.hold_id}
    if as_json:
        print_json({"decisions": [{**decision_to_json(row), "outcome": _outcome(row, by_hold)} for row in found]})
    elif found:
        out = console()
        for row in found:
            entry, version = by_hold.get(row.hold_id or ""), versions.get(row.decision.policy_sha256)
            explain_decision(out, row, entry, version, hints=row is found[-1], way_out=way_out(row))
    elif books is None:
        click.echo(NO_HISTORY, err=True)
    else:
        click.echo(_unknown_step(step, decisions) if step else "No step has asked for anything yet.", err=True)
    sys.exit(exit_codes.OK if found else exit_codes.FOUND)


def _ways_out(place: Place, settings: Settings, books: Books) -> Callable[[DecisionRow], str]:
    """What can be done where a budget refused a step; nothing without a green.yaml that can be read."""
    from mlflow_green.policy.raising import percent_short_of, way_to_raise, with_governing

    if settings.policy_path is None:
        return _no_way_out
    try:
        policy = place.doors.policy_as_agreed(settings, books)
    except PolicyError:
        return _no_way_out
    policy = with_governing(policy, books.approved_limits(), books.policies())
    budgets = {budget.name: budget for budget in policy.budgets}
    now = {balance.term.key: balance for balance in books.balances()}
    is_known = books.identity() is not None

    def way_out(row: DecisionRow) -> str:
        decision = row.decision
        budget = budgets.get(decision.budget or "")
        if budget is None or decision.action is not Action.REFUSE:
            return ""
        seen = (each for each in row.balances if (each.term.budget, each.term.unit) == (budget.name, decision.unit))
        short = [percent_short_of(budget, now.get(each.term.key, each), decision.needed or 0) for each in seen]
        return way_to_raise(budget, is_known=is_known, percent_short=max(short, default=0))

    return way_out


def _no_way_out(_row: DecisionRow) -> str:
    return ""


def step_named(step: str) -> tuple[str, str | None]:
    """The rule and the wildcards that a user wrote; ``None`` for any wildcards."""
    match = _STEP.match(step.strip())
    if match is None:
        raise click.UsageError(f"{step!r} is not a step; write a rule such as train, or 'train[model=mlp]'")
    return match["name"], match["wildcards"]


def all_decisions(decisions: Iterable[DecisionRow], entries: Iterable[Entry]) -> list[DecisionRow]:
    """Every answer, oldest first: a step that fell under no budget asked nobody, so its entry speaks for it."""
    rows = list(decisions)
    asked = {row.hold_id for row in rows}
    rows += [_unasked(entry) for entry in entries if entry.hold_id and entry.hold_id not in asked]
    return sorted(rows, key=lambda row: row.at)


def _unasked(entry: Entry) -> DecisionRow:
    step = Step(workflow_run=entry.workflow_run, name=entry.step, wildcards=entry.wildcards, attempt=entry.attempt)
    reason = f"{step.label} falls under no budget"
    decision = Decision(action=entry.decision, would=entry.would_decision, tier=entry.tier, amounts={}, reason=reason)
    return DecisionRow(at=entry.started_at, hold_id=entry.hold_id, step=step, decision=decision, balances=())


def latest_decisions(decisions: Iterable[DecisionRow], name: str, wildcards: str | None) -> list[DecisionRow]:
    """The latest decision about each step of that name, oldest first; ``wildcards`` of ``None`` match all."""
    latest: dict[str, DecisionRow] = {}
    for row in sorted(decisions, key=lambda row: row.at):
        if row.step.name == name and wildcards in {None, row.step.wildcards}:
            latest[row.step.wildcards] = row
    return sorted(latest.values(), key=lambda row: row.at)


def _outcome(row: DecisionRow, by_hold: Mapping[str, Entry]) -> str | None:
    entry = by_hold.get(row.hold_id or "")
    return entry.outcome.value if entry else None


def _unknown_step(step: str, decisions: Iterable[DecisionRow]) -> str:
    known = sorted({row.step.label for row in decisions})
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")  # noqa: PLR2004 - a screenful
    return f"No decision about {step} is in the ledger. " + (f"It knows: {listed}." if known else "It has none.")


@click.group()
def ledger() -> None:
    """Check, export, upgrade and compact the ledger."""


@ledger.command()
@json_option
@click.pass_obj
def verify(place: Place, as_json: bool) -> None:
    """Check that the books close; exit status 1 if they do not."""
    with opened(place, place.settings()) as books:
        findings = place.doors.verify(place.settings(), books) if books else ()
        entries = len(books.entries()) if books else 0
        unguarded = books.unguarded() if books else ""
    if as_json:
        print_json({"ok": not findings, "entries": entries, "findings": list(findings), "unguarded": unguarded})
    elif books is None:
        click.echo(NO_HISTORY)
    else:
        for finding in findings:
            click.echo(finding)
        kept, found = format_number_of(entries, "entry", "entries"), format_number_of(len(findings), "finding")
        click.echo(found if findings else f"The books close: {kept}, no findings.")
        if unguarded:
            click.echo(unguarded)
    sys.exit(exit_codes.FOUND if findings else exit_codes.OK)


@ledger.command()
@click.option("--check", "only_look", is_flag=True, help="Change nothing; exit status 1 if it is of an older version.")
@json_option
@click.pass_obj
def migrate(place: Place, only_look: bool, as_json: bool) -> None:
    """Bring the ledger's tables to this version; a new PostgreSQL ledger gets its tables."""
    from mlflow_green.cli.doors import has_history
    from mlflow_green.ledger.address import shown
    from mlflow_green.ledger.schema import SCHEMA_VERSION

    settings = place.settings()
    done = place.doors.migrate(settings, only_look=only_look) if has_history(settings) else None
    before, version = (done.before, done.version) if done else (None, SCHEMA_VERSION)
    is_current = done is None or not only_look or before == version
    name = shown(settings.ledger_url)
    if as_json:
        copy = str(done.copy) if done and done.copy else None
        print_json({"before": before, "version": version, "current": is_current, "copy": copy})
    elif done is None:
        click.echo(NO_HISTORY)
    elif not is_current:
        what = "has no tables yet" if before is None else f"is of schema {before}"
        click.echo(f"{name} {what}, and this version uses {version}; run 'mlflow-green ledger migrate'.")
    elif before == version:
        click.echo(f"{name} is of schema {version}, the one that this version uses.")
    elif before is None:
        click.echo(f"{name} has its tables now, of schema {version}.")
    else:
        kept = f"; the file as it was is {done.copy}" if done.copy else ""
        click.echo(f"{name} was brought from schema {before} to {version}{kept}.")
    sys.exit(exit_codes.OK if is_current else exit_codes.FOUND)


@ledger.command()
@click.option("--keep", default="400d", show_default=True, help="Leave alone what is younger; one day at least.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@json_option
@click.pass_obj
def compact(place: Place, keep: str, dry_run: bool, as_json: bool) -> None:
    """Take out what nobody asks for any more: delivered messages, superseded answers, single node windows.

    What was spent, held, decided and charged stays. Exit status 3 if the file could not be made smaller.
    """
    keep_seconds = parse_seconds(keep)
    if not KEEP_SECONDS_MIN <= keep_seconds <= KEEP_SECONDS_MAX:
        raise click.UsageError(f"--keep {keep} is not possible; write a time from 1d to 36500d, e.g. 400d")
    with opened(place, place.settings()) as books:
        done = books.compact(timedelta(seconds=keep_seconds), only_look=dry_run) if books else None
    if as_json:
        print_json(_compaction_json(done, keep_seconds, dry_run))
    else:
        click.echo(_compaction_text(done, dry_run) if done else NO_HISTORY)
    if done and done.problem:
        click.echo(f"mlflow-green: the rows are gone, and the file is as large as before: {done.problem}", err=True)
        sys.exit(exit_codes.ENVIRONMENT)


def _compaction_text(done: Compaction, dry_run: bool) -> str:
    if done.kept:
        return f"Nothing was changed: {done.kept}."
    counts = {f"{kind} messages": count for kind, count in done.messages.items()}
    counts |= {"superseded answers": done.decisions, "node windows, joined with others": done.windows}
    gone = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if dry_run:
        text = f"Would go: {gone}. Nothing was changed." if gone else "Nothing would go."
    else:
        text = f"Gone: {gone}." if gone else "Nothing had to go."
    if done.bytes_before is None:
        return text
    before = format_bytes(done.bytes_before)
    if done.bytes_after is None:
        return f"{text} The ledger takes {before}."
    return f"{text} The ledger took {before}, and takes {format_bytes(done.bytes_after)} now."


def _compaction_json(done: Compaction | None, keep_seconds: int, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "keep_seconds": keep_seconds,
        "messages": dict(done.messages) if done else {},
        "decisions": done.decisions if done else 0,
        "node_windows": done.windows if done else 0,
        "bytes_before": done.bytes_before if done else None,
        "bytes_after": done.bytes_after if done else None,
        "kept": done.kept or None if done else None,
        "problem": done.problem or None if done else None,
    }


@ledger.command()
@click.option("--nodes", is_flag=True, help="Export the node windows behind the entries instead.")
@click.option("--json", "_json", is_flag=True, help="Accepted for symmetry: the export is always JSON.")
@click.pass_obj
def export(place: Place, nodes: bool, _json: bool) -> None:
    """Every entry as one JSON object a line, oldest first."""
    from mlflow_green.reports.export import entry_to_json, window_to_json

    with opened(place, place.settings()) as books:
        if books is None:
            click.echo(NO_HISTORY, err=True)
        elif nodes:
            for window in books.node_windows():
                print_json_line(window_to_json(window))
        else:
            facts = books.facts()
            for entry in books.entries():
                print_json_line(entry_to_json(entry, facts))
