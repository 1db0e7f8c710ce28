"""Spool files as they are on disk: torn, full, and not there before they say whose they are."""

from __future__ import annotations

import resource

import pytest

from mlflow_green.recorder.spool_session import read_session, session_line
from mlflow_green.records import CpuClockName, Domain, Energy, Method, Tick, Usage
from mlflow_green.spool import SpoolWriter, read_spool, to_json
from tests.testkit.ledger_samples import NOON, OWNER
from tests.testkit.recorder_parts import BOOK


def test_lines_come_back_in_order_and_a_torn_end_is_passed_over(tmp_path) -> None:
    writer = SpoolWriter(tmp_path / "spool/one.jsonl")
    for number in range(3):
        writer.append({"number": number})
    writer.close()
    with writer.path.open("ab") as file:
        file.write(b'{"number": 3')
    assert [line["number"] for line in read_spool(writer.path)] == [0, 1, 2]


def test_a_file_has_no_name_before_its_first_line(tmp_path) -> None:
    writer = SpoolWriter(tmp_path / "one.jsonl")
    assert list(tmp_path.glob("*.jsonl")) == []
    writer.append({"kind": "session"})
    assert list(tmp_path.iterdir()) == [writer.path]
    SpoolWriter(tmp_path / "two.jsonl").close()
    assert list(tmp_path.iterdir()) == [writer.path]


def test_a_line_that_does_not_fit_raises_and_the_next_starts_afresh(tmp_path) -> None:
    writer = SpoolWriter(tmp_path / "one.jsonl")
    writer.append({"number": 0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError, match="No space"):
            writer.append({"number": "too long to fit"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.append({"number": 1})
    assert [line["number"] for line in read_spool(writer.path)] == [0, 1]


def used(microjoules: int) -> Usage:
    cpu = Energy(
        microjoules=microjoules,
        low_microjoules=microjoules,
        high_microjoules=microjoules,
        method=Method.MEASURED,
    )
    return Usage(
        energy={Domain.CPU: cpu}, duration_seconds=1.0, cpu_seconds=1.0, cpu_clock=CpuClockName.PERF, coverage_ratio=1.0
    )


def test_of_two_accounts_of_a_step_the_larger_counts(tmp_path) -> None:
    writer = SpoolWriter(tmp_path / "one.jsonl")
    writer.append(session_line(OWNER, BOOK))
    for microjoules in (10, 30, 20):
        tick = Tick(
            sampler_id="s", sequence=1, at=NOON, windows=(), usages={"hold-1": used(microjoules)}, final=frozenset()
        )
        writer.append({"kind": "tick", "tick": to_json(tick)})
    writer.close()
    assert read_session(writer.path).usages == {"hold-1": used(30)}
