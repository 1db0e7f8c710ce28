"""The CPU clock of a process that runs already: its threads and children as they are, and all that they start."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from mlflow_green.metering.cpu_clock import ProcessTreeClock, ThreadsClock, open_process_clock
from mlflow_green.records import CpuClockName

BURN = "import sys, time\nfor line in sys.stdin:\n    end = time.process_time() + 0.2\n    while time.process_time() < end: pass\n    print('done', flush=True)\n"


def burn(cpu_seconds: float) -> None:
    end = time.thread_time() + cpu_seconds
    while time.thread_time() < end:
        pass


@pytest.fixture
def clock():
    clock = open_process_clock()
    if clock.name is not CpuClockName.PERF:
        pytest.skip("perf_event_open is not allowed here")
    clock.close()
    return ThreadsClock


def test_threads_and_children_that_were_there_before_count(clock):
    go, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (go.wait(), burn(0.2), done.set()))
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdin.write("warm\n")
    child.stdin.flush()
    child.stdout.readline()
    counted = open_process_clock()
    before = counted.seconds()
    go.set()
    child.stdin.write("go\n")
    child.stdin.flush()
    child.stdout.readline()
    done.wait()
    used = counted.seconds() - before
    child.communicate()
    thread.join()
    counted.close()
    assert used == pytest.approx(0.4, abs=0.05)


def test_what_is_started_later_counts_once_and_after_closing_the_clock_stands_still(clock):
    counted = open_process_clock()
    thread = threading.Thread(target=burn, args=(0.1,))
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    used = counted.seconds()
    counted.close()
    burn(0.05)
    assert used == pytest.approx(0.3, abs=0.06)
    assert counted.seconds() == used


def test_without_perf_the_process_is_watched_in_proc(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow_green.metering.cpu_clock._THREADS_MAX", 0)
    watched = open_process_clock()
    assert isinstance(watched, ProcessTreeClock)
    before = watched.seconds()
    burn(0.2)
    assert watched.seconds() - before == pytest.approx(0.2, abs=0.05)
    assert watched.name is CpuClockName.POLLING
    watched.close()
