"""What metering costs a program, beside other tools: prints two tables for docs/reference/overhead.md, and gates nothing.

    python tests/benchmarks/cost_beside_peers.py --peers-python PATH [--rounds 5] [--seconds 20]

PATH is a Python of a virtual environment of its own, with any of codecarbon, carbontracker, perun and zeus; those that
it lacks are named and left out. All tools read the same fake powercap tree at one reading a second, in fresh
interpreters, one after the other in each round. The program that they meter does nothing: at once, or for SECONDS.

CPU is that of the program, the tool and all processes that they start, by the kernel's task clock; memory is the
largest sum of their proportional set sizes, looked at every 20 ms. Start is from the launch of the interpreter to the
program's first line, stop from its last line to the end of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlflow_green.metering.cpu_clock import PerfClock
from tests.benchmarks.peer_meters import PEERS
from tests.testkit.fakepowercap import FakePowercap

METERS = Path(__file__).with_name("peer_meters.py")
BODY = "import sys; print('ready', flush=True); sys.stdin.readline()"
BLOCK = f"import mlflow_green\nwith mlflow_green.meter('block'): {BODY}"
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    cpu_seconds: float
    start_seconds: float
    stop_seconds: float
    peak_megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    versions = json.loads(subprocess.check_output([asked.peers_python, METERS, "versions", "-"], text=True))
    for name in (name for name in PEERS if name not in versions):
        print(f"{name} is not installed there: left out", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "powercap")
        FakePowercap(root, "server").close()
        tools = {
            "no meter": [sys.executable, "-c", BODY],
            "mlflow_green.meter()": [sys.executable, "-c", BLOCK],
            "mlflow-green run": [sys.executable, "-m", "mlflow_green.cli", "run", "--", sys.executable, "-c", BODY],
        }
        tools |= {
            f"{name} {versions[name]}": [str(asked.peers_python), str(METERS), name, str(root)]
            for name in PEERS
            if name in versions
        }
        for argv in tools.values():  # compiles what is imported
            cost(argv, root, folder, 0.0)
        print(f"Python {sys.version.split()[0]}, {asked.rounds} rounds; median (lowest to highest)")
        for title, seconds in (("An empty run", 0.0), (f"{asked.seconds:g} s at one reading a second", asked.seconds)):
            print(f"\n{title}, load average {os.getloadavg()[0]:.1f}\n")
            print("| | CPU s | start s | stop s | peak MB |\n| --- | --- | --- | --- | --- |")
            found: dict[str, list[Cost]] = {name: [] for name in tools}
            for _ in range(asked.rounds):
                for name, argv in tools.items():
                    found[name].append(cost(argv, root, folder, seconds))
            for name, costs in found.items():
                columns = (
                    [each.cpu_seconds for each in costs],
                    [each.start_seconds for each in costs],
                    [each.stop_seconds for each in costs],
                    [each.peak_megabytes for each in costs],
                )
                print(f"| {name} |", *(f"{told(column)} |" for column in columns), flush=True)


def told(column: list[float]) -> str:
    return f"{median(column):.3g} ({min(column):.3g} to {max(column):.3g})"


def cost(argv: list[str], root: Path, folder: str, seconds: float) -> Cost:
    """Run the program under its tool; it is told to end after ``seconds``."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ |= {
        "COST_MARK": mark,
        "MLFLOW_GREEN_POWERCAP_ROOT": str(root),
        "MLFLOW_GREEN_RUNTIME_DIR": f"{folder}/runtime",
        "PYTHONPATH": str(Path(__file__).parents[2]) if argv[0] == sys.executable else "",
        "PYTHONPYCACHEPREFIX": f"{folder}/pycache",
    }
    done, peak = threading.Event(), [0.0]
    watcher = threading.Thread(target=_watch, args=(mark, done, peak))
    watcher.start()
    clock = PerfClock.open_on_current_thread()
    before_seconds, begun_seconds = clock.seconds(), time.monotonic()
    with tempfile.TemporaryDirectory() as cwd:
        process = subprocess.Popen(
            argv, cwd=cwd, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout
        while process.stdout.readline() not in (b"ready\n", b""):
            pass
        ready_seconds = time.monotonic()
        time.sleep(seconds)
        told_seconds = time.monotonic()
        process.communicate(b"\n")
        ended_seconds = time.monotonic()
    done.set()
    watcher.join()
    while marked(mark):  # what stays behind for a second is a part of the cost
        time.sleep(LOOK_SECONDS)
    used_seconds = clock.seconds() - before_seconds
    clock.close()
    if process.returncode:
        raise RuntimeError(f"{argv} ended with {process.returncode}")
    return Cost(
        cpu_seconds=used_seconds,
        start_seconds=ready_seconds - begun_seconds,
        stop_seconds=ended_seconds - told_seconds,
        peak_megabytes=peak[0],
    )


def _watch(mark: str, done: threading.Event, peak: list[float]) -> None:
    while not done.wait(LOOK_SECONDS):
        peak[0] = max(peak[0], sum(_megabytes(pid) for pid in marked(mark)))


def marked(mark: str) -> list[int]:
    """The processes that carry the mark in their environment."""
    found, text = [], f"COST_MARK={mark}".encode()
    for pid in psutil.pids():
        try:
            if text in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def _megabytes(pid: int) -> float:
    """Memory in MB (10^6 bytes), pages that processes share counted in parts; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    main()
