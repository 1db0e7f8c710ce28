"""Commands that show and hand on what was recorded: ``report`` and ``sync``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_green.cli import exit_codes
from mlflow_green.cli.doors import Books, Place
from mlflow_green.cli.output import NO_HISTORY, console, json_option, opened, print_json
from mlflow_green.errors import PolicyError
from mlflow_green.records import Entry
from mlflow_green.settings import Settings
from mlflow_green.units import format_number_of

if TYPE_CHECKING:
    from mlflow_green.reports.pareto import Goal

REPORT_NAME = "report.html"
JOBS_SHOWN_MAX = 100
LAST = "last"
STORE_NAMES = ("mlflow.db", "mlruns")  # where MLflow writes when it is told nothing


@click.command()
@click.option(
    "--html", "html_path", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the HTML file."
)
@click.option("--workflow-run", metavar="ID", help="Only this workflow run; 'last' is the latest one.")
@json_option
@click.pass_obj
def report(place: Place, html_path: Path | None, workflow_run: str | None, as_json: bool) -> None:
    """Show jobs and budgets, and write the HTML report."""
    from mlflow_green.reports.export import balance_to_json, entry_to_json, reliability_to_json
    from mlflow_green.reports.html import write_report
    from mlflow_green.reports.reliability import reliabilities

    settings = place.settings()
    with opened(place, settings) as books:
        if books is None:
            nothing: dict[str, list[object] | None] = {"entries": [], "balances": [], "estimates": [], "html": None}
            print_json(nothing) if as_json else click.echo(NO_HISTORY)
            return
        if workflow_run == LAST:
            workflow_run = _latest_run(books.entries())
        path = (html_path or settings.state_dir / REPORT_NAME).absolute()
        write_report(books, path, now=datetime.now(UTC), workflow_run=workflow_run, goals=_goals(place, settings))
        if as_json:
            facts = books.facts()
            found = books.entries(workflow_run=workflow_run)
            print_json(
                {
                    "entries": [entry_to_json(entry, facts) for entry in found],
                    "balances": [balance_to_json(balance) for balance in books.balances()],
                    "estimates": [reliability_to_json(each) for each in reliabilities(books.decisions(), found)],
                    "html": str(path),
                }
            )
            return
        _show(books, workflow_run)
    click.echo(f"Report: {path}")
    click.echo(f"MLflow: {ui_command(place.environ, (place.cwd, settings.state_dir.parent))}")


def _latest_run(entries: tuple[Entry, ...]) -> str | None:
    latest = max(entries, key=lambda entry: entry.started_at, default=None)
    return latest.workflow_run if latest else None


def _goals(place: Place, settings: Settings) -> Mapping[str, Goal]:
    """Which way each declared metric is better; a broken policy file does not keep anyone from their report."""
    try:
        steps = place.doors.load_policy(settings).step_documents.values()
    except PolicyError as error:
        click.echo(f"{error}\nThe report does without the policy file.", err=True)
        return {}
    return {step.quality.metric: step.quality.goal for step in steps if step.quality}


def _show(books: Books, workflow_run: str | None) -> None:
    from mlflow_green.reports.reliability import reliabilities
    from mlflow_green.reports.tables import balance_table, jobs_table, reliability_table, rules_table

    entries = sorted(books.entries(workflow_run=workflow_run), key=lambda entry: entry.started_at)
    balances = books.balances()
    out = console()
    if len(entries) > JOBS_SHOWN_MAX:
        out.print(rules_table(entries, width=out.width))
        out.print(f"The latest {JOBS_SHOWN_MAX} of {len(entries)} jobs:")
    out.print(jobs_table(entries[-JOBS_SHOWN_MAX:], books.facts(), books.node_windows(), width=out.width))
    out.print()
    if balances:
        out.print(balance_table(balances, width=out.width))
        out.print()
    estimates = reliabilities(books.decisions(), entries)
    if estimates:
        out.print(reliability_table(estimates, width=out.width))
        out.print()


def ui_command(environ: Mapping[str, str], folders: Sequence[Path]) -> str:
    """What opens the MLflow UI on the runs of this environment; the first of ``folders`` is the working directory.

    Without ``MLFLOW_TRACKING_URI`` MLflow's store lies in the folder in which the workflow was started, and ``mlflow
    ui`` looks for it, or makes an empty one, in its own.
    """
    uri = environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("http://", "https://")):
        return f"open {uri}"
    if uri:
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    folder = next((folder for folder in folders if any((folder / name).exists() for name in STORE_NAMES)), None)
    if folder is None:
        return (
            "no store in this folder and MLFLOW_TRACKING_URI is not set; "
            "start 'mlflow ui' in the folder in which the workflow was started"
        )
    return "mlflow ui" if folder == folders[0] else f"cd {shlex.quote(str(folder))} && mlflow ui"


@click.command()
@json_option
@click.pass_obj
def sync(place: Place, as_json: bool) -> None:
    """Write to MLflow what could not be written when it was recorded; exit status 3 if something is left."""
    from mlflow_green.cli.doors import has_history

    settings = place.settings()
    left = place.doors.sync(settings) if has_history(settings) else 0
    if as_json:
        print_json({"left": left})
    elif left:
        rows = format_number_of(left, "row")
        click.echo(f"{rows} could not be written to MLflow yet; check MLFLOW_TRACKING_URI and try again", err=True)
    else:
        click.echo("MLflow has everything.")
    sys.exit(exit_codes.ENVIRONMENT if left else exit_codes.OK)
