from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.reports.pareto import pareto_front

numbers = st.integers(0, 12).map(float)
point_lists = st.lists(st.tuples(numbers, numbers), max_size=30)
goals = st.sampled_from(["min", "max"])


def beats(one, other, goal):
    sign = 1 if goal == "min" else -1
    no_worse = one[0] <= other[0] and sign * one[1] <= sign * other[1]
    return no_worse and one != other


@given(point_lists, goals)
def test_no_point_on_the_front_is_beaten_by_any_other(points, goal):
    for index in pareto_front(points, goal):
        assert not any(beats(other, points[index], goal) for other in points)


@given(point_lists, goals)
def test_every_point_off_the_front_is_beaten_by_one_on_it(points, goal):
    front = pareto_front(points, goal)
    for index in set(range(len(points))) - set(front):
        assert any(beats(points[best], points[index], goal) for best in front)


@given(point_lists, goals)
def test_the_front_goes_by_rising_energy(points, goal):
    energies = [points[index][0] for index in pareto_front(points, goal)]
    assert energies == sorted(energies)


def test_maximising_turns_the_metric_around():
    points = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.7)]
    assert pareto_front(points, "max") == (0, 1)
    assert pareto_front(points, "min") == (0,)
