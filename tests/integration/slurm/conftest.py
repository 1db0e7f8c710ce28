import pytest

from tests.testkit.services import lacks
from tests.testkit.slurm.cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm():
    """A real Slurm with two nodes and accounting; skipped where it is not installed, but not in CI."""
    if missing := missing_programs():
        packages = "munge slurmctld slurmd slurm-client slurmdbd mariadb-server gcc libc6-dev"
        lacks(f"{', '.join(missing)}: not installed (Debian: {packages})")
    cluster = SlurmCluster(nodes=2)
    yield cluster
    cluster.stop()
