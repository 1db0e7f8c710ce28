"""What an entry says about carbon: the hours in which it ran, and its part of the node."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from mlflow_green.emissions.intensity_series import series_intensity
from mlflow_green.recorder.placement import Placement
from mlflow_green.recorder.ticket import Book, entry_of
from mlflow_green.records import (
    CpuClockName,
    Domain,
    Embodied,
    EmbodiedShare,
    Energy,
    IntensitySeries,
    Method,
    Outcome,
    Site,
    Unit,
    Usage,
)
from mlflow_green.spool import from_json, to_json
from mlflow_green.units import MICROJOULES_PER_KWH
from tests.testkit.ledger_samples import NOON, OWNER
from tests.testkit.recorder_parts import ticket

HOURS = IntensitySeries(starts_at=NOON, step_seconds=3600, g_per_kwh=(100.0, 200.0, 600.0))
SITE = Site(
    intensity=series_intensity(HOURS, "grid operator", NOON),
    embodied=Embodied(micrograms_co2e=1_000_000_000, lifetime_seconds=1_000_000, source="test"),
)
BOOK = Book(project="demo", user="ana", host="node1", site=SITE, sampler_id=None, power_watts_max=1.0, cores=4)
KWH = Energy(
    microjoules=MICROJOULES_PER_KWH,
    low_microjoules=MICROJOULES_PER_KWH,
    high_microjoules=MICROJOULES_PER_KWH,
    method=Method.MEASURED,
)
USAGE = Usage(
    energy={Domain.CPU: KWH},
    duration_seconds=7200.0,
    cpu_seconds=8000.0,
    cpu_clock=CpuClockName.PERF,
    coverage_ratio=1.0,
)


def entry(usage=USAGE, book=BOOK, *, outcome=Outcome.SUCCEEDED):
    step = ticket("train")
    step.began_at, step.duration_seconds, step.usage = NOON + timedelta(minutes=30), 7200.0, usage
    return entry_of(step, outcome, book, NOON)


def test_an_entry_is_charged_the_mean_of_the_hours_in_which_it_ran():
    told = entry()
    assert told.carbon_intensity_g_per_kwh == (100 + 2 * 200 + 600) / 4
    assert told.operational_micrograms_co2e == 275_000_000
    assert told.intensity_source == "grid operator (hours of 2026-11-21 to 2026-11-21): mean over the run"


def test_an_entry_has_its_part_of_the_node_beside_its_budgets_and_not_in_them():
    told = entry()
    assert told.embodied_micrograms_co2e == 2_000_000  # 8,000 CPU s on 4 cores of 1,000,000 s and 1 kg
    assert told.charged[Unit.CARBON] == told.operational_micrograms_co2e


def test_a_job_that_has_the_node_alone_has_all_of_it_while_it_runs_also_with_gpus():
    alone = replace(BOOK, site=replace(SITE, embodied=replace(SITE.embodied, share=EmbodiedShare.NODE)))
    with_gpu = replace(USAGE, energy={Domain.CPU: KWH, Domain.GPU: KWH})
    assert entry(with_gpu, alone).embodied_micrograms_co2e == 7_200_000


def test_a_job_that_has_certainly_used_no_gpu_of_its_host_has_its_part_by_its_cores():
    unused = replace(
        USAGE, energy={Domain.CPU: KWH, Domain.GPU: replace(KWH, microjoules=0, low_microjoules=0, high_microjoules=0)}
    )
    assert entry(unused).embodied_micrograms_co2e == entry().embodied_micrograms_co2e
    perhaps = replace(USAGE, energy={Domain.CPU: KWH, Domain.GPU: replace(KWH, microjoules=0, low_microjoules=0)})
    assert entry(perhaps).embodied_micrograms_co2e is None


@pytest.mark.parametrize(
    ("usage", "book"),
    [
        (None, BOOK),
        (replace(USAGE, cpu_clock=None, cpu_seconds=0.0), BOOK),
        (replace(USAGE, energy={Domain.CPU: KWH, Domain.GPU: KWH}), BOOK),
        (USAGE, replace(BOOK, cores=None)),
        (USAGE, replace(BOOK, site=Site())),
    ],
    ids=["not metered", "no clock", "a GPU beside the cores", "cores not known", "node not known"],
)
def test_an_unknown_part_of_the_node_is_none_and_not_zero(usage, book):
    assert entry(usage, book).embodied_micrograms_co2e is None


def test_a_spool_keeps_the_hours_and_one_of_an_older_version_is_read_without_them():
    assert from_json(Book, to_json(BOOK)) == BOOK
    old = to_json(replace(BOOK, site=Site(), cores=None))
    del old["cores"], old["site"]["embodied"]
    assert from_json(Book, old) == replace(BOOK, site=Site(), cores=None)


def test_a_year_of_quarter_hours_fits_into_the_variable_of_a_job_on_a_cluster():
    year = IntensitySeries(
        starts_at=NOON - timedelta(days=180),
        step_seconds=900,
        g_per_kwh=tuple(37.25 + (value * 7919) % 50_000 / 100 for value in range(365 * 96)),
    )
    placement = Placement(
        placement_id="p",
        main=OWNER,
        workflow_run="w",
        project="demo",
        user="ana",
        site=replace(SITE, intensity=series_intensity(year, "grid operator", NOON)),
        spool_dir="/share",
        acts=True,
        enforces=True,
        steps=(),
    )
    assert len(placement.encoded()) < 64_000  # Linux takes 128 kB
    assert Placement.decoded(placement.encoded()) == placement
