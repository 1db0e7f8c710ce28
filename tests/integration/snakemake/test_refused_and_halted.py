"""Refusals and halts of every kind, side by side in one run with --keep-going and --retries; then with more budget."""

import pytest

from mlflow_green.records import Outcome
from tests.testkit.snakemake_folder import SnakemakeFolder, processes_in

SNAKEFILE = """
    rule all:
        input:
            "out/big", "out/odd", "out/piped", "out/stubborn", "out/polite", "out/learner",
            "out/inline", "out/shadowed", "out/wrapped", "out/pointed", "out/timed", "out/unrelated",
            "out/odd_wrapped", "out/odd_pointed", "out/odd_timed",

    rule big:
        output: "out/big"
        params: green=lambda wc, resources: dict(energy="5 Wh")
        shell: "echo new > {output}"

    rule after_big:
        input: "out/big"
        output: "out/after_big"
        shell: "echo after > {output}"

    rule odd:
        output: "out/odd"
        params: green=lambda wc, resources: dict(energy="5 Wh")
        shell: "echo {resources.green_tier} > {output}"

    rule pipe_in:
        output: pipe("out/fifo")
        params: green=lambda wc, resources: dict(energy="5 Wh")
        shell: "echo piped > {output}"

    rule pipe_out:
        input: "out/fifo"
        output: "out/piped"
        shell: "cat {input} > {output}"

    rule stubborn:
        output: "out/stubborn"
        shell: "trap '' TERM; echo partial > {output}; while :; do :; done"

    rule polite:
        output: "out/polite"
        shell:
            '''
            echo partial > {output}
            setsid bash -c 'trap "" TERM; while :; do echo again >> {output}; sleep 0.05; done' &
            trap 'exit 0' TERM
            while :; do :; done
            '''

    rule learner:
        output: "out/learner"
        script: "learner.py"

    rule inline:
        output: "out/inline"
        run:
            open(output[0], "w").write("partial")
            while True:
                pass

    rule shadowed:
        output: "out/shadowed"
        shadow: "minimal"
        shell: "echo partial > {output}; while :; do :; done"

    rule wrapped:
        output: "out/wrapped"
        wrapper: "file:wrap"

    checkpoint pointed:
        output: directory("out/pointed")
        shell: "mkdir {output}; echo partial > {output}/one; while :; do :; done"

    rule timed:
        output: "out/timed"
        benchmark: "bench/timed"
        shell: "echo partial > {output}; while :; do :; done"

    rule odd_wrapped:
        output: "out/odd_wrapped"
        params: green=lambda wc, resources: dict(energy="5 Wh")
        wrapper: "file:wrap"

    checkpoint odd_pointed:
        output: directory("out/odd_pointed")
        params: green=lambda wc, resources: dict(energy="5 Wh")
        shell: "mkdir {output}"

    rule odd_timed:
        output: "out/odd_timed"
        params: green=lambda wc, resources: dict(energy="5 Wh")
        benchmark: "bench/odd_timed"
        shell: "touch {output}"

    rule unrelated:
        output: "out/unrelated"
        shell: "sleep 6; echo done > {output}"
"""

LEARNER = """
    import os, signal, sys
    from pathlib import Path

    checkpoint = Path(os.environ["GREEN_CHECKPOINT"])
    output = Path(snakemake.output[0])
    if checkpoint.exists():
        output.write_text("finished from " + checkpoint.read_text())
        sys.exit()

    def save(*_):
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text("epoch 7")
        sys.exit(1)

    signal.signal(signal.SIGTERM, save)
    output.write_text("partial")
    while True:
        pass
"""

WRAPPER = """
    with open(snakemake.output[0], "w") as file:
        file.write("partial")
    while True:
        pass
"""

BURNERS = ("stubborn", "polite", "learner", "inline", "shadowed", "wrapped", "pointed", "timed")
REFUSED = ("big", "odd", "pipe_in", "pipe_out", "odd_wrapped", "odd_pointed", "odd_timed")
# The burners get 0.5 mWh each and ask for more, which is not there.
POLICY = """
    budgets:
      - name: lab
        limit: LIMIT
        period: total
        mode: hard
        reserve: declared
        enforce: high
        rules: [{at: 10000%, do: halt, grace: 2s}]
    steps:
      stubborn: {energy: 0.5 mWh}
      polite: {energy: 0.5 mWh}
      learner: {energy: 0.5 mWh, checkpoint: ckpt/learner}
      inline: {energy: 0.5 mWh}
      shadowed: {energy: 0.5 mWh}
      wrapped: {energy: 0.5 mWh}
      pointed: {energy: 0.5 mWh}
      timed: {energy: 0.5 mWh}
      unrelated: {energy: 0.1 mWh}
      after_big: {energy: 0.1 mWh}
      pipe_out: {energy: 0.1 mWh}
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder and the run that its budget was too small for."""
    folder = SnakemakeFolder(tmp_path_factory.mktemp("short") / "wf", SNAKEFILE, POLICY.replace("LIMIT", "4.5 mWh"))
    folder.write("learner.py", LEARNER)
    folder.write("wrap/wrapper.py", WRAPPER)
    folder.write("wrap/environment.yaml", "dependencies: []\n")
    folder.write("out/big", "old\n")
    run = folder.run("-c16", "--keep-going", "--retries", "2", "--forcerun", "big", "-q", "host", "--", "all")
    return folder, run


def test_refused_and_halted_jobs_fail_the_workflow(short):
    _, run = short
    assert run.returncode == 1, run.output


@pytest.mark.parametrize("step", REFUSED)
def test_a_refused_job_never_starts_and_is_told_once(short, step):
    folder, _ = short
    (entry,) = [entry for entry in folder.entries() if entry.step == step]
    assert entry.outcome is Outcome.REFUSED
    assert (entry.hold_id, entry.cpu_seconds, entry.total) == (None, None, None)


def test_a_refusal_names_budget_unit_needed_and_available(short):
    _, run = short
    assert "mlflow-green refused big: lab: energy 5.00 Wh needed, " in run.output
    assert " available of 4.50 mWh; big is refused" in run.output


def test_the_outputs_of_an_earlier_run_survive_a_refusal(short):
    folder, _ = short
    assert folder.read("out/big") == "old\n"


def test_a_refusal_is_told_where_the_shell_command_cannot_be_shown(short):
    _, run = short
    assert "mlflow-green refused odd: lab: energy 5.00 Wh needed" in run.output


def test_a_group_is_refused_as_one_and_its_message_is_seen(short):
    folder, run = short
    assert (
        "lab: energy 5.00 Wh needed"
        in run.output.partition("mlflow-green refused the group pipe_in, pipe_out: ")[2].partition("\n")[0]
    )
    assert not folder.exists("out/piped")
    assert not folder.exists("out/fifo")


def test_nothing_refused_or_halted_is_tried_again(short):
    folder, run = short
    assert "Trying to restart" not in run.output
    assert {entry.attempt for entry in folder.entries()} == {1}


@pytest.mark.parametrize("step", BURNERS)
def test_a_step_that_overruns_its_grant_is_halted_and_leaves_no_output(short, step):
    folder, run = short
    entry = folder.entry(step)
    assert entry.outcome is Outcome.HALTED
    assert entry.energy_charged_microjoules == entry.total.microjoules > 0
    assert not folder.exists(f"out/{step}")
    assert not folder.exists(f"bench/{step}")
    assert f"message: mlflow-green halted {step}: lab: {step} used energy" in run.output
    assert "Traceback" not in run.output


def test_no_process_of_a_halted_job_is_left(short):
    folder, _ = short
    assert processes_in(folder.path) == []


def test_no_incomplete_marker_and_no_shadow_folder_is_left(short):
    folder, _ = short
    assert folder.leftovers() == []


def test_an_unrelated_job_finishes(short):
    folder, _ = short
    assert folder.read("out/unrelated") == "done\n"
    assert folder.entry("unrelated").outcome is Outcome.SUCCEEDED


def test_the_books_close_after_refusals_and_halts(short):
    folder, _ = short
    assert folder.open_holds() == ()
    (balance,) = folder.balances()
    assert (balance.held, balance.spent) == (0, sum(entry.energy_charged_microjoules for entry in folder.entries()))
    for domain in {window.domain for window in folder.windows()}:
        mine = [window for window in folder.windows() if window.domain is domain]
        charged = sum(entry.energy[domain].microjoules for entry in folder.entries() if domain in entry.energy)
        assert charged == sum(window.attributed_microjoules for window in mine)


@pytest.fixture(scope="module")
def raised(short):
    folder, _ = short
    folder.policy(POLICY.replace("LIMIT", "100 Wh"))
    applied = folder.run("policy", "apply", program=("-m", "mlflow_green.cli"))
    assert applied.returncode == 0, applied.output
    run = folder.run("-c4", "--forcerun", "big", "-q", "host", "--", "out/big", "out/learner", "out/piped")
    return folder, run


def test_with_more_budget_what_was_refused_runs(raised):
    folder, run = raised
    assert run.returncode == 0, run.output
    assert folder.read("out/big") == "new\n"
    assert folder.read("out/piped") == "piped\n"


def test_a_halted_step_goes_on_from_its_checkpoint(raised):
    folder, _ = raised
    assert folder.read("out/learner") == "finished from epoch 7"


def test_without_keep_going_a_refusal_lets_nothing_else_start(tmp_path):
    folder = SnakemakeFolder(tmp_path / "wf", SNAKEFILE, POLICY.replace("LIMIT", "3 mWh"))
    run = folder.run("-c2", "-q", "host", "--", "out/big", "out/unrelated")
    assert run.returncode == 1, run.output
    assert "mlflow-green refused big" in run.output
    assert not folder.exists("out/unrelated")
    assert folder.open_holds() == ()
