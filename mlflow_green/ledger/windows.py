"""What makes a window of the node one window, and which ticks were posted; pure."""

from __future__ import annotations

from collections.abc import Iterable

from mlflow_green.records import NodeWindow

WindowKey = tuple[str, str, int]


def window_key(window: NodeWindow) -> WindowKey:
    """What makes a window one window: its sampler, domain and first tick."""
    return (window.sampler_id, window.domain.value, window.sequence_first)


def new_windows(windows: Iterable[NodeWindow], posted: frozenset[WindowKey]) -> tuple[NodeWindow, ...]:
    """Those that were not posted before, each once."""
    fresh = {window_key(window): window for window in windows if window_key(window) not in posted}
    return tuple(fresh.values())


def joined_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(first, last) ranges, both included, sorted and with adjoining ones joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)
