"""Starts the sender as a process of its own, so that no host program ever waits for a mail server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start_sender(policy_path: Path, ledger_url: str) -> None:
    """Run ``mlflow-green alerts send`` once, detached: it outlives this process, and what it did is in the ledger."""
    # Not among the arguments, which everybody may read: the URL may have a password.
    places = {"MLFLOW_GREEN_POLICY": str(policy_path), "MLFLOW_GREEN_LEDGER": ledger_url}
    subprocess.Popen(
        [sys.executable, "-P", "-m", "mlflow_green.cli", "alerts", "send"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **places},
    )
