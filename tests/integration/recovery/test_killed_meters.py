"""What a dead meter left behind: recovered by racing, interrupted and repeated commands; the living are left alone."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_green.clock import boot_id
from mlflow_green.metering.supervise import step_processes
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.records import Batch, Mode, Outcome, Owner
from tests.testkit.books import SpooledEnergy, findings, ledger_in, processes_left, spool_lines
from tests.testkit.ledger_samples import request, term
from tests.testkit.waiting import comes_true

HARD = """
version: 1
project: demo
tracking: {jobs: none}
budgets:
  - {name: total, scope: {project: demo}, limit: [5 kWh], period: total, mode: hard, unknown_step: admit}
"""
GREEN = [sys.executable, "-m", "mlflow_green.cli"]
BURN = [sys.executable, "-c", "while True: sum(range(10_000))"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "green.yaml").write_text(HARD)
    return tmp_path


def start(folder: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GREEN, *arguments],
        cwd=folder,
        env={**os.environ, "MLFLOW_GREEN_RUNTIME_DIR": str(folder / "runtime"), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def green(folder: Path, *arguments: str) -> str:
    process = start(folder, *arguments)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


def ticks_of(folder: Path, but: frozenset[str] = frozenset()) -> int:
    """Samples of a step, ``but`` those in some files."""
    lines = [line for line in spool_lines(folder) if line["sampler"] not in but]
    return sum(line["kind"] == "tick" and bool(line["tick"]["usages"]) for line in lines)


def killed_run(folder: Path, *, group: bool = True, ticks: int = 1, **environ: str) -> str:
    """Kill a metered command after some samples; the id of its hold."""
    before = frozenset(line["sampler"] for line in spool_lines(folder))
    process = start(folder, "run", "--", *BURN, **environ)
    while ticks_of(folder, before) < ticks:
        time.sleep(0.02)
        assert process.poll() is None
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (hold_id,) = (
        line["hold_id"] for line in spool_lines(folder) if line["kind"] == "begin" and line["sampler"] not in before
    )
    return hold_id


def closed_ledger(folder: Path):
    ledger = ledger_in(folder)
    assert ledger.open_holds() == ()
    assert findings(ledger) == ()
    assert processes_left(ledger) == set()
    assert list((folder / ".green/spool").glob("*.jsonl")) == []
    return ledger


def test_two_commands_that_recover_at_once_post_everything_once(folder: Path) -> None:
    seen = SpooledEnergy()
    for _ in range(3):
        killed_run(folder, group=False)
    seen.look(folder)
    racing = [start(folder, "balance") for _ in range(3)]
    for process in racing:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    ledger = closed_ledger(folder)
    assert [entry.outcome for entry in ledger.entries()] == [Outcome.LOST] * 3
    assert seen.missing_from(ledger) == {}


def test_a_recovery_that_is_killed_again_and_again_is_finished_by_the_next(folder: Path) -> None:
    dice, seen = random.Random(7), SpooledEnergy()
    for _ in range(2):
        killed_run(folder)
    seen.look(folder)
    for _ in range(6):
        process = start(folder, "balance")
        time.sleep(dice.uniform(0.3, 0.9))
        process.kill()
        process.communicate()
    green(folder, "balance")
    ledger = closed_ledger(folder)
    assert len(ledger.entries()) == 2
    assert seen.missing_from(ledger) == {}


def test_a_torn_last_line_costs_only_that_line(folder: Path) -> None:
    hold_id = killed_run(folder, ticks=3)
    (path,) = (folder / ".green/spool").glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    seen = SpooledEnergy()
    seen.look(folder)
    green(folder, "balance")
    ledger = closed_ledger(folder)
    (entry,) = ledger.entries()
    assert entry.hold_id == hold_id
    assert entry.total.microjoules > 0
    assert seen.missing_from(ledger) == {}


def test_the_spool_and_the_hold_of_a_living_meter_are_left_alone(folder: Path) -> None:
    process = start(folder, "run", "--", *BURN)
    while not ticks_of(folder):
        time.sleep(0.02)
    green(folder, "balance")
    assert len(list((folder / ".green/spool").glob("*.jsonl"))) == 1
    assert len(ledger_in(folder).open_holds()) == 1
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    (entry,) = closed_ledger(folder).entries()
    assert entry.outcome is Outcome.CANCELLED


def test_readings_outlive_a_ledger_that_was_deleted(folder: Path) -> None:
    hold_id = killed_run(folder)
    seen = SpooledEnergy()
    seen.look(folder)
    for path in (folder / ".green").glob("ledger.db*"):
        path.unlink()
    green(folder, "balance")
    ledger = closed_ledger(folder)
    assert [entry.hold_id for entry in ledger.entries()] == [hold_id]
    assert seen.missing_from(ledger) == {}


def test_a_hold_whose_spool_is_gone_is_charged_what_it_held(folder: Path) -> None:
    killed_run(folder)
    for path in (folder / ".green/spool").glob("*.jsonl"):
        path.unlink()
    (hold,) = ledger_in(folder).open_holds()
    green(folder, "balance")
    (entry,) = closed_ledger(folder).entries()
    assert entry.energy_charged_microjoules == sum(hold.amounts.values()) > 0


def test_a_hold_that_never_began_is_void(folder: Path) -> None:
    killed_run(folder)
    (session,) = (line for line in spool_lines(folder) if line["kind"] == "session")
    owner = Owner(**session["owner"])
    ledger = ledger_in(folder)
    ledger.commit(
        Batch(requests=(request("never", 5, term(limit=10**15, mode=Mode.HARD)),), owner=owner), admit_at_nothing
    )
    ledger.close()
    green(folder, "balance")
    ledger = closed_ledger(folder)
    assert [entry.step for entry in ledger.entries()] != ["never"]
    assert len(ledger.entries()) == 1
    assert sorted({row.kind for row in ledger.journal()}) == ["hold", "lost", "void"]


def test_an_orphan_without_a_keeper_is_ended_and_charged_for_the_whole_silence(folder: Path) -> None:
    hold_id = killed_run(folder, group=False, MLFLOW_GREEN_SAMPLER_PROCESS="0")
    assert step_processes(hold_id)
    watts = SpooledEnergy()
    watts.look(folder)
    (power_watts_max,) = watts.power_watts_max.values()
    time.sleep(2)
    green(folder, "balance")
    (entry,) = closed_ledger(folder).entries()
    unread = entry.energy_charged_microjoules - entry.total.microjoules
    assert unread >= 2 * power_watts_max * 1_000_000


def test_an_orphan_is_metered_until_it_is_ended_and_charged_that(folder: Path) -> None:
    hold_id = killed_run(folder, group=False)
    assert step_processes(hold_id)
    green(folder, "balance")
    (entry,) = closed_ledger(folder).entries()
    assert (entry.outcome, entry.reason) == (Outcome.LOST, "its owner died; it was metered to its end")
    assert entry.energy_charged_microjoules == entry.total.microjoules > 0


def test_an_orphan_under_a_hard_budget_is_ended_after_its_grace_though_no_command_follows(folder: Path) -> None:
    rule = "rules: [{at: 100%, of: spent, do: halt, grace: 1s}]"
    (folder / "green.yaml").write_text(HARD.replace("unknown_step: admit", f"unknown_step: admit, {rule}"))
    hold_id = killed_run(folder, group=False)
    assert step_processes(hold_id)
    assert comes_true(lambda: not step_processes(hold_id), 60)
    green(folder, "balance")
    (entry,) = closed_ledger(folder).entries()
    assert entry.energy_charged_microjoules == entry.total.microjoules > 0


def test_after_a_reboot_the_silence_is_bounded_by_lease_and_grace(folder: Path) -> None:
    """A hold of another boot belongs to nobody; its pid may be somebody else's by now."""
    process = start(folder, "run", "--", *BURN)
    while not ticks_of(folder):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGSTOP)  # it still lives, but under a boot id that is not ours any more
    (path,) = (folder / ".green/spool").glob("*.jsonl")
    path.write_text(path.read_text().replace(boot_id(), "an-earlier-boot"))
    with sqlite3.connect(folder / ".green/ledger.db") as database:
        database.execute("UPDATE holds SET owner = replace(owner, ?, 'an-earlier-boot')", [boot_id()])
    database.close()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    ledger = ledger_in(folder)
    assert {hold.owner.boot_id for hold in ledger.open_holds()} == {"an-earlier-boot"}
    ledger.close()
    green(folder, "balance")
    (entry,) = closed_ledger(folder).entries()
    assert entry.outcome is Outcome.LOST


def test_a_command_without_a_hard_budget_survives_its_meter_and_is_not_ended(tmp_path: Path) -> None:
    hold_id = killed_run(tmp_path, group=False)
    try:
        green(tmp_path, "balance")
        assert step_processes(hold_id), "observe ends nothing"
        assert len(list((tmp_path / ".green/spool").glob("*.jsonl"))) == 1
    finally:
        for pid in step_processes(hold_id):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    green(tmp_path, "balance")
    (entry,) = closed_ledger(tmp_path).entries()
    assert entry.hold_id == hold_id
    assert entry.outcome is Outcome.LOST


def test_a_spool_file_that_says_nothing_is_put_aside_with_a_message(folder: Path) -> None:
    spool = folder / ".green/spool"
    spool.mkdir(parents=True)
    (spool / "broken.jsonl").write_bytes(b"\0" * 100)
    green(folder, "balance")
    assert [path.name for path in spool.iterdir()] == ["broken.unreadable"]
