"""What ``import mlflow_green`` and metered blocks cost a Python program, in fresh interpreters. It prints and gates nothing.

python tests/benchmarks/python_blocks.py [ROUNDS]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from statistics import median

REPORT = """
import json, resource
own = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([own.ru_utime + own.ru_stime, own.ru_maxrss / 1024]))
"""
PROGRAMS = {
    "bare python": "",
    "import mlflow_green": "import mlflow_green",
    "an empty block": "import mlflow_green\nwith mlflow_green.meter('empty') as m: pass\nm.record",
    "1000 blocks, each in one": (
        "import mlflow_green\nwith mlflow_green.meter('outer'):\n"
        "    for _ in range(1000):\n        with mlflow_green.meter('inner'): pass"
    ),
    "1000 blocks, one after the other": (
        "import mlflow_green\nfor _ in range(1000):\n    with mlflow_green.meter('epoch'): pass"
    ),
}


def measure(program: str, folder: str) -> list[float]:
    """CPU seconds and peak MB of a program, at its end."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ |= {"PYTHONPYCACHEPREFIX": f"{folder}/pycache", "MLFLOW_GREEN_RUNTIME_DIR": f"{folder}/runtime"}
    code = f"import atexit\n@atexit.register\ndef report():\n    exec({REPORT!r})\n{program}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, check=True)
    return json.loads(done.stdout)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for program in PROGRAMS.values():  # compiles what is imported
            measure(program, folder)
        found = {name: [] for name in PROGRAMS}
        for _ in range(rounds):
            for name, program in PROGRAMS.items():
                found[name].append(measure(program, folder))
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"Python {sys.version.split()[0]}, {rounds} rounds, load average {load}; medians")
    for name, figures in found.items():
        cpu_seconds, peak_mb = (median(column) for column in zip(*figures, strict=True))
        print(f"{name:35} {cpu_seconds:7.3f} CPU s {peak_mb:7.1f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
