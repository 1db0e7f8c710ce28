"""A folder with a Snakefile: run the real Snakemake in it and read what it left in the ledger."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from mlflow_green.bootstrap import open_ledger
from mlflow_green.clock import SystemClock
from mlflow_green.settings import load_settings
from tests.testkit.waiting import comes_true

LIMIT_SECONDS = 60


@dataclass(frozen=True)
class Run:
    returncode: int
    output: str
    duration_seconds: float


class Started:
    """A Snakemake that runs in a process group of its own; ``output`` grows while it runs."""

    def __init__(self, command, folder, environ):
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, condition, what):
        wait_for(lambda: condition() or self.process.poll() is not None, what, lambda: self.output)
        assert condition(), f"ended before {what}:\n{self.output}"

    def end(self, limit_seconds=LIMIT_SECONDS):
        began = time.monotonic()
        try:
            returncode = self.process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self._reader.join(5)
            raise AssertionError(f"Snakemake hangs:\n{self.output}") from None
        self._reader.join(5)
        return Run(returncode, self.output, time.monotonic() - began)


class SnakemakeFolder:
    def __init__(self, path: Path, snakefile: str, policy: str | None = None):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.write("Snakefile", snakefile)
        if policy is not None:
            self.policy(policy)

    def write(self, name, text):
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return file

    def read(self, name):
        return (self.path / name).read_text()

    def exists(self, name):
        return (self.path / name).exists()

    def policy(self, text):
        self.write("green.yaml", "version: 1\nproject: test\ntracking: none\n" + dedent(text))

    def environ(self, **extra):
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GREEN_"))}
        runtime = self.path.parent / f"{self.path.name}-runtime"
        return {**own, "MLFLOW_GREEN_RUNTIME_DIR": str(runtime), "PYTHONDONTWRITEBYTECODE": "1", **extra}

    def start(self, *options, scheduler="green", program=("-m", "snakemake"), **environ):
        command = [sys.executable, *program]
        if program == ("-m", "snakemake"):
            command += ["--scheduler", scheduler]
        return Started([*command, *map(str, options)], self.path, self.environ(**environ))

    def run(self, *options, **settings):
        began = time.monotonic()
        done = self.start(*options, **settings).end()
        return Run(done.returncode, done.output, time.monotonic() - began)

    # --- afterwards ----------------------------------------------------------------------------------

    @contextmanager
    def ledger(self):
        ledger = open_ledger(load_settings(self.path, {}), SystemClock())
        try:
            yield ledger
        finally:
            ledger.close()

    def entries(self):
        with self.ledger() as ledger:
            return ledger.entries()

    def entry(self, label, attempt=1):
        found = [e for e in self.entries() if f"{e.step}[{e.wildcards}]".removesuffix("[]") == label]
        return next(e for e in found if e.attempt == attempt)

    def windows(self):
        with self.ledger() as ledger:
            return ledger.node_windows()

    def open_holds(self):
        with self.ledger() as ledger:
            return ledger.open_holds()

    def balances(self):
        with self.ledger() as ledger:
            return ledger.balances()

    def leftovers(self):
        """What Snakemake keeps of jobs that did not finish."""
        places = (self.path / ".snakemake" / name for name in ("incomplete", "shadow"))
        return [file for place in places if place.is_dir() for file in place.iterdir()]


def wait_for(condition, what, also=lambda: "", limit_seconds=LIMIT_SECONDS):
    assert comes_true(condition, limit_seconds), f"no {what} after {limit_seconds} s\n{also()}"


def processes_in(folder):
    """Live processes whose working directory is the folder or below it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").resolve().is_relative_to(folder):
                    found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue
    return [(pid, command) for pid, command in found if command]
