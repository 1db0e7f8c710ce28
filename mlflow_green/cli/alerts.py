"""Commands about alerts: ``alerts send`` delivers them, ``alerts list`` shows them, ``alerts test`` tries a channel."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from mlflow_green.cli import exit_codes
from mlflow_green.cli.doors import Books, Place
from mlflow_green.cli.output import NO_HISTORY, json_option, opened, print_json
from mlflow_green.records import LetterState, OutboxRow
from mlflow_green.units import format_number_of

if TYPE_CHECKING:
    from mlflow_green.alerts.delivery import Report

SHOWN_MAX = 50


@click.group()
def alerts() -> None:
    """Send what budgets have to say, and see what became of it."""


@alerts.command()
@json_option
@click.pass_obj
def send(place: Place, as_json: bool) -> None:
    """Send what is due, once; for cron. Exit status 3 if a channel did not take its message."""
    from mlflow_green.alerts.delivery import Fate

    settings = place.settings()
    with opened(place, settings) as books:
        reports = place.doors.open_alerts(settings, books, place.environ).send() if books else ()
    if as_json:
        print_json({"reports": [_report_json(report) for report in reports]})
    else:
        for report in reports:
            click.echo(_report_line(report))
        if not reports:
            click.echo("There is nothing to send.")
    failed = any(report.fate in {Fate.FAILED, Fate.DEAD} for report in reports)
    sys.exit(exit_codes.ENVIRONMENT if failed else exit_codes.OK)


def _report_line(report: Report) -> str:
    more = f", goes on at {_local(report.at)}" if report.at else ""
    return f"{report.address}: {report.fate.value}: {report.text}{more}"


def _report_json(report: Report) -> dict[str, object]:
    return {
        "channel": report.address.channel,
        "route": report.address.route,
        "fate": report.fate.value,
        "text": report.text,
        "at": report.at.isoformat() if report.at else None,
    }


@alerts.command(name="list")
@click.option("--all", "shows_all", is_flag=True, help=f"All of them, not only the latest {SHOWN_MAX}.")
@json_option
@click.pass_obj
def list_(place: Place, shows_all: bool, as_json: bool) -> None:
    """What was sent, what waits, and what was given up, oldest first."""
    with opened(place, place.settings()) as books:
        rows = _rows(books) if books else []
    if not shows_all:
        rows = rows[-SHOWN_MAX:]
    if as_json:
        print_json({"alerts": [_row_json(row) for row in rows]})
    elif books is None:
        click.echo(NO_HISTORY)
    else:
        for row in rows:
            click.echo(_row_line(row))
        if not rows:
            click.echo("There was no alert yet.")


def _rows(books: Books) -> list[OutboxRow]:
    """Each alert in the one form that it is in now: promised, waiting for its address's window, or in a letter."""
    with books.snapshot():
        rows = [
            *books.rows("alert", LetterState.PENDING),
            *books.rows("notice", LetterState.PENDING, LetterState.DEAD),
            *books.rows("letter", *LetterState),
        ]
    return sorted(rows, key=lambda row: row.outbox_id)


def dead_count(books: Books) -> int:
    """How many messages were given up."""
    return sum(len(books.rows(kind, LetterState.DEAD)) for kind in ("notice", "letter"))


_STATES = {LetterState.PENDING: "waits", LetterState.DELIVERED: "sent", LetterState.DEAD: "given up"}


def _row_line(row: OutboxRow) -> str:
    where = f"{row.payload.get('channel', 'no channel yet')} {row.payload.get('route', '')}".rstrip()
    error = f" ({format_number_of(row.tries, 'try', 'tries')}, last: {row.error})" if row.error else ""
    return f"{_local(row.due_at)}  {_STATES[row.state]:8}  {where}: {_subject(row)}{error}"


def _row_json(row: OutboxRow) -> dict[str, object]:
    return {
        "state": row.state.value,
        "at": row.due_at.isoformat() if row.due_at else None,
        "channel": row.payload.get("channel"),
        "route": row.payload.get("route"),
        "letter_id": row.payload.get("letter_id"),
        "subject": _subject(row),
        "tries": row.tries,
        "error": row.error,
    }


def _subject(row: OutboxRow) -> str:
    alert = row.payload.get("alert", row.payload)
    text = row.payload.get("subject") or (alert.get("text") if isinstance(alert, dict) else None)
    return str(text or "an alert")


def _local(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else "-"


@alerts.command()
@click.argument("channel")
@click.pass_obj
def test(place: Place, channel: str) -> None:
    """Send a message marked as a test to every address of CHANNEL; exit status 3 if one does not take it."""
    settings = place.settings()
    known = place.doors.load_policy(settings).channels
    if channel not in known:
        listed = f"it has {', '.join(known)}" if known else "it has no 'channels:' section"
        raise click.UsageError(f"green.yaml has no channel {channel!r}; {listed}")
    failed = False
    for address, problem in place.doors.try_channel(settings, channel, place.environ):
        click.echo(f"{address}: {'taken' if problem is None else f'failed: {problem}'}")
        failed = failed or problem is not None
    sys.exit(exit_codes.ENVIRONMENT if failed else exit_codes.OK)
