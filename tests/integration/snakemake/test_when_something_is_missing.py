"""A Snakemake that is not as we know it, and errors of our own: closed under a hard budget, open in observe."""

import subprocess
import sys
from textwrap import dedent

import pytest
from snakemake_interface_scheduler_plugins.registry import SchedulerPluginRegistry

from mlflow_green.records import CpuClockName, Outcome
from tests.testkit.snakemake_folder import SnakemakeFolder, processes_in

SNAKEFILE = """
    rule last:
        input: expand("out/{i}", i=range(2))
        output: "out/last"
        shell: "touch {output}"

    rule step:
        output: "out/{i}"
        shell: "touch {output}"
"""
HARD = """
    budgets:
      - {name: lab, limit: 10 Wh, period: total, mode: hard}
"""
UNKNOWN_VERSION = "import snakemake; snakemake.__version__ = '10.1.0'"
LACKING = """
    from snakemake.scheduling.job_scheduler import JobScheduler
    del JobScheduler._handle_error
"""
BREAKING_LATER = """
    from mlflow_green.bootstrap import Session
    ask, calls = Session.ask, []

    def broken(self, tickets):
        calls.append(tickets)
        if len(calls) > 1:
            raise RuntimeError("a bug of ours")
        ask(self, tickets)

    Session.ask = broken
"""


WITHOUT_PERF = """
    from mlflow_green.metering.cpu_clock import PerfClock

    def refused():
        raise PermissionError("perf_event_paranoid is 3")

    PerfClock.open_on_current_thread = refused
"""


def run_with(tmp_path, site, policy, *options, **environ):
    folder = SnakemakeFolder(tmp_path / "wf", SNAKEFILE, policy)
    folder.write("../site/sitecustomize.py", site)
    return folder, folder.run("-c2", *options, PYTHONPATH=str(tmp_path / "site"), **environ)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (UNKNOWN_VERSION, "Snakemake 10.1.0 is outside the tested range; install 'snakemake>=9.20,<10'"),
        (LACKING, "this Snakemake lacks JobScheduler._handle_error; install 'snakemake>=9.20,<10'"),
    ],
    ids=["version", "private part"],
)
class TestAnUnknownSnakemake:
    def test_runs_unmetered_in_observe_and_says_so_once(self, tmp_path, site, words):
        folder, run = run_with(tmp_path, site, "")
        assert run.returncode == 0, run.output
        assert run.output.count(words) == 1
        assert "othing is metered in this run" in run.output
        assert folder.exists("out/last")

    def test_starts_nothing_under_a_hard_budget(self, tmp_path, site, words):
        folder, run = run_with(tmp_path, site, HARD)
        assert run.returncode == 1
        assert run.output.count(words) == 1
        assert "A hard budget cannot be kept without it, so nothing was started" in run.output
        assert "Traceback" not in run.output
        assert "File " not in run.output
        assert not folder.exists("out")


def test_an_error_of_ours_in_observe_lets_every_job_run(tmp_path):
    folder, run = run_with(tmp_path, BREAKING_LATER, "")
    assert run.returncode == 0, run.output
    assert "unexpected error, RuntimeError: a bug of ours" in run.output
    assert folder.exists("out/last")
    assert folder.open_holds() == ()


def test_an_error_of_ours_under_a_hard_budget_ends_the_workflow(tmp_path):
    folder, run = run_with(tmp_path, BREAKING_LATER, HARD)
    assert run.returncode == 1, run.output
    assert "unexpected error, RuntimeError: a bug of ours" in run.output
    assert "A hard budget cannot be kept, so no further job starts" in run.output
    assert folder.exists("out/1")
    assert not folder.exists("out/last")
    assert folder.open_holds() == ()
    assert processes_in(folder.path) == []


def test_a_killed_job_fails_also_where_its_processes_are_reaped_by_us(tmp_path):
    """Whoever reaps Snakemake's children turns their failure into a success."""
    folder = SnakemakeFolder(
        tmp_path / "wf", 'rule killed:\n    output: "out"\n    shell: "echo part > {output}; kill -9 $$"', ""
    )
    folder.write("../site/sitecustomize.py", WITHOUT_PERF)
    run = folder.run("-c1", PYTHONPATH=str(tmp_path / "site"))
    assert run.returncode == 1, run.output
    assert not folder.exists("out")
    entry = folder.entry("killed")
    assert (entry.outcome, entry.cpu_clock) == (Outcome.FAILED, CpuClockName.WAIT4)


def test_switched_off_nothing_is_metered_and_nothing_written(tmp_path):
    folder, run = run_with(tmp_path, "", "", MLFLOW_GREEN_DISABLE="1")
    assert run.returncode == 0, run.output
    assert not folder.exists(".green")


def test_snakemake_finds_the_plugin():
    assert "green" in SchedulerPluginRegistry().plugins


def test_the_plugin_is_found_from_a_wheel(tmp_path):
    """Installed away from this checkout, without its editable install."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    probe = subprocess.run([sys.executable, "-c", "import hatchling"], check=False, capture_output=True)
    if probe.returncode != 0:
        build.remove("--no-build-isolation")
    subprocess.run([*build, "--wheel-dir", tmp_path, "."], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True)
    program = """
        import sys
        here = sys.argv[1]
        sys.path[:] = [here] + [p for p in sys.path if p.endswith(("site-packages", "lib-dynload")) or "/lib/" in p or p.endswith(".zip")]
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        from snakemake_interface_scheduler_plugins.registry import SchedulerPluginRegistry
        assert "green" in SchedulerPluginRegistry().plugins
        import mlflow_green, snakemake_plugin, snakemake_scheduler_plugin_green as entry
        for module in (mlflow_green, snakemake_plugin, entry):
            assert module.__file__.startswith(here), module.__file__
    """
    command = [sys.executable, "-c", dedent(program), str(target)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
