"""The leaderboard: accuracy beside the energy of development and of inference, and the Pareto front.

Energy is read from mlflow-green's ledger where there is one. Without it, or for a step that is not settled yet,
the energy is left empty: it is not known, which is not zero.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from time import sleep

STAGES = {"development": "train", "inference": "predict"}  # column of the leaderboard: rule
COLUMNS = ("model", "tier", "mape_percent", "mase", "development_mwh", "inference_mwh", "pareto")
MICROJOULES_PER_MILLIWATT_HOUR = 3_600_000
SETTLING_SECONDS = 3  # a job's energy is in the ledger about a second after the job ended
NO_ENERGY = "Energy is empty: no mlflow-green ledger was found, or it holds no entry of these steps."


def write_leaderboard(metrics_paths, *, csv, markdown, figure):
    rows = read_metrics(metrics_paths)
    add_energy(rows, settled_entries({row["model"] for row in rows}))
    mark_pareto(rows)
    write_csv(rows, csv)
    Path(markdown).write_text(markdown_table(rows))
    draw(rows, figure)


def read_metrics(paths):
    rows = []
    for path in map(Path, paths):
        metrics = json.loads(path.read_text())
        rows.append({"model": path.stem, "mape_percent": metrics["mape"], "mase": metrics["mase"]})
    return sorted(rows, key=lambda row: row["mape_percent"])


# --- energy -------------------------------------------------------------------------------------


def settled_entries(models):
    """The latest successful entry by (rule, model), waiting a little for those that are still being settled."""
    expected = {(rule, model) for rule in STAGES.values() for model in models}
    entries = {}
    for _ in range(SETTLING_SECONDS):
        entries = latest_by_step(export_ledger())
        if not entries or expected <= entries.keys():
            break
        sleep(1)
    return entries


def export_ledger():
    """The ledger's entries; none where mlflow-green is not installed or has not metered this project."""
    command = Path(sys.executable).with_name("mlflow-green")
    try:
        export = subprocess.run(
            [command, "ledger", "export"], capture_output=True, text=True, check=True, timeout=60
        )
        return [json.loads(line) for line in export.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def latest_by_step(entries):
    done = [entry for entry in entries if entry["outcome"] == "succeeded"]
    return {
        (entry["step"], entry["wildcards"].removeprefix("model=")): entry
        for entry in sorted(done, key=lambda entry: entry["ended_at"])
    }


def add_energy(rows, entries):
    for row in rows:
        for stage, rule in STAGES.items():
            row[f"{stage}_mwh"] = energy_milliwatt_hours(entries.get((rule, row["model"])))
        row["tier"] = (entries.get(("train", row["model"])) or {}).get("tier")


def energy_milliwatt_hours(entry):
    total = ((entry or {}).get("energy_microjoules") or {}).get("total")
    return None if total is None else total / MICROJOULES_PER_MILLIWATT_HOUR


# --- the Pareto front ---------------------------------------------------------------------------


def front(rows, cost):
    """The rows that no other row beats in both error and ``cost``; rows of unknown cost take no part."""
    known = [row for row in rows if row[cost] is not None]
    return [row for row in known if not any(dominates(other, row, cost) for other in known)]


def dominates(other, row, cost):
    better_or_equal = other["mape_percent"] <= row["mape_percent"] and other[cost] <= row[cost]
    return better_or_equal and (other["mape_percent"], other[cost]) != (row["mape_percent"], row[cost])


def mark_pareto(rows):
    """Name for each row the fronts that it lies on."""
    fronts = {stage: front(rows, f"{stage}_mwh") for stage in STAGES}
    for row in rows:
        row["pareto"] = " ".join(stage for stage, members in fronts.items() if row in members)


# --- output -------------------------------------------------------------------------------------


def text(value):
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def write_csv(rows, path):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([text(row[column]) for column in COLUMNS] for row in rows)


def markdown_table(rows):
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([text(row[column]) for column in COLUMNS] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Seven-day demand forecasts\n\n{table}\n\n{energy_note(rows)}\n"


def energy_note(rows):
    if all(row[f"{stage}_mwh"] is None for row in rows for stage in STAGES):
        return NO_ENERGY
    return "Energy is that of the job that trained the model and of the job that made its forecasts, in mWh."


def draw(rows, path):
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "load-forecast"  # the same figure from the same numbers
    import matplotlib.pyplot as plt

    plot, panels = plt.subplots(1, len(STAGES), figsize=(10, 4), sharey=True)
    for panel, stage in zip(panels, STAGES, strict=True):
        draw_stage(panel, rows, stage)
    panels[0].set_ylabel("MAPE on the held-out weeks, %")
    plot.tight_layout()
    plot.savefig(path, metadata={"Date": None})


def draw_stage(panel, rows, stage):
    cost = f"{stage}_mwh"
    panel.set_title(f"Error beside the energy of {stage}")
    known = [row for row in rows if row[cost] is not None]
    if not known:
        panel.text(0.5, 0.5, "energy not known", ha="center", transform=panel.transAxes)
        return
    best = sorted(front(rows, cost), key=lambda row: row[cost])
    panel.step(*points(best, cost), where="post", color="tab:green", label="Pareto front")
    panel.scatter(*points(known, cost), zorder=3)
    for row in known:
        panel.annotate(row["model"], (row[cost], row["mape_percent"]), xytext=(5, 5), textcoords="offset points")
    panel.set_xscale("log")
    panel.set_xlabel(f"energy of {stage}, mWh")
    panel.legend()


def points(rows, cost):
    return [row[cost] for row in rows], [row["mape_percent"] for row in rows]
