"""``mlflow-green``: the command line. Heavy imports are made inside the commands, so ``--help`` is quick."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import click

from mlflow_green import __version__
from mlflow_green.cli import exit_codes
from mlflow_green.cli.books import balance, explain, ledger
from mlflow_green.cli.doctor import doctor
from mlflow_green.cli.doors import Place
from mlflow_green.cli.estimate import estimate
from mlflow_green.cli.policy import init, policy
from mlflow_green.cli.report import report, sync
from mlflow_green.cli.run import run
from mlflow_green.errors import GreenError


class _GreenGroup(click.Group):
    """The host boundary: every error of ours, and of the file system, becomes a message and an exit status."""

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


for command in (init, run, doctor, balance, explain, estimate, ledger, policy, report, sync):
    cli.add_command(command)


def main() -> None:
    """The entry point of the distribution."""
    cli(prog_name="mlflow-green")
