"""Two jobs side by side on one node, each with a meter of its own: what they are charged sums to the node's counter."""

import pytest

from mlflow_green.records import Domain, Method
from tests.integration.slurm.workflows import OnCluster
from tests.testkit.waiting import comes_true

pytestmark = [pytest.mark.timeout(180), pytest.mark.alone]  # a meter that is kept waiting leaves a gap

SNAKEFILE = """
    rule all:
        input: "out/1", "out/2"

    rule work:
        output: "out/{x}"
        resources: slurm_extra="--nodelist=node1"
        shell: "touch began{wildcards.x}; while [ ! -e go ]; do :; done; touch {output}"
"""


@pytest.fixture
def resting_node(slurm):
    """The counter of node1 stands still but for what a test lets it count."""
    slurm.set_power("node1", 0)
    yield "node1"
    slurm.set_power("node1", 100)


def counter_microjoules(slurm, node):
    """What a meter reads there."""
    (package,) = (slurm.powercap_root(node)).glob("intel-rapl:0/energy_uj")
    return int(package.read_text())


def test_their_shares_and_idle_and_other_are_what_the_counter_counted(slurm, tmp_path, resting_node):
    cluster = OnCluster(slurm, tmp_path / "wf", SNAKEFILE)
    before = counter_microjoules(slurm, resting_node)
    started = cluster.start()
    started.wait_for(lambda: all(cluster.folder.exists(f"began{x}") for x in (1, 2)), "both jobs began")
    slurm.set_power(resting_node, 100)
    assert comes_true(lambda: counter_microjoules(slurm, resting_node) > before + 400_000_000, 20)
    slurm.set_power(resting_node, 0)
    (cluster.folder.path / "go").touch()
    done = started.end(limit_seconds=120)
    assert done.returncode == 0, done.output
    counted = counter_microjoules(slurm, resting_node) - before
    first, second = (cluster.folder.entry(f"work[x={x}]") for x in (1, 2))
    assert first.sampler_id == second.sampler_id is not None
    assert first.total.method is second.total.method is Method.MEASURED
    windows = [window for window in cluster.folder.windows() if window.host == resting_node]
    assert {window.domain for window in windows} == {Domain.CPU}
    idle_and_other = sum(window.idle_microjoules + window.other_microjoules for window in windows)
    assert first.total.microjoules + second.total.microjoules + idle_and_other == counted
    assert min(first.total.microjoules, second.total.microjoules) > 0
    cluster.assert_books_close()
