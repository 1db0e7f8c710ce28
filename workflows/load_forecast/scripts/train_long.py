"""Train the MLP for longer; SIGTERM keeps a checkpoint, and the next start goes on from it."""

import json
import os
import signal
import sys
from pathlib import Path

STOPPED = 128 + signal.SIGTERM  # the exit status that a shell gives to a process ended by SIGTERM
stop_requested = False


def request_stop(signum, frame):
    global stop_requested
    stop_requested = True


# First of all: from here on a SIGTERM is remembered, and acted on between two epochs.
signal.signal(signal.SIGTERM, request_stop)

import joblib  # noqa: E402
import mlflow  # noqa: E402
from experiment import log_training, open_store  # noqa: E402
from forecasting import features, read_demand, target  # noqa: E402
from models import EpochwiseMlp  # noqa: E402


def save(mlp, path):
    """Replace the checkpoint at once: a half-written one is never seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    joblib.dump(mlp, unfinished)
    os.replace(unfinished, path)


def load(path):
    mlp = joblib.load(path)
    print(f"resumed from epoch {mlp.epoch}", flush=True)
    return mlp


def best_error(paths):
    return min(json.loads(Path(path).read_text())["mape"] for path in paths)


checkpoint = Path(os.environ.get("GREEN_CHECKPOINT") or snakemake.params.checkpoint)
epochs = snakemake.params.epochs
demand = read_demand(snakemake.input.demand)
known = demand.steps("train", "validation")
inputs, targets = features(demand.megawatts, known), target(demand.megawatts, known)
open_store()
with mlflow.start_run(run_name="mlp_long"):
    mlp = load(checkpoint) if checkpoint.exists() else EpochwiseMlp(inputs)
    mlflow.log_params({"resumed_from_epoch": mlp.epoch, "best_mape_before": best_error(snakemake.input.baselines)})
    while mlp.epoch < epochs and not stop_requested:
        mlp.train_epoch(inputs, targets)
        if mlp.epoch % 10 == 0:
            print(f"epoch {mlp.epoch} of {epochs}", flush=True)
    save(mlp, checkpoint)
    if stop_requested:
        print(f"stopped after epoch {mlp.epoch} of {epochs}; checkpoint in {checkpoint}", flush=True)
        sys.exit(STOPPED)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the checkpoint is complete: nothing is lost from here on
    log_training(mlp.estimator(), demand, {"model": "mlp_long", "epochs": epochs})
joblib.dump(mlp.estimator(), Path(snakemake.output.model))
checkpoint.unlink()
