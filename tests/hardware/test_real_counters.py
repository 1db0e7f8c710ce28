"""On a machine that has them: real counters move, and by a believable power."""

from __future__ import annotations

import time

import pytest

from mlflow_green.errors import SensorUnavailable
from mlflow_green.metering.integration import Track, advance
from mlflow_green.sensors.nvml import NvmlSensor
from mlflow_green.sensors.rapl import RaplSensor

pytestmark = pytest.mark.hardware


@pytest.mark.parametrize("opener", [RaplSensor, NvmlSensor])
def test_every_device_draws_more_than_nothing_and_no_more_than_it_can(opener):
    try:
        sensor = opener()
    except SensorUnavailable as error:
        pytest.skip(str(error))
    tracks = {each.name: Track(device=each) for each in sensor.devices()}
    before = {each.device: advance(tracks[each.device], each)[0] for each in sensor.read()}
    time.sleep(2)
    for each in sensor.read():
        _, window = advance(before[each.device], each)
        assert window is not None
        power_watts = window.energy.microjoules / 1e6 / window.seconds
        assert 0 < power_watts <= 1.5 * tracks[each.device].device.power_watts_max
    sensor.close()
