"""CPU seconds of jobs that hide theirs well, by every clock: the table of docs/reference/cpu-time.md.

Run it as root for the cgroup's column: ``python tests/benchmarks/cpu_clocks.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.testkit.workload import Metered, build_workload, meter_workload

JOBS = {
    "2,000 children of 5 ms": "short 2000 5",
    "double fork with setsid, 3 s": "daemon 3",
    "such a daemon with 400 children of 5 ms": "daemons 400 5",
    "400 children of 5 ms, SIGCHLD ignored": "unreaped 400 5",
    "four threads of 1 s": "threads 4 1",
}


def seconds(job: Metered, clock: str) -> str:
    return f"{job.cpu_seconds(clock):.3f}" if clock in job.usages else "-"


def main() -> None:
    print("| job | truth | cgroup | perf | tree | tree, unmarked |")
    print("| --- | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        program = build_workload(Path(folder))
        for name, words in JOBS.items():
            marked = meter_workload(program, Path(folder), *words.split())
            unmarked = meter_workload(program, Path(folder), *words.split(), marked=False)
            figures = [f"{marked.truth_seconds:.3f}", *(seconds(marked, clock) for clock in ("cgroup", "perf", "tree"))]
            unmarked_ratio = unmarked.cpu_seconds("tree") / unmarked.truth_seconds
            print(f"| {name} | {' | '.join(figures)} | {unmarked_ratio * marked.truth_seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main()
