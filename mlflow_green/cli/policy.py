"""Commands about the policy file: ``init`` writes one, ``policy`` checks one and says what it would answer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_green.cli import exit_codes
from mlflow_green.cli.doors import Place
from mlflow_green.cli.output import console, json_option, opened, print_json
from mlflow_green.errors import PolicyError, SettingsError
from mlflow_green.records import Action
from mlflow_green.settings import POLICY_NAME
from mlflow_green.units import format_number_of

if TYPE_CHECKING:
    from mlflow_green.policy.document import Policy

_PLAIN = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]*$")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}

_TEMPLATE = """\
version: 1
project: {project}   # whose budgets the energy of this folder counts against
{site}
budgets:   # mode observe only watches, soft advises, hard keeps the limit: downgrade, wait, refuse, halt
  - {{name: project-month, scope: {{project: {project}}}, limit: 5 kWh, period: month, mode: observe,
     rules: [{{at: 80%, of: committed, do: downgrade}}, {{at: 100%, of: committed, do: wait, for: 1h}}]}}
"""
_NO_SITE = "# site: {country: FRA, pue: 1.2}   # uncomment with your country (ISO 3166 alpha-3) to get carbon"
_SITE = "site: {{{key}: {place}, pue: 1.0}}   # carbon of the grid there; pue is the overhead of the building"


@click.command()
@click.option("--country", help="Country of the electricity grid, three letters such as FRA.")
@click.option("--cloud", help="Cloud region instead of the country, such as aws:eu-west-3.")
@click.option("--project", help="Name of the project; the folder's name by default.")
@json_option
@click.pass_obj
def init(place: Place, country: str | None, cloud: str | None, project: str | None, as_json: bool) -> None:
    """Write a six-line green.yaml here; an existing one is never touched."""
    if country and cloud:
        raise click.UsageError("a site has one place: give --country or --cloud")
    path = place.policy_path or place.cwd / POLICY_NAME
    name = project or place.cwd.resolve().name or "default"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(policy_text(name, country=country, cloud=cloud))
    except FileExistsError:
        raise SettingsError(f"{path} is there already and was not touched; edit it, or remove it first") from None
    try:
        place.doors.load_policy(replace(place.settings(), policy_path=path))
    except PolicyError as error:
        path.unlink()
        raise SettingsError(f"nothing was written, for this would not work:\n{error}") from None
    if as_json:
        print_json({"path": str(path), "project": name, "country": country, "cloud": cloud})
        return
    click.echo(f"Wrote {path}.")
    if not country and not cloud:
        click.echo("Set site.country in it, so that carbon is known.")
    click.echo(
        "Next: 'snakemake --scheduler green -c1' meters your pipeline; 'mlflow-green doctor' shows what is measured."
    )


def policy_text(project: str, *, country: str | None = None, cloud: str | None = None) -> str:
    """The six lines of a first green.yaml."""
    plain = _PLAIN.match(project) and project.lower() not in _YAML_WORDS
    site = _NO_SITE
    if country or cloud:
        site = _SITE.format(key="country" if country else "cloud", place=_quoted(country or cloud or ""))
    return _TEMPLATE.format(project=project if plain else json.dumps(project), site=site)


def _quoted(place: str) -> str:
    """Norway is a word of YAML (NO), and whatever a user typed may be another."""
    return place if re.fullmatch("[A-Z]{3}", place) else json.dumps(place)


@click.group()
def policy() -> None:
    """Check the policy file, apply it, and see what it would answer before anything runs."""


@policy.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@json_option
@click.pass_obj
def check(place: Place, file: Path | None, as_json: bool) -> None:
    """Check green.yaml, or FILE, and show all its problems at once; exit status 1 if there are any."""
    place.policy_path = file or place.policy_path
    settings = place.settings()
    if settings.policy_path is None:
        raise SettingsError(f"there is no {POLICY_NAME} here or in a folder above; 'mlflow-green init' writes one")
    problems: tuple[str, ...] = ()
    checked: Policy | None = None
    try:
        checked = place.doors.load_policy(settings)
    except PolicyError as error:
        problems = error.problems
    notes = place.doors.lacks_of_channels(settings, checked, place.environ) if checked and checked.channels else ()
    if as_json:
        print_json(
            {
                "path": str(settings.policy_path),
                "ok": not problems,
                "problems": list(problems),
                "notes": list(notes),
                "sha256": checked.sha256 if checked else None,
                "project": checked.project if checked else None,
                "budgets": [budget.name for budget in checked.budgets] if checked else [],
            }
        )
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(_verdict(settings.policy_path, len(problems), checked))
        for note in notes:
            click.echo(f"Note: {note}.")
    sys.exit(exit_codes.FOUND if problems else exit_codes.OK)


@policy.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- SNAKEMAKE OPTIONS]")
@json_option
@click.pass_obj
def plan(place: Place, arguments: tuple[str, ...], as_json: bool) -> None:
    """What each step of this workflow would be answered now, and what that leaves of each budget.

    Runs and writes nothing. What stands after -- goes to Snakemake: policy plan -- -s other.smk -c8 target. Exit
    status 0: all steps are admitted, 2: some are downgraded or wait, 3: some are refused or halted.
    """
    from mlflow_green.reports.plans import plan_to_json, print_plan

    planned = place.doors.plan(place.settings(), arguments, cwd=place.cwd, environ=place.environ)
    if as_json:
        print_json(plan_to_json(planned))
    else:
        print_plan(console(), planned)
    sys.exit(_status({answer.action for answer in planned.answers}, any(a.is_delayed for a in planned.answers)))


@policy.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--since", metavar="DATE", help="The first day, such as 2026-10-01; 30 days ago by default.")
@click.option("--until", metavar="DATE", help="The first day that is left out; now by default.")
@json_option
@click.pass_obj
def replay(place: Place, file: Path, since: str | None, until: str | None, as_json: bool) -> None:
    """What the policy in FILE would have answered to the steps of the last 30 days.

    Days begin at midnight UTC. Exit status as that of 'policy plan'.
    """
    from mlflow_green.reports.replays import print_replay, replay_to_json

    end = _moment(until, "--until") if until else datetime.now(UTC)
    start = _moment(since, "--since") if since else end - timedelta(days=30)
    if start >= end:
        raise click.UsageError(f"--since {start:%Y-%m-%d} is not before --until {end:%Y-%m-%d}")
    replayed = place.doors.replay(place.settings(), file, since=start, until=end)
    if as_json:
        print_json(replay_to_json(replayed))
    else:
        print_replay(console(), replayed)
    sys.exit(_status({answer.action for answer in replayed.answers}, any(a.waited_seconds for a in replayed.answers)))


def _moment(text: str, option: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{option} {text} is no date; write it as 2026-10-01 or 2026-10-01T08:00+02:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _status(actions: Collection[Action | None], any_waits: bool) -> int:
    """What happens to the steps of a plan or a replay, the worst of it."""
    if Action.REFUSE in actions or Action.HALT in actions:
        return exit_codes.SOME_REFUSED
    if any_waits or Action.WAIT in actions or Action.DOWNGRADE in actions:
        return exit_codes.SOME_LESS
    return exit_codes.OK


def _verdict(path: Path, problems: int, checked: Policy | None) -> str:
    if checked is None:
        return f"{format_number_of(problems, 'problem')} in {path}"
    budgets = ", ".join(f"{budget.name} ({budget.mode.value})" for budget in checked.budgets) or "none"
    return f"{path} is fine: project {checked.project}, budgets: {budgets}, sha256 {checked.sha256[:12]}"


@policy.command()
@click.argument("sha256")
@click.pass_obj
def show(place: Place, sha256: str) -> None:
    """Print a version of the policy that was used, by the start of its SHA256 as 'explain' shows it."""
    with opened(place, place.settings()) as books:
        found = [version for version in (books.policies() if books else ()) if version.sha256.startswith(sha256)]
    if not found:
        raise SettingsError(f"no policy {sha256} was used here; 'mlflow-green explain' names the one of each decision")
    click.echo(found[-1].text, nl=False)


@policy.command()
@click.option("--approver", metavar="NAME", help="Who has agreed, where you are no approver yourself.")
@click.option("--reason", default="", help="Why; it is kept and told.")
@click.option("--dry-run", is_flag=True, help="Show what would change and change nothing.")
@json_option
@click.pass_obj
def apply(place: Place, *, approver: str | None, reason: str, dry_run: bool, as_json: bool) -> None:
    """Count what green.yaml says from now on: raised limits and loosened modes do only after this."""
    from mlflow_green.cli.applying import applied

    changes, agreed, wants_reason = applied(place, approver=approver, reason=reason, dry_run=dry_run)
    if as_json:
        print_json({"applied": not dry_run, "agreed": agreed or None, "changes": list(changes)})
        return
    for change in changes:
        click.echo(change)
    if not changes:
        click.echo("Nothing changes: every limit and mode of this policy counts already.")
    elif dry_run:
        click.echo("Nothing was applied; leave --dry-run out to do so.")
    else:
        click.echo(f"Applied {agreed}; 'mlflow-green budget list' keeps it.")
    if wants_reason:
        click.echo("It needs a reason: add --reason TEXT (override: reason: required in green.yaml).")
