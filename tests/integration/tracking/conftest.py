"""A ledger with settled jobs, and MLflow stores that are migrated once and then copied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.records import (
    Action,
    Batch,
    Boundary,
    Closing,
    ClosingKind,
    Decision,
    Domain,
    Energy,
    Entry,
    Fact,
    HoldRequest,
    Method,
    Outcome,
    Owner,
    Step,
    StepSpec,
    Unit,
)
from mlflow_green.tracking.context import run_context
from mlflow_green.units import MICROJOULES_PER_WATT_HOUR

CLOCK = SystemClock()
OWNER = Owner(host="here", boot_id="boot", pid=1, started_ticks=1)
OURS = ("MLFLOW_", "GREEN_", "_MLFLOW_")


def admit(request, balances):
    return Decision(
        action=Action.ADMIT,
        would=Action.ADMIT,
        tier=None,
        amounts={Unit.ENERGY: MICROJOULES_PER_WATT_HOUR},
        reason="fits",
    )


@dataclass
class Books:
    """Holds and settles jobs of one workflow in any ledger."""

    ledger: object
    workflow_run: str = "w1"

    def hold(self, step, **wildcards):
        text = ",".join(f"{name}={value}" for name, value in wildcards.items())
        request = HoldRequest(
            step=Step(workflow_run=self.workflow_run, name=step, wildcards=text),
            project="demo",
            user="me",
            spec=StepSpec(),
            estimates=(),
            terms=(),
            requested_at=CLOCK.now(),
        )
        return self.ledger.commit(Batch(requests=(request,), owner=OWNER), admit).answers[0].hold

    def settle(self, hold, *, watt_hours=1, facts=None, **changes):
        microjoules = watt_hours * MICROJOULES_PER_WATT_HOUR
        energy = Energy(
            microjoules=microjoules,
            low_microjoules=microjoules // 2,
            high_microjoules=2 * microjoules,
            method=Method.ESTIMATED,
        )
        entry = Entry(
            entry_id=f"entry-{hold.hold_id}",
            hold_id=hold.hold_id,
            project=hold.project,
            user=hold.user,
            workflow_run=hold.step.workflow_run,
            step=hold.step.name,
            wildcards=hold.step.wildcards,
            attempt=1,
            host="here",
            started_at=CLOCK.now() - timedelta(seconds=3),
            ended_at=CLOCK.now(),
            duration_seconds=3.0,
            outcome=Outcome.SUCCEEDED,
            tier=None,
            decision=Action.ADMIT,
            would_decision=Action.ADMIT,
            reason="fits",
            phase=None,
            energy={Domain.CPU: energy},
            energy_charged_microjoules=microjoules,
            boundary=Boundary.COMPONENT,
            sampler_id="s",
            cpu_seconds=None,
            cpu_clock=None,
            coverage_ratio=None,
            carbon_intensity_g_per_kwh=56.0,
            intensity_source="test",
            pue=1.0,
            operational_micrograms_co2e=microjoules // 1_000,
            embodied_micrograms_co2e=None,
        )
        told = tuple(Fact(hold_id=hold.hold_id, name=name, value=value) for name, value in (facts or {}).items())
        closing = Closing(kind=ClosingKind.SETTLE, hold_id=hold.hold_id, entry=replace(entry, **changes))
        self.ledger.commit(Batch(closings=(closing,), facts=told), admit)

    def tell(self, status, report_path=None):
        word = "start" if status == "running" else "end"
        self.ledger.put(
            "mlflow",
            f"workflow:{self.workflow_run}:{word}",
            {
                "workflow": {
                    "workflow_run": self.workflow_run,
                    "project": "demo",
                    "name": "my workflow",
                    "started_at": CLOCK.now().isoformat(),
                    "status": status,
                    "report_path": report_path,
                }
            },
        )


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory) -> Path:
    """An MLflow SQLite file with its tables: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    code = f"import mlflow; mlflow.MlflowClient('sqlite:///{path}').search_experiments()"
    subprocess.run([sys.executable, "-c", code], check=True, env=clean_environ(), cwd=path.parent)
    return path


@pytest.fixture
def store_url(migrated_store, tmp_path) -> str:
    """A store of the test's own. Its default experiment keeps artifacts where it was made; tests name another one."""
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def run_script(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a user's script the way a job does, and fail with its output if it fails."""

    def run(code, *, store_url, hold=None, **environ):
        context = {"MLFLOW_RUN_CONTEXT": run_context({}, hold.hold_id, "w1")} if hold else {}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=clean_environ()
            | {"MLFLOW_TRACKING_URI": store_url, "MLFLOW_EXPERIMENT_NAME": "demo"}
            | context
            | environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


def clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


@pytest.fixture(name="clean_environ")
def _clean_environ() -> dict[str, str]:
    return clean_environ()


@pytest.fixture(scope="session")
def make_books() -> type[Books]:
    return Books


def last_json(done: subprocess.CompletedProcess):
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(name="last_json")
def _last_json():
    return last_json
