"""kill -9 of Snakemake's main process alone, with a 60 s step left running: its charge covers what it truly used."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mlflow_green.records import Domain, Outcome
from tests.testkit.books import findings, ledger_in, processes_left
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.snakemake_folder import SnakemakeFolder
from tests.testkit.waiting import comes_true

RUNS, AT_ONCE = 4, 2
SNAKEFILE = """
    rule all:
        input: "out/long"
    rule long:
        output: "out/long"
        shell: "python3 burn.py {output}"
"""
# Says again and again what the counter shows, so that its last word is from when it was alive.
BURN = """
    import os, sys, time
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(i * i for i in range(50_000))
        with open("truth.new", "w") as file:
            file.write(open("../powercap/intel-rapl:0/energy_uj").read())
        os.replace("truth.new", "truth")
        time.sleep(0.01)
    open(sys.argv[1], "w").write("done")
"""
POLICY = """
    budgets:
      - name: lab
        limit: 1 kWh
        period: total
        mode: hard
        unknown_step: admit
        rules: [{at: 10000%, do: halt, grace: 1s}]
"""


@contextmanager
def counting(tree: FakePowercap) -> Iterator[None]:
    """The counters move on by themselves, as the hardware's do."""
    stopped = threading.Event()

    def count() -> None:
        before = time.monotonic()
        while not stopped.wait(0.005):
            now = time.monotonic()
            tree.advance(now - before)
            before = now

    counter = threading.Thread(target=count)
    counter.start()
    try:
        yield
    finally:
        stopped.set()
        counter.join()


def killed_run(folder: Path, seed: int) -> None:
    folder.mkdir()
    tree = FakePowercap(folder / "powercap", layout="package", start_microjoules=77)
    workflow = SnakemakeFolder(folder / "workflow", SNAKEFILE, POLICY)
    workflow.write("burn.py", BURN)
    truth = workflow.path / "truth"
    main = workflow.start("-c1", MLFLOW_GREEN_POWERCAP_ROOT=str(tree.root))
    main.wait_for(truth.exists, "a running step")
    with counting(tree):  # from now on, so that all of it was used while the step ran
        time.sleep(random.Random(seed).uniform(0.5, 3))
        os.kill(main.process.pid, signal.SIGKILL)
        main.process.wait()
        ledger = ledger_in(workflow.path)
        assert comes_true(lambda: processes_left(ledger) == set(), 45), "its keeper has not ended the step"
        ledger.close()
    environ = workflow.environ(MLFLOW_GREEN_POWERCAP_ROOT=str(tree.root))
    balance = [sys.executable, "-m", "mlflow_green.cli", "balance"]
    assert comes_true(lambda: is_closed(workflow, balance, environ), 60, 1)
    verified = subprocess.run([*balance[:-1], "ledger", "verify"], cwd=workflow.path, env=environ, check=False)
    assert verified.returncode == 0
    check(workflow, int(truth.read_text()) - 77)
    tree.close()


def is_closed(workflow: SnakemakeFolder, command: list[str], environ: dict[str, str]) -> bool:
    """Any command that opens the ledger closes what the dead left; the keeper of the last step may still write."""
    subprocess.run(command, cwd=workflow.path, env=environ, check=True, stdout=subprocess.DEVNULL)
    return not list((workflow.path / ".green/spool").glob("*.jsonl"))


def check(workflow: SnakemakeFolder, counted_microjoules: int) -> None:
    """``counted_microjoules``: what the node had used when the step was last seen alive."""
    ledger = ledger_in(workflow.path)
    (entry,) = ledger.entries()
    assert entry.outcome is Outcome.LOST
    assert ledger.open_holds() == ()
    assert [balance.held for balance in ledger.balances()] == [0]
    assert findings(ledger) == ()
    windows = [window for window in ledger.node_windows() if window.domain is Domain.CPU]
    read = sum(window.energy.microjoules for window in windows)
    unread = max(0, counted_microjoules - read)
    assert entry.total is not None
    assert entry.energy[Domain.CPU].low_microjoules <= counted_microjoules
    assert entry.energy_charged_microjoules >= entry.total.microjoules + unread
    ledger.close()


def test_the_charge_of_a_step_that_was_left_running_covers_what_it_used(tmp_path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda seed: killed_run(tmp_path / str(seed), seed), range(RUNS)))
