"""``why-waiting``: which steps wait now, and for what."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click

from mlflow_green.cli import exit_codes
from mlflow_green.cli.books import step_named
from mlflow_green.cli.doors import Place
from mlflow_green.cli.output import console, json_option, opened, print_json


@click.command("why-waiting")
@click.argument("step", required=False)
@json_option
@click.pass_obj
def why_waiting(place: Place, step: str | None, as_json: bool) -> None:
    """Which steps wait now: for which budget, who holds it, what happens next and when.

    STEP is a rule, or a rule with wildcards, 'train[model=mlp]'. Exit status 0: nothing waits, 1: something does.
    """
    from mlflow_green.reports.waiting import explain_waiting, waiting_to_json

    name, wildcards = step_named(step) if step else (None, None)
    settings, now = place.settings(), datetime.now(UTC)
    with opened(place, settings) as books:
        found = place.doors.waits(settings, books, now) if books else ()
        is_known = books is not None and books.identity() is not None
    found = tuple(
        waiting
        for waiting in found
        if name in {None, waiting.row.step.name} and wildcards in {None, waiting.row.step.wildcards}
    )
    if as_json:
        print_json({"waiting": [waiting_to_json(waiting) for waiting in found]})
    elif not found:
        click.echo(f"{step} does not wait." if step else "Nothing waits.")
    else:
        out = console()
        for waiting in found:
            explain_waiting(out, waiting, now, is_known=is_known)
    sys.exit(exit_codes.FOUND if found else exit_codes.OK)
