"""A process with a real sampler on a RAPL tree, that does what it reads from its standard input, a word at a time.

    python -m tests.integration.metering.sampler_process LOCK_PATH POWERCAP_ROOT

Its first line says its sampler's id; each ``tick`` answers with one, as the spool has it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mlflow_green.clock import SystemClock, boot_id
from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import CpuClockName
from mlflow_green.sensors.rapl import RaplSensor
from mlflow_green.spool import to_json


class ThisThreadClock:
    """The exact CPU time of this process's only thread."""

    name = CpuClockName.PERF

    def seconds(self) -> float:
        return time.thread_time()

    def close(self) -> None:
        pass


def main(lock_path: str, root: str) -> None:
    sampler = Sampler(
        [RaplSensor(Path(root))], clock=SystemClock(), host="node1", boot_id=boot_id(), lock_path=Path(lock_path)
    )
    say({"sampler_id": sampler.sampler_id, "coordinated": sampler.coordinated})
    for word in (line.strip() for line in sys.stdin):
        if word == "join":
            sampler.join("job", ThisThreadClock())
        elif word == "burn":
            end = time.thread_time() + 0.05
            while time.thread_time() < end:
                pass
        elif word == "leave":
            sampler.leave("job")
        elif word == "tick":
            say(to_json(sampler.tick()))
        elif word == "close":
            sampler.close()
            return


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
