"""What holds for every test: how they are spread over processes, and the signals that they hand to programs."""

import signal
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def pytest_configure():
    # A suite that a shell runs in the background ignores Ctrl-C, and so would every program that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item):
    """Keep a module in one process, for its fixtures are dear, and all of Slurm too: there is one cluster."""
    item.add_marker(pytest.mark.xdist_group("slurm" if is_slurm(item) else str(item.path)))


def pytest_collection_modifyitems(items):
    """The longest group begins first."""
    items.sort(key=lambda item: not is_slurm(item))


def is_slurm(item):
    return item.path.is_relative_to(TESTS / "integration/slurm")
