"""``policy plan`` and the dry run say what the real run does afterwards, and leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.snakemake_folder import SnakemakeFolder

SNAKEFILE = """
    rule all:
        input: "out/report", "out/piped", "out/after_big", expand("out/train{i}", i=range(2)), "out/free"

    rule prepare:
        output: "out/prepared"
        shell: "touch {output}"

    rule train:
        input: "out/prepared"
        output: "out/train{i}"
        params:
            green=lambda wc, resources: dict(tiers="full:1,half:0.5,tiny:0.1", energy="8 Wh"),
            tier=lambda wc, resources: resources.get("green_tier", "full"),
        shell: "echo {params.tier} > {output}"

    rule report:
        input: expand("out/train{i}", i=range(2))
        output: "out/report"
        shell: "touch {output}"

    rule big:
        output: "out/big"
        shell: "touch {output}"

    rule after_big:
        input: "out/big"
        output: "out/after_big"
        shell: "touch {output}"

    rule pipe_in:
        output: pipe("out/fifo")
        shell: "echo piped > {output}"

    rule pipe_out:
        input: "out/fifo"
        output: "out/piped"
        shell: "cat {input} > {output}"

    rule free:
        output: "out/free"
        shell: "touch {output}"
"""

POLICY = """
    budgets:
      - {name: lab, limit: 6 Wh, period: total, mode: hard, reserve: declared}
      - {name: watch, limit: 1 mWh, period: month, mode: observe}
    steps:
      prepare: {energy: 10 mWh}
      report: {energy: 10 mWh}
      big: {energy: 7 Wh}
      after_big: {energy: 10 mWh}
      pipe_in: {energy: 10 mWh}
      pipe_out: {energy: 6 Wh}
      free: {energy: 10 mWh}
      all: {energy: 10 mWh}
"""

WAITING = """
    rule first:
        output: "out/first"
        priority: 10
        shell: "sleep 3; touch {output}"

    rule second:
        output: "out/second"
        shell: "touch {output}"
"""

WAITING_POLICY = """
    budgets: [{name: lab, limit: 10 Wh, period: total, mode: hard, reserve: declared}]
    steps: {first: {energy: 6 Wh}, second: {energy: 6 Wh}}
"""


def policy_plan(folder, *options):
    command = [sys.executable, "-m", "mlflow_green.cli", "policy", "plan", *options]
    environ = folder.environ(MLFLOW_GREEN_POWERCAP_ROOT=str(folder.path.parent / "powercap"))
    return subprocess.run(
        command, cwd=folder.path, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def planned(folder, *options):
    done = policy_plan(folder, "--json", *options)
    return done.returncode, json.loads(done.stdout)


def label(step):
    return f"{step['step']}[{step['wildcards']}]" if step["wildcards"] else step["step"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = SnakemakeFolder(tmp_path_factory.mktemp("plan") / "wf", SNAKEFILE, POLICY)
    FakePowercap(folder.path.parent / "powercap", "package")
    return folder


@pytest.fixture(scope="module")
def before(folder):
    """What was planned, and by the dry run printed, before anything ran; and the files that this left."""
    status, plan = planned(folder, "--", "-c2", "--keep-going")
    dry = folder.run("-n", "-c2", "--keep-going")
    files = {path.name for path in folder.path.iterdir()}
    return status, plan, dry, files


@pytest.fixture(scope="module")
def ran(folder, before):
    folder.run("-c2", "--keep-going", MLFLOW_GREEN_POWERCAP_ROOT=str(folder.path.parent / "powercap"))
    with folder.ledger() as ledger:
        return {row.step.label: row.decision for row in ledger.decisions()}


def test_the_run_decides_as_was_planned(before, ran):
    status, plan, _, _ = before
    answers = {label(step): (step["answer"], step["tier"], step["budget"]) for step in plan["steps"]}
    reached = {name: (d.action.value, d.tier, d.budget) for name, d in ran.items()}
    assert {name: answer for name, answer in answers.items() if answer[0]} == reached
    assert {answer[0] for answer in answers.values()} == {"admit", "downgrade", "refuse", None}
    assert status == 3


def test_what_needs_a_refused_step_is_not_reached(before):
    behind = {label(step): step["behind"] for step in before[1]["steps"] if step["answer"] is None}
    assert behind.pop("all") in {"big", "pipe_in", "pipe_out"}
    assert behind == {"after_big": "big"}


def test_a_dry_run_prints_the_plan_and_says_what_cannot_be_known(before):
    _, plan, dry, _ = before
    assert dry.returncode == 0
    assert "This was a dry-run" in dry.output
    assert "downgraded to half" in dry.output
    assert "Of 10 steps: " in dry.output
    assert any("is not known" in note for note in plan["notes"])


def test_planning_leaves_nothing_behind(before):
    assert before[3] == {"Snakefile", "green.yaml", ".snakemake"}


def test_after_the_run_only_what_is_missing_is_planned_from_what_it_used(folder, ran):
    status, plan = planned(folder, "--", "-c2", "out/free", "out/report")
    assert (status, plan["steps"]) == (0, [])
    free = policy_plan(folder, "--", "-c2", "out/free", "--forcerun", "free")
    assert free.returncode == 0, free.stderr
    assert "maximum of 1 run of free x 1.3" not in free.stdout.splitlines()[0]
    assert "Of 1 step: 1 admitted." in free.stdout


def test_a_broken_snakefile_is_told_in_the_words_of_snakemake(tmp_path):
    folder = SnakemakeFolder(tmp_path / "wf", "rule a:\n    outputt: 'x'\n", POLICY)
    done = policy_plan(folder, "--", "-c2")
    assert done.returncode == 1
    assert "outputt" in done.stderr
    assert done.stderr.startswith("mlflow-green: Snakemake could not list the jobs")
    assert not done.stdout


def test_a_wrong_policy_is_told_before_snakemake_is_asked(tmp_path):
    folder = SnakemakeFolder(tmp_path / "wf", SNAKEFILE, "budgetz: []")
    done = policy_plan(folder)
    assert done.returncode == 1
    assert "did you mean 'budgets'" in done.stderr
    assert not Path(folder.path / ".snakemake").exists()


def test_a_step_that_waits_for_another_is_planned_so_and_does_so(tmp_path):
    folder = SnakemakeFolder(tmp_path / "wf", WAITING, WAITING_POLICY)
    options = ("-c2", "out/first", "out/second", "--forceall")
    assert folder.run("-c1", *options[1:]).returncode == 0  # now it is known how little they use, and how long they run
    status, plan = planned(folder, "--", *options)
    answers = {step["step"]: [step["first_answer"], step["answer"], step["is_delayed"]] for step in plan["steps"]}
    assert answers == {"first": ["admit", "admit", False], "second": ["wait", "admit", True]}
    assert status == 2
    assert not [note for note in plan["notes"] if "not known" in note]
    with folder.ledger() as ledger:
        asked_before = len(ledger.decisions())
    assert folder.run(*options).returncode == 0
    with folder.ledger() as ledger:
        asked = [(row.step.name, row.decision.action.value) for row in ledger.decisions()[asked_before:]]
    assert [action for name, action in asked if name == "first"] == ["admit"]
    actions = [action for name, action in asked if name == "second"]
    assert (actions[0], actions[-1]) == ("wait", "admit")
