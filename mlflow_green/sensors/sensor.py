"""What every energy sensor does: the Protocol that the contract suite runs against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mlflow_green.records import Device, Reading
from mlflow_green.sensors.proc_stat import HostCpu


class Sensor(Protocol):
    """One source of energy readings of this host, e.g. powercap or NVML. Used by one thread at a time.

    A device whose read fails yields a reading with ``energy_microjoules=None``: a gap. ``read`` may raise
    ``SensorRetry`` when all of this read failed, and raises ``SensorUnavailable`` when the sensor is gone for good.
    """

    name: str

    def devices(self) -> Sequence[Device]:
        """The devices that it reads; their names are unique on the host.

        A read may find a further one, whose first reading it then gives. None is dropped: one that is gone is a gap.
        """
        ...

    def read(self) -> Sequence[Reading]: ...

    def close(self) -> None: ...


@runtime_checkable
class ModelSensor(Protocol):
    """A sensor that models the energy of its one device, so that it can go on where another process read it last."""

    def resume(self, last: Reading, host_cpu: HostCpu | None) -> None:
        """Count on from this reading, at which the host's CPU time was ``host_cpu``."""
        ...
