"""A block's metrics on the MLflow run that is active in the user's process, which has imported MLflow already."""

from __future__ import annotations

from mlflow_green.records import Entry
from mlflow_green.tracking.run_metrics import energy_tags, entry_metrics


def log_to_active_run(entry: Entry) -> bool:
    """Log what is known, with the interval and the method as tags; whether there is an active run.

    It may raise whatever MLflow does. The run is not tagged with the hold: it is the user's, and may go on after this.
    """
    import mlflow

    run = mlflow.active_run()
    if run is None:
        return False
    mlflow.log_metrics(entry_metrics(entry, {}), run_id=run.info.run_id)
    mlflow.set_tags(energy_tags(entry.total))
    return True
