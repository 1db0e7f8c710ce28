"""Senders that are killed: python -m tests.integration.alerts.sender_process FOLDER KILLS SEED

Each is a fork of this process, which has imported everything. When it has opened the ledger it writes its process id
to FOLDER/pid; after up to 0.15 s of CPU time it is killed, or before by whoever reads that file. The policy is
FOLDER/green.yaml.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from mlflow_green.alerts.addresses import Carriers
from mlflow_green.alerts.delivery import Patience, Sender
from mlflow_green.clock import SystemClock
from mlflow_green.policy.document import Policy, load_policy
from mlflow_green.settings import SmtpSettings
from tests.testkit.books import ledger_in
from tests.testkit.waiting import comes_true

ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
PATIENCE = Patience(lease=0.3, backoff=0.02, backoff_max=0.1)


def sender_in(folder: Path, policy: Policy, patience: Patience = PATIENCE, try_seconds: float = 0.15) -> Sender:
    clock = SystemClock()
    carriers = Carriers(policy.channels, SmtpSettings(), os.environ, clock, try_seconds=try_seconds)
    return Sender(ledger_in(folder), policy, carriers, clock, patience=patience)


def serve(folder: Path, policy: Policy) -> None:
    sender = sender_in(folder, policy)
    pid_file = folder / f"pid.{os.getpid()}"
    pid_file.write_text(str(os.getpid()))
    pid_file.rename(folder / "pid")
    while True:
        sender.send()
        time.sleep(0.005)


def cpu_seconds(pid: int) -> float:
    """However busy the machine is, a sender gets as far in so much of it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def main(folder: Path, kills: int, seed: int) -> None:
    chance, policy = random.Random(seed), load_policy(folder / "green.yaml")
    (folder / "pid").write_text("none yet")
    for _ in range(kills):
        pid = os.fork()
        if pid == 0:
            serve(folder, policy)
        assert comes_true(lambda: (folder / "pid").read_text() == str(pid), 10, 0.002)  # noqa: B023
        limit = cpu_seconds(pid) + chance.choice((0.02, 0.15)) * chance.random()
        comes_true(lambda: cpu_seconds(pid) > limit or os.waitid(os.P_PID, pid, ENDED) is not None, 10, 0.002)  # noqa: B023
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "a sender ended by itself"
    print("killed", kills, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
