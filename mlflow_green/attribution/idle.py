"""How much of a window's energy the node would have used with nobody at work. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_green.units import microjoules

# Baseline = 5th percentile of the power in windows under 2 % busy; from fewer windows it is not believed.
QUIET_BUSY_RATIO = 0.02
BASELINE_QUANTILE = 0.05
BASELINE_WINDOWS_MIN = 20


def idle_microjoules(
    energy_microjoules: int, seconds: float, *, own_microjoules: int | None, baseline_power_watts: float | None
) -> int:
    """Idle part of a window, 0 to its whole energy.

    The sensor's own idle counter wins; else baseline power x time, clamped; with neither it is 0, and everything is
    shared out by use.
    """
    if own_microjoules is not None:
        return min(max(0, own_microjoules), energy_microjoules)
    if baseline_power_watts is None:
        return 0
    return min(microjoules(baseline_power_watts * seconds), energy_microjoules)


def baseline_power_watts(quiet_power_watts: Sequence[float]) -> float | None:
    """The node's power at rest, from the powers of its quiet windows; ``None`` while there are too few."""
    if len(quiet_power_watts) < BASELINE_WINDOWS_MIN:
        return None
    return sorted(quiet_power_watts)[int(BASELINE_QUANTILE * len(quiet_power_watts))]
