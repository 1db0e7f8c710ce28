"""Waiting for what another process does."""

import time
from collections.abc import Callable


def comes_true(condition: Callable[[], object], limit_seconds: float, interval_seconds: float = 0.05) -> bool:
    """Look again and again until the condition holds; ``False`` if it did not in time."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_seconds)
    return True
