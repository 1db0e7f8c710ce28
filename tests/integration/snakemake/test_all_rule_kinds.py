"""One Snakefile with every kind of rule, run without the plugin, in observe, and under a hard budget."""

import json
from collections import Counter

import pytest

from mlflow_green.records import Action, Outcome
from tests.testkit.snakemake_folder import SnakemakeFolder

SNAKEFILE = """
    import json, sys

    def tier(wc, resources):
        return resources.get("green_tier", "none")

    onsuccess:
        with open("modules.json", "w") as file:
            json.dump(sorted(sys.modules), file)

    onerror:
        with open("modules.json", "w") as file:
            json.dump(sorted(sys.modules), file)

    localrules: by_local

    rule all:
        input:
            expand("out/{kind}", kind=["shell", "script", "wrapper", "run", "shadow", "end", "pipe", "local", "bench"]),
            "out/flaky",

    rule by_shell:
        output: "out/shell"
        params: tier=tier
        shell: "env > env/shell; echo {params.tier} > {output}"

    rule by_script:
        output: "out/script"
        params: tier=tier
        script: "script.py"

    rule by_wrapper:
        output: "out/wrapper"
        params: tier=tier
        wrapper: "file:wrap"

    rule by_run:
        output: "out/run"
        params: tier=tier
        run:
            import os
            open("env/run", "w").write("".join(f"{k}={v}\\n" for k, v in os.environ.items()))
            open(output[0], "w").write(params.tier + "\\n")

    rule by_shadow:
        output: "out/shadow"
        params: tier=tier, env=lambda wc: workflow.workdir_init + "/env/shadow"
        shadow: "minimal"
        shell: "env > {params.env}; echo {params.tier} > {output}"

    checkpoint by_checkpoint:
        output: directory("out/many")
        params: tier=tier
        shell: "env > env/checkpoint; mkdir -p {output}; for i in 1 2; do echo {params.tier} $i > {output}/$i.txt; done"

    rule downstream:
        input: "out/many/{i}.txt"
        output: "out/down{i}"
        params: tier=tier
        shell: "env > env/down{wildcards.i}; (echo {params.tier}; cat {input}) > {output}"

    def made(wc):
        folder = checkpoints.by_checkpoint.get().output[0]
        return expand("out/down{i}", i=sorted(glob_wildcards(folder + "/{i}.txt").i))

    rule gather:
        input: made
        output: "out/end"
        shell: "cat {input} > {output}"

    rule pipe_in:
        output: pipe("out/fifo")
        params: tier=tier
        shell: "env > env/pipe_in; echo {params.tier} > {output}"

    rule pipe_out:
        input: "out/fifo"
        output: "out/pipe"
        params: tier=tier
        shell: "env > env/pipe_out; (cat {input}; echo {params.tier}) > {output}"

    rule by_local:
        output: "out/local"
        params: tier=tier
        shell: "env > env/local; echo {params.tier} > {output}"

    rule flaky:
        output: "out/flaky"
        params: tier=tier
        shell: "env >> env/flaky; echo {params.tier} > {output}; test -e tried || (touch tried; exit 1)"

    rule by_benchmark:
        output: "out/bench"
        benchmark: "bench.tsv"
        params: tier=tier
        shell: "env > env/bench; echo {params.tier} > {output}"
"""

SCRIPT = """
    import os
    open("env/NAME", "w").write("".join(f"{k}={v}\\n" for k, v in os.environ.items()))
    open(snakemake.output[0], "w").write(snakemake.params.tier + "\\n")
"""

RULES = [
    "by_shell",
    "by_script",
    "by_wrapper",
    "by_run",
    "by_shadow",
    "by_checkpoint",
    "downstream",
    "pipe_in",
    "pipe_out",
    "by_local",
    "flaky",
    "by_benchmark",
]
STEPS = "steps:\n" + "".join(f'  {rule}: {{tiers: "full:1,half:0.25", energy: 2 Wh}}\n' for rule in RULES)
# Each step needs 2 Wh as full and 0.5 Wh as half; only 1.2 Wh can be held: all run as half, also a pipe's two.
HARD = """\
budgets:
  - {name: room, limit: 1.2 Wh, period: total, mode: hard, reserve: declared}
"""
KINDS = [
    "shell",
    "script",
    "wrapper",
    "run",
    "shadow",
    "checkpoint",
    "down1",
    "down2",
    "pipe_in",
    "pipe_out",
    "local",
    "flaky",
    "bench",
]
OPTIONS = ("-c2", "--keep-going", "--retries", "2", "-q", "host")


def folder_of_all_kinds(path, policy):
    folder = SnakemakeFolder(path, SNAKEFILE, policy)
    folder.write("script.py", SCRIPT.replace("NAME", "script"))
    folder.write("wrap/wrapper.py", SCRIPT.replace("NAME", "wrapper"))
    folder.write("wrap/environment.yaml", "dependencies: []\n")
    (folder.path / "env").mkdir()
    return folder


def outputs(folder):
    root = folder.path / "out"
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("[!.]*") if file.is_file()}


def environment_of(folder, kind):
    return dict(line.split("=", 1) for line in folder.read(f"env/{kind}").splitlines() if "=" in line)


def succeeded(folder, **settings):
    done = folder.run(*OPTIONS, **settings)
    assert done.returncode == 0, done.output
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return succeeded(folder_of_all_kinds(tmp_path_factory.mktemp("plain") / "wf", STEPS), scheduler="greedy")


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    return succeeded(folder_of_all_kinds(tmp_path_factory.mktemp("observed") / "wf", STEPS))


@pytest.fixture(scope="module")
def downgraded(tmp_path_factory):
    return succeeded(folder_of_all_kinds(tmp_path_factory.mktemp("hard") / "wf", HARD + STEPS))


def test_outputs_in_observe_are_those_without_the_plugin_byte_for_byte(plain, observed):
    assert outputs(observed) == outputs(plain)
    assert len(outputs(plain)) == 14


def test_observe_leaves_every_tier_at_its_default(observed):
    assert {text.split()[0] for text in outputs(observed).values()} == {b"none"}
    assert not [kind for kind in KINDS if "GREEN_TIER" in environment_of(observed, kind)]


def test_without_the_plugin_nothing_is_left_behind(plain):
    assert not plain.exists(".green")
    assert "GREEN_JOB" not in environment_of(plain, "shell")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_job_sees_its_step_and_hold(observed, kind):
    seen = environment_of(observed, kind)
    entry = observed.entry(seen["GREEN_JOB"], attempt=2 if kind == "flaky" else 1)
    assert seen["GREEN_HOLD_ID"] == entry.entry_id
    assert json.loads(seen["MLFLOW_RUN_CONTEXT"])["green.hold_id"] == entry.entry_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_granted_tier_reaches_the_environment_of_every_kind(downgraded, kind):
    assert environment_of(downgraded, kind)["GREEN_TIER"] == "half"


def test_a_granted_tier_reaches_the_parameters_of_every_kind(downgraded):
    words = {name: text.decode().split() for name, text in outputs(downgraded).items()}
    words["many"] = words.pop("many/1.txt") + words.pop("many/2.txt")
    assert {name: set(found) - {"1", "2"} for name, found in words.items()} == {name: {"half"} for name in words}
    assert words["pipe"] == ["half", "half"]


@pytest.mark.parametrize("which", ["observed", "downgraded"])
def test_every_attempt_of_every_job_is_one_entry(which, request):
    folder = request.getfixturevalue(which)
    counted = Counter(entry.step for entry in folder.entries())
    assert counted == Counter([*RULES, "downstream", "flaky", "gather", "all"])
    assert folder.entry("flaky", 1).outcome is Outcome.FAILED
    assert folder.entry("flaky", 2).outcome is Outcome.SUCCEEDED
    others = {entry.outcome for entry in folder.entries() if entry.step != "flaky"}
    assert others == {Outcome.SUCCEEDED}


@pytest.mark.parametrize("which", ["observed", "downgraded"])
def test_shares_idle_and_other_are_what_the_node_used_to_the_microjoule(which, request):
    folder = request.getfixturevalue(which)
    windows, entries = folder.windows(), folder.entries()
    assert windows
    for domain in {window.domain for window in windows}:
        mine = [window for window in windows if window.domain is domain]
        charged = sum(entry.energy[domain].microjoules for entry in entries if domain in entry.energy)
        rest = sum(window.idle_microjoules + window.other_microjoules for window in mine)
        assert charged + rest == sum(window.energy.microjoules for window in mine)
        assert charged > 0


@pytest.mark.parametrize("which", ["observed", "downgraded"])
def test_nothing_stays_held_and_nothing_half_done_is_left(which, request):
    folder = request.getfixturevalue(which)
    assert folder.open_holds() == ()
    assert folder.leftovers() == []
    assert list((folder.path / ".green" / "spool").iterdir()) == []


def test_every_joule_is_posted_once(downgraded):
    (balance,) = downgraded.balances()
    assert balance.held == 0
    assert balance.spent == sum(entry.energy_charged_microjoules for entry in downgraded.entries())


def test_a_downgrade_says_so_in_the_ledger(downgraded):
    steps = {e.step: (e.tier, e.decision) for e in downgraded.entries() if e.step not in {"gather", "all"}}
    assert steps == dict.fromkeys(RULES, ("half", Action.DOWNGRADE))


@pytest.mark.parametrize("which", ["observed", "downgraded"])
def test_nothing_heavy_is_imported_into_the_snakemake_process(which, plain, request):
    """Snakemake's own plugins may import some of it: what counts is what it would not import without ours."""
    own = set(json.loads(plain.read("modules.json")))
    ours = set(json.loads(request.getfixturevalue(which).read("modules.json"))) - own
    assert "mlflow_green.ledger.sql" in ours
    heavy = {"mlflow", "pandas", "numpy", "alembic", "codecarbon", "matplotlib", "scipy", "sklearn"}
    assert not {name.partition(".")[0] for name in ours} & heavy


def test_declaring_steps_in_a_finished_workflow_runs_nothing_again(plain):
    declared = SNAKEFILE.replace(
        'params: tier=tier\n        shell: "env > env/shell',
        'params: tier=tier, green=lambda wc, resources: dict(tiers="full:1,half:0.5", energy="5 Wh")\n'
        '        shell: "env > env/shell',
    )
    assert declared != SNAKEFILE
    plain.write("Snakefile", declared)
    done = plain.run("-c2")
    assert done.returncode == 0, done.output
    assert "Nothing to be done" in done.output
