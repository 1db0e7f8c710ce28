"""What Slurm's answers mean, on texts that a Slurm 22.05 gave."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.metering.slurm import JobState, Row, energy_of, read_rows, report_jobs

SACCT = """\
1|1|COMPLETED|1795278064|1795278070|node1|4|
1.batch|1.batch|COMPLETED|1795278064|1795278070|node1|4|601
2|2|CANCELLED by 0|1795278063|1795278063|None assigned|4|0
5|5|COMPLETED|1795278071|1795278078|node1|4|1103
5.batch|5.batch|COMPLETED|1795278071|1795278078|node1|4|718
5.0|5.0|COMPLETED|1795278071|1795278074|node1|4|299
5.1|5.1|COMPLETED|1795278074|1795278078|node1|4|402
5.2|5.2|COMPLETED|1795278074|1795278078|node1|4|402
3_1|6|CANCELLED by 0|1795278064|1795278080|node2|1|
3_1.batch|6.batch|CANCELLED|1795278064|1795278080|node2|1|967
8|8|RUNNING|1795278101|Unknown|node1|4|
8.batch|8.batch|RUNNING|1795278101|Unknown|node1|4|0
8.0|8.0|RUNNING|1795278101|Unknown|node1|4|0
10|10|NODE_FAIL|1795278089|1795278092|node2|1|
10.0|10.0|CANCELLED|1795278089|1795278092|node2|1|0
"""
SQUEUE = """\
2|2|CANCELLED|1795278063|1795278063|||
4|4|FAILED|1795278064|1795278064|node2||
3_3|3|PENDING|N/A|N/A|||
5|5|PENDING|1795281664|1795281724|||
1|1|RUNNING|1795278064|1795281664|node1||
3_1|6|COMPLETING|1795278064|1795278080|node2||
"""
CPUS = {"node1": 4, "node2": 4}


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def report(job_id: str, text: str):
    each = report_jobs([job_id], read_rows(text))[job_id]
    assert each.job_id == job_id
    return each.state, each.slurm_state, each.started_at, each.ended_at


def line(job_id="7", state="COMPLETED", start="100", end="200", nodes="node1", cpus="4", joules="") -> str:
    return f"{job_id}|{job_id}|{state}|{start}|{end}|{nodes}|{cpus}|{joules}\n"


# --- states --------------------------------------------------------------------------------------


def test_jobs_that_ran_are_running_or_ended_at_their_times():
    assert report("1", SACCT) == (JobState.ENDED, "COMPLETED", at(1795278064), at(1795278070))
    assert report("8", SACCT) == (JobState.RUNNING, "RUNNING", at(1795278101), None)
    assert report("10", SACCT) == (JobState.ENDED, "NODE_FAIL", at(1795278089), at(1795278092))


@pytest.mark.parametrize("text", [SACCT, SQUEUE])
def test_a_job_cancelled_while_it_waited_never_started(text):
    assert report("2", text) == (JobState.ENDED, "CANCELLED", None, at(1795278063))


def test_times_that_squeue_only_expects_are_not_taken():
    assert report("5", SQUEUE) == (JobState.PENDING, "PENDING", None, None)
    assert report("1", SQUEUE) == (JobState.RUNNING, "RUNNING", at(1795278064), None)
    assert report("3_1", SQUEUE) == (JobState.RUNNING, "COMPLETING", at(1795278064), None)


def test_an_element_of_an_array_is_found_by_both_its_names():
    assert report("3_1", SACCT) == report("6", SACCT)
    assert report("3_3", SQUEUE)[0] is JobState.PENDING
    assert report_jobs(["3"], read_rows(SACCT)) == {}


def test_elements_that_wait_are_found_in_their_range():
    rows = read_rows("3_[2,5-7,10-20:5%2]|3|PENDING|Unknown|Unknown|None assigned|1|\n")
    asked = [f"3_{index}" for index in range(30)] + ["4_5", "35", "33_5"]
    assert set(report_jobs(asked, rows)) == {"3_2", "3_5", "3_6", "3_7", "3_10", "3_15", "3_20"}


def test_of_a_requeued_job_the_last_start_counts():
    text = line(state="REQUEUED", start="100", end="110") + line(state="RUNNING", start="150", end="Unknown")
    assert report("7", text) == (JobState.RUNNING, "RUNNING", at(150), None)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("REQUEUED", JobState.PENDING),
        ("SUSPENDED", JobState.RUNNING),
        ("TIMEOUT", JobState.ENDED),
        ("PREEMPTED", JobState.ENDED),
        ("OUT_OF_MEMORY", JobState.ENDED),
        ("CANCELLED+", JobState.ENDED),
        ("A_NEW_STATE", JobState.UNKNOWN),
    ],
)
def test_each_state_has_a_place(state, expected):
    assert report("7", line(state=state))[0] is expected


def test_other_lines_are_no_rows():
    assert read_rows("sacct: error: something\n\n|||\n") == []


# --- energy --------------------------------------------------------------------------------------


def energy(job_id: str, text: str = SACCT, *, has_plugin: bool = True):
    rows = [row for row in read_rows(text) if row.job_id == job_id]
    each = energy_of(job_id, rows, CPUS, has_plugin=has_plugin)
    return each.energy_microjoules, each.is_exclusive, each.note


def test_numbered_steps_count_without_the_batch_script_that_contains_them():
    text = line() + line("7.batch", joules="900") + line("7.extern", joules="901") + line("7.0", joules="300")
    assert energy("7", text) == (300_000_000, True, "")


def test_a_job_without_srun_has_the_energy_of_its_batch_script():
    joules, is_exclusive, note = energy("1")
    assert (joules, is_exclusive) == (601_000_000, True)
    assert "no step made by srun" in note


def test_steps_side_by_side_are_said_to_count_their_node_twice():
    joules, _, note = energy("5")
    assert joules == 1_103_000_000
    assert "side by side" in note


def test_a_job_that_shared_its_node_is_said_to_hold_the_energy_of_others():
    joules, is_exclusive, note = energy("7", line(cpus="3") + line("7.0", joules="300"))
    assert (joules, is_exclusive) == (300_000_000, False)
    assert "what others used there is in it" in note
    assert not energy("7", line(nodes="gone[1-2]", cpus="64") + line("7.0", joules="300"))[1]


@pytest.mark.parametrize(
    "nothing", ["", "0", "4294967294", "4294967295", "18446744073709551614", "18446744073709551615", "n/a"]
)
def test_what_slurm_prints_for_no_value_is_no_energy(nothing):
    text = line() + line("7.0", joules=nothing)
    assert energy("7", text) == (None, True, "the job was too short for Slurm to see its energy")
    joules, _, note = energy("7", text + line("7.1", start="200", end="300", joules="50"))
    assert joules == 50_000_000
    assert note == "1 of its steps were too short to be seen"


def test_without_a_plugin_or_a_job_there_is_no_energy_and_it_is_said_why():
    joules, _, note = energy("1", has_plugin=False)
    assert joules is None
    assert "AcctGatherEnergyType" in note
    assert energy("99")[0] is None
    assert "does not know the job" in energy("99")[2]


@given(st.lists(st.none() | st.integers(1, 10**9), max_size=6), st.integers(1, 10**9))
def test_the_energy_is_the_sum_of_the_numbered_steps_that_have_one(steps, batch):
    text = line() + line("7.batch", joules=str(batch))
    text += "".join(line(f"7.{number}", joules=str(joules or "")) for number, joules in enumerate(steps))
    known = [joules for joules in steps if joules is not None] if steps else [batch]
    assert energy("7", text)[0] == (sum(known) * 1_000_000 if known else None)


@given(st.text(alphabet="0123456789|.[]_-:%,+ANUPE \n", max_size=200))
def test_no_answer_breaks_the_reader(text):
    rows = read_rows(text)
    assert all(isinstance(row, Row) for row in rows)
    report_jobs(["1", "1_2"], rows)
    energy_of("1", rows, CPUS, has_plugin=True)
