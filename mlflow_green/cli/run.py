"""``mlflow-green run``: one command as a metered step."""

from __future__ import annotations

import json
import sys

import click

from mlflow_green.cli.doors import Place


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--project", help="The project that pays; that of green.yaml by default.")
@click.option("--step", help="The step's name; the program's name by default.")
@click.option("--energy", metavar="ENERGY", help='First estimate, such as "5 Wh".')
@click.option("--json", "as_json", is_flag=True, help="Afterwards, print one line of JSON on standard error.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@click.pass_obj
def run(
    place: Place, argv: tuple[str, ...], project: str | None, step: str | None, energy: str | None, as_json: bool
) -> None:
    """Run CMD under the meter and its budgets.

    The exit status is that of CMD; 77 when a budget refused it, 76 when it was halted.
    """
    from mlflow_green.units import parse_energy_microjoules

    if energy is not None:
        parse_energy_microjoules(energy)  # a wrong argument is told before anything starts
    ran = place.doors.run_command(place.settings(), argv, project=project, step=step, energy=energy)
    if as_json:
        from mlflow_green.reports.export import entry_to_json

        entry = entry_to_json(ran.entry, {}) if ran.entry else None
        click.echo(json.dumps({"argv": list(argv), "exit_code": ran.exit_code, "entry": entry}), err=True)
    sys.exit(ran.exit_code)
