from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.metering.grain import with_clocks
from mlflow_green.metering.integration import Track, advance
from mlflow_green.records import Domain, Method
from mlflow_green.sensors.proc_stat import TICK_SECONDS, HostCpu
from tests.testkit.metering_fakes import device, reading

JOULE = 1_000_000
MODEL = device(method=Method.ESTIMATED, power_watts_max=10.0, error_ratio=0.4)
HOST = HostCpu(busy_seconds=0.0, threads=2)
IDLE_WATTS, WATTS_PER_CPU = 2, 4  # 10 W with both CPUs busy
TICK_MICROJOULES = round(HOST.grain_seconds * WATTS_PER_CPU * JOULE)


class Model:
    """A load model that reads the ticks of the host, and the windows that come of it."""

    def __init__(self, which=MODEL, *, says_idle=True):
        self.device, self.says_idle = which, says_idle
        self.seconds = self.counter = self.idle = 0
        self.track, _ = advance(Track(device=which), self._reading())

    def _reading(self):
        idle = {"idle_microjoules": self.idle} if self.says_idle else {}
        return reading(self.seconds, self.counter, **idle)

    def window(self, seconds: float, *, ticks: int, used_seconds: float):
        self.seconds += seconds
        self.idle += round(IDLE_WATTS * seconds * JOULE)
        self.counter += round(IDLE_WATTS * seconds * JOULE) + round(ticks * TICK_SECONDS * WATTS_PER_CPU * JOULE)
        self.track, part = advance(self.track, self._reading())
        name = self.device.name
        tracks, found = with_clocks({name: self.track}, {Domain.CPU: [part]}, used_seconds, HOST)
        self.track = tracks[name]
        return found[Domain.CPU][0]


def test_a_job_between_two_ticks_gets_what_its_clock_shows():
    part = Model().window(0.01, ticks=0, used_seconds=0.001)
    assert part.energy.microjoules - part.idle_microjoules == 4_000
    assert part.hidden_microjoules == round(TICK_MICROJOULES * 1.4)
    assert part.energy.high_microjoules == round(part.energy.microjoules * 1.4) + part.hidden_microjoules


def test_what_was_added_is_taken_off_when_the_tick_shows_up():
    model = Model()
    first = model.window(0.01, ticks=0, used_seconds=0.001)
    second = model.window(1.0, ticks=1, used_seconds=0.0)
    assert first.energy.microjoules + second.energy.microjoules == model.counter


@given(st.lists(st.tuples(st.floats(0.001, 2), st.integers(0, 300), st.floats(0, 4)), min_size=1, max_size=20))
def test_the_windows_are_never_ahead_of_the_counter_by_more_than_a_tick_a_cpu_and_never_behind(windows):
    model, emitted = Model(), 0
    for seconds, ticks, used_seconds in windows:
        emitted += model.window(seconds, ticks=ticks, used_seconds=used_seconds).energy.microjoules
        assert (
            0 <= emitted - model.counter <= TICK_MICROJOULES * 1.5
        )  # an idle part that was taken off makes W a CPU dearer


def test_a_counter_of_the_hardware_is_left_as_it_is():
    for which, says_idle in [(MODEL, False), (device(), True)]:
        model = Model(which, says_idle=says_idle)
        part = model.window(0.01, ticks=0, used_seconds=0.02)
        assert (part.energy.microjoules, part.hidden_microjoules) == (model.counter, 0)


def test_a_gpus_load_model_is_not_raised_by_the_time_of_the_cpus():
    model = Model()
    part = model.window(1.0, ticks=0, used_seconds=0.0)
    tracks = {MODEL.name: model.track}
    assert with_clocks(tracks, {Domain.GPU: [part]}, 100.0, HOST) == (tracks, {Domain.GPU: [part]})
