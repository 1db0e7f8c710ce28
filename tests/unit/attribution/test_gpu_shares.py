from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.attribution.shares import GpuWeights, share_of_gpu, sum_of_shares
from mlflow_green.records import Energy, Method

JOULE = 1_000_000
weights = st.just(0.0) | st.floats(0, 1e4)


def of(joules: float, low: float, high: float, method: Method = Method.MEASURED) -> Energy:
    return Energy(
        microjoules=round(joules * JOULE),
        low_microjoules=round(low * JOULE),
        high_microjoules=round(high * JOULE),
        method=method,
    )


def gpu(consumers, *, reserved=None, other=0.0, hidden=0.0, idle=0.0, is_measured=True) -> GpuWeights:
    return GpuWeights(
        consumers=consumers,
        reserved={**dict.fromkeys(consumers), **(reserved or {})},
        other=other,
        hidden=hidden,
        idle=idle,
        is_measured=is_measured,
    )


def shared(consumers, **parts):
    return share_of_gpu(of(100, 90, 110), gpu(consumers, **parts))


@st.composite
def energies(draw) -> Energy:
    low, point, high = sorted(draw(st.tuples(*[st.integers(0, 10**12)] * 3)))
    return Energy(microjoules=point, low_microjoules=low, high_microjoules=high, method=Method.MEASURED)


@st.composite
def gpus(draw) -> tuple[Energy, GpuWeights]:
    return draw(energies()), GpuWeights(
        consumers={name: draw(weights) for name in "abc"},
        reserved={name: draw(st.sampled_from([None, True, False])) for name in "abc"},
        other=draw(weights),
        hidden=draw(weights),
        idle=draw(weights),
        is_measured=draw(st.booleans()),
    )


@given(st.lists(gpus(), min_size=1, max_size=8))
def test_gpu_shares_idle_and_other_sum_to_the_whole_exactly_over_all_gpus(node):
    shares = sum_of_shares(share_of_gpu(energy, use) for energy, use in node)
    attributed = sum(share.microjoules for share in shares.consumers.values())
    assert attributed + shares.idle_microjoules + shares.other_microjoules == sum(each.microjoules for each, _ in node)
    assert min(shares.idle_microjoules, shares.other_microjoules) >= 0
    for share in shares.consumers.values():
        assert share.high_microjoules <= sum(each.high_microjoules for each, _ in node)


def test_two_processes_share_a_gpu_by_their_utilisation_and_keep_its_band():
    shares = shared({"a": 70.0, "b": 20.0, "c": 0.0}, other=10.0)
    assert shares.consumers["a"] == of(70, 63, 88)
    assert shares.consumers["b"] == of(20, 18, 33)
    assert shares.consumers["c"] == of(0, 0, 11)
    assert (shares.other_microjoules, shares.idle_microjoules) == (10 * JOULE, 0)


def test_who_may_not_use_a_gpu_has_nothing_of_it():
    assert shared({"a": 0.0}, other=10.0, reserved={"a": False}).consumers["a"] == of(0, 0, 0)


def test_a_gpu_that_nobody_uses_is_idle():
    shares = shared({"a": 0.0})
    assert (shares.idle_microjoules, shares.consumers["a"]) == (100 * JOULE, of(0, 0, 0))
    assert shared({}).idle_microjoules == 100 * JOULE


def test_the_only_user_has_the_whole_whatever_its_weight_means():
    assert shared({"a": 1.0, "b": 0.0}, is_measured=False).consumers == {"a": of(100, 90, 110), "b": of(0, 0, 0)}


def test_an_equal_split_is_estimated_and_may_be_anything_up_to_the_whole():
    shares = shared({"a": 1.0, "b": 1.0}, is_measured=False)
    assert shares.consumers["a"] == shares.consumers["b"] == of(50, 0, 110, Method.ESTIMATED)
    assert shares.other_microjoules == 0


def test_three_equal_parts_leave_no_rest_to_others():
    assert shared(dict.fromkeys("abc", 1 / 3)).other_microjoules == 0


def test_slices_that_nobody_uses_are_idle():
    shares = shared({"a": 2.0}, idle=5.0, is_measured=False)
    assert shares.idle_microjoules == 71_428_571
    assert shares.consumers["a"].microjoules == 28_571_429
    assert (shares.consumers["a"].low_microjoules, shares.consumers["a"].high_microjoules) == (0, 110 * JOULE)


def test_what_hidden_processes_use_is_split_among_those_who_reserved_the_gpu():
    shares = shared(
        dict.fromkeys("abcd", 0.0), reserved={"a": True, "b": True, "c": False}, hidden=1.0, is_measured=False
    )
    assert shares.consumers["a"] == shares.consumers["b"] == of(50, 0, 110, Method.ESTIMATED)
    assert shares.consumers["c"] == shares.consumers["d"] == of(0, 0, 0)


def test_where_nobody_reserved_the_gpu_hidden_use_is_of_those_who_may_have_used_it():
    shares = shared(dict.fromkeys("ab", 0.0), reserved={"b": False}, hidden=1.0, is_measured=False)
    assert shares.consumers["a"] == of(100, 0, 110, Method.ESTIMATED)
    nobody = shared({"b": 0.0}, reserved={"b": False}, hidden=1.0, is_measured=False)
    assert (nobody.other_microjoules, nobody.idle_microjoules) == (100 * JOULE, 0)
