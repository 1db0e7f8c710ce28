from __future__ import annotations

import os

import pytest

from mlflow_green.metering.gpu_users import SCAN_LOOKS, GpuUsers, reserved_gpus
from mlflow_green.metering.node import Use
from mlflow_green.records import DeviceUse, Domain
from tests.testkit.metering_fakes import device, reading

GPUS = [
    device(f"GPU-{letter * 8}-1", Domain.GPU, aliases=(str(index), f"MIG-{letter * 8}"))
    for index, letter in enumerate("abcd")
]
A, B, C, D = (gpu.name for gpu in GPUS)


class Processes:
    """A /proc of processes that the test makes up."""

    def __init__(self, root):
        self.root = root

    def start(self, pid: int, parent: int = 1, *, started_ticks: int = 5, **environment: str) -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "stat").write_text(f"{pid} (a b) c) S {parent} {'0 ' * 17}{started_ticks} 0 0")
        (folder / "environ").write_bytes(b"".join(f"{name}={value}\0".encode() for name, value in environment.items()))

    def end(self, pid: int) -> None:
        for name in ("stat", "environ"):
            (self.root / str(pid) / name).unlink()


@pytest.fixture
def processes(tmp_path) -> Processes:
    return Processes(tmp_path)


def found(users: GpuUsers, keys: list[str], by_pid: dict[int, float], **own: bool) -> dict[str, Use]:
    return users.find({key: Use(cpu_seconds=1.0, **own) for key in keys}, {A: _reading(A, by_pid)}, GPUS)


def _reading(gpu, by_pid):
    return reading(0, 0, gpu, use=DeviceUse(by_pid=by_pid))


def test_a_process_is_its_consumers_by_the_mark_in_its_environment_or_an_ancestors(processes):
    processes.start(10, GREEN_HOLD_ID="job-1")
    processes.start(11, 10)  # a child with an emptied environment
    processes.start(12, 1, GREEN_HOLD_ID="job-2")
    processes.start(13, 1)
    uses = found(GpuUsers(processes.root), ["7-5-ab/1-job-1", "/2-job-2"], {10: 30.0, 11: 20.0, 12: 40.0, 13: 5.0})
    assert uses["7-5-ab/1-job-1"].gpu_weights == {A: 50.0}
    assert uses["/2-job-2"].gpu_weights == {A: 40.0}


def test_the_nearest_known_mark_counts(processes):
    processes.start(10, GREEN_HOLD_ID="outer")
    processes.start(11, 10, GREEN_HOLD_ID="inner")
    users = GpuUsers(processes.root)
    assert found(users, ["/1-outer"], {11: 1.0})["/1-outer"].gpu_weights == {A: 1.0}
    assert found(users, ["/1-outer", "/2-inner"], {11: 1.0})["/1-outer"].gpu_weights == {}


def test_a_process_without_a_mark_belongs_to_the_only_consumer_that_is_work_of_the_process_it_descends_from(processes):
    processes.start(7)
    processes.start(70, 7)
    users, seen, block = GpuUsers(processes.root), {7: 1.0, 70: 2.0}, "7-5-ab/1-block"
    assert found(users, [block], seen, is_own_process=True)[block].gpu_weights == {A: 3.0}
    two = found(users, ["7-5-ab/1-x", "7-5-ab/2-y"], seen, is_own_process=True)
    assert all(not use.gpu_weights for use in two.values())


def test_a_block_that_has_started_a_program_still_has_what_its_own_process_does(processes):
    processes.start(7)
    processes.start(71, 7, GREEN_HOLD_ID="x")
    seen, users = {7: 1.0, 71: 2.0}, GpuUsers(processes.root)
    assert found(users, ["7-5-ab/1-x"], seen, is_own_process=True)["7-5-ab/1-x"].gpu_weights == {A: 3.0}


def test_a_child_with_the_mark_of_a_block_that_has_ended_belongs_to_the_one_that_pays_now(processes):
    processes.start(7)
    processes.start(70, 7, GREEN_HOLD_ID="ended")
    users = GpuUsers(processes.root)
    assert found(users, ["7-5-ab/2-now"], {70: 1.0}, is_own_process=True)["7-5-ab/2-now"].gpu_weights == {A: 1.0}


def test_a_process_that_descends_only_from_the_meter_of_a_job_is_nobodys(processes):
    processes.start(7)
    processes.start(70, 7)
    processes.start(71, 7, GREEN_HOLD_ID="of another ledger")
    assert found(GpuUsers(processes.root), ["7-5-ab/1-x"], {7: 1.0, 70: 1.0, 71: 1.0})["7-5-ab/1-x"].gpu_weights == {}


def test_a_process_that_has_ended_is_still_known_but_its_number_is_not_inherited(processes):
    processes.start(10, GREEN_HOLD_ID="a")
    users = GpuUsers(processes.root)
    found(users, ["/1-a"], {10: 1.0})
    processes.end(10)
    assert found(users, ["/1-a"], {10: 1.0})["/1-a"].gpu_weights == {A: 1.0}
    processes.start(10, started_ticks=6)
    assert found(users, ["/1-a"], {10: 1.0})["/1-a"].gpu_weights == {}


def test_what_a_job_reserved_is_what_its_processes_say_else_what_its_meter_says(processes):
    processes.start(7, CUDA_VISIBLE_DEVICES="0,1,2,3")
    processes.start(10, GREEN_HOLD_ID="a")
    processes.start(11, 10, GREEN_HOLD_ID="a", CUDA_VISIBLE_DEVICES="1")
    processes.start(12, 7, GREEN_HOLD_ID="none", CUDA_VISIBLE_DEVICES="")
    uses = found(GpuUsers(processes.root), ["7-5-ab/1-a", "7-5-ab/2-b", "7-5-ab/3-none", "8-5-ab/1-c"], {})
    assert [use.gpus for use in uses.values()] == [{B}, {A, B, C, D}, set(), None]


def test_reservations_are_looked_for_again_now_and_then(processes):
    users = GpuUsers(processes.root)
    assert found(users, ["8-5-ab/1-a"], {})["8-5-ab/1-a"].gpus is None
    processes.start(11, GREEN_HOLD_ID="a", CUDA_VISIBLE_DEVICES="1")
    later = [found(users, ["8-5-ab/1-a"], {})["8-5-ab/1-a"].gpus for _ in range(SCAN_LOOKS)]
    assert later[-1] == {B}


def test_without_gpus_no_process_is_looked_at(tmp_path):
    uses = {"/1-a": Use(cpu_seconds=1.0)}
    assert GpuUsers(tmp_path / "nothing").find(uses, {}, [device()]) == uses


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, {A, C}),
        ({"CUDA_VISIBLE_DEVICES": B}, {B}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-cc, GPU-dddd"}, {C, D}),
        ({"CUDA_VISIBLE_DEVICES": "MIG-bbbbbbbb"}, {B}),
        ({"CUDA_VISIBLE_DEVICES": f"MIG-{D}/1/0"}, {D}),
        ({"CUDA_VISIBLE_DEVICES": ""}, set()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, set()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, set()),
        ({"CUDA_VISIBLE_DEVICES": "GPU-of-another-host"}, None),
        ({"SLURM_JOB_GPUS": "1,3"}, {B, D}),
        ({"SLURM_JOB_GPUS": "1,3", "SLURM_STEP_GPUS": "3"}, {D}),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": C, "CUDA_VISIBLE_DEVICES": "GPU-cc"}, {C}),
    ],
)
def test_a_reservation_is_read_from_the_environment(environment, expected):
    assert reserved_gpus(environment, GPUS) == expected


def test_the_meters_own_process_stands_for_a_consumer_that_shares_nothing(processes):
    processes.start(os.getpid())
    users = GpuUsers(processes.root)
    assert found(users, ["/1-a"], {os.getpid(): 1.0}, is_own_process=True)["/1-a"].gpu_weights == {A: 1.0}
