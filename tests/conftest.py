"""What holds for every test: how they are spread over processes, and the signals that they hand to programs."""

import signal
from pathlib import Path

import pytest

SLURM = "tests/integration/slurm"


def pytest_configure(config):
    # A suite that a shell runs in the background ignores Ctrl-C, and so would every program that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config, items):
    """The longest group begins first."""
    items.sort(key=lambda item: not item.path.is_relative_to(Path(config.rootpath, SLURM)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep a module in one process, for its fixtures are dear, and all of Slurm too: there is one cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return SLURM if nodeid.startswith(SLURM) else nodeid.partition("::")[0]

    return ByModule(config, log)


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for all tests of this process; each takes a ``new_database()``."""
    from tests.testkit.postgres import postgres_server

    with postgres_server() as server:
        yield server
