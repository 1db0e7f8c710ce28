"""Half-hourly demand of England and Wales, 12 weeks (Taylor 2003), split by time."""

import csv

from pmdarima.datasets import load_taylor

WEEK = 336  # half-hours
TRAIN_WEEKS, VALIDATION_WEEKS = 9, 1  # the two weeks that remain are held out as the test


def split_of(step):
    week = step // WEEK
    if week < TRAIN_WEEKS:
        return "train"
    return "validation" if week < TRAIN_WEEKS + VALIDATION_WEEKS else "test"


with open(snakemake.output.demand, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["step", "demand_mw", "split"])
    writer.writerows((step, value, split_of(step)) for step, value in enumerate(load_taylor()))
