"""A job that was granted a tier sees what ``tiers:`` in green.yaml says about it."""

from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Action, Decision, Step, StepSpec
from mlflow_green.session import job_environment
from tests.testkit.snakemake_folder import SnakemakeFolder

SNAKEFILE = """
    rule all:
        input: "out/shell", "out/run"

    rule shelled:
        output: "out/shell"
        params: green=lambda wc, resources: dict(tiers="full:1,eco:0.1", energy="5 Wh")
        shell: "echo $GREEN_TIER $EPOCHS $GREEN_POWER_CAP_WATTS $MINE > {output}"

    rule ran:
        output: "out/run"
        params: green=lambda wc, resources: dict(tiers="full:1,eco:0.1", energy="1 mWh")
        run:
            shell("echo $GREEN_TIER $EPOCHS $MINE > {output}")
"""

TIERS = """
    tiers:
      full: {env: {EPOCHS: "100"}}
      eco: {env: {EPOCHS: "5"}, power_cap: 250 W}
"""


def test_a_job_of_any_kind_sees_the_environment_of_the_tier_that_it_was_granted_before_the_users_own(tmp_path):
    budget = "\n    budgets: [{name: lab, limit: 2 Wh, period: total, mode: hard, enforce: high}]\n"
    folder = SnakemakeFolder(tmp_path / "wf", SNAKEFILE, budget + TIERS)
    run = folder.run("-c1", EPOCHS="7", MINE="kept")
    assert run.returncode == 0, run.output
    assert folder.read("out/shell") == "eco 5 250 kept\n"
    assert folder.read("out/run") == "full 100 kept\n"


def test_a_job_that_is_only_watched_sees_nothing_of_a_tier():
    decision = Decision(action=Action.ADMIT, would=Action.ADMIT, tier="eco", amounts={}, reason="watched")
    ticket = Ticket(step=Step(workflow_run="w", name="train"), spec=StepSpec(), decision=decision)
    tiers = {"eco": {"EPOCHS": "5"}}
    assert job_environment(ticket, "w", acts=True, tier_environments=tiers)["EPOCHS"] == "5"
    watched = job_environment(ticket, "w", acts=False, tier_environments=tiers)
    assert not {"EPOCHS", "GREEN_TIER"} & set(watched)
