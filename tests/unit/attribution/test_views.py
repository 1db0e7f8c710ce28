from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.attribution.shares import GpuWeights, share_by_use, share_of_gpu, share_of_view
from mlflow_green.records import Energy, Method

JOULE = 1_000_000
seconds = st.floats(0, 1e5)
uses = st.dictionaries(st.text("abcdef", min_size=1), seconds, max_size=6)
busy_uses = uses.filter(lambda used: sum(used.values()) > 1e-3)  # weights are whole nanoseconds


@st.composite
def energies(draw) -> Energy:
    low, point, high = sorted(draw(st.tuples(*[st.integers(0, 10**12)] * 3)))
    return Energy(microjoules=point, low_microjoules=low, high_microjoules=high, method=Method.MEASURED)


def view_of(share, own_seconds: float, used: dict[str, float]) -> Energy:
    return share_of_view(share, own_seconds, max(0.0, sum(used.values()) - own_seconds))


def rule(energy: Energy, idle_microjoules: int, busy_seconds: float):
    return partial(share_by_use, energy, idle_microjoules, host_busy_seconds=busy_seconds)


@given(energies(), st.floats(0, 1), uses, st.floats(0, 1e6), seconds)
def test_a_view_has_at_most_what_is_above_idle_and_an_interval_within_the_whole(energy, idle_ratio, used, busy, own):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    view = view_of(rule(energy, idle, busy), own, used)
    assert view.microjoules <= energy.microjoules - idle
    assert view.low_microjoules <= energy.low_microjoules
    assert view.high_microjoules <= energy.high_microjoules


@given(energies(), st.floats(0, 1), busy_uses, st.floats(0, 1e6))
def test_a_view_of_all_that_a_consumer_did_has_its_share(energy, idle_ratio, used, busy):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    share = rule(energy, idle, busy)
    for name, consumer in share(used).consumers.items():
        view = view_of(share, used[name], used)
        assert view.microjoules == pytest.approx(consumer.microjoules, rel=1e-5, abs=1 + energy.microjoules * 1e-5)


@given(energies(), busy_uses, st.floats(0, 1))
def test_a_view_of_a_part_has_no_more_than_the_whole_of_it(energy, used, part):
    for name, consumer in share_by_use(energy, 0, used, 0.0).consumers.items():
        view = view_of(rule(energy, 0, 0.0), used[name] * part, used)
        assert view.microjoules <= consumer.microjoules + 1 + energy.microjoules * 1e-5


def test_a_view_beside_nobody_has_its_part_of_what_the_host_did():
    whole = Energy(
        microjoules=100 * JOULE, low_microjoules=90 * JOULE, high_microjoules=110 * JOULE, method=Method.MEASURED
    )
    view = view_of(rule(whole, 20 * JOULE, 4.0), 1.0, {})
    assert view.microjoules == 20 * JOULE
    assert view.high_microjoules == 88 * JOULE  # nobody else explains the rest


def test_a_view_has_its_part_of_a_gpu_that_the_consumers_use():
    whole = Energy(microjoules=90, low_microjoules=80, high_microjoules=100, method=Method.MEASURED)

    def share(weights):
        reserved = dict.fromkeys(weights)
        return share_of_gpu(
            whole,
            GpuWeights(consumers=weights, reserved=reserved, other=0.0, hidden=0.0, idle=0.0, is_measured=True),
        )

    view = view_of(share, 1.0, {"a": 2.0, "b": 1.0})
    assert (view.low_microjoules, view.microjoules, view.high_microjoules) == (26, 30, 34)
