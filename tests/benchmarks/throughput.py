"""What the plugin costs Snakemake: 200 trivial shell jobs on 2 cores, in turn with its own greedy scheduler.

    python tests/benchmarks/throughput.py [--runs 5] [--jobs 200] [--tracking] [--budget] [--unlimited]

Prints, as medians of alternating runs: jobs per second while jobs run (from the first output to the last), the wall and
CPU seconds of the whole Snakemake process, and the ratios to greedy pair by pair. What the whole process takes longer is
start-up and closing, once a workflow. With ``--tracking`` also with MLflow runs written meanwhile, with ``--budget``
under a hard budget that is large enough.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))
rule one:
    output: "out/{{i}}"
    shell: "touch {{output}}"
"""
POLICY = "version: 1\nproject: throughput\ntracking: {tracking}\n"
BUDGET = "budgets:\n  - {name: ample, limit: 100 kWh, period: workflow, mode: hard}\n"


@dataclass(frozen=True)
class Figures:
    """One Snakemake run: jobs per second while jobs run; wall and CPU seconds of the process and its children."""

    jobs_per_second: float
    wall_seconds: float
    cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--tracking", action="store_true")
    parser.add_argument("--budget", action="store_true")
    parser.add_argument("--unlimited", action="store_true", help="without Snakemake's default of 100 jobs a second")
    options = parser.parse_args()
    variants = {
        "greedy": ("greedy", POLICY.format(tracking="none")),
        "green": ("green", POLICY.format(tracking="none")),
    }
    if options.budget:
        variants["green, hard budget"] = ("green", POLICY.format(tracking="none") + BUDGET)
    if options.tracking:
        variants["green, MLflow"] = ("green", POLICY.format(tracking="notable"))
    figures: dict[str, list[Figures]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants.values():  # warm the file cache and MLflow's new store
            run(Path(folder), *variant, jobs=10, unlimited=True)
        for _ in range(options.runs):
            for name, variant in variants.items():
                figures[name].append(run(Path(folder), *variant, jobs=options.jobs, unlimited=options.unlimited))
    print(f"{options.jobs} jobs, 2 cores, {options.runs} alternating runs, load average {os.getloadavg()[0]:.1f}")
    print(f"{'medians':20}{'jobs/s':>8}{'range':>14}{'to greedy':>11}{'wall s':>9}{'to greedy':>11}{'CPU s':>8}")
    for name, rows in figures.items():
        rates = [row.jobs_per_second for row in rows]
        rate_ratios = [a.jobs_per_second / b.jobs_per_second for a, b in zip(rows, figures["greedy"], strict=True)]
        wall_ratios = [a.wall_seconds / b.wall_seconds for a, b in zip(rows, figures["greedy"], strict=True)]
        print(
            f"{name:20}{median(rates):8.1f}{f'{min(rates):.1f}-{max(rates):.1f}':>14}{median(rate_ratios):11.3f}"
            f"{median(row.wall_seconds for row in rows):9.2f}{median(wall_ratios):11.3f}"
            f"{median(row.cpu_seconds for row in rows):8.2f}"
        )


def run(folder: Path, scheduler: str, policy: str, *, jobs: int, unlimited: bool) -> Figures:
    """One Snakemake run in a fresh working directory below ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        cwd = Path(name)
        (cwd / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs))
        (cwd / "green.yaml").write_text(policy)
        environ = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_GREEN_RUNTIME_DIR": name,
        }
        # As installed by pip, which compiles what it installs; with this set, an editable install is compiled each time.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--scheduler", scheduler, "--quiet", "all"]
        if unlimited:
            command += ["--max-jobs-per-timespan", "100000/1s"]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=cwd, env=environ, check=True, stderr=subprocess.DEVNULL)
        wall_seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        made = sorted(path.stat().st_mtime_ns for path in (cwd / "out").iterdir())
        return Figures(
            jobs_per_second=(len(made) - 1) / (made[-1] - made[0]) * 1e9,
            wall_seconds=wall_seconds,
            cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        )


if __name__ == "__main__":
    main()
