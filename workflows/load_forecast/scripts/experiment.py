"""Logging to MLflow, the same for every training."""

import fcntl
from pathlib import Path

import mlflow
import mlflow.sklearn
from forecasting import forecast, mape_percent

# Types inside our own models that skops, MLflow's format for scikit-learn, does not know by itself.
TRUSTED_TYPES = [
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
]


def open_store():
    """Create MLflow's default SQLite store once: trainings that start together on a new file break each other."""
    Path(".snakemake").mkdir(exist_ok=True)
    with Path(".snakemake/mlflow-store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mlflow.search_experiments(max_results=1)


def log_training(model, demand, params):
    """Log parameters, the model, and its error on the held-out weeks to the active run."""
    mlflow.log_params(params)
    held_out = demand.steps("test")
    predicted = forecast(model, demand.megawatts, held_out)
    mlflow.log_metric("mape", mape_percent(demand.megawatts[held_out], predicted))
    # Requirements are named: inferring them starts a second Python and costs more than most trainings here.
    mlflow.sklearn.log_model(
        model, name="model", pip_requirements=["scikit-learn"], skops_trusted_types=TRUSTED_TYPES
    )
