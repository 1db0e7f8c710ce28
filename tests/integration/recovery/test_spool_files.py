"""Spool files as they are on disk: torn, full, and not there before they say whose they are."""

from __future__ import annotations

import resource

import pytest

from mlflow_green.spool import SpoolWriter, read_spool


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
