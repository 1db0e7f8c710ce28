"""kill -9 of programs, of their keeper, and of both, at random moments: not a joule twice, at most one sample lost."""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.metering.supervise import processes_of_steps, send
from mlflow_green.recorder.recovery import recover
from mlflow_green.records import Outcome
from tests.testkit import metered_program
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.keepers import keeper_of
from tests.testkit.ledger_workers import processes
from tests.testkit.waiting import comes_true

SIDE_BY_SIDE_ROUNDS, KILLS_A_ROUND, LONE_ROUNDS = 30, 5, 50


@pytest.fixture(scope="module")
def programs():
    return processes()


class Host:
    """A folder with a ledger, programs, and counters that move on while ``run`` says so."""

    def __init__(self, folder: Path, context) -> None:
        folder.mkdir()
        self.folder, self._context = folder, context
        self._tree = FakePowercap(folder / "powercap", layout="server", start_microjoules=77)
        self._start = self.counted_microjoules
        self.programs = []

    @property
    def counted_microjoules(self) -> int:
        return sum(int(zone.energy_microjoules) for zone in self._tree.zones)

    @property
    def used_microjoules(self) -> int:
        return self.counted_microjoules - self._start

    def start(self, name: str) -> None:
        arguments = (self.folder, self._tree.root, name)
        process = self._context.Process(target=metered_program.main, args=arguments)
        process.start()
        self.programs.append(process)

    @contextmanager
    def counting(self):
        """The counters move on by themselves, as the hardware's do, and stand still afterwards."""
        stopped = threading.Event()

        def count() -> None:
            before = time.monotonic()
            while not stopped.wait(0.005):
                now = time.monotonic()
                self._tree.advance(now - before)
                before = now

        counter = threading.Thread(target=count)
        counter.start()
        try:
            yield
        finally:
            stopped.set()
            counter.join()

    @property
    def is_metered(self) -> bool:
        return self.sequence_published() is not None

    def sequence_published(self) -> int | None:
        with suppress(OSError, ValueError):
            path = metered_program.lock_path_of(self.folder).with_name("lock.state")
            return json.loads(path.read_text())["node"]["sequence"]
        return None

    def lines(self) -> list[dict]:
        texts = [path.read_bytes() for path in metered_program.spool_dir_of(self.folder).glob("*.jsonl")]
        found = []
        for line in (line for text in texts for line in text.split(b"\n")[:-1]):
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def sequence_spooled(self) -> int:
        return max((line["tick"]["sequence"] for line in self.lines() if line["kind"] == "tick"), default=0)

    def kill_keeper(self) -> None:
        keeper = keeper_of(self.folder)
        if keeper is not None:
            with suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGKILL)

    def end_orphans(self) -> None:
        hold_ids = [line["hold_id"] for line in self.lines() if line["kind"] == "begin"]
        for pids in processes_of_steps(hold_ids).values():
            send(pids, signal.SIGKILL)

    def posted(self) -> MemoryLedger:
        ledger, spool_dir = MemoryLedger(SystemClock()), metered_program.spool_dir_of(self.folder)

        def is_posted() -> bool:
            self.end_orphans()  # again: one that was about to start has no name yet that it could be found by
            recover(ledger, spool_dir, host=platform.node(), clock=SystemClock(), say=lambda text: None)
            return not list(spool_dir.glob("*.jsonl"))

        assert comes_true(is_posted, 30)
        assert verify(ledger, lambda owner: False) == ()
        return ledger

    def close(self) -> None:
        for process in self.programs:
            process.kill()
            process.join()
        self.end_orphans()
        self._tree.close()


def posted_microjoules(ledger: MemoryLedger) -> int:
    return sum(window.energy.microjoules for window in ledger.node_windows())


def side_by_side(host: Host, dice: random.Random) -> int:
    """Two of three programs and their keeper are killed; the third, and whoever goes on, miss nothing."""
    host.start("survivor")
    assert comes_true(lambda: host.is_metered, 30)
    host.start("first")
    host.start("second")
    victims = [[host.programs[1]], [host.programs[2]], [None], [None]]
    dice.shuffle(victims)
    victims[dice.randrange(4)].append(None)  # None is the keeper: one of them dies together with it, or after it
    with host.counting():
        for process in (victim for group in victims for victim in group):
            time.sleep(dice.uniform(0, 0.35))
            if process is None:
                host.kill_keeper()
            else:
                process.kill()
        time.sleep(dice.uniform(0, 0.3))
    host.end_orphans()
    assert comes_true(lambda: not host.programs[0].is_alive(), 30)
    ledger = host.posted()
    assert len({window.sampler_id for window in ledger.node_windows()}) == 1
    assert posted_microjoules(ledger) == host.used_microjoules
    return sum(map(len, victims))


def lone(host: Host, dice: random.Random) -> bool:
    """A lone program is killed, or it and its keeper; whether somebody went on for its step."""
    host.start("lone")
    assert comes_true(lambda: host.is_metered, 30)
    kills_both = dice.random() < 0.3
    with host.counting():
        time.sleep(dice.uniform(0.0, 1.2))
        host.programs[0].kill()
        host.programs[0].join()
        if kills_both:
            host.kill_keeper()
            published = host.sequence_published()
            assert published is None or published <= host.sequence_spooled() + 1
        time.sleep(0.3)
    host.end_orphans()
    ledger = host.posted()
    kept = any("metered to its end" in entry.reason for entry in ledger.entries())
    assert not (kept and kills_both)
    if kept:
        assert posted_microjoules(ledger) == host.used_microjoules
    else:
        assert posted_microjoules(ledger) <= host.used_microjoules
    assert [entry.outcome for entry in ledger.entries()] == [Outcome.LOST] * len(ledger.entries())
    return kept


def rounds(scenario, count: int, folder: Path, context) -> list:
    def play(number: int):
        host = Host(folder / str(number), context)
        try:
            return scenario(host, random.Random(number))
        finally:
            host.close()

    with ThreadPoolExecutor(6) as pool:  # they mostly wait
        return list(pool.map(play, range(count)))


def test_whoever_is_killed_among_several_the_windows_of_the_others_sum_to_the_counters(tmp_path, programs):
    kills = rounds(side_by_side, SIDE_BY_SIDE_ROUNDS, tmp_path, programs)
    assert sum(kills) == SIDE_BY_SIDE_ROUNDS * KILLS_A_ROUND


def test_a_lone_program_that_is_killed_is_metered_to_the_end_of_its_step_or_loses_one_sample(tmp_path, programs):
    kept = rounds(lone, LONE_ROUNDS, tmp_path, programs)
    assert sum(kept) >= LONE_ROUNDS / 4
