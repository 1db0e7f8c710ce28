"""The time that all users of a ledger have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from mlflow_green.clock import Clock


class Dated(Protocol):
    """A ledger that says by which time its rows are dated and due."""

    def now(self) -> datetime: ...


class SharedClock:
    """The ledger's time, so that senders on several hosts mean the same moment; durations are this host's.

    Raises ``LedgerUnavailable`` where the ledger cannot be read.
    """

    def __init__(self, ledger: Dated, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    def now(self) -> datetime:
        return self._ledger.now()

    def monotonic_seconds(self) -> float:
        return self._clock.monotonic_seconds()
