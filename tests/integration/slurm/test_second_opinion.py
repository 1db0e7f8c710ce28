"""What Slurm's energy plugin counted stands beside what was metered, or a sentence says why it does not."""

import json

import pytest

from tests.integration.slurm.workflows import BUSY, OnCluster

pytestmark = pytest.mark.timeout(180)

SNAKEFILE = f"""
    rule all:
        input: "out/alone", "out/shared"

    rule alone:
        output: "out/alone"
        resources: slurm_extra="--exclusive --nodelist=node2"
        shell: "{BUSY.format(seconds=8)}; touch {{output}}"

    rule shared:
        output: "out/shared"
        resources: slurm_extra="--nodelist=node1"
        shell: "touch {{output}}"
"""


def test_it_is_compared_where_a_job_had_its_node_to_itself(slurm, tmp_path):
    cluster = OnCluster(slurm, tmp_path / "wf", SNAKEFILE)
    done = cluster.run()
    assert done.returncode == 0, done.output
    _, exported = cluster.green("ledger", "export")
    alone, shared = (
        next(e for e in map(json.loads, exported.splitlines()) if e["step"] == s) for s in ("alone", "shared")
    )
    assert alone["slurm_energy_microjoules"] > 60_000_000 * 8  # 60 W for as long as the job computes
    ours = alone["energy_microjoules"]["total"]
    assert alone["slurm_energy_difference_ratio"] == pytest.approx(ours / alone["slurm_energy_microjoules"] - 1)
    assert -1 < alone["slurm_energy_difference_ratio"] < 0.5
    assert "idle energy included" in alone["slurm_energy_note"]
    assert shared["slurm_energy_microjoules"] is None
    assert "what others used there is in it" in shared["slurm_energy_note"]
    assert alone["slurm_job_id"].isdigit()
    cluster.assert_books_close()
