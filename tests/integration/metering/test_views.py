"""A view is a part of another consumer: it has a share, in its own process or another, and takes nothing."""

from __future__ import annotations

import pytest

from mlflow_green.metering.sampler import Sampler
from mlflow_green.records import Domain
from tests.testkit.metering_fakes import CounterSensor, HandClock, HandCpuClock, device, write_proc_stat

JOULE = 1_000_000


class Host:
    def __init__(self, folder):
        self.folder, self.clock, self.busy_seconds = folder, HandClock(), 0.0
        self.clock.seconds = 1_000.0
        self.counters = {"package-0": 5_000}
        write_proc_stat(folder, busy_seconds=0)

    def sampler(self, **options) -> Sampler:
        sensor = CounterSensor(self.clock, [device(counter_is_shared=True)], self.counters)
        return Sampler(
            [sensor],
            clock=self.clock,
            host="node1",
            boot_id="boot",
            lock_path=self.folder / "run" / "lock",
            proc_root=self.folder,
            pause=self._pause,
            **options,
        )

    def _pause(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def goes_on(self) -> None:
        """One second at 60 W and two busy cores."""
        self.clock.seconds += 1.0
        self.busy_seconds += 2.0
        self.counters["package-0"] += 60 * JOULE
        write_proc_stat(self.folder, busy_seconds=self.busy_seconds)


@pytest.fixture
def host(tmp_path) -> Host:
    return Host(tmp_path)


def test_a_view_beside_its_consumer_has_its_part_and_the_windows_do_not_count_it(host):
    sampler = host.sampler()
    whole, part = HandCpuClock(), HandCpuClock()
    sampler.join("whole", whole)
    sampler.join("part", part, is_view=True)
    whole.cpu_seconds, part.cpu_seconds = 1.0, 0.5
    host.goes_on()
    tick = sampler.tick()
    (window,) = tick.windows
    assert tick.usages["whole"].energy[Domain.CPU].microjoules == 30 * JOULE
    assert tick.usages["part"].energy[Domain.CPU].microjoules == 15 * JOULE
    assert (window.attributed_microjoules, window.other_microjoules) == (30 * JOULE, 30 * JOULE)
    sampler.close()


def test_a_view_in_another_process_is_metered_by_the_one_that_leads(host):
    leader = host.sampler()
    follower = host.sampler(may_lead=False)
    whole, part = HandCpuClock(), HandCpuClock()
    leader.join("whole", whole)
    follower.join("part", part, is_view=True)
    whole.cpu_seconds, part.cpu_seconds = 1.0, 0.5
    follower.tick()
    host.goes_on()
    (window,) = leader.tick().windows
    assert window.attributed_microjoules == 30 * JOULE
    assert follower.tick().usages["part"].energy[Domain.CPU].microjoules == 15 * JOULE
    follower.close()
    leader.close()


def test_a_process_of_views_alone_never_leads_and_claims_no_windows(host):
    views = host.sampler(may_lead=False)
    assert not views.coordinated
    part = HandCpuClock()
    views.join("part", part, is_view=True)
    part.cpu_seconds = 0.5
    host.goes_on()
    tick = views.tick()
    assert tick.windows == ()
    assert tick.usages["part"].energy[Domain.CPU].microjoules == 15 * JOULE
    payer = host.sampler()  # the lead is free
    assert payer.coordinated
    host.goes_on()
    assert payer.tick().windows
    payer.close()
    views.close()


def test_when_the_leader_ends_a_process_of_views_does_not_go_on_in_its_place(host):
    leader = host.sampler()
    views = host.sampler(may_lead=False)
    part = HandCpuClock()
    views.join("part", part, is_view=True)
    views.tick()
    leader.tick()
    leader.close()
    views.leave("part")
    host.goes_on()
    tick = views.tick()
    assert (tick.windows, tick.final) == ((), {"part"})
    views.close()
