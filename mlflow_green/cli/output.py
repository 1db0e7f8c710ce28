"""How commands speak: tables and sentences for people, JSON for programs, on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mlflow_green.cli.doors import Books, Place, has_history
from mlflow_green.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

Command = Callable[..., None]

NO_HISTORY = (
    "Nothing has been metered here yet. Run a pipeline with 'snakemake --scheduler green', "
    "or one command with 'mlflow-green run -- COMMAND'."
)


def json_option(command: Command) -> Command:
    """``--json``: the answer as JSON, energies as integers in microjoules."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON; energies are integers in microjoules.")(
        command
    )


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    click.echo(json.dumps(value, separators=(",", ":")))


def console() -> Console:
    """Standard output as it is now, for tables."""
    from mlflow_green.reports.tables import terminal

    return terminal()


@contextmanager
def opened(place: Place, settings: Settings, *, creates: bool = False) -> Iterator[Books | None]:
    """The ledger while a command uses it; ``None`` where nothing was metered yet, unless the command ``creates`` one.

    So reading makes no file.
    """
    if not creates and not has_history(settings):
        yield None
        return
    books = place.doors.open_reader(settings)
    try:
        yield books
    finally:
        books.close()
