"""Two real processes, as two jobs of one user on one node, on a fake RAPL tree."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_green.metering.sampler import merge_windows
from mlflow_green.records import Tick
from mlflow_green.spool import from_json
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.waiting import comes_true


class Process:
    def __init__(self, lock_path, root):
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.metering.sampler_process", lock_path, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        first = json.loads(self.popen.stdout.readline())
        assert first["coordinated"]
        self.sampler_id = first["sampler_id"]

    def tell(self, *words: str) -> None:
        self.popen.stdin.write("".join(f"{word}\n" for word in words))
        self.popen.stdin.flush()

    def heard(self) -> Tick:
        return from_json(Tick, json.loads(self.popen.stdout.readline()))

    def tick(self) -> Tick:
        self.tell("tick")
        return self.heard()


@pytest.fixture
def node(tmp_path):
    tree = FakePowercap(tmp_path / "powercap", layout="server", start_microjoules=123)
    started = []

    def start():
        started.append(Process(tmp_path / "run" / "sampler.lock", tree.root))
        return started[-1]

    yield tree, start
    for process in started:
        process.popen.kill()
        process.popen.communicate()
    tree.close()


def counted(tree: FakePowercap) -> int:
    return sum(int(zone.energy_microjoules) for zone in tree.zones)


def check(windows, charged, counted_microjoules) -> None:
    """Every microjoule of the counters is in one window, and every share of the windows in one consumer's usage."""
    merged = merge_windows(list({(each.domain, each.sequence_first): each for each in windows}.values()))
    assert len(merged) == 2  # one a domain: nothing is missing in between
    assert sum(window.energy.microjoules for window in merged) == counted_microjoules
    assert sum(window.attributed_microjoules for window in merged) == sum(usage.total.microjoules for usage in charged)
    assert all(usage.total.microjoules > 0 for usage in charged)


def test_two_jobs_side_by_side_and_the_one_that_leads_ends_first(node):
    tree, start = node
    leader, follower = start(), start()
    assert follower.sampler_id == leader.sampler_id
    before, windows = counted(tree), []
    for process in (leader, follower):
        process.tell("join")
    for _ in range(3):
        for process in (leader, follower):
            process.tell("burn")
        tree.advance(1.0)
        assert follower.tick().windows == ()
        windows += leader.tick().windows
    leader.tell("leave", "tick", "close")
    ended = leader.heard()
    windows += ended.windows
    assert leader.popen.wait(30) == 0
    tree.advance(0.5)
    follower.tell("burn")
    windows += follower.tick().windows
    tree.advance(0.5)
    follower.tell("leave")
    last = follower.tick()
    check([*windows, *last.windows], [ended.usages["job"], last.usages["job"]], counted(tree) - before)
    assert (ended.final, last.final) == ({"job"}, {"job"})


def test_the_leader_is_killed_before_it_kept_its_last_windows(node):
    tree, start = node
    leader, follower = start(), start()
    before = counted(tree)
    for process in (leader, follower):
        process.tell("join", "burn")
    tree.advance(1.0)
    follower.tick()
    first = leader.tick()
    leader.tell("burn")
    tree.advance(1.0)
    not_kept = leader.tick()
    leader.popen.kill()
    leader.popen.wait(30)
    tree.advance(0.5)
    follower.tell("burn")
    second = follower.tick()
    assert not_kept.windows == second.windows[:2]
    tree.advance(0.5)
    follower.tell("leave")
    last = follower.tick()
    windows = [*first.windows, *second.windows, *last.windows]
    check(windows, [not_kept.usages["job"], last.usages["job"]], counted(tree) - before)


def test_a_closing_follower_waits_for_the_leaders_next_tick(node):
    tree, start = node
    leader, follower = start(), start()
    before = counted(tree)
    follower.tell("join", "burn", "leave", "tick")
    windows = []
    with ThreadPoolExecutor() as pool:
        hearing = pool.submit(follower.heard)

        def leader_ticks():
            tree.advance(1.0)
            windows.extend(leader.tick().windows)
            return hearing.done()

        assert comes_true(leader_ticks, 10)
    ended = hearing.result()
    assert ended.final == {"job"}
    check(windows, [ended.usages["job"]], counted(tree) - before)
