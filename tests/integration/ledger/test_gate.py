"""The queue of the writers of one file: in order, and nobody who is dead, stopped or rude keeps the others out."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time

import pytest

from mlflow_green.ledger import gate as gate_file
from mlflow_green.ledger.gate import Gate
from tests.testkit.ledger_workers import processes
from tests.testkit.waiting import comes_true


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db.lock"


def in_turn(path, name, served, done):
    """A writer of its own, which keeps its turn until ``done``."""

    def write():
        with Gate(path).passed():
            served.append(name)
            done.wait(30)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def numbers_drawn(path):
    return int.from_bytes(path.read_bytes()[:8], "little") - 1 if path.exists() else 0


def test_writers_are_served_in_the_order_in_which_they_came(path):
    served, first_done, done = [], threading.Event(), threading.Event()
    done.set()
    writers = [in_turn(path, 0, served, first_done)]
    for number in range(1, 8):
        assert comes_true(lambda number=number: numbers_drawn(path) == number, 10, 0.001)
        writers.append(in_turn(path, number, served, done))
    assert comes_true(lambda: numbers_drawn(path) == 8, 10, 0.001)
    assert served == [0]
    first_done.set()
    for writer in writers:
        writer.join(30)
    assert served == list(range(8))


def sit(path, stops):
    with Gate(path).passed():
        os.kill(os.getpid(), signal.SIGSTOP if stops else signal.SIGKILL)


def dead_or_stopped(path, *, stops):
    process = processes().Process(target=sit, args=(path, stops))
    process.start()
    assert comes_true(lambda: numbers_drawn(path) == 1, 30)
    return process


def test_a_writer_that_was_killed_in_its_turn_delays_nobody(path):
    dead_or_stopped(path, stops=False).join(30)
    began = time.monotonic()
    with Gate(path).passed():
        assert time.monotonic() - began < gate_file.GATE_TIMEOUT_SECONDS / 2


def test_a_writer_that_was_stopped_in_its_turn_delays_the_next_one_and_only_once(path, monkeypatch):
    monkeypatch.setattr(gate_file, "GATE_TIMEOUT_SECONDS", 2)
    stopped = dead_or_stopped(path, stops=True)
    gate, took_seconds = Gate(path), []
    for _ in range(3):
        began = time.monotonic()
        with gate.passed():
            took_seconds.append(time.monotonic() - began)
    stopped.kill()
    assert took_seconds[0] >= 2
    assert max(took_seconds[1:]) < 1


def test_a_process_that_sits_on_the_file_itself_delays_each_writer_a_little(path):
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        with Gate(path).passed():
            assert time.monotonic() - began < gate_file.GATE_TIMEOUT_SECONDS / 2


@pytest.mark.parametrize("content", [b"", b"locked by pid 7", b"\xff" * 16, b"\x7f" * 16])
def test_a_file_with_nonsense_in_it_is_a_queue_all_the_same(path, content):
    path.write_bytes(content)
    for number in (1, 2):
        with Gate(path).passed():
            assert numbers_drawn(path) == number
