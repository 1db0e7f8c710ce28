"""Daemons of one test cluster, each told by its process id and start time, so that a recycled id is never signalled."""

import os
import random
import signal
import socket
import subprocess
from pathlib import Path

from mlflow_green.metering.supervise import start_ticks
from tests.testkit.waiting import comes_true


class ClusterError(RuntimeError):
    """The cluster did not come up; the message ends with what the daemon said."""


class Daemons:
    """Programs that stay in the foreground, with their output under ``log_dir``."""

    def __init__(self, cwd: Path, log_dir: Path) -> None:
        self._cwd = cwd
        self._log_dir = log_dir
        self._started: dict[str, tuple[subprocess.Popen, int | None]] = {}

    def start(self, name: str, argv: list[str], environ: dict[str, str] | None = None) -> None:
        with (self._log_dir / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
                cwd=self._cwd,
            )
        self._started[name] = (process, start_ticks(process.pid))

    def is_running(self, name: str) -> bool:
        process, _ = self._started[name]
        return process.poll() is None

    def signal(self, name: str, number: int) -> None:
        process, ticks = self._started[name]
        if process.poll() is None and start_ticks(process.pid) == ticks:
            process.send_signal(number)

    def stop(self, name: str, limit_seconds: float = 20) -> None:
        process, _ = self._started[name]
        self.signal(name, signal.SIGTERM)
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self.signal(name, signal.SIGKILL)
            process.wait(5)

    def stop_all(self) -> None:
        for name in reversed(self._started):
            self.stop(name)

    def wait_until(self, name: str, ready, limit_seconds: float) -> None:
        """Raises ``ClusterError`` with the end of the daemon's output if it dies or takes too long."""
        if not comes_true(lambda: ready() or not self.is_running(name), limit_seconds) or not ready():
            raise ClusterError(f"{name} is not ready after {limit_seconds:g} s\n{self.tail(name)}")

    def tail(self, name: str, lines: int = 20) -> str:
        texts = [path.read_text(errors="replace") for path in sorted(self._log_dir.glob(f"{name}.*"))]
        return "\n".join(line for text in texts for line in text.splitlines()[-lines:])


def free_ports(count: int) -> list[int]:
    """Free TCP ports of the loopback interface, below the range that the kernel gives out itself."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 30_000), 1_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise ClusterError(f"fewer than {count} free ports between 20000 and 30000")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
