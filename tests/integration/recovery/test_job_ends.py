"""What recovery learns of Slurm's jobs: one that waits or runs is not one that nobody knows."""

from datetime import UTC, datetime, timedelta

import pytest

from mlflow_green.bootstrap import slurm_job_ends
from mlflow_green.recorder.placed import JobEnd

ROWS = """\
7|7|PENDING|Unknown|Unknown|None assigned|0|
8|8|RUNNING|1760000000|Unknown|node1|1|
9|9|COMPLETED|1760000000|1760000060|node1|1|
12|12|FAILED|1760000000|1760000005|node1|1|
10|10|CANCELLED by 0|1760000000|1760000000|None assigned|0|
"""


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """An sacct that answers with these rows, and no other command of Slurm."""
    sacct = tmp_path / "sacct"
    sacct.write_text(f"#!/bin/sh\ncat <<'END'\n{ROWS}END\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexit 1\n")
    squeue.chmod(0o755)


def test_a_job_that_has_not_ended_is_known_and_an_unknown_one_is_left_out(slurm_says):
    ended_at = datetime.fromtimestamp(1_760_000_060, UTC)
    ends = slurm_job_ends({"7", "8", "9", "10", "11", "12"})
    assert ends["7"] is None
    assert ends["8"] is None
    assert ends["9"] == JobEnd(at=ended_at, started=True)
    assert ends["10"].started is False
    assert ends["12"].failed_after == timedelta(seconds=5)
    assert "11" not in ends
