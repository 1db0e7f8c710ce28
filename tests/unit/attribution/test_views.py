from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.attribution.shares import share_by_use, share_of_gpu
from mlflow_green.records import Energy, Method

JOULE = 1_000_000
seconds = st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1e5), max_size=6)


@st.composite
def energies(draw) -> Energy:
    low, point, high = sorted(draw(st.tuples(*[st.integers(0, 10**12)] * 3)))
    return Energy(microjoules=point, low_microjoules=low, high_microjoules=high, method=Method.MEASURED)


@given(energies(), st.floats(0, 1), seconds, st.floats(0, 1e6), seconds)
def test_views_take_nothing_from_anybody(energy, idle_ratio, used, busy_seconds, viewed):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    with_views = share_by_use(energy, idle, used, busy_seconds, viewed)
    without = share_by_use(energy, idle, used, busy_seconds)
    assert with_views.consumers == without.consumers
    assert (with_views.idle_microjoules, with_views.other_microjoules) == (
        without.idle_microjoules,
        without.other_microjoules,
    )
    assert share_of_gpu(energy, used, viewed).consumers == share_of_gpu(energy, used).consumers


@given(energies(), st.floats(0, 1), seconds, st.floats(0, 1e6), seconds)
def test_a_view_has_at_most_what_is_above_idle_and_an_interval_within_the_whole(
    energy, idle_ratio, used, busy_seconds, viewed
):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    shares = share_by_use(energy, idle, used, busy_seconds, viewed)
    assert shares.views.keys() == viewed.keys()
    for view in shares.views.values():
        assert view.microjoules <= energy.microjoules - idle
        assert view.low_microjoules <= energy.low_microjoules
        assert view.high_microjoules <= energy.high_microjoules


@given(
    energies(),
    st.floats(0, 1),
    seconds.filter(lambda used: any(each > 1e-9 for each in used.values())),
    st.floats(0, 1e6),
)
def test_a_view_of_all_that_a_consumer_did_has_its_share(energy, idle_ratio, used, busy_seconds):
    idle = min(energy.microjoules, int(energy.microjoules * idle_ratio))
    shares = share_by_use(energy, idle, used, busy_seconds, used)
    for name, view in shares.views.items():
        assert abs(view.microjoules - shares.consumers[name].microjoules) <= 1  # the consumers' sum is rounded exactly


def test_a_view_beside_nobody_has_its_part_of_what_the_host_did():
    whole = Energy(
        microjoules=100 * JOULE, low_microjoules=90 * JOULE, high_microjoules=110 * JOULE, method=Method.MEASURED
    )
    shares = share_by_use(whole, 20 * JOULE, {}, 4.0, {"view": 1.0})
    assert shares.views["view"].microjoules == 20 * JOULE
    assert (shares.idle_microjoules, shares.other_microjoules) == (20 * JOULE, 80 * JOULE)


def test_a_view_that_alone_was_seen_at_work_has_all_above_idle():
    whole = Energy(microjoules=10, low_microjoules=10, high_microjoules=10, method=Method.MEASURED)
    shares = share_by_use(whole, 4, {}, 0.0, {"view": 0.001})
    assert shares.views["view"].microjoules == 6
    assert shares.idle_microjoules == 10
