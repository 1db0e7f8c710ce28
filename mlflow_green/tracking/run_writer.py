"""Writes entries and workflows as MLflow runs. The only module of the sink that imports MLflow.

Every method may raise whatever MLflow raises; delivering the same thing again gives the same runs.
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag, ViewType
from mlflow.exceptions import MlflowException

from mlflow_green.records import Entry, Fact, Outcome
from mlflow_green.tracking.context import HOLD_TAG, WORKFLOW_TAG
from mlflow_green.tracking.run_metrics import (
    ENTRY_TAG,
    JOB_KIND,
    KIND_TAG,
    PARENT_TAG,
    WORKFLOW_KIND,
    RunView,
    Workflow,
    energy_tags,
    entry_label,
    entry_metrics,
    entry_tags,
    is_notable,
    jobs_table,
    run_facts,
    run_of_entry,
    workflow_energy,
    workflow_metrics,
    workflow_note,
)
from mlflow_green.units import milliseconds

DEFAULT_EXPERIMENT_ID = "0"
TABLE_PATH = "green/jobs.json"
_STATUS = {
    Outcome.SUCCEEDED: "FINISHED",
    Outcome.HALTED: "KILLED",
    Outcome.CANCELLED: "KILLED",
    Outcome.LOST: "KILLED",
    Outcome.FAILED: "FAILED",
    Outcome.REFUSED: "FAILED",
}


class RunWriter:
    """Finds or makes the runs of jobs and workflows in the store that MLflow's own environment variables name.

    ``jobs`` says which jobs without a run of their own get one: ``all``, ``notable`` or ``none``.
    """

    def __init__(self, *, jobs: str) -> None:
        self._jobs = jobs
        self._experiment_id: str | None = None
        self._parents: dict[str, str] = {}

    @cached_property
    def _client(self) -> Any:
        """Made at the first use: it opens the store, and that may fail today and work in a minute."""
        return MlflowClient()

    def prepare(self) -> None:
        """Make the store answer, which creates and migrates a fresh SQLite file, and make the experiment."""
        self._client.search_experiments(max_results=1)
        self._experiment()

    def start(self, workflow: Workflow) -> str:
        """The run id of the workflow's parent run, made on the first call."""
        known = self._parents.get(workflow.workflow_run)
        if known is not None:
            return known
        found = self._search([self._experiment()], {WORKFLOW_TAG: workflow.workflow_run, KIND_TAG: WORKFLOW_KIND})
        run_id = found[0].run_id if found else self._create_parent(workflow)
        self._parents[workflow.workflow_run] = run_id
        return run_id

    def write(
        self, entry: Entry, facts: Mapping[str, float | str], workflow: Workflow, *, large: bool = False
    ) -> tuple[Fact, ...]:
        """Put an entry on its run; what was learnt from the run.

        The job's run is below the workflow's parent afterwards, also when the two are in different
        experiments: MLflow links them by id, and only the tree of the experiment page does not show it.
        """
        parent_id = self.start(workflow)
        run = run_of_entry(self._runs_of(entry), entry.entry_id, parent_id)
        if run is None:
            wanted = self._jobs == "all" or (self._jobs == "notable" and (large or is_notable(entry, facts)))
            if not wanted:
                return ()
            run = self._create_child(entry, parent_id)
        values = {name: value for name, value in entry_metrics(entry, facts).items() if run.metrics.get(name) != value}
        self._log(run.run_id, values, entry_tags(entry) | {PARENT_TAG: parent_id}, entry.ended_at)
        if run.running:  # its process has ended: MLflow does not notice a SIGTERM or a kill -9
            self._client.set_terminated(run.run_id, _STATUS[entry.outcome], milliseconds(entry.ended_at.timestamp()))
        return run_facts(entry.hold_id, run) if entry.hold_id is not None else ()

    def finish(
        self,
        workflow: Workflow,
        entries: Sequence[Entry],
        facts: Mapping[str, Mapping[str, float | str]],
        *,
        status: str | None,
        report_path: Path | None,
    ) -> None:
        """Totals, table and report on the parent run, then its terminal ``status`` (MLflow's name for it).

        ``None`` leaves the status as it is: only the numbers are brought up to date.
        """
        parent_id = self.start(workflow)
        now = milliseconds(time.time())
        table = {"mlflow.loggedArtifacts": json.dumps([{"path": TABLE_PATH, "type": "table"}])}
        self._client.log_dict(parent_id, jobs_table(entries, facts), TABLE_PATH)
        if report_path is not None and report_path.is_file():
            self._client.log_artifact(parent_id, str(report_path), "green")
        tags = energy_tags(workflow_energy(entries)) | table | {"mlflow.note.content": workflow_note(entries)}
        self._client.log_batch(
            parent_id,
            metrics=[Metric(name, value, now, 0) for name, value in workflow_metrics(entries).items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        if status is not None:
            self._client.set_terminated(parent_id, status, now)

    def _experiment(self) -> str:
        if self._experiment_id is None:
            self._experiment_id = self._find_experiment()
        return self._experiment_id

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if not name:
            return os.environ.get("MLFLOW_EXPERIMENT_ID") or DEFAULT_EXPERIMENT_ID
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # a script made it at the same moment
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _create_parent(self, workflow: Workflow) -> str:
        tags = {
            WORKFLOW_TAG: workflow.workflow_run,
            KIND_TAG: WORKFLOW_KIND,
            "green.project": workflow.project,
        }
        started = milliseconds(workflow.started_at.timestamp()) if workflow.started_at else None
        run = self._client.create_run(self._experiment(), started, tags | _origin(), workflow.name)
        return str(run.info.run_id)

    def _create_child(self, entry: Entry, parent_id: str) -> RunView:
        tags = entry_tags(entry) | _origin() | {KIND_TAG: JOB_KIND, PARENT_TAG: parent_id}
        created = self._client.create_run(
            self._experiment(), milliseconds(entry.started_at.timestamp()), tags, entry_label(entry)
        )
        return replace(_view(created), metrics={})

    def _runs_of(self, entry: Entry) -> list[RunView]:
        """The runs of the job in all experiments; a refused job has no hold, so its run is found by the entry."""
        tag = {HOLD_TAG: entry.hold_id} if entry.hold_id is not None else {ENTRY_TAG: entry.entry_id}
        return self._search(self._all_experiments(), tag)

    def _all_experiments(self) -> list[str]:
        ids: list[str] = []
        token = None
        while True:
            page = self._client.search_experiments(page_token=token)
            ids += [experiment.experiment_id for experiment in page]
            token = page.token
            if not token:
                return ids

    def _search(self, experiment_ids: list[str], tags: Mapping[str, str]) -> list[RunView]:
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return [_view(run) for run in self._client.search_runs(experiment_ids, wanted, ViewType.ACTIVE_ONLY)]

    def _log(self, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str], at: datetime) -> None:
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, milliseconds(at.timestamp()), 0) for name, value in metrics.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )


def _view(run: Any) -> RunView:
    return RunView(
        run_id=run.info.run_id,
        parent_id=run.data.tags.get(PARENT_TAG),
        tags=run.data.tags,
        metrics=run.data.metrics,
        running=run.info.status == "RUNNING",
    )


def _origin() -> dict[str, str]:
    """What the run list shows in its columns Source and User; the user is a label, not an identity."""
    try:
        user = {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's uid without a name
        user = {}
    return {"mlflow.source.name": "mlflow-green", "mlflow.source.type": "JOB"} | user
