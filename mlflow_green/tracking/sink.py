"""The child process that writes MLflow: it reads the ledger's outbox, so that no job ever waits for MLflow.

    python -m mlflow_green.tracking.sink --mountinfo PATH --workflow-run ID --project P
        --jobs all|notable|none --name NAME [--once]

``MLFLOW_GREEN_LEDGER`` in its environment is the ledger's URL. It says ``ready`` (or ``failed: REASON``) on stdout when
the MLflow store can be used, works until its stdin ends, then delivers what is pending, also what waits for another
try, and says ``drained`` or ``left N``. With ``--once`` it delivers everything of all workflows and exits: 0 when
nothing is left, 1 otherwise. Failures of MLflow are warnings on stderr, at most one a minute; what was not written
stays in the outbox.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlflow_green.clock import SystemClock
from mlflow_green.errors import LedgerError
from mlflow_green.tracking.delivery import Delivery
from mlflow_green.tracking.run_metrics import Workflow

if TYPE_CHECKING:
    from mlflow_green.tracking.run_writer import RunWriter

POLL_SECONDS = 1.0
NICENESS = 19
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_GREEN_DISABLE": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set before MLflow is imported unless the user set it: MLflow's own retries last minutes, ours are in the outbox."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 in all cases but two: the ledger cannot be opened, or ``--once`` left something undelivered."""
    options = _parser().parse_args(arguments)
    answers = _private_stdout()
    with contextlib.suppress(OSError):
        os.setsid()  # the terminal's Ctrl-C is not for us: the main process closes the pipe
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow_green.ledger.shared_clock import SharedClock
    from mlflow_green.ledger.sql import open_ledger
    from mlflow_green.tracking.run_writer import RunWriter

    clock = SystemClock()
    try:
        ledger = open_ledger(os.environ["MLFLOW_GREEN_LEDGER"], mountinfo_path=options.mountinfo, clock=clock)
    except LedgerError as error:
        _say(answers, f"failed: {_first_line(error)}")
        return 1
    own = None
    if not options.once:
        own = Workflow(workflow_run=options.workflow_run, project=options.project, name=options.name)
    writer = RunWriter(jobs=options.jobs)
    delivery = Delivery(ledger, writer, SharedClock(ledger, clock), _warn, own)
    try:
        answer = _prepare(writer)
        with contextlib.suppress(OSError):
            os.nice(NICENESS)  # from here on jobs run; until here the first of them waits for us
        _say(answers, answer)
        if not options.once:
            _serve(delivery)
        left = _drain(delivery)
    finally:
        ledger.close()
    _say(answers, f"left {left}" if left else "drained")
    return 1 if options.once and left else 0


def _prepare(writer: RunWriter) -> str:
    try:
        writer.prepare()
    except Exception as error:  # noqa: BLE001 - MLflow is a host: jobs run without it, and the loop tries again
        return f"failed: {_first_line(error)}"
    return "ready"


def _serve(delivery: Delivery) -> None:
    while not _stdin_ended():
        try:
            delivery.round()
        except LedgerError as error:
            delivery.warn(f"the ledger did not answer the MLflow sink: {_first_line(error)}")


def _stdin_ended() -> bool:
    """Wait for the next round; true once the process that started us closed the pipe or is dead."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


def _drain(delivery: Delivery) -> int | str:
    try:
        left = delivery.drain()
        delivery.close_unended()
    except LedgerError as error:
        delivery.warn(f"the ledger did not answer the MLflow sink: {_first_line(error)}")
        return "?"
    except Exception as error:  # noqa: BLE001 - only the status of the parent run is missing
        delivery.warn(f"MLflow did not take the end of the workflow: {_first_line(error)}")
    return left


def _private_stdout() -> TextIO:
    """Keep stdout for our own lines: what MLflow prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, line: str) -> None:
    with contextlib.suppress(OSError):  # the main process may be gone
        print(line, file=answers, flush=True)


def _warn(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"mlflow-green: {text}\n")
        sys.stderr.flush()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlflow_green.tracking.sink")
    parser.add_argument("--mountinfo", type=Path, default=Path("/proc/self/mountinfo"))
    parser.add_argument("--workflow-run", required=True)
    parser.add_argument("--project", required=True)
    parser.add_argument("--jobs", choices=("all", "notable", "none"), default="notable")
    parser.add_argument("--name", required=True)
    parser.add_argument("--once", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
