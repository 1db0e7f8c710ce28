"""What ties the MLflow runs of a job's script to its hold. Standard library only: Snakemake's process uses this."""

from __future__ import annotations

import json
from collections.abc import Mapping

VARIABLE = "MLFLOW_RUN_CONTEXT"
"""MLflow's own variable: a JSON object of tags that every fluent run gets at its creation."""
HOLD_TAG = "green.hold_id"
WORKFLOW_TAG = "green.workflow"


def run_context(environ: Mapping[str, str], hold_id: str, workflow_run: str) -> str | None:
    """The value of ``MLFLOW_RUN_CONTEXT`` for a job: the user's tags and ours, as a JSON object.

    ``None``: the user's value is not a JSON object; leave it alone, the job's runs will not be found.
    """
    given = environ.get(VARIABLE, "")
    try:
        tags = json.loads(given) if given.strip() else {}
    except ValueError:
        return None
    if not isinstance(tags, dict):
        return None
    return json.dumps({**tags, HOLD_TAG: hold_id, WORKFLOW_TAG: workflow_run})
