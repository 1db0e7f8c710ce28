"""Builds the fake NVML library and runs code against it in a fresh process, for pynvml loads a library only once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.testkit.services import lacks

SOURCE = Path(__file__).with_name("fakenvml.c")
LIBRARY = "libnvidia-ml.so.1"


def build_fake_nvml(folder: Path) -> Path:
    """The folder with the library; skips the test where there is no C compiler, but not in CI."""
    compiler = shutil.which("cc")
    if compiler is None:
        lacks("no C compiler: the fake NVML cannot be built")
    flags = ["-std=gnu11", "-O1", "-fPIC", "-fvisibility=hidden", "-shared", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([compiler, *flags, "-o", folder / LIBRARY, SOURCE, "-lpthread"], check=True)
    return folder


def run_with_fake_nvml(library: Path, state: Path, code: str) -> str:
    """What ``code`` prints, errors included; ``state`` describes the GPUs."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(state)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return (done.stdout + done.stderr).strip()
