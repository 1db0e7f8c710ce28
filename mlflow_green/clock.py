"""Time: aware UTC for records, a monotonic clock for durations, both replaceable in tests."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Thread-safe. ``now`` is aware UTC; ``monotonic_seconds`` never goes back."""

    def now(self) -> datetime: ...

    def monotonic_seconds(self) -> float: ...


class SystemClock:
    """The clocks of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return time.monotonic()


def boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """The kernel's id of this boot, ``"unknown"`` where the system has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"
