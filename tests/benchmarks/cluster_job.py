"""What metering costs on a node of a cluster: CPU seconds of a Slurm job with the plugin beside the same job without it.

    python tests/benchmarks/cluster_job.py [--seconds 60] [--rounds 3] [--jobs 4]

Starts the test suite's own Slurm on this machine (Debian: munge slurmctld slurmd slurm-client slurmdbd mariadb-server)
and sends a workflow of jobs that only sleep, by turns with ``--scheduler greedy`` and ``--scheduler green``, observed
and under a hard budget. The figures are Slurm's own account of each job's processes (sacct, TotalCPU of all steps), so
they include the two Snakemakes that executor-slurm starts for every job.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.integration.slurm.workflows import OPTIONS
from tests.testkit.slurm.cluster import SlurmCluster, missing_programs
from tests.testkit.snakemake_folder import SnakemakeFolder
from tests.testkit.waiting import comes_true

SNAKEFILE = """
    rule all:
        input: expand("out/{{x}}", x=range({jobs}))

    rule work:
        output: "out/{{x}}"
        shell: "sleep {seconds}; touch {{output}}"
"""
HARD = "budgets:\n  - {name: lab, limit: 100 kWh, period: total, mode: hard}\n"
WAYS = {"without": ("greedy", None), "observed": ("green", None), "hard budget": ("green", HARD)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=4)
    asked = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"not installed: {', '.join(missing)}")
    slurm = SlurmCluster(nodes=2)
    used: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for number in range(asked.rounds):
            for way in WAYS:
                used[way] += run(slurm, way, asked.jobs, asked.seconds)
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
    finally:
        slurm.stop()
    print(f"CPU seconds a job that sleeps {asked.seconds} s, {asked.rounds} rounds of {asked.jobs} jobs")
    base = statistics.median(used["without"])
    for way, seconds in used.items():
        middle = statistics.median(seconds)
        print(f"{way:<12} median {middle:6.2f}  from {min(seconds):6.2f} to {max(seconds):6.2f}  {middle - base:+6.2f}")


def run(slurm: SlurmCluster, way: str, jobs: int, seconds: int) -> list[float]:
    """CPU seconds of each job of one workflow."""
    scheduler, policy = WAYS[way]
    before = set(accounted(slurm))
    with tempfile.TemporaryDirectory() as place:
        folder = SnakemakeFolder(Path(place) / "wf", SNAKEFILE.format(jobs=jobs, seconds=seconds), policy)
        done = folder.start(*OPTIONS, scheduler=scheduler, **slurm.environ).end(limit_seconds=seconds + 300)
    if done.returncode:
        sys.exit(done.output)
    comes_true(lambda: len(set(accounted(slurm)) - before) >= jobs, 30)
    return [used for job, used in accounted(slurm).items() if job not in before]


def accounted(slurm: SlurmCluster) -> dict[str, float]:
    """CPU seconds of each completed job, over its steps."""
    rows = slurm.run("sacct", "-n", "-P", "--format=JobID,State,TotalCPU").splitlines()  # with -X the job's row has 0
    ended = [row.split("|") for row in rows if "|COMPLETED|" in row]
    return {job: cpu_seconds(text) for job, _, text in ended if "." not in job}


def cpu_seconds(text: str) -> float:
    """``[days-][hours:]minutes:seconds`` as sacct writes it."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return total + 86_400 * int(days or 0)


if __name__ == "__main__":
    main()
