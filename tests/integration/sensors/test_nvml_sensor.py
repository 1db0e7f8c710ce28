from __future__ import annotations

from pathlib import Path

import pytest

from tests.testkit.nvml import build_fake_nvml, run_with_fake_nvml

OPEN = """
import os
from mlflow_green.errors import SensorError
from mlflow_green.sensors.nvml import NvmlSensor
def state(text):
    path = os.environ["FAKE_NVML_STATE"]
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)
def energies():
    return [reading.energy_microjoules for reading in sensor.read()]
seconds = 0.0
try:
    sensor = NvmlSensor(monotonic=lambda: seconds, polls_itself=False)
except SensorError as error:
    print(type(error).__name__, error); raise SystemExit
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(library, tmp_path):
    def run(gpus: str, code: str) -> str:
        (tmp_path / "gpus.conf").write_text(gpus)
        return run_with_fake_nvml(library, tmp_path / "gpus.conf", OPEN + code)

    return run


def test_every_gpu_is_a_device_with_its_enforced_limit(nvml):
    gpus = "count = 2\n*.energy_mj = 5\n0.uuid = GPU-a\n1.uuid = GPU-b\n1.limit_mw = 200000\n"
    said = nvml(gpus, "print([(d.name, d.domain.value, d.power_watts_max) for d in sensor.devices()])")
    assert said == "[('GPU-a', 'gpu', 350.0), ('GPU-b', 'gpu', 200.0)]"


def test_the_energy_counter_is_read_in_microjoules(nvml):
    gpus = "now = 25\n0.trace = 0:100000, 10:300000\n0.energy_mj = 7000\n"
    assert nvml(gpus, "print(energies())") == f"[{(7000 + 10 * 100_000 + 15 * 300_000) * 1000}]"


@pytest.mark.parametrize(
    "gpus",
    [
        "*.error.nvmlDeviceGetTotalEnergyConsumption = NOT_SUPPORTED\n0.power_mw = 100000\n",
        "now = 0\n*.power_mw = 100000\n",
    ],
)
def test_a_gpu_without_a_counter_has_its_power_integrated(nvml, gpus):
    code = f"print(energies())\nstate({gpus!r}.replace('100000', '300000'))\nseconds = 2.0\nprint(energies())"
    assert nvml(gpus, code).splitlines() == ["[0]", "[400000000]"]


def test_a_lost_gpu_is_a_gap_beside_one_that_answers(nvml):
    gpus = "count = 2\nnow = 1\n*.energy_mj = 1\n*.power_mw = 1000\n"
    assert nvml(gpus, f"state({gpus!r} + '1.error = GPU_IS_LOST')\nprint(energies())") == "[1001000, None]"


def test_when_no_gpu_answers_all_are_gaps_of_those_who_used_them_last(nvml):
    gpus = "0.energy_mj = 1\n0.procs = 7:1:30\n"
    code = f"""
energies()
state({gpus!r} + '0.error = GPU_IS_LOST')
print([(each.energy_microjoules, dict(each.use.by_pid), each.use.method.value) for each in sensor.read()])
"""
    assert nvml(gpus, code) == "[(None, {7: 30.0}, 'estimated')]"


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        ("error.nvmlInit = DRIVER_NOT_LOADED", "does not answer"),
        ("count = 0", "no GPU"),
        ("error.nvmlDeviceGetCount = UNKNOWN", "cannot list"),
        ("*.error = GPU_IS_LOST", "no GPU"),
    ],
)
def test_what_can_never_be_read_is_unavailable(nvml, gpus, reason):
    said = nvml(gpus, "")
    assert said.startswith("SensorUnavailable")
    assert reason in said


def test_a_machine_without_the_driver_says_so(tmp_path):
    assert run_with_fake_nvml(tmp_path, tmp_path / "none", OPEN + "print('a real GPU')").startswith(
        ("SensorUnavailable no NVIDIA driver here", "SensorUnavailable the NVIDIA driver", "a real GPU")
    )


@pytest.mark.parametrize(("gpus", "threads"), [("0.energy_mj = 1\n", 1), ("now = 0\n0.power_mw = 100000\n", 2)])
def test_only_a_gpu_without_a_counter_is_polled_by_a_thread(nvml, gpus, threads):
    code = "import threading\nsensor = NvmlSensor()\nprint(threading.active_count())\nsensor.close()\nprint(threading.active_count())"
    assert nvml(gpus, code).splitlines() == [str(threads), "1"]


SILENT = "".join(
    f"1.error.nvmlDeviceGet{function} = NOT_SUPPORTED\n"
    for function in ("TotalEnergyConsumption", "PowerUsage", "FieldValues")
)
TWO_GPUS = f"count = 2\nnow = 1\n*.name = Tesla T4\n0.uuid = GPU-a\n0.energy_mj = 5\n1.uuid = GPU-b\n{SILENT}"
DETECT = """
from pathlib import Path
from mlflow_green.sensors.detect import detect_sensors
sensor.close()
found = detect_sensors(Path("/nowhere"))
print([(d.name, d.method.value) for s in found.sensors for d in s.devices() if d.domain.value == "gpu"])
"""


def test_a_gpu_that_tells_only_how_busy_it_is_is_estimated_and_the_others_are_measured(nvml):
    assert nvml(f"{TWO_GPUS}1.util = 50\n", DETECT) == "[('GPU-a', 'measured'), ('GPU-b', 'estimated')]"


@pytest.mark.parametrize("says", ["1.power_mw = 0\n1.energy_mj = 0\n", "1.error.nvmlDeviceGetPowerUsage = UNKNOWN\n"])
def test_no_gpu_is_both_measured_and_modelled(nvml, says):
    """One that draws 0 W now, or tells only the power of an instant, tells its power."""
    gpus = f"count = 2\nnow = 0\n*.name = Tesla T4\n0.uuid = GPU-a\n1.uuid = GPU-b\n1.util = 50\n{says}"
    assert nvml(gpus, DETECT) == "[('GPU-a', 'measured'), ('GPU-b', 'measured')]"


def test_a_silent_gpu_of_unknown_name_is_said_to_be_missing(nvml):
    said = nvml(f"{TWO_GPUS}1.name = GRID T4-16Q\n1.util = 50\n", DETECT + "print(*found.notes, sep='\\n')")
    (note,) = [line for line in said.splitlines() if "GRID T4-16Q" in line]
    assert note.startswith("GPU-b (GRID T4-16Q): not metered")
    assert note.endswith("its energy is missing from every figure.")


def test_after_the_driver_was_loaded_anew_measured_and_silent_gpus_answer_again(nvml):
    gpus = f"{TWO_GPUS}1.util = 50\n"
    code = f"energies()\nstate({gpus!r} + 'reload = 1')\nprint(energies())\nprint([e is None for e in energies()])"
    assert nvml(gpus, code).splitlines() == ["[None, None]", "[False, False]"]


def test_a_sensor_that_gave_up_leaves_nvml_as_it_was(nvml):
    code = """
import pynvml
sensor.close()
state('error.nvmlDeviceGetCount = UNKNOWN')
try: NvmlSensor()
except SensorError: state('')
try: print(pynvml.nvmlDeviceGetCount())
except pynvml.NVMLError as error: print(error)
"""
    assert nvml("0.energy_mj = 1\n", code) == "Uninitialized"


@pytest.mark.parametrize(("state", "use"), [("util = 0", "({}, 0.0)"), ("util = 60", "({}, 1.0)")])
def test_a_silent_gpu_alone_is_nobodys_while_it_is_at_rest(nvml, state, use):
    gpus = f"*.name = Tesla T4\n{SILENT.replace('1.', '0.')}0.{state}\n"
    code = "print(*((dict(e.use.by_pid), e.use.hidden) for e in sensor.read()), [d.aliases for d in sensor.devices()])"
    assert nvml(gpus, code) == f"{use} [('0',)]"


def test_a_silent_gpu_is_used_by_the_processes_on_it(nvml):
    said = nvml(f"{TWO_GPUS}1.util = 50\n1.procs = 7:1:30\n", "print(*(dict(e.use.by_pid) for e in sensor.read()))")
    assert said == "{} {7: 30.0}"
