"""Several samplers of one user on one host: one leads, the others follow, and nothing counts twice or gets lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from mlflow_green.metering.sampler import Sampler
from mlflow_green.metering.shared_state import LeaderState
from mlflow_green.records import Domain, Method, Tick
from mlflow_green.sensors.cpu_model import CpuModel
from mlflow_green.sensors.load_model import LoadModelSensor
from mlflow_green.sensors.memory_model import MemoryModel, MemoryModelSensor
from mlflow_green.spool import from_json
from tests.testkit.metering_fakes import CounterSensor, HandClock, HandCpuClock, device, write_proc_stat

JOULE = 1_000_000
SHARED = [
    device("package-0", counter_is_shared=True),
    device("dram-0", Domain.DRAM, counter_is_shared=True),
]


class Host:
    """One machine: its clock, its counters and CPU time, and the folder where its samplers meet."""

    def __init__(self, folder: Path, devices=None):
        self.folder, self.clock, self.busy_seconds = folder, HandClock(), 0.0
        self.clock.seconds = 1_000.0
        self.devices = SHARED if devices is None else devices
        self.counters = {each.name: 5_000 for each in self.devices}
        self.lock_path = folder / "run" / "sampler.lock"
        self.while_waiting = lambda: None
        write_proc_stat(folder, busy_seconds=0)

    def sampler(self, *, counters=None, devices=None, boot_id="boot") -> Sampler:
        sensor = CounterSensor(self.clock, devices or self.devices, self.counters if counters is None else counters)
        return Sampler(
            [sensor],
            clock=self.clock,
            host="node1",
            boot_id=boot_id,
            lock_path=self.lock_path,
            proc_root=self.folder,
            pause=self._pause,
        )

    def _pause(self, seconds: float) -> None:
        self.clock.seconds += 0.5  # long waits pass in a few looks
        self.while_waiting()

    def goes_on(self, *, busy_seconds=1.0, joules=60.0, seconds=1.0) -> None:
        self.clock.seconds += seconds
        self.busy_seconds += busy_seconds
        for name in self.counters:
            self.counters[name] += round(joules * JOULE)
        write_proc_stat(self.folder, busy_seconds=self.busy_seconds)

    @property
    def state_path(self) -> Path:
        return self.folder / "run" / "sampler.lock.state"

    def state(self) -> LeaderState:
        return from_json(LeaderState, json.loads(self.state_path.read_text()))

    def report_paths(self) -> list[Path]:
        return [path for path in (self.folder / "run").glob("sampler.lock.*-*-*") if path.suffix != ".new"]


def kill(sampler: Sampler, host: Host) -> None:
    """What the kernel and everybody else see of ``kill -9``: the lock is free, and the process's number is gone."""
    os.close(sampler._shared._fd)
    sampler._shared._fd = -1
    for path in host.report_paths():
        if path.name.endswith(sampler._shared.name):
            path.rename(path.with_name(path.name.replace(f"{os.getpid()}-0-", f"{os.getpid()}-1-")))


def cpu_joules(tick: Tick, name: str) -> float:
    return tick.usages[name].energy[Domain.CPU].microjoules / JOULE


# --- side by side ---------------------------------------------------------------------------------


def test_two_processes_share_the_node_as_two_jobs_of_one_process_do(tmp_path):
    for name in ("together", "apart"):
        (tmp_path / name).mkdir()
    together, apart = Host(tmp_path / "together"), Host(tmp_path / "apart")
    one, leader, follower = together.sampler(), apart.sampler(), apart.sampler()
    assert (follower.coordinated, follower.sampler_id) == (True, leader.sampler_id)
    clocks = [HandCpuClock() for _ in range(4)]
    one.join("a", clocks[0])
    one.join("b", clocks[1])
    leader.join("a", clocks[2])
    follower.join("b", clocks[3])
    for a_seconds, b_seconds, busy_seconds in [(0.5, 1.0, 2.0), (0.3, 0.0, 0.3), (1.0, 1.0, 1.7)]:
        for a, b in (clocks[:2], clocks[2:]):
            a.cpu_seconds += a_seconds
            b.cpu_seconds += b_seconds
        together.goes_on(busy_seconds=busy_seconds)
        apart.goes_on(busy_seconds=busy_seconds)
        assert follower.tick().windows == ()
        expected, led, followed = one.tick(), leader.tick(), follower.tick()
        assert [window.attributed_microjoules for window in led.windows] == [
            window.attributed_microjoules for window in expected.windows
        ]
        assert {**led.usages, **followed.usages} == expected.usages
        assert (followed.sequence, followed.at) == (led.sequence, led.at)
    assert led.usages.keys() == {"a"}


def test_a_follower_gets_the_final_usage_when_the_leader_has_taken_in_the_leaving(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    clock.cpu_seconds = 1.0
    host.goes_on(busy_seconds=2.0)
    follower.leave("b")
    host.while_waiting = leader.tick
    tick = follower.tick()
    assert (tick.final, cpu_joules(tick, "b"), clock.closed) == ({"b"}, 30, True)
    assert (tick.usages["b"].duration_seconds, tick.usages["b"].coverage_ratio) == (1.0, 1.0)
    assert follower.tick().usages == {}
    leader.tick()
    assert host.state().accounts == {}


def test_a_final_usage_stays_as_it_is_until_the_follower_takes_it(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    clock.cpu_seconds = 1.0
    follower.leave("b")
    host.goes_on()
    leader.tick()
    (final,) = host.state().accounts.values()
    host.goes_on(busy_seconds=1.0)
    leader.tick()
    assert list(host.state().accounts.values()) == [final]
    assert follower.tick().usages["b"].energy == final.energy


def test_a_leader_that_does_not_answer_leaves_the_last_known_usage_with_a_lower_coverage(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    clock.cpu_seconds = 1.0
    host.goes_on(busy_seconds=2.0)
    follower.tick()
    leader.tick()  # and then it is stopped
    host.goes_on(seconds=3.0)
    clock.cpu_seconds = 4.0
    follower.leave("b")
    asked_seconds = host.clock.seconds
    tick = follower.tick()
    assert 3.0 <= host.clock.seconds - asked_seconds <= 4.0
    assert (tick.final, cpu_joules(tick, "b")) == ({"b"}, 30)
    usage = tick.usages["b"]
    assert (usage.duration_seconds, usage.cpu_seconds, usage.coverage_ratio) == (4.0, 4.0, 0.25)
    host.goes_on()
    (window, _) = leader.tick().windows  # it goes on, and charges nobody for what nobody waits for
    assert window.attributed_microjoules == 0


def test_a_consumer_that_the_leader_never_saw_has_no_energy_rather_than_zero(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", HandCpuClock())
    assert follower.tick().usages == {}
    host.goes_on()
    follower.leave("b")
    tick = follower.tick()
    assert (tick.final, tick.usages["b"].total, tick.usages["b"].coverage_ratio) == ({"b"}, None, 0.0)
    leader.close()


def test_a_follower_that_died_is_charged_nothing_more(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    clock.cpu_seconds = 1.0
    follower.tick()
    kill(follower, host)
    host.goes_on(busy_seconds=1.0)
    for window in leader.tick().windows:
        assert (window.attributed_microjoules, window.other_microjoules) == (0, 60 * JOULE)
    assert host.report_paths() == []


def test_one_name_that_leaves_and_joins_again_is_two_consumers(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    for expected_joules in (60, 30):
        follower.join("b", clock := HandCpuClock())
        clock.cpu_seconds = 1.0
        host.goes_on(busy_seconds=60 / expected_joules)
        follower.leave("b")
        host.while_waiting = leader.tick
        assert cpu_joules(follower.tick(), "b") == expected_joules


# --- the leader goes ------------------------------------------------------------------------------


def test_a_follower_goes_on_where_the_leader_closed(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    host.goes_on()
    (last, _) = leader.tick().windows
    leader.close()
    host.goes_on(joules=90)
    clock.cpu_seconds = 0.5
    tick = follower.tick()
    (window, _) = tick.windows
    assert (window.sampler_id, window.sequence_first, window.started_at) == (last.sampler_id, 2, last.ended_at)
    assert window.energy.microjoules == 90 * JOULE
    assert cpu_joules(tick, "b") == 45


def test_after_a_killed_leader_its_last_windows_are_told_again(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    host.goes_on()
    lost = leader.tick().windows
    kill(leader, host)
    host.goes_on(joules=90)
    first, second = follower.tick(), follower.tick()
    assert first.windows[:2] == lost
    assert [(window.sequence_first, window.energy.microjoules) for window in first.windows[2:]] == [(2, 90 * JOULE)] * 2
    assert not {window.sequence_first for window in second.windows} & {1, 2}


def test_a_newcomer_goes_on_for_followers_that_have_not_looked_yet(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    kill(leader, host)
    newcomer = host.sampler()
    assert newcomer.sampler_id == leader.sampler_id
    host.goes_on()
    clock.cpu_seconds = 1.0
    follower.tick()
    newcomer.tick()
    assert cpu_joules(follower.tick(), "b") == 60


def test_a_follower_that_waits_for_its_last_usage_takes_over_from_a_leader_that_closes(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    clock.cpu_seconds = 1.0
    host.goes_on()
    follower.leave("b")
    host.while_waiting = leader.close
    tick = follower.tick()
    assert (tick.final, cpu_joules(tick, "b")) == ({"b"}, 60)
    assert len(tick.windows) == 2


@pytest.mark.parametrize("end", [Sampler.close, None])
def test_with_nobody_left_the_next_sampler_starts_afresh(tmp_path, end):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    host.goes_on()
    leader.tick()
    for sampler in (follower, leader):
        end(sampler) if end else kill(sampler, host)
    assert host.state_path.exists() == (end is None)
    host.goes_on(joules=1_000)
    after = host.sampler()
    host.goes_on()
    (window, _) = after.tick().windows
    assert after.sampler_id != leader.sampler_id
    assert (window.sequence_first, window.energy.microjoules) == (1, 60 * JOULE)


@pytest.mark.parametrize("end", [Sampler.close, None], ids=["closed", "killed"])
def test_models_go_on_where_the_leader_has_read_them(tmp_path, end):
    line = (10.0, 19.0, 55.0, 100.0)  # watts
    cpu = CpuModel(name="test", threads=2, low_watts=line, watts=line, high_watts=line, source="a test")
    memory = MemoryModel(low_watts=4.0, watts=8.0, high_watts=16.0, source="a test")
    host = Host(tmp_path)

    def sampler() -> Sampler:
        now = host.clock.monotonic_seconds
        sensors = [LoadModelSensor(cpu, tmp_path, monotonic=now), MemoryModelSensor(memory, monotonic=now)]
        lock_path = host.lock_path
        return Sampler(sensors, clock=host.clock, host="node1", boot_id="boot", lock_path=lock_path, proc_root=tmp_path)

    leader, follower = sampler(), sampler()
    for busy_seconds in (1.0, 0.0, 2.0):
        host.goes_on(busy_seconds=busy_seconds)
        leader.tick()
    end(leader) if end else kill(leader, host)
    host.goes_on(busy_seconds=4.0, seconds=2.0)  # both threads are busy, and nobody reads
    cpu_window, memory_window = (each for each in follower.tick().windows if each.sequence_last == 4)
    assert [each.coverage_ratio for each in (cpu_window, memory_window)] == [1.0, 1.0]
    assert (cpu_window.energy.microjoules, cpu_window.idle_microjoules) == (200 * JOULE, 20 * JOULE)
    energy = memory_window.energy
    assert (energy.low_microjoules, energy.microjoules, energy.high_microjoules) == (8 * JOULE, 16 * JOULE, 32 * JOULE)
    assert memory_window.idle_microjoules == 16 * JOULE


def test_a_counter_that_each_process_keeps_for_itself_is_a_gap_at_the_hand_over(tmp_path):
    devices = [device("cpu-load-model", counter_is_shared=False)]
    for base in (0, 10**12):  # below and above what the leader has read
        folder = tmp_path / str(base)
        folder.mkdir()
        host = Host(folder, devices)
        leader, follower = host.sampler(), host.sampler(counters=(own := {"cpu-load-model": base}))
        for _ in range(3):
            host.goes_on(joules=60)
            leader.tick()
        leader.close()
        host.goes_on(seconds=2.0)
        own["cpu-load-model"] += 7
        (window,) = follower.tick().windows
        assert (window.energy.microjoules, window.energy.low_microjoules) == (120 * JOULE, 0)
        assert (window.energy.method, window.coverage_ratio) == (Method.ESTIMATED, 0.0)
        host.goes_on()
        own["cpu-load-model"] += 50 * JOULE
        (window,) = follower.tick().windows
        assert (window.energy.microjoules, window.coverage_ratio) == (50 * JOULE, 1.0)


def test_a_device_that_only_the_next_leader_reads_begins_there_and_one_that_it_lacks_is_missing(tmp_path):
    host = Host(tmp_path)
    gpu = device("GPU-1", Domain.GPU, counter_is_shared=True)
    leader, follower = host.sampler(), host.sampler(devices=[SHARED[0], gpu])
    host.goes_on()
    leader.tick()
    leader.close()
    host.counters["GPU-1"] = 10**9
    host.goes_on()
    first = {window.domain: window for window in follower.tick().windows}
    host.goes_on()
    second = {window.domain: window for window in follower.tick().windows}
    assert first[Domain.CPU].coverage_ratio == 1.0
    assert second.keys() == {Domain.CPU, Domain.GPU}
    assert second[Domain.GPU].energy.microjoules == 60 * JOULE
    assert second[Domain.GPU].started_at == first[Domain.CPU].ended_at
    assert follower.notes == ["this meter goes on without dram-0, which it cannot read: missing from now on"]


def test_a_next_leader_that_reads_the_platform_does_not_estimate_the_packages_beside_it(tmp_path):
    host = Host(tmp_path)
    host.counters["psys"] = 0
    psys = device("psys", Domain.PLATFORM, counter_is_shared=True)
    leader, follower = host.sampler(), host.sampler(devices=[psys])
    leader.join("job", HandCpuClock())
    host.goes_on()
    leader.tick()
    leader.close()
    for _ in range(2):
        host.goes_on()
        windows = follower.tick().windows
    assert [window.domain for window in windows] == [Domain.PLATFORM]


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_lock_whose_holder_publishes_nothing_leaves_the_sampler_uncoordinated(tmp_path):
    host = Host(tmp_path)
    leader = host.sampler()
    host.state_path.unlink()
    other = host.sampler()
    assert not other.coordinated
    assert other.sampler_id != leader.sampler_id
    other.join("a", clock := HandCpuClock())
    host.goes_on()
    clock.cpu_seconds = 0.5
    tick = other.tick()
    assert (tick.windows, cpu_joules(tick, "a")) == ((), 30)
    assert host.report_paths() == []


def test_the_state_of_another_boot_is_not_gone_on_from(tmp_path):
    host = Host(tmp_path)
    old, waiting = host.sampler(boot_id="before"), host.sampler(boot_id="before")
    kill(old, host)
    new = host.sampler()
    assert new.sampler_id != old.sampler_id == waiting.sampler_id


def test_without_the_leaders_state_a_follower_goes_on_and_nothing_counts_twice(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    clock.cpu_seconds = 1.0
    follower.tick()
    host.goes_on()
    leader.tick()
    follower.tick()
    host.goes_on()
    seen = [window.sequence_last for window in leader.tick().windows]
    kill(leader, host)
    host.state_path.unlink()
    follower.tick()
    host.goes_on(joules=70)
    tick = follower.tick()
    assert all(window.sequence_first > max(seen) for window in tick.windows)
    assert {window.energy.microjoules for window in tick.windows} == {70 * JOULE}
    assert (tick.sampler_id, cpu_joules(tick, "b")) == (leader.sampler_id, 60)
    assert len(follower.notes) == 1


@given(content=st.one_of(st.binary(max_size=50), st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["sampler_id", "consumers", "node", "accounts", "leader", "windows", "x"]), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_broken_shared_file_is_passed_over_and_said_once(content):
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        leader, follower = host.sampler(), host.sampler()
        follower.join("b", HandCpuClock())
        (report,) = host.report_paths()
        for _ in range(2):
            report.write_bytes(content)
            host.goes_on()
            assert len(leader.tick().windows) == 2
            host.state_path.write_bytes(content)
            follower.tick()
        assert len(leader.notes) <= 1
        assert len(follower.notes) == 1


def test_an_unreadable_report_neither_charges_a_consumer_twice_nor_forgets_it(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", clock := HandCpuClock())
    clock.cpu_seconds = 1.0
    follower.tick()
    host.goes_on()
    leader.tick()
    (report,) = host.report_paths()
    for damage in (lambda: report.write_text("{"), report.unlink):
        damage()
        host.goes_on()
        assert {window.attributed_microjoules for window in leader.tick().windows} == {0}
        follower.tick()
    clock.cpu_seconds = 1.5
    follower.tick()
    host.goes_on()
    leader.tick()
    assert cpu_joules(follower.tick(), "b") == 90


def test_a_folder_that_cannot_be_written_any_more_stops_nobody(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    leader.join("a", HandCpuClock())
    for name in [*host.report_paths(), host.state_path]:  # a folder of this name is in the way, also for root
        name.unlink()
        name.mkdir()
    follower.join("b", HandCpuClock())
    for _ in range(2):
        host.goes_on()
        assert len(leader.tick().windows) == 2
        follower.tick()
    assert len(leader.notes) == 2  # its own file, and the other's
    assert "cannot be written" in follower.notes[0]
    leader.close()
    follower.close()


def test_what_is_shared_is_for_this_user_only(tmp_path):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", HandCpuClock())
    leader.tick()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


@pytest.mark.parametrize("forks", ["leader", "follower"])
def test_a_forked_child_changes_nothing_that_is_shared(tmp_path, forks):
    host = Host(tmp_path)
    leader, follower = host.sampler(), host.sampler()
    follower.join("b", HandCpuClock())

    def contents():
        return {path: path.read_text() for path in (tmp_path / "run").iterdir()}

    sampler = leader if forks == "leader" else follower

    def live_on():
        sampler.tick()
        sampler.close()

    before = contents()
    child = multiprocessing.get_context("fork").Process(target=live_on)
    child.start()
    child.join(30)
    assert (child.exitcode, contents()) == (0, before)
    assert host.sampler().sampler_id == leader.sampler_id  # the lock is still held


# --- the law --------------------------------------------------------------------------------------


class AnySchedule(RuleBasedStateMachine):
    """Under any schedule of samplers that come, go and die, the counters are shared out exactly."""

    def __init__(self):
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.host = Host(Path(self.temporary.name))
        self.samplers: list[Sampler] = []
        self.clocks: dict[tuple[Sampler, str], HandCpuClock] = {}
        self.windows: dict[tuple[str, Domain, int], object] = {}
        self.charged: dict[tuple[str, Domain], int] = {}  # to consumers that are final or lost
        self.running: dict[Sampler, Tick] = {}  # of leaders, whose accounts are their own
        self.began: dict[str, int] = {}
        self.joined = 0

    def teardown(self):
        while self.samplers:
            self._lost(self.samplers[0])
        attributed, last = Counter(), {}
        for (*domain, _), window in sorted(self.windows.items()):
            parts = window.attributed_microjoules + window.idle_microjoules + window.other_microjoules
            assert parts == window.energy.microjoules
            attributed[*domain] += window.attributed_microjoules
            before = last.get(tuple(domain), window)
            assert before is window or window.sequence_first == before.sequence_last + 1
            assert before is window or window.started_at == before.ended_at
            last[*domain] = window
        assert {key: value for key, value in self.charged.items() if value} == {**+attributed}
        self.temporary.cleanup()

    def _charge(self, sampler_id, energy):
        for domain, each in energy.items():
            key = (sampler_id, domain)
            self.charged[key] = self.charged.get(key, 0) + each.microjoules

    def _leader(self):
        return next((each for each in self.samplers if each._seen is None), None)

    def _ticked(self, sampler):
        tick = sampler.tick()
        for window in tick.windows:
            key = (window.sampler_id, window.domain, window.sequence_first)
            assert self.windows.setdefault(key, window) == window
        for name in tick.final:
            self._charge(tick.sampler_id, tick.usages[name].energy)
            self.clocks.pop((sampler, name))
        self.running[sampler] = tick
        assert tick.sampler_id == sampler.sampler_id
        assert all(window.sampler_id == sampler.sampler_id for window in tick.windows)
        if sampler._seen is None:
            counted = sampler._node.tracks["package-0"].last.energy_microjoules - self.began[sampler.sampler_id]
            for domain in (Domain.CPU, Domain.DRAM):
                mine = (each for key, each in self.windows.items() if key[:2] == (sampler.sampler_id, domain))
                assert sum(each.energy.microjoules for each in mine) == counted

    def _lost(self, sampler):
        """Nobody will tell any more what its consumers have used; the leader knows what they were charged."""
        self.samplers.remove(sampler)
        if sampler._seen is None:
            tick = self.running.get(sampler)
            energies = [] if tick is None else [u.energy for name, u in tick.usages.items() if name not in tick.final]
        else:
            accounts = self.host.state().accounts
            waiting = {name for each, name in self.clocks if each is sampler}  # the others got their final usage
            energies = [account.energy for key, account in accounts.items() if key.rpartition("-")[2] in waiting]
        for energy in energies:
            self._charge(sampler.sampler_id, energy)
        self.clocks = {key: clock for key, clock in self.clocks.items() if key[0] is not sampler}

    @precondition(lambda self: len(self.samplers) < 4)
    @rule()
    def start(self):
        sampler = self.host.sampler()
        assert sampler.coordinated
        self.began.setdefault(sampler.sampler_id, self.host.counters["package-0"])
        self.samplers.append(sampler)

    @precondition(lambda self: self.samplers)
    @rule(data=st.data())
    def join(self, data):
        sampler = data.draw(st.sampled_from(self.samplers))
        self.joined += 1
        clock = self.clocks[sampler, f"job{self.joined}"] = HandCpuClock()
        clock.cpu_seconds = 7.0
        sampler.join(f"job{self.joined}", clock)

    @rule(
        energy=st.integers(0, 10**9),
        seconds=st.sampled_from([0.0, 0.25, 1.0, 90.0]),
        work=st.lists(st.floats(0, 3), min_size=4, max_size=4),
    )
    def time_passes(self, energy, seconds, work):
        self.host.goes_on(busy_seconds=work[-1], joules=energy / JOULE, seconds=seconds)
        for clock, cpu_seconds in zip(self.clocks.values(), work, strict=False):
            clock.cpu_seconds += cpu_seconds

    @precondition(lambda self: self.clocks)
    @rule(data=st.data())
    def leave(self, data):
        sampler, name = data.draw(st.sampled_from(list(self.clocks)))
        sampler.leave(name)

    @precondition(lambda self: self.samplers)
    @rule(data=st.data(), meanwhile=st.sampled_from(["answers", "hangs", "closes", "dies"]))
    def tick(self, data, meanwhile):
        sampler = data.draw(st.sampled_from(self.samplers))

        def leader_acts():
            leader = self._leader()
            if leader is None or leader is sampler or meanwhile == "hangs":
                return
            if meanwhile == "answers":
                self._ticked(leader)
            elif meanwhile == "closes":
                self._lost(leader)
                leader.close()
            else:
                self._lost(leader)
                kill(leader, self.host)

        self.host.while_waiting = leader_acts
        self._ticked(sampler)
        self.host.while_waiting = lambda: None

    @precondition(lambda self: self.samplers)
    @rule(data=st.data(), dies=st.booleans())
    def end(self, data, dies):
        sampler = data.draw(st.sampled_from(self.samplers))
        self._lost(sampler)
        if dies:
            kill(sampler, self.host)
        else:
            sampler.close()


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
