"""A job's part of what making the node emitted."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.emissions.embodied import busy_seconds, device_micrograms, embodied_micrograms
from mlflow_green.records import Embodied, EmbodiedShare
from mlflow_green.units import SECONDS_PER_YEAR, parse_carbon_micrograms

NODE = Embodied(
    micrograms_co2e=parse_carbon_micrograms("1000 kgCO2e"), lifetime_seconds=4 * SECONDS_PER_YEAR, source="test"
)
ALONE = Embodied(
    micrograms_co2e=NODE.micrograms_co2e,
    lifetime_seconds=NODE.lifetime_seconds,
    source="test",
    share=EmbodiedShare.NODE,
)


def test_an_hour_of_a_whole_server_is_the_example_of_the_sci_specification():
    busy = busy_seconds(ALONE, duration_seconds=3600.0, cpu_seconds=None, cores=None)
    assert round(embodied_micrograms(ALONE, busy) / 1_000_000, 1) == 28.5  # 1000 kg over four years: "around 28 g"


def test_a_job_on_a_shared_node_gets_its_part_of_the_core_time():
    busy = busy_seconds(NODE, duration_seconds=3600.0, cpu_seconds=7200.0, cores=8)
    assert busy == 900
    assert embodied_micrograms(NODE, busy) * 4 == pytest.approx(embodied_micrograms(ALONE, Fraction(3600)), abs=4)


@pytest.mark.parametrize(("cpu_seconds", "cores"), [(None, 8), (1.0, None), (1.0, 0)])
def test_what_is_not_known_is_none_and_not_zero(cpu_seconds, cores):
    assert busy_seconds(NODE, duration_seconds=1.0, cpu_seconds=cpu_seconds, cores=cores) is None


def test_a_sleeping_job_keeps_nothing_busy():
    assert embodied_micrograms(NODE, busy_seconds(NODE, duration_seconds=60.0, cpu_seconds=0.0, cores=8)) == 0


def test_a_device_over_its_whole_lifetime_is_all_of_it():
    assert device_micrograms(Fraction(150), Fraction(6), Fraction(6 * SECONDS_PER_YEAR)) == 150_000_000_000


@given(st.lists(st.floats(0, 1e5), max_size=10), st.integers(1, 256), st.floats(1, 1e5))
def test_the_parts_of_jobs_that_fit_on_a_node_are_at_most_the_nodes(weights, cores, duration_seconds):
    whole = sum(weights) or 1.0
    parts = [
        busy_seconds(
            NODE, duration_seconds=duration_seconds, cpu_seconds=weight / whole * cores * duration_seconds, cores=cores
        )
        for weight in weights
    ]
    rounding = len(parts)
    assert sum(embodied_micrograms(NODE, part) for part in parts) <= (
        embodied_micrograms(ALONE, Fraction(duration_seconds)) * (1 + 1e-9) + rounding
    )
