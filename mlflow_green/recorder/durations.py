"""How long a step is expected to run, by the runs that ended well before; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from mlflow_green.records import Entry, Outcome

Key = tuple[str | None, ...]


class Durations:
    """What these entries say of durations, in seconds."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._seconds: defaultdict[Key, list[float]] = defaultdict(list)
        for entry in entries:
            if entry.outcome is Outcome.SUCCEEDED:
                for key in _keys(entry.project, entry.step, entry.wildcards, entry.tier):
                    self._seconds[key].append(entry.duration_seconds)

    def expected_seconds(self, project: str, step: str, wildcards: str, tier: str | None) -> float | None:
        """The median of the nearest runs; ``None`` for a step that never ended well."""
        for key in _keys(project, step, wildcards, tier):
            if key in self._seconds:
                return median(self._seconds[key])
        return None


def _keys(project: str, step: str, wildcards: str, tier: str | None) -> tuple[Key, ...]:
    """What the runs have in common whose duration is expected of a step, the nearest first."""
    return (project, step, wildcards, tier), (project, step, tier), (project, step)
