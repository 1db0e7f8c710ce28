"""What the keeper costs that stands by: CPU time until it waits, memory, and the time until it can be spoken to.

    python tests/benchmarks/keeper_start.py [--runs 20]

Prints medians. The time is that of the thread that hands over, not of the program that it belongs to.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path
from statistics import median

from mlflow_green.clock import SystemClock, boot_id
from mlflow_green.metering.cpu_clock import ProcessTreeClock
from mlflow_green.metering.handover import Handover, RunningStep
from mlflow_green.metering.sampler import Sampler
from tests.testkit.keepers import keepers_of
from tests.testkit.waiting import comes_true

NANOSECONDS_PER_MILLISECOND = 1_000_000


def one_start(folder: Path) -> tuple[float, float, float]:
    """CPU milliseconds, resident megabytes, and milliseconds until it listens, of one keeper."""
    lock_path = folder / "run" / "lock"
    sampler = Sampler([], clock=SystemClock(), host="node1", boot_id=boot_id(), lock_path=lock_path)
    sampler.join("hold", ProcessTreeClock())
    handover = Handover(lock_path, powercap_root=folder, host="node1", period_seconds=1.0)
    step = RunningStep(
        hold_id="hold",
        standing=sampler.standing()["hold"],
        sampler_id=sampler.sampler_id,
        spool_path=folder / "spool.jsonl",
        grace_seconds=None,
    )
    began = time.monotonic()
    while not handover.knows(step.standing.key):
        handover.update([step])
    waited_seconds = time.monotonic() - began
    time.sleep(0.2)
    (keeper,) = keepers_of(folder)
    nanoseconds = int(Path(f"/proc/{keeper}/schedstat").read_text().split()[0])
    status = Path(f"/proc/{keeper}/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    handover.close()
    sampler.close()
    os.kill(keeper, signal.SIGTERM)
    assert comes_true(lambda: not keepers_of(folder), 10)
    return nanoseconds / NANOSECONDS_PER_MILLISECOND, kilobytes / 1_000, waited_seconds * 1_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        found = [one_start(Path(folder, str(number))) for number in range(runs)]
    cpu, memory, wait = (median(values) for values in zip(*found, strict=True))
    print(
        f"a keeper that stands by, median of {runs}: {cpu:.1f} ms CPU, {memory:.1f} MB peak, listens after {wait:.0f} ms"
    )


if __name__ == "__main__":
    main()
