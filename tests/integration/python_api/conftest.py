"""A folder to run blocks in: in this process, or as the program of another one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_green.bootstrap import open_reader
from mlflow_green.records import Entry
from mlflow_green.settings import load_settings
from tests.testkit.books import findings, ledger_in, spool_lines
from tests.testkit.waiting import comes_true

OURS = ("MLFLOW_GREEN_", "GREEN_")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with no ``green.yaml`` above it."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path / "runtime"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def posted(folder) -> Callable[[], list[Entry]]:
    """The entries of the ledger, once the meter of this process has closed its books; they must be in order."""

    def entries() -> list[Entry]:
        assert comes_true(lambda: _is_closed(folder), 10)
        open_reader(load_settings(folder, os.environ)).close()
        ledger = ledger_in(folder)
        assert findings(ledger) == ()
        return sorted(ledger.entries(), key=lambda entry: entry.started_at)

    return entries


def _is_closed(folder: Path) -> bool:
    lines = spool_lines(folder)
    meters = {line["sampler"] for line in lines}
    return meters == {line["sampler"] for line in lines if line["kind"] == "end"}


@pytest.fixture
def program(folder) -> Callable[..., subprocess.CompletedProcess]:
    """Run a program in the folder; it must end by itself."""

    def run(code: str, **environ: str) -> subprocess.CompletedProcess:
        path = folder / "program.py"
        path.write_text(code)
        return subprocess.run(
            [sys.executable, str(path)],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def hard_budget(folder) -> Callable[[str], None]:
    def write(limit: str) -> None:
        (folder / "green.yaml").write_text(
            "version: 1\nproject: demo\ntracking: {jobs: none}\nbudgets:\n  - {name: total, scope: {project: demo},"
            f" period: total, mode: hard, limit: [{limit}], unknown_step: admit, enforce: point}}\n"
        )

    return write
