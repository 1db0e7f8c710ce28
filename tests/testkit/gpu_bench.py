"""A sampler on the fake NVML with a hand-turned clock, for code that ``run_with_fake_nvml`` runs in a fresh process.

Each job is a real process that carries its consumer's id, so that the fake can name it as a user of a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import Domain, Energy, NodeWindow
from mlflow_green.sensors.nvml import NvmlSensor
from tests.testkit.metering_fakes import HandClock, HandCpuClock

JOULE = 1_000_000
HOST, CONTAINER = "pid:[4026531836]", "pid:[4026532001]"


def integral_joules(trace: list[tuple[float, float]], until_seconds: float) -> float:
    """The energy of a step function of watts, from its start."""
    ends = [*(start for start, _ in trace[1:]), float("inf")]
    return sum(
        watts * max(0.0, min(end, until_seconds) - start) for (start, watts), end in zip(trace, ends, strict=True)
    )


def trace_line(trace: list[tuple[float, float]]) -> str:
    return ", ".join(f"{seconds}:{round(watts * 1000)}" for seconds, watts in trace)


class Bench:
    """``gpus`` are lines of the fake's state; ``{name}`` in them is the process of that job."""

    def __init__(self, gpus: str, *, jobs: dict[str, dict[str, str]] | None = None, pid_namespace: str = HOST) -> None:
        self.clock, self.gpus = HandClock(), gpus
        self._path = Path(os.environ["FAKE_NVML_STATE"])
        self._processes = {
            name: subprocess.Popen(
                [sys.executable, "-c", "input()"],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **({"GREEN_HOLD_ID": name} if name != "stranger" else {}), **environment},
            )
            for name, environment in (jobs or {}).items()
        }
        self.write()
        self.proc_root = Path(tempfile.mkdtemp(dir=self._path.parent))
        (self.proc_root / "self" / "ns").mkdir(parents=True)
        (self.proc_root / "self" / "ns" / "pid").symlink_to(pid_namespace)
        self.sensor = NvmlSensor(self.proc_root, monotonic=self.clock.monotonic_seconds, polls_itself=False)
        self.sampler = Sampler([self.sensor], clock=self.clock, host="node1", boot_id="boot", lock_path=None)
        for name in jobs or {}:
            if name != "stranger":
                self.sampler.join(name, HandCpuClock())

    def write(self) -> None:
        pids = {name: process.pid for name, process in self._processes.items()}
        new = self._path.with_suffix(".new")
        new.write_text(f"now = {self.clock.seconds!r}\n{self.gpus.format(**pids)}\n")
        new.replace(self._path)

    def goes_on(self, seconds: float = 1.0, *, polls: bool = False) -> None:
        """Let time pass; with ``polls`` the power is polled as often as the sensor wants."""
        until_seconds = self.clock.seconds + seconds
        while polls and self.clock.seconds + (wait_seconds := self.sensor.poll()) < until_seconds:
            self.clock.seconds += wait_seconds
            self.write()
        self.clock.seconds = until_seconds
        self.write()

    def tick(self, seconds: float = 1.0, *, polls: bool = False) -> NodeWindow:
        """The GPU window of the next ``seconds``; the jobs' energies are kept in ``used``."""
        self.goes_on(seconds, polls=polls)
        tick = self.sampler.tick()
        self.used: dict[str, Energy] = {
            name: usage.energy[Domain.GPU] for name, usage in tick.usages.items() if Domain.GPU in usage.energy
        }
        return tick.windows[0]

    def joules(self, name: str) -> list[float]:
        """Low, point and high of a job's energy so far."""
        energy = self.used[name]
        return [energy.low_microjoules / JOULE, energy.microjoules / JOULE, energy.high_microjoules / JOULE]

    def close(self) -> None:
        for process in self._processes.values():
            process.communicate()
        self.sampler.close()
