"""A step waits for the room that a running one holds, through the command line and through Snakemake's API."""

import pytest

from mlflow_green.records import Action, Outcome
from tests.testkit.snakemake_folder import SnakemakeFolder

SNAKEFILE = """
    import sys, threading, time

    if "--mode" not in sys.argv:
        peak = [0]

        def watch():
            while True:
                peak[0] = max(peak[0], threading.active_count())
                time.sleep(0.02)

        threading.Thread(target=watch, daemon=True).start()

    onsuccess:
        open("threads", "w").write(str(peak[0]))

    rule all:
        input: "out/first", "out/second", expand("out/quick{i}", i=range(12))

    rule first:
        output: "out/first"
        priority: 10
        shell: "sleep 4; touch {output}"

    rule second:
        output: "out/second"
        priority: 5
        shell: "touch {output}"

    rule quick:
        output: "out/quick{i}"
        shell: "touch {output}"
"""

# Room for one of first and second, and for every quick one beside it.
POLICY = """
    budgets:
      - {name: lab, limit: 10 Wh, period: total, mode: hard, reserve: declared}
    steps:
      first: {energy: 6 Wh}
      second: {energy: 6 Wh}
      quick: {energy: 1 mWh}
      all: {energy: 1 mWh}
"""

API = """
    from pathlib import Path
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import OutputSettings, ResourceSettings, SchedulingSettings

    with SnakemakeApi(OutputSettings()) as api:
        workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Snakefile"))
        scheduling = SchedulingSettings(scheduler="green")
        assert scheduling.max_jobs_per_timespan is None
        workflow.dag().execute_workflow(executor="local", scheduling_settings=scheduling)
"""


@pytest.fixture(scope="module", params=["command line", "api"])
def waited(request, tmp_path_factory):
    folder = SnakemakeFolder(tmp_path_factory.mktemp("waiting") / "wf", SNAKEFILE, POLICY)
    folder.write("with_api.py", API)
    run = folder.run("-c2") if request.param == "command line" else folder.run(program=("with_api.py",))
    assert run.returncode == 0, run.output
    return folder, run


def test_a_step_that_does_not_fit_waits_and_starts_when_another_settles(waited):
    folder, run = waited
    first, second = folder.entry("first"), folder.entry("second")
    assert second.started_at >= first.ended_at
    assert second.outcome is Outcome.SUCCEEDED
    assert "second waits: lab: energy 6.00 Wh needed, " in run.output


def test_what_fits_goes_on_beside_a_waiting_step(waited):
    folder, _ = waited
    first = folder.entry("first")
    assert all(entry.ended_at < first.ended_at for entry in folder.entries() if entry.step == "quick")


def test_waiting_starts_no_thread_for_each_look(waited):
    folder, _ = waited
    assert int(folder.read("threads")) < 40


def test_the_ledger_keeps_that_it_waited_and_why(waited):
    folder, _ = waited
    with folder.ledger() as ledger:
        actions = [row.decision.action for row in ledger.decisions() if row.step.name == "second"]
    assert actions[0] is Action.WAIT
    assert set(actions[:-1]) == {Action.WAIT}
    assert actions[-1] is Action.ADMIT


def test_snakemake_ends_soon_after_its_last_job(waited):
    folder, run = waited
    entries = folder.entries()
    busy = max(entry.ended_at for entry in entries) - min(entry.started_at for entry in entries)
    assert run.duration_seconds - busy.total_seconds() < 15  # start-up and shutdown; an 8 s timer would show twice over
