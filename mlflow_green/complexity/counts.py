"""How large a model is: the record that every counter of a model library fills in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity:
    """Size of one trained model; ``None`` is "not counted", 0 is a counted zero.

    ``parameters`` are learned numbers (of trees: nodes). ``macs_nominal`` are multiply-accumulate operations to
    predict one row, ``macs_effective`` those of them whose weight is not zero. ``size_bytes`` is the size of the
    serialised artifact.
    ``note`` says what is counted in an unusual way and what could not be counted.
    """

    parameters: int | None = None
    nonzero_parameters: int | None = None
    macs_nominal: int | None = None
    macs_effective: int | None = None
    size_bytes: int | None = None
    note: str = ""

    @property
    def density_ratio(self) -> float | None:
        """Non-zero parameters as a part of all, in [0, 1]; ``None`` if not counted or there are no parameters."""
        if self.nonzero_parameters is None or not self.parameters:
            return None
        return self.nonzero_parameters / self.parameters

    def sized(self, size_bytes: int | None) -> Complexity:
        """The same model with the size of its serialised artifact."""
        return replace(self, size_bytes=size_bytes)


def total_complexity(parts: Iterable[Complexity]) -> Complexity:
    """The sum over the steps of a pipeline; one part that is not counted leaves the sum not counted."""
    steps = tuple(parts)
    return Complexity(
        parameters=_sum(step.parameters for step in steps),
        nonzero_parameters=_sum(step.nonzero_parameters for step in steps),
        macs_nominal=_sum(step.macs_nominal for step in steps),
        macs_effective=_sum(step.macs_effective for step in steps),
        size_bytes=None,
        note="; ".join(dict.fromkeys(step.note for step in steps if step.note)),
    )


def metrics(complexity: Complexity) -> Mapping[str, float]:
    """The MLflow metrics of what was counted: ``complexity/parameters`` and so on."""
    values = {
        "parameters": complexity.parameters,
        "nonzero_parameters": complexity.nonzero_parameters,
        "density_ratio": complexity.density_ratio,
        "macs_nominal": complexity.macs_nominal,
        "macs_effective": complexity.macs_effective,
        "size_bytes": complexity.size_bytes,
    }
    return {f"complexity/{name}": float(value) for name, value in values.items() if value is not None}


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
