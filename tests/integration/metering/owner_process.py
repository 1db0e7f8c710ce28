"""A program that meters one step, hands it over to a keeper, and waits to be killed.

    python -m tests.integration.metering.owner_process FOLDER perf|polling GRACE_SECONDS|none CMD...

It prints the step's key once the keeper has been told. Its spool file is FOLDER/spool.jsonl.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mlflow_green.clock import SystemClock, boot_id
from mlflow_green.metering.cpu_clock import PerfClock, ProcessTreeClock, start_process
from mlflow_green.metering.handover import Handover, RunningStep
from mlflow_green.metering.sampler import Sampler
from mlflow_green.sensors.rapl import RaplSensor
from mlflow_green.spool import SpoolWriter

PERIOD_SECONDS = 0.1


def main(folder: Path, clock_name: str, grace: str, command: list[str]) -> None:
    lock_path, root = folder / "run" / "lock", folder / "powercap"
    sampler = Sampler([RaplSensor(root)], clock=SystemClock(), host="node1", boot_id=boot_id(), lock_path=lock_path)
    handover = Handover(lock_path, powercap_root=root, host="node1", period_seconds=PERIOD_SECONDS)
    spool = SpoolWriter(folder / "spool.jsonl")
    spool.append({"kind": "session"})
    clock = PerfClock.open_on_current_thread() if clock_name == "perf" else ProcessTreeClock()
    sampler.join("hold-1", clock)
    start_process(clock, command, env={**os.environ, "GREEN_HOLD_ID": "hold-1"})
    sampler.tick()
    standing = sampler.standing()["hold-1"]
    step = RunningStep(
        hold_id="hold-1",
        standing=standing,
        sampler_id=sampler.sampler_id,
        spool_path=spool.path,
        grace_seconds=None if grace == "none" else float(grace),
    )
    while not handover.knows(standing.key):
        handover.update([step])
        time.sleep(0.05)
    print(standing.key, flush=True)
    time.sleep(300)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
