"""Builds and meters jobs whose CPU time is known, with every clock at once."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.clock import SystemClock
from mlflow_green.metering.cpu_clock import CgroupClock, CpuClock, PerfClock, ProcessTreeClock, start_process
from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import Device, Domain, Energy, Method, Reading, Usage
from tests.testkit.services import lacks

SOURCE = Path(__file__).with_name("workload.c")
POWER_WATTS = 100  # of the package that is metered beside the job
JOULE = 1_000_000
PERIOD_SECONDS = 0.5


def build_workload(folder: Path) -> Path:
    """The program; skips the test where there is no C compiler, but not in CI."""
    compiler = shutil.which("cc")
    if compiler is None:
        lacks("no C compiler: the jobs of known CPU time cannot be built")
    program = folder / "workload"
    subprocess.run([compiler, "-std=gnu11", "-O2", "-o", program, SOURCE, "-lpthread"], check=True)
    return program


@contextmanager
def private_cgroup() -> Iterator[Path | None]:
    """A new control group in a mount that only this test sees; ``None`` without the right to make one."""
    name = f"green-test-{uuid.uuid4().hex[:8]}"
    script = 'mount -t cgroup2 none /tmp && mkdir "/tmp/$0" && echo made && cat >/dev/null'
    command = ["unshare", "--mount", "sh", "-c", f"{script}; rmdir /tmp/$0", name]
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        yield None
        return
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        made = holder.stdout.readline() == b"made\n"
        yield Path(f"/proc/{holder.pid}/root/tmp", name) if made else None
        holder.stdin.close()


class ConstantPower:
    """A package that draws ``POWER_WATTS``, read on the real clock; its counter is exact."""

    name = "constant power"

    def __init__(self) -> None:
        self._device = Device(
            name="package-0",
            domain=Domain.CPU,
            method=Method.MEASURED,
            power_watts_max=2.0 * POWER_WATTS,
            error_ratio=0.0,
            error_source="exact in this test",
        )

    def devices(self) -> list[Device]:
        return [self._device]

    def read(self) -> list[Reading]:
        now_seconds = time.monotonic()
        energy_microjoules = round(now_seconds * POWER_WATTS * JOULE)
        return [Reading(device="package-0", monotonic_seconds=now_seconds, energy_microjoules=energy_microjoules)]

    def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Metered:
    """What a job's processes say that they used, and what each clock and a sampler with it say, by the clock's name."""

    truth_seconds: float
    usages: Mapping[str, Usage]

    def cpu_seconds(self, clock: str) -> float:
        return self.usages[clock].cpu_seconds

    def energy(self, clock: str) -> Energy:
        return self.usages[clock].energy[Domain.CPU]


def meter_workload(program: Path, folder: Path, *words: str, marked: bool = True) -> Metered:
    """Run a job to the end of its last process, metered once a period with every clock that can be had here.

    ``marked``: its processes carry the mark by which the tree's clock finds orphans.
    """
    truth, hold_id = folder / "truth", uuid.uuid4().hex
    truth.write_bytes(b"")
    environ = {**os.environ, "TRUTH": str(truth), **({"GREEN_HOLD_ID": hold_id} if marked else {})}
    usages: dict[str, Usage] = {}
    with private_cgroup() as group:
        if group is not None:
            environ["CGROUP"] = str(group / "cgroup.procs")
        thread = threading.Thread(target=_meter, args=([str(program), *words], environ, group, usages))
        thread.start()  # a thread of its own, for perf counts all that its thread does
        thread.join()
    return Metered(truth_seconds=sum(used for (used,) in struct.iter_unpack("d", truth.read_bytes())), usages=usages)


def _meter(argv: list[str], environ: Mapping[str, str], group: Path | None, usages: dict[str, Usage]) -> None:
    tree = ProcessTreeClock()
    clocks: dict[str, CpuClock] = {"tree": tree}
    if group is not None:
        clocks["cgroup"] = CgroupClock(group / "cpu.stat")
    samplers = {
        name: Sampler([ConstantPower()], clock=SystemClock(), host="node1", boot_id="boot", lock_path=None)
        for name in [*clocks, "perf"]
    }
    ended_reader, ended_writer = os.pipe()  # every process of the job has the other end
    joined, over = threading.Event(), threading.Event()
    ticker = threading.Thread(target=_tick, args=(samplers, joined, over, usages))
    ticker.start()  # before perf is opened, which counts every thread that this one starts from then on
    with suppress(OSError):
        clocks["perf"] = PerfClock.open_on_current_thread()
    for name, clock in clocks.items():
        samplers[name].join("job", clock)
    joined.set()
    process = start_process(tree, argv, env=environ, pass_fds=[ended_writer])
    os.close(ended_writer)
    process.wait()
    os.read(ended_reader, 1)
    os.close(ended_reader)
    over.set()
    ticker.join()


def _tick(
    samplers: Mapping[str, Sampler], joined: threading.Event, over: threading.Event, usages: dict[str, Usage]
) -> None:
    """Tick all samplers together until the job is over, and then a last time."""
    joined.wait()
    is_over = False
    while not is_over:
        is_over = over.wait(PERIOD_SECONDS)
        for name, sampler in samplers.items():
            if is_over:
                sampler.leave("job")
            usage = sampler.tick().usages.get("job")
            if usage is not None:
                usages[name] = usage
    for sampler in samplers.values():
        sampler.close()
