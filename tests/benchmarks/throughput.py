"""What the plugin costs Snakemake: 200 trivial shell jobs on 2 cores, in turn with its own greedy scheduler.

    python tests/benchmarks/throughput.py [--runs 5] [--jobs 200] [--tracking]

Prints jobs per second and CPU seconds of whole Snakemake processes (start-up included), medians and ranges of
alternating runs, and the ratio to greedy pair by pair. With ``--tracking`` also with MLflow runs written meanwhile.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))
rule one:
    output: "out/{{i}}"
    shell: "touch {{output}}"
"""
POLICY = "version: 1\nproject: throughput\ntracking: {tracking}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--tracking", action="store_true")
    options = parser.parse_args()
    variants = {"greedy": ("greedy", "none"), "green": ("green", "none")}
    if options.tracking:
        variants["green + MLflow"] = ("green", "notable")
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants.values():  # warm the file cache and MLflow's new store
            run(Path(folder), *variant, jobs=10)
        for _ in range(options.runs):
            for name, variant in variants.items():
                figures[name].append(run(Path(folder), *variant, jobs=options.jobs))
    print(f"{options.jobs} jobs, 2 cores, {options.runs} alternating runs, load average {os.getloadavg()[0]:.1f}")
    print(f"{'':16} {'jobs/s median':>14} {'range':>14} {'ratio median':>13} {'CPU s median':>13}")
    greedy = [options.jobs / wall for wall, _ in figures["greedy"]]
    for name, rows in figures.items():
        rates = [options.jobs / wall for wall, _ in rows]
        ratios = [rate / other for rate, other in zip(rates, greedy, strict=True)]
        spread = f"{min(rates):.1f}-{max(rates):.1f}"
        cpu = statistics.median(seconds for _, seconds in rows)
        median = statistics.median(rates)
        print(f"{name:16} {median:14.1f} {spread:>14} {statistics.median(ratios):13.3f} {cpu:13.2f}")
    medians = {name: statistics.median(options.jobs / wall for wall, _ in rows) for name, rows in figures.items()}
    print(f"ratio of medians green/greedy: {medians['green'] / medians['greedy']:.3f}")


def run(folder: Path, scheduler: str, tracking: str, *, jobs: int) -> tuple[float, float]:
    """Wall and CPU seconds of one Snakemake run in a fresh working directory below ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        cwd = Path(name)
        (cwd / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs))
        (cwd / "green.yaml").write_text(POLICY.format(tracking=tracking))
        environ = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_GREEN_RUNTIME_DIR": name,
        }
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--scheduler", scheduler, "--quiet", "all"]
        command += ["--max-jobs-per-timespan", "10000/1s"]  # the default of 100 a second would hide differences
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=cwd, env=environ, check=True, stderr=subprocess.DEVNULL)
        wall_seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall_seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
