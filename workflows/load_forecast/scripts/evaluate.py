"""MAPE in percent, and MASE: the error in units of the weekly naive forecast's error on the training weeks."""

import csv
import json
from statistics import fmean

WEEK = 336  # half-hours

with open(snakemake.input.demand, newline="") as file:
    train = [float(row["demand_mw"]) for row in csv.DictReader(file) if row["split"] == "train"]
with open(snakemake.input.predictions, newline="") as file:
    pairs = [(float(row["demand_mw"]), float(row["forecast_mw"])) for row in csv.DictReader(file)]

naive_error = fmean(abs(now - before) for now, before in zip(train[WEEK:], train[:-WEEK], strict=True))
metrics = {
    "mape": 100 * fmean(abs(forecast - actual) / actual for actual, forecast in pairs),
    "mase": fmean(abs(forecast - actual) for actual, forecast in pairs) / naive_error,
}
with open(snakemake.output.metrics, "w") as file:
    json.dump(metrics, file, indent=1)
