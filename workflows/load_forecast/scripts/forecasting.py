"""The task: forecast the demand of the next 7 days from what is known at the origin.

A model predicts, for each half-hour, the change of log demand against the same half-hour one week before. Its
features are demands that are known one week ahead, and the calendar, so one model serves all 336 steps.
"""

import csv
from typing import NamedTuple

import numpy as np

DAY = 48  # half-hours
WEEK = 7 * DAY
WEEKS_OF_HISTORY = 3  # the longest lag
LAGS_BEYOND_A_WEEK = (0, 1, 2, 4, 8, DAY // 2, DAY, 2 * DAY, 3 * DAY, WEEK, 2 * WEEK)
HARMONICS_OF_DAY = (1, 2, 3, 4)
HARMONICS_OF_WEEK = (1, 2, 3)


class Demand(NamedTuple):
    """Demand in MW by half-hour from Monday 00:00, and the split ("train", "validation", "test") of each."""

    megawatts: np.ndarray
    split: np.ndarray

    def steps(self, *splits):
        """The half-hours of these splits that have enough history before them."""
        steps = np.flatnonzero(np.isin(self.split, splits))
        return steps[steps >= WEEKS_OF_HISTORY * WEEK]


def read_demand(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return Demand(np.array([float(row["demand_mw"]) for row in rows]), np.array([row["split"] for row in rows]))


def features(megawatts, steps):
    """One row a step: log demands at least a week old, the mean of the week before that, and the calendar."""
    log_demand = np.log(megawatts)
    total = np.concatenate([[0.0], np.cumsum(log_demand)])
    last_known = steps - WEEK
    columns = [log_demand[last_known - lag] for lag in LAGS_BEYOND_A_WEEK]
    columns.append((total[last_known + 1] - total[last_known + 1 - WEEK]) / WEEK)
    columns += _harmonics(steps % DAY / DAY, HARMONICS_OF_DAY)
    columns += _harmonics(steps % WEEK / WEEK, HARMONICS_OF_WEEK)
    columns += [(steps // DAY % 7 == day).astype(float) for day in range(7)]
    return np.column_stack(columns)


def _harmonics(phase, orders):
    return [wave(2 * np.pi * order * phase) for order in orders for wave in (np.sin, np.cos)]


def target(megawatts, steps):
    """The change of log demand against one week before."""
    return np.log(megawatts[steps] / megawatts[steps - WEEK])


def forecast(model, megawatts, steps):
    """Demand in MW at ``steps``; only demand at least one week older is read."""
    return megawatts[steps - WEEK] * np.exp(model.predict(features(megawatts, steps)))


def mape_percent(actual, predicted):
    return float(100 * np.mean(np.abs(predicted - actual) / actual))
