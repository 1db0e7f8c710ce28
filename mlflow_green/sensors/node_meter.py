"""What a meter of the whole node does: a BMC, or whatever else sees the power supplies.

It is no ``Sensor``: its readings lag by seconds and are averages over an unknown time, so the sampler never sees it and
no job is ever charged by it. It only tells how much more than its components a node uses (ADR 9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """What the node draws by its own meter, at the input of its power supplies; ``None``: the meter has no such value.

    ``power_watts`` > 0 is a mean over the last ``averaging_seconds`` (``None``: the meter does not say, usually about
    a second). ``energy_microjoules`` >= 0 counts since an arbitrary start.
    """

    power_watts: float | None = None
    averaging_seconds: float | None = None
    energy_microjoules: int | None = None


class NodeMeter(Protocol):
    """One meter of this node. Used by one thread at a time; every call returns within some seconds.

    ``read`` raises ``SensorRetry`` when this read failed and ``SensorUnavailable`` when asking again is no use.
    """

    name: str

    def read(self) -> NodeReading: ...

    def close(self) -> None: ...
