"""What holds for every test: how they are spread over processes, and the signals that they hand to programs."""

import signal
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def pytest_configure():
    # A suite that a shell runs in the background ignores Ctrl-C, and so would every program that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Keep a module in one process, for its fixtures are dear, and all of Slurm too; the longest group begins first."""
    for item in items:
        place = item.path.relative_to(TESTS)
        item.add_marker(pytest.mark.xdist_group("slurm" if "slurm" in place.parts else str(place)))
    items.sort(key=lambda item: "slurm" not in item.path.relative_to(TESTS).parts)
