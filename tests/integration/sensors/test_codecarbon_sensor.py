from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_green.errors import SensorRetry
from mlflow_green.records import Domain
from mlflow_green.sensors.codecarbon import CodeCarbonSensor, Part, has_amd_gpu
from mlflow_green.units import JOULES_PER_KWH
from tests.testkit.metering_fakes import device

ROCM = Path(__file__).parents[2] / "testkit" / "rocm"
ON_AMD = """
import json, os, sys
from pathlib import Path
state = Path(os.environ["FAKE_AMDSMI_STATE"])
GPU = {"uuid": "amd-0", "name": "AMD Instinct MI210", "energy_microjoules": 5_000_000, "power_watts": 100}
def write(*gpus): state.write_text(json.dumps(gpus))
write(GPU, {**GPU, "uuid": "amd-1"})
from mlflow_green.sensors.codecarbon import open_amd_gpus
"""


def on_amd(tmp_path, code: str) -> list:
    environment = {
        **os.environ,
        "FAKE_AMDSMI_STATE": str(tmp_path / "gpus.json"),
        "PYTHONPATH": f"{ROCM}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_AMD + code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_amd_gpus_are_read_by_their_energy_counter_and_a_lost_one_is_a_gap(tmp_path):
    code = """
sensor = open_amd_gpus()
say = lambda: print(json.dumps([reading.energy_microjoules for reading in sensor.read()]))
print(json.dumps([[each.name, each.domain, each.method, each.power_watts_max] for each in sensor.devices()]))
write({**GPU, "energy_microjoules": 65_000_000}, {**GPU, "uuid": "amd-1", "energy_microjoules": 35_000_000})
say()
write({**GPU, "energy_microjoules": 95_000_000}, None)
say()
write({**GPU, "energy_microjoules": 96_000_000}, {**GPU, "uuid": "amd-1", "energy_microjoules": 95_000_000})
say()
"""
    devices, *readings = on_amd(tmp_path, code)
    assert devices == [["amd-0", "gpu", "measured", 300.0], ["amd-1", "gpu", "measured", 300.0]]
    first, lost, back = readings  # CodeCarbon's kWh are rounded in the seventh digit
    assert first == pytest.approx([60_000_000, 30_000_000], rel=1e-5)
    assert lost == [pytest.approx(90_000_000, rel=1e-5), None]
    assert back == pytest.approx([91_000_000, 90_000_000], rel=1e-5)


def test_the_second_half_of_a_board_that_the_first_half_reports_is_left_out(tmp_path):
    code = """
write({**GPU, "name": "AMD Instinct MI250X"}, {**GPU, "uuid": "amd-1", "name": "AMD Instinct MI250X", "energy_microjoules": 0})
print(json.dumps([each.name for each in open_amd_gpus().devices()]))
"""
    assert on_amd(tmp_path, code) == [["amd-0"]]


def test_an_amd_gpu_is_seen_by_its_vendor_without_importing_anything(tmp_path):
    for card, vendor in (("card0", "0x10de"), ("card1", "0x8086")):
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "device" / "vendor").write_text(vendor + "\n")
    assert not has_amd_gpu(tmp_path)
    (tmp_path / "card1" / "device" / "vendor").write_text("0x1002\n")
    assert has_amd_gpu(tmp_path)


def test_an_answer_of_nothing_is_a_gap_and_the_next_one_covers_its_time():
    now, answers, asked = 0.0, [10.0, 0.0, 30.0], []

    def energy_kwh(seconds: float) -> float:
        asked.append(seconds)
        return answers.pop(0) / JOULES_PER_KWH if answers else 1 / 0

    sensor = CodeCarbonSensor([Part(device=device("x", Domain.GPU), energy_kwh=energy_kwh)], monotonic=lambda: now)
    now = 1.0
    assert sensor.read()[0].energy_microjoules == 10_000_000
    now = 2.0
    with pytest.raises(SensorRetry):
        sensor.read()
    now = 3.0
    assert sensor.read()[0].energy_microjoules == 40_000_000
    with pytest.raises(SensorRetry):
        sensor.read()
    assert asked == [1.0, 1.0, 2.0, 0.0]
