"""The handle of the process that writes MLflow runs; standard library only, for Snakemake imports it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

READY_SECONDS_MAX = 60.0


class TrackingChild:
    """Starts the sink, knows when MLflow's store is ready, and lets it finish at the end.

    The child lives in a session of its own: Ctrl-C and the death of Snakemake reach it only as the end of
    its standard input, upon which it writes what is due and exits.
    """

    def __init__(
        self, ledger_url: str, arguments: Sequence[str], *, wake: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._wake = wake
        self._give_up_at = time.monotonic() + READY_SECONDS_MAX
        self._answered = threading.Event()
        self.last_line = ""
        self._process = subprocess.Popen(
            # -P: the working folder is the user's, and a file there must not pass for a module of ours
            [sys.executable, "-P", "-m", "mlflow_green.tracking.sink", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A URL may hold a password, and everybody on this machine may read a command line.
            env={**os.environ, "MLFLOW_GREEN_LEDGER": ledger_url, "PYTHONUNBUFFERED": "1"},
        )
        self._listener = threading.Thread(target=self._listen, name="green-tracking", daemon=True)
        self._listener.start()

    def ready(self) -> bool:
        """True once the store is there, or never will be: tracking must not keep a job waiting for ever."""
        return self._answered.is_set() or time.monotonic() > self._give_up_at

    def close(self, timeout_seconds: float) -> bool:
        """Let it write what is due; False if it is still at it, which it then goes on with by itself."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        self._listener.join(1.0)
        return self.last_line.startswith("drained")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.last_line = line.strip()
            if self.last_line.startswith("failed"):
                self._say(
                    f"MLflow cannot be written now ({self.last_line.removeprefix('failed:').strip()}); "
                    "jobs run on, and 'mlflow-green sync' writes the runs later"
                )
            self._answered.set()
            self._wake()
        self._answered.set()
        self._wake()
