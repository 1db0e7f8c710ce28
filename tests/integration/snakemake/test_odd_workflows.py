"""Workflows that do unusual things: nested, short of a resource, quiet, retried under another tier."""

import sys

import pytest

from mlflow_green.records import Action, Outcome
from mlflow_green.units import microjoules
from tests.testkit.snakemake_folder import SnakemakeFolder

HARD = """
    budgets:
      - {name: lab, limit: 10 Wh, period: total, mode: hard, reserve: declared}
"""


def test_a_snakemake_inside_a_metered_job_holds_nothing_of_its_own(tmp_path):
    inner = 'rule inner:\n    output: "inner"\n    run:\n        open(output[0], "w").write(resources.get("green_tier", "none"))\n'
    outer = f"""
        rule outer:
            output: "outer"
            shell: "{sys.executable} -m snakemake -c1 --nolock --scheduler green -s inner.smk; cat inner > {{output}}"
    """
    steps = 'steps:\n  outer: {tiers: "full:1,half:0.5", energy: 16 Wh}\n'
    folder = SnakemakeFolder(tmp_path / "wf", outer, HARD)
    folder.policy(HARD)
    folder.write("green.yaml", folder.read("green.yaml") + steps)
    folder.write("inner.smk", inner)
    run = folder.run("-c1")
    assert run.returncode == 0, run.output
    assert [(entry.step, entry.tier) for entry in folder.entries()] == [("outer", "half")]
    assert folder.read("outer") == "none"


@pytest.mark.parametrize("policy", ["", HARD], ids=["observe", "hard"])
def test_jobs_that_want_a_scarce_resource_keep_no_other_from_the_cores(tmp_path, policy):
    folder = SnakemakeFolder(
        tmp_path / "wf",
        """
        rule all:
            input: expand("scarce{i}", i=range(20)), expand("free{i}", i=range(4)), "idle"

        rule scarce:
            output: "scarce{i}"
            priority: 5
            resources: licence=1
            shell: "sleep 0.15; touch {output}"

        rule free:
            output: "free{i}"
            shell: "touch {output}"

        rule idle:
            output: "idle"
            threads: 0
            shell: "touch {output}"

        """,
        policy + ("    steps:\n      scarce: {energy: 1 mWh}\n      free: {energy: 1 mWh}\n" if policy else ""),
    )
    run = folder.run("-c2", "--resources", "licence=1", "--quiet", "all")
    assert run.returncode == 0, run.output
    assert {entry.outcome for entry in folder.entries()} == {Outcome.SUCCEEDED}
    assert len(folder.entries()) == 26
    last = {}
    for entry in folder.entries():
        last[entry.step] = max(entry.ended_at, last.get(entry.step, entry.ended_at))
    assert last["free"] < last["scarce"]


def test_a_tier_is_chosen_by_its_energy_ratio_to_what_was_measured(tmp_path):
    folder = SnakemakeFolder(
        tmp_path / "wf",
        """
        rule train:
            output: "model"
            params:
                green=lambda wc, resources: dict(tiers="full:1,half:0.5,tiny:0.05"),
                epochs=lambda wc, resources: {"full": 40, "half": 20, "tiny": 2}[resources.get("green_tier", "full")],
            shell: "for i in $(seq {params.epochs}); do head -c 20000000 /dev/zero | sha1sum; done > {output}"
        """,
        "",
    )
    assert folder.run("-c1").returncode == 0
    full = folder.entry("train").total.microjoules
    limit_watt_hours = 0.75 * 1.3 * full / microjoules(3600)
    folder.policy(f"budgets:\n  - {{name: lab, limit: {limit_watt_hours:.12f} Wh, period: total, mode: hard}}\n")
    run = folder.run("-c1", "--forceall")
    assert run.returncode == 0, run.output
    again = [entry for entry in folder.entries() if entry.decision is Action.DOWNGRADE]
    assert [entry.tier for entry in again] == ["half"]
    assert len(folder.read("model").splitlines()) == 20


def test_a_retry_may_get_another_tier_than_the_attempt_before(tmp_path):
    """The second attempt finds less room than the first: resources and parameters follow the new tier."""
    folder = SnakemakeFolder(
        tmp_path / "wf",
        """
        rule all:
            input: "out/flaky", "out/other"

        rule flaky:
            output: "out/flaky"
            priority: 9
            retries: 1
            params: tier=lambda wc, resources: resources.get("green_tier", "none")
            shell: "echo {params.tier} $GREEN_TIER >> tiers; touch {output}; test -e again || (touch again; sleep 1; exit 1)"

        rule other:
            output: "out/other"
            shell: "sleep 3; touch {output}"
        """,
        """
        budgets:
          - {name: lab, limit: 10 Wh, period: total, mode: hard, reserve: declared}
        steps:
          flaky: {tiers: "full:1,half:0.5", energy: 6 Wh}
          other: {energy: 4 Wh}
          all: {energy: 1 mWh}
        """,
    )
    run = folder.run("-c2")
    assert run.returncode == 0, run.output
    assert folder.read("tiers").splitlines() == ["full full", "half half"]
    assert [entry.attempt for entry in folder.entries() if entry.step == "flaky"] == [1, 2]


def test_a_broken_declaration_is_said_and_the_job_runs(tmp_path):
    folder = SnakemakeFolder(
        tmp_path / "wf",
        """
        rule train:
            output: "model"
            params: green=lambda wc, resources: dict(energie="5 Wh")
            shell: "touch {output}"
        """,
        "",
    )
    run = folder.run("-c1")
    assert run.returncode == 0, run.output
    assert "what rule train declares is ignored" in run.output
    assert "energy" in run.output


def test_a_rule_without_a_command_is_neither_asked_for_nor_refused(tmp_path):
    rules = """
        rule all:
            input: "a"

        rule a:
            output: "a"
            shell: "touch {output}"
    """
    policy = """
    budgets: [{name: lab, limit: 1 Wh, period: total, mode: hard, reserve: declared, unknown_step: refuse}]
    steps: {a: {energy: 1 Wh}}
    """
    folder = SnakemakeFolder(tmp_path / "wf", rules, policy)
    run = folder.run("-c1")
    assert run.returncode == 0, run.output
    assert folder.entry("all").outcome is Outcome.SUCCEEDED
    assert "all runs no program" in folder.entry("all").reason
    assert folder.open_holds() == ()


def test_also_a_quiet_snakemake_says_why_each_job_was_refused_and_what_to_do(tmp_path):
    rules = """
        rule all:
            input: expand("big{i}", i=range(12))

        rule big:
            output: "big{i}"
            shell: "touch {output}"
    """
    folder = SnakemakeFolder(tmp_path / "wf", rules, HARD + "    steps: {big: {energy: 50 Wh}}\n")
    run = folder.run("-q", "-k", "-c1")
    assert run.returncode == 1
    told = [line for line in run.output.splitlines() if line.startswith("mlflow-green: lab: energy 50.0 Wh needed")]
    assert len(told) == len(set(told)) == 10
    assert "mlflow-green: 2 more jobs were refused; 'mlflow-green explain' shows why" in run.output
    assert "Next: 'mlflow-green explain big'" in run.output
