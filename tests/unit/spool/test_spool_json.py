from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mlflow_green.records import Closing, CpuClockName, Domain, Hold, HoldRequest, Tick, Unit, Usage
from mlflow_green.spool import from_json, to_json
from tests.testkit.ledger_samples import NOON, OWNER, energy, request, settle, term, window
from tests.testkit.recorder_parts import SimplePlanner

ASKED = request("train", {Unit.ENERGY: 5, Unit.CARBON: 7}, term(), group="pipe")
HOLD = Hold(
    hold_id="h1",
    step=ASKED.step,
    project="demo",
    user="ana",
    spec=ASKED.spec,
    tier="full",
    decision=SimplePlanner.choose(ASKED, ()).action,
    would_decision=SimplePlanner.choose(ASKED, ()).would,
    amounts={Unit.ENERGY: 5},
    terms=(term(),),
    owner=OWNER,
    opened_at=NOON,
)
USAGE = Usage(
    energy={Domain.CPU: energy(7)},
    duration_seconds=1.5,
    cpu_seconds=0.5,
    cpu_clock=CpuClockName.PERF,
    coverage_ratio=1.0,
)
TICK = Tick(sampler_id="s", sequence=3, at=NOON, windows=(window(3, 7),), usages={"h1": USAGE}, final=frozenset({"h1"}))


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        (HoldRequest, replace(ASKED, hold_id="h1")),
        (Hold, HOLD),
        (Tick, TICK),
        (Closing, settle(HOLD, 7)),
        (Usage, replace(USAGE, cpu_clock=None)),
    ],
)
def test_a_record_survives_the_way_through_json(kind, record) -> None:
    assert from_json(kind, json.loads(json.dumps(to_json(record)))) == record


def test_a_record_that_lost_a_part_is_refused() -> None:
    line = to_json(TICK)
    assert isinstance(line, dict)
    del line["at"]
    with pytest.raises(TypeError):
        from_json(Tick, line)
