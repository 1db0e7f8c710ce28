"""``mlflow-green``: the command line. A command's module is imported when it is called, so ``run`` stays light."""

from __future__ import annotations

import errno
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from mlflow_green import __version__
from mlflow_green.cli import exit_codes
from mlflow_green.cli.doors import Place
from mlflow_green.errors import GreenError

_COMMANDS = {
    "init": "policy",
    "run": "run",
    "doctor": "doctor",
    "balance": "books",
    "budget": "budget",
    "explain": "books",
    "estimate": "estimate",
    "ledger": "books",
    "policy": "policy",
    "report": "report",
    "sync": "report",
}
"""The module beside this one that has the command of that name."""


class _GreenGroup(click.Group):
    """The host boundary: every error of ours, and of the file system, becomes a message and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"mlflow_green.cli.{_COMMANDS[cmd_name]}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GreenError as error:
            click.echo(f"mlflow-green: {error}", err=True)
            ctx.exit(exit_codes.exit_code(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            click.echo(f"mlflow-green: {_file_message(error)}", err=True)
            ctx.exit(exit_codes.ENVIRONMENT)


def _file_message(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    return f"cannot use{where}: {error.strerror or error}; make it readable and writable, or choose another place"


@click.group(cls=_GreenGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--policy", "policy_path", type=click.Path(path_type=Path), help="The policy file instead of green.yaml.")
@click.option("--ledger", "ledger_url", metavar="URL", help="The ledger, an SQLAlchemy URL such as sqlite:///FILE.")
@click.version_option(__version__, prog_name="mlflow-green")
@click.pass_context
def cli(context: click.Context, policy_path: Path | None, ledger_url: str | None) -> None:
    """Energy budgets for machine-learning pipelines: what was used, what is left, and why."""
    if context.obj is None:
        context.obj = Place(environ=os.environ)
    context.obj.policy_path = policy_path or context.obj.policy_path
    context.obj.ledger_url = ledger_url or context.obj.ledger_url


def main() -> None:
    """The entry point of the distribution."""
    cli(prog_name="mlflow-green")
