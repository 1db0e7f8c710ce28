"""A recorded trace played as a sensor: for tests, and for working on a machine without counters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlflow_green.errors import SensorError, SensorUnavailable
from mlflow_green.records import Device, Reading


class ReplaySensor:
    """Each ``read`` gives the next item of ``readings``, or raises it where the trace recorded an error.

    After its last item it is gone for good (``SensorUnavailable``).
    """

    name = "replay"

    def __init__(self, devices: Sequence[Device], readings: Iterable[Sequence[Reading] | SensorError]) -> None:
        self._devices = tuple(devices)
        self._readings = iter(readings)

    def devices(self) -> Sequence[Device]:
        return self._devices

    def read(self) -> Sequence[Reading]:
        item = next(self._readings, SensorUnavailable("the recorded trace has ended"))
        if isinstance(item, SensorError):
            raise item
        return item

    def close(self) -> None:
        pass
