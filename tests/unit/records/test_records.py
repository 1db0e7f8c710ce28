from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.recorder.ticket import Book, entry_of
from mlflow_green.records import Balance, Energy, Method, Outcome, Site, Step, Unit, total_energy
from tests.testkit.ledger_samples import NOON, energy, term, window
from tests.testkit.recorder_parts import ticket

ENERGIES = st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9)).map(
    lambda parts: Energy(
        microjoules=parts[0] + parts[1],
        low_microjoules=parts[0],
        high_microjoules=sum(parts),
        method=Method.MEASURED,
    )
)


@given(st.lists(ENERGIES, min_size=1))
def test_a_sum_of_energies_sums_every_end_of_the_interval(parts) -> None:
    total = total_energy(parts)
    assert total.microjoules == sum(part.microjoules for part in parts)
    assert total.low_microjoules == sum(part.low_microjoules for part in parts)
    assert total.high_microjoules == sum(part.high_microjoules for part in parts)
    assert total.method is Method.MEASURED


def test_measured_and_estimated_together_are_mixed_and_nothing_is_none() -> None:
    one = energy(5)
    assert (one + replace(one, method=Method.MEASURED)).method is Method.MIXED
    assert total_energy([]) is None


@pytest.mark.parametrize(("low", "point", "high"), [(-1, 0, 0), (2, 1, 3), (0, 2, 1)])
def test_an_interval_that_does_not_hold_its_value_is_refused(low, point, high) -> None:
    with pytest.raises(ValueError, match="low <= point <= high"):
        Energy(microjoules=point, low_microjoules=low, high_microjoules=high, method=Method.MEASURED)


def test_a_window_whose_shares_are_not_the_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="not the whole"):
        replace(window(1, 10), idle_microjoules=0)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        replace(window(1, 10), started_at=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


def test_what_is_available_is_negative_after_an_overrun() -> None:
    assert Balance(term=term(limit=100), spent=90, held=20).available == -10


def test_a_retry_has_a_key_of_its_own_and_the_same_label() -> None:
    step = Step(workflow_run="run", name="train", wildcards="model=mlp")
    again = replace(step, attempt=2)
    assert (step.label, again.label) == ("train[model=mlp]", "train[model=mlp]")
    assert step.key != again.key


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        energy(1).microjoules = 2  # type: ignore[misc]


def test_an_entry_charges_only_the_units_that_it_knows() -> None:
    book = Book(project="demo", user="ana", host="node1", site=Site(), sampler_id=None, power_watts_max=1.0)
    refused = entry_of(ticket("train"), Outcome.REFUSED, book, NOON)
    assert refused.charged == {Unit.ENERGY: 0}
    assert refused.total is None
    assert refused.operational_micrograms_co2e is None
