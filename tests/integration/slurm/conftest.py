import os

import pytest

from tests.testkit.slurm.cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm():
    """A real Slurm with two nodes and accounting; skipped where it is not installed, but not in CI."""
    missing = missing_programs()
    if missing:
        reason = (
            f"{', '.join(missing)}: not installed (Debian: munge slurmctld slurmd slurm-client slurmdbd mariadb-server)"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs Slurm; {reason}")
        pytest.skip(reason)
    cluster = SlurmCluster(nodes=2)
    yield cluster
    cluster.stop()
