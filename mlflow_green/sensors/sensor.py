"""What every energy sensor does: the Protocol that the contract suite runs against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mlflow_green.records import Device, Reading


class Sensor(Protocol):
    """One source of energy readings of this host, e.g. powercap or NVML. Used by one thread at a time.

    A device whose read fails yields a reading with ``energy_microjoules=None``: a gap. ``read`` raises
    ``SensorRetry`` when all of this read failed and ``SensorUnavailable`` when the sensor is gone for good.
    """

    name: str

    def devices(self) -> Sequence[Device]:
        """The devices that it reads, fixed for its lifetime; their names are unique on the host."""
        ...

    def read(self) -> Sequence[Reading]: ...

    def close(self) -> None: ...
