from __future__ import annotations

import pytest

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Method
from mlflow_green.sensors.gpu_load_model import HIGH_CURVE, LOW_CURVE, RATED_CURVE, GpuLoadModelSensor
from tests.testkit.metering_fakes import HandClock

NAMES = {"GPU-a": "Tesla T4", "GPU-b": "Tesla T4"}


class Bench:
    def __init__(self, names=NAMES, **busy: float | None):
        self.clock = HandClock()
        self.busy: dict[str, float | None] = {"GPU-a": 0.0, "GPU-b": 0.0, **busy}
        self.sensor = GpuLoadModelSensor(names, lambda: self.busy, monotonic=self.clock.monotonic_seconds)

    def joules(self) -> list[float | None]:
        read = [each.energy_microjoules for each in self.sensor.read()]
        return [each if each is None else each / 1_000_000 for each in read]


def test_power_follows_utilisation_from_rest_to_three_quarters_of_the_data_sheet():
    bench = Bench()
    bench.busy["GPU-b"] = 1.0
    bench.clock.seconds = 10
    assert bench.joules() == pytest.approx([0.12 * 70 * 10, 0.75 * 70 * 10])
    assert all(device.method is Method.ESTIMATED for device in bench.sensor.devices())


def test_the_interval_holds_the_value_and_reaches_the_data_sheets_maximum():
    bench = Bench()
    bench.busy["GPU-b"] = 1.0
    bench.clock.seconds = 10
    _, busy = bench.sensor.read()
    assert busy.energy_low_microjoules < busy.energy_microjoules < busy.energy_high_microjoules
    assert busy.energy_high_microjoules > 70 * 10 * 1_000_000
    assert all(low < value < high for low, value, high in zip(LOW_CURVE, RATED_CURVE, HIGH_CURVE, strict=True))


def test_a_gpu_that_does_not_answer_for_a_while_is_a_gap_that_the_next_answer_bridges():
    bench = Bench()
    bench.busy["GPU-a"] = None
    bench.clock.seconds = 5
    assert bench.joules()[0] is None
    bench.busy["GPU-a"] = 0.0
    bench.clock.seconds = 10
    assert bench.joules()[0] == pytest.approx(0.12 * 70 * 10)


def test_no_answer_at_all_is_tried_again():
    bench = Bench()
    bench.busy.update(dict.fromkeys(bench.busy))
    with pytest.raises(SensorRetry):
        bench.sensor.read()


def test_what_tells_no_utilisation_or_has_no_data_sheet_is_missing():
    names = {"GPU-a": "Tesla T4", "GPU-b": "Tesla T4", "GPU-c": "GRID T4-16Q"}
    bench = Bench(names, **{"GPU-b": None, "GPU-c": 0.5})
    assert [device.name for device in bench.sensor.devices()] == ["GPU-a"]
    with pytest.raises(SensorUnavailable):
        Bench({"GPU-a": "Tesla"})
