from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.metering.node import Moment, Node, Use, begun, close_windows
from mlflow_green.records import DeviceUse, Domain, Method
from tests.testkit.metering_fakes import START, HandClock, device, reading

GPUS = [device(f"GPU-{letter}", Domain.GPU, power_watts_max=1000.0) for letter in "abcd"]
NAMES = [gpu.name for gpu in GPUS]
JOBS = ["1-1-x/1-a", "1-1-x/2-b", "2-1-x/1-c"]


def moment(seconds: float) -> Moment:
    clock = HandClock()
    clock.seconds = seconds
    return Moment(monotonic_seconds=seconds, at=clock.now(), host_cpu=None)


def opened() -> Node:
    node = Node(
        sampler_id="s",
        host="h",
        boot_id="b",
        sequence=0,
        last=Moment(monotonic_seconds=0.0, at=START, host_cpu=None),
        tracks={},
        openings={},
        quiet_power_microwatts={},
    )
    return begun(node, GPUS, {name: reading(0.0, 0, name) for name in NAMES}, moment(0.0))


weight = st.just(0.0) | st.floats(0, 100)
device_uses = st.none() | st.builds(
    DeviceUse,
    by_pid=st.dictionaries(st.integers(0, 5), weight, max_size=4),
    hidden=weight,
    idle=weight,
    method=st.sampled_from([Method.MEASURED, Method.ESTIMATED]),
)
reserved = st.none() | st.frozensets(st.sampled_from(NAMES))


@given(
    gains=st.lists(st.none() | st.integers(0, 10**9), min_size=4, max_size=4),
    used=st.lists(device_uses, min_size=4, max_size=4),
    owners=st.dictionaries(st.integers(1, 5), st.sampled_from(JOBS)),
    gpus=st.lists(reserved, min_size=3, max_size=3),
)
def test_a_gpu_window_is_shared_exactly_and_what_it_knows_of_processes_is_not_remembered(gains, used, owners, gpus):
    readings = {
        name: replace(reading(1.0, gain, name), use=use) for name, gain, use in zip(NAMES, gains, used, strict=True)
    }
    weights = {key: dict.fromkeys(NAMES, 0.0) for key in JOBS}
    for name, use in zip(NAMES, used, strict=True):
        for pid, each in (use.by_pid if use else {}).items():
            if pid in owners:
                weights[owners[pid]][name] += each
    uses = {
        key: Use(cpu_seconds=1.0, gpu_weights=weights[key], gpus=each) for key, each in zip(JOBS, gpus, strict=True)
    }
    node, (closed,) = close_windows(opened(), readings, uses, moment(1.0))
    assert sum(share.microjoules for share in closed.shares.values()) == closed.window.attributed_microjoules
    assert min(closed.window.idle_microjoules, closed.window.other_microjoules) >= 0
    assert closed.shares.keys() == uses.keys()
    for key, use in uses.items():
        if use.gpus == frozenset() and not any(use.gpu_weights.values()):
            assert closed.shares[key].high_microjoules == 0
    assert all(track.last.use is None for track in node.tracks.values() if track.last is not None)


def test_a_gpu_that_cannot_be_read_is_charged_to_those_who_may_have_used_it():
    uses = {"a": Use(cpu_seconds=1.0, gpus=frozenset()), "b": Use(cpu_seconds=0.0)}
    _, (closed,) = close_windows(opened(), {}, uses, moment(1.0))
    assert (closed.shares["a"].microjoules, closed.window.coverage_ratio) == (0, 0)
    assert closed.shares["b"].microjoules == closed.window.energy.microjoules > 0
    assert closed.shares["b"].low_microjoules == 0
