"""Forecast the held-out weeks, each from its own start: predict.py DEMAND.csv MODEL.joblib PREDICTIONS.csv."""

import csv
import sys

import joblib
from forecasting import forecast, read_demand


def main(demand_path, model_path, predictions_path):
    demand = read_demand(demand_path)
    steps = demand.steps("test")
    predicted = forecast(joblib.load(model_path), demand.megawatts, steps)
    with open(predictions_path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "demand_mw", "forecast_mw"])
        writer.writerows(
            (step, demand.megawatts[step], f"{value:.3f}") for step, value in zip(steps, predicted, strict=True)
        )


main(*sys.argv[1:])
