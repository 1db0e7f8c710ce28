"""Jobs of a cluster are metered where they run, kept to their grant there, and refused before they are submitted."""

import pytest

from mlflow_green.records import Action, Outcome
from tests.integration.slurm.workflows import BUSY, HARD, OnCluster, environment
from tests.testkit.waiting import comes_true

pytestmark = pytest.mark.timeout(180)

EVERY_KIND = f"""
    localrules: all, here

    rule all:
        input: "out/shell", "out/script", "out/run", "out/here"

    rule shell:
        output: "out/shell"
        shell: "env > {{output}}; {BUSY.format(seconds=2)}"

    rule script:
        output: "out/script"
        script: "work.py"

    rule run:
        output: "out/run"
        run:
            import os, time
            began = time.thread_time()
            while time.thread_time() - began < 1: pass
            open(output[0], "w").write("".join(f"{{k}}={{v}}\\n" for k, v in os.environ.items()))

    rule here:
        output: "out/here"
        shell: "env > {{output}}"
"""
SCRIPT = """
    import os, time
    while time.process_time() < 2: pass
    open(snakemake.output[0], "w").write("".join(f"{k}={v}\\n" for k, v in os.environ.items()))
"""


def test_jobs_of_every_kind_are_metered_on_their_nodes_and_local_rules_here(slurm, tmp_path):
    cluster = OnCluster(slurm, tmp_path / "wf", EVERY_KIND)
    cluster.folder.write("work.py", SCRIPT)
    done = cluster.run()
    assert done.returncode == 0, done.output
    for name in ("shell", "script", "run"):
        entry = cluster.folder.entry(name)
        environ = environment(cluster.folder.read(f"out/{name}"))
        assert entry.outcome is Outcome.SUCCEEDED
        assert entry.host == environ["SLURMD_NODENAME"]
        assert entry.host in slurm.nodes
        assert environ["GREEN_JOB"] == name
        assert environ["GREEN_HOLD_ID"] == entry.hold_id
        assert "GREEN_PLACEMENT" not in environ
        assert f'"green.hold_id": "{entry.hold_id}"' in environ["MLFLOW_RUN_CONTEXT"]
        assert entry.cpu_seconds > 0.3
        assert entry.energy_charged_microjoules > 0
    here = cluster.folder.entry("here")
    assert here.host not in slurm.nodes
    assert "SLURM_JOB_ID" not in environment(cluster.folder.read("out/here"))
    cluster.assert_books_close()


def test_a_step_is_halted_at_its_grant_by_its_node_and_not_tried_again(slurm, tmp_path):
    snakefile = f"""
        rule work:
            output: "out/x"
            params: green=dict(energy="1 mWh")
            retries: 2
            shell: "{BUSY.format(seconds=60)}; touch {{output}}"
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="2 mWh"))
    done = cluster.run()
    assert done.returncode == 1, done.output
    assert "mlflow-green halted work: lab: work used energy" in done.output
    assert "Trying to restart" not in done.output
    entry = cluster.folder.entry("work")
    assert entry.outcome is Outcome.HALTED
    assert "of 1.00 mWh granted" in entry.reason
    assert entry.duration_seconds < 50
    assert not cluster.folder.exists("out/x")
    cluster.assert_books_close()


def test_a_run_directive_is_halted_too(slurm, tmp_path):
    snakefile = """
        rule work:
            output: "out/x"
            params: green=dict(energy="1 mWh")
            run:
                import time
                while time.process_time() < 60: pass
                open(output[0], "w").close()
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="2 mWh"))
    done = cluster.run()
    assert done.returncode == 1, done.output
    assert cluster.folder.entry("work").outcome is Outcome.HALTED
    assert not cluster.folder.exists("out/x")
    cluster.assert_books_close()


def test_what_does_not_fit_is_refused_and_never_submitted(slurm, tmp_path):
    snakefile = """
        rule work:
            output: "out/x"
            params: green=dict(energy="5 Wh")
            shell: "touch {output}"
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="1 Wh"))
    before = cluster.job_states()
    done = cluster.run()
    assert done.returncode == 1, done.output
    assert "mlflow-green refused work" in done.output
    assert cluster.job_states() == before
    assert cluster.jobs() == []
    assert cluster.folder.entry("work").outcome is Outcome.REFUSED
    cluster.assert_books_close()


def test_the_members_of_a_group_job_have_a_grant_each(slurm, tmp_path):
    snakefile = f"""
        rule all:
            input: "out/b"

        rule a:
            output: "out/a"
            group: "both"
            params: green=dict(energy="1 Wh", tiers="full:1,half:0.5")
            shell: "env > {{output}}; {BUSY.format(seconds=2)}"

        rule b:
            input: "out/a"
            output: "out/b"
            group: "both"
            params: green=dict(energy="600 mWh")
            shell: "env > {{output}}; {BUSY.format(seconds=1)}"
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="1.2 Wh"))
    done = cluster.run()
    assert done.returncode == 0, done.output
    a, b = cluster.folder.entry("a"), cluster.folder.entry("b")
    seen = [environment(cluster.folder.read(f"out/{name}")) for name in "ab"]
    assert [each["GREEN_HOLD_ID"] for each in seen] == [a.hold_id, b.hold_id]
    assert seen[0]["SLURM_JOB_ID"] == seen[1]["SLURM_JOB_ID"]
    assert seen[0]["GREEN_TIER"] == a.tier == "half"
    assert a.decision is Action.DOWNGRADE
    assert seen[0]["GREEN_GRANT_JOULES"] != seen[1]["GREEN_GRANT_JOULES"]
    assert min(a.cpu_seconds, b.cpu_seconds) > 0.2
    cluster.assert_books_close()


def test_a_member_that_never_began_costs_nothing(slurm, tmp_path):
    snakefile = """
        rule all:
            input: "out/b"

        rule a:
            output: "out/a"
            group: "both"
            shell: "exit 1"

        rule b:
            input: "out/a"
            output: "out/b"
            group: "both"
            shell: "touch {output}"
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="1 kWh"))
    done = cluster.run()
    assert done.returncode == 1, done.output
    assert [(entry.step, entry.outcome) for entry in cluster.folder.entries()] == [("a", Outcome.FAILED)]
    cluster.assert_books_close()


def test_a_job_that_is_never_submitted_holds_nothing(slurm, tmp_path):
    snakefile = """
        rule work:
            output: "out/x"
            resources: slurm_partition="nowhere"
            shell: "touch {output}"
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="1 kWh"))
    done = cluster.run()
    assert done.returncode == 1, done.output
    assert comes_true(lambda: cluster.folder.open_holds() == (), 5)
    cluster.assert_books_close()


def test_jobs_of_cluster_generic_are_metered_too(slurm, tmp_path):
    snakefile = f"""
        rule work:
            output: "out/x"
            params: green=dict(energy="1 Wh")
            shell: "env > {{output}}; {BUSY.format(seconds=2)}"
    """
    cluster = OnCluster(slurm, tmp_path / "wf", snakefile, HARD.format(limit="2 Wh"))
    submit = "sbatch --parsable --partition=main --account=test --mem=200 --output=/dev/null"
    options = ("--executor", "cluster-generic", "--cluster-generic-submit-cmd", submit, "--jobs", "2", "-q", "host")
    done = cluster.folder.start(*options, **slurm.environ).end(limit_seconds=120)
    assert done.returncode == 0, done.output
    entry, environ = cluster.folder.entry("work"), environment(cluster.folder.read("out/x"))
    assert entry.outcome is Outcome.SUCCEEDED
    assert entry.host == environ["SLURMD_NODENAME"]
    assert environ["GREEN_GRANT_JOULES"] == "3600.000000"
    cluster.assert_books_close()
