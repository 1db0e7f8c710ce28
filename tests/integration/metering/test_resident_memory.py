from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlflow_green.metering.resident_memory import LOOK_SECONDS, LOOKED_AT_ONCE, ResidentMemory
from tests.testkit.metering_fakes import write_memory, write_process
from tests.testkit.waiting import comes_true

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def pages(memory: ResidentMemory, now_seconds: float) -> dict[str, int]:
    return {hold_id: held // PAGE_BYTES for hold_id, held in memory.look(now_seconds).by_hold.items()}


def test_what_a_real_process_and_its_child_keep_is_found_by_their_mark():
    keep = "import os, time\nheld = b'x' * 60_000_000\nos.fork()\ntime.sleep(60)"
    job = subprocess.Popen(
        [sys.executable, "-S", "-c", keep], env={**os.environ, "GREEN_HOLD_ID": "real"}, start_new_session=True
    )
    try:
        memory = ResidentMemory()
        now = iter(range(0, 10_000, 10))
        assert comes_true(lambda: memory.look(next(now)).by_hold.get("real", 0) > 120_000_000, 20)
        assert memory.memory_bytes > 1_000_000_000
    finally:
        os.killpg(job.pid, 9)
        job.wait()
    assert comes_true(lambda: "real" not in memory.look(next(now)).by_hold, 10)


def test_a_mark_that_comes_with_exec_is_seen_at_the_second_look(tmp_path):
    memory = ResidentMemory(tmp_path)
    write_process(tmp_path, 10, resident_pages=3)
    assert pages(memory, 0) == {}
    write_process(tmp_path, 10, resident_pages=5, hold_id="a")
    assert pages(memory, LOOK_SECONDS) == {"a": 5}


def test_a_number_that_another_process_got_is_no_longer_the_steps(tmp_path):
    memory = ResidentMemory(tmp_path)
    write_process(tmp_path, 10, resident_pages=3, hold_id="a")
    assert pages(memory, 0) == {"a": 3}
    write_process(tmp_path, 10, resident_pages=9, hold_id="b", started=8)
    assert "a" not in pages(memory, LOOK_SECONDS)
    assert pages(memory, 2 * LOOK_SECONDS) == {"b": 9}


def test_processes_are_looked_at_every_two_seconds_and_more_rarely_when_they_are_many(tmp_path):
    memory = ResidentMemory(tmp_path)
    for pid in range(100, 100 + LOOKED_AT_ONCE):
        write_process(tmp_path, pid, resident_pages=1, hold_id="a")
    assert pages(memory, 0) == {"a": LOOKED_AT_ONCE}
    write_process(tmp_path, 99, resident_pages=1, hold_id="a")
    assert pages(memory, LOOK_SECONDS) == {"a": LOOKED_AT_ONCE}
    assert pages(memory, 2 * LOOK_SECONDS) == {"a": LOOKED_AT_ONCE + 1}


def test_a_new_id_is_looked_for_at_once(tmp_path):
    memory = ResidentMemory(tmp_path)
    memory.look(0, {"a"})
    write_process(tmp_path, 10, resident_pages=3, hold_id="b")
    assert memory.look(0.1, {"a"}).by_hold == {}
    assert memory.look(0.1, {"a", "b"}).by_hold == {"b": 3 * PAGE_BYTES}


def test_this_process_and_its_descendants_are_found_by_their_mark_or_without_one(tmp_path):
    memory = ResidentMemory(tmp_path)
    here = os.getpid()
    write_process(tmp_path, here, resident_pages=1)
    write_process(tmp_path, 10, resident_pages=2, parent=here, hold_id="a")
    write_process(tmp_path, 11, resident_pages=4, parent=10)
    write_process(tmp_path, 12, resident_pages=8)
    assert memory.look(0).here == {"": 5 * PAGE_BYTES, "a": 2 * PAGE_BYTES}
    write_process(tmp_path, 13, resident_pages=16, parent=11)
    write_process(tmp_path, 11, resident_pages=4, parent=1)  # its parent has ended
    assert memory.look(LOOK_SECONDS).here == {"": 21 * PAGE_BYTES, "a": 2 * PAGE_BYTES}
    assert memory.look(9 * LOOK_SECONDS).by_hold == {"a": 2 * PAGE_BYTES}


@pytest.mark.parametrize("broken", ["", "10 (x) S 1", "garbage"])
def test_what_cannot_be_read_is_nobodys(tmp_path, broken):
    write_process(tmp_path, 10, resident_pages=3, hold_id="a")
    (tmp_path / "10" / "stat").write_text(broken)
    (tmp_path / "11").mkdir()
    assert pages(ResidentMemory(tmp_path), 0) == {}
    assert pages(ResidentMemory(tmp_path / "nothing"), 0) == {}


def test_the_memory_of_the_machine_is_none_where_it_is_not_said(tmp_path):
    assert ResidentMemory(tmp_path).memory_bytes is None
    write_memory(tmp_path, memory_bytes=4096)
    assert ResidentMemory(tmp_path).memory_bytes == 4096
