"""Train one model on the training and validation weeks, log it to MLflow, and save it."""

from pathlib import Path

import joblib
import mlflow
from experiment import log_training, open_store
from forecasting import features, read_demand, target
from models import fit

name = snakemake.wildcards.model
params = {"model": name}
if name == "mlp":
    params["epochs"] = snakemake.params.epochs

demand = read_demand(snakemake.input.demand)
known = demand.steps("train", "validation")
open_store()
with mlflow.start_run(run_name=name):
    model = fit(name, features(demand.megawatts, known), target(demand.megawatts, known), snakemake.params.epochs)
    log_training(model, demand, params)
joblib.dump(model, Path(snakemake.output.model))
