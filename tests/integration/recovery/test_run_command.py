"""``mlflow-green run -- CMD``: one command as one step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_green.metering.supervise import start_ticks, step_processes
from mlflow_green.records import Outcome
from mlflow_green.reports.export import entry_to_json
from tests.testkit.books import findings, ledger_in, spool_lines

GREEN = [sys.executable, "-m", "mlflow_green.cli"]
BURN = "while True: sum(range(10_000))"


def policy(folder: Path, budget: str) -> None:
    (folder / "green.yaml").write_text(
        "version: 1\nproject: demo\ntracking: {jobs: none}\nbudgets:\n"
        f"  - {{name: total, scope: {{project: demo}}, period: total, mode: hard, {budget}}}\n"
    )


def start(folder: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GREEN, *arguments],
        cwd=folder,
        env={**os.environ, "MLFLOW_GREEN_RUNTIME_DIR": str(folder / "runtime"), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *command: str, **environ: str) -> tuple[int, str, str]:
    process = start(folder, "run", "--", *command, **environ)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(("script", "code"), [("true", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_the_exit_code_is_the_commands_own(tmp_path, script, code) -> None:
    found, _, err = run(tmp_path, "sh", "-c", script)
    assert found == code
    assert f"sh exited with {code}" in err


def test_without_a_hard_budget_only_the_spool_is_written_and_later_posted(tmp_path) -> None:
    code = (
        "import sys, mlflow_green.cli.main as cli\n"
        "try:\n    sys.argv = ['mlflow-green', 'run', '--', 'true']; cli.main()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'sqlalchemy', 'mlflow', 'pandas', 'numpy', 'alembic', 'codecarbon'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environ = {**os.environ, "MLFLOW_GREEN_RUNTIME_DIR": str(tmp_path / "runtime")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True)
    assert not (tmp_path / ".green/ledger.db").exists()
    assert next(iter(spool_lines(tmp_path)))["kind"] == "session"
    subprocess.run([*GREEN, "balance"], cwd=tmp_path, env=environ, check=True, stdout=subprocess.DEVNULL)
    ledger = ledger_in(tmp_path)
    assert [(entry.step, entry.outcome) for entry in ledger.entries()] == [("true", Outcome.SUCCEEDED)]
    assert findings(ledger) == ()


def test_the_command_sees_its_hold_and_its_mlflow_runs_can_be_found(tmp_path) -> None:
    policy(tmp_path, "limit: [1 kWh], unknown_step: admit")
    code, out, err = run(tmp_path, sys.executable, "-c", "import os, json; print(json.dumps(dict(os.environ)))")
    seen = json.loads(out)
    assert code == 0, err
    (entry,) = ledger_in(tmp_path).entries()
    assert seen["GREEN_HOLD_ID"] == entry.hold_id
    assert json.loads(seen["MLFLOW_RUN_CONTEXT"])["green.hold_id"] == entry.hold_id
    assert float(seen["GREEN_GRANT_JOULES"]) > 0
    assert findings(ledger_in(tmp_path)) == ()


def test_a_refused_command_is_not_started_and_the_reason_is_said(tmp_path) -> None:
    policy(tmp_path, "limit: [1 J], unknown_step: admit")
    process = start(tmp_path, "run", "--energy", "5 Wh", "--", "touch", "started")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 77, err
    assert "total" in err
    assert "5.00 Wh" in err
    assert not (tmp_path / "started").exists()
    (entry,) = ledger_in(tmp_path).entries()
    assert entry.outcome is Outcome.REFUSED
    assert findings(ledger_in(tmp_path)) == ()


def test_a_command_waits_with_one_line_until_another_settles(tmp_path) -> None:
    policy(
        tmp_path,
        "limit: [6 Wh], unknown_step: admit, max_wait: 1h, rules: [{at: 100%, of: committed, do: wait, for: 1h}]",
    )
    first = start(tmp_path, "run", "--energy", "5 Wh", "--", "sleep", "3")
    while not any(line["kind"] == "begin" for line in spool_lines(tmp_path)):
        time.sleep(0.02)
    second = start(tmp_path, "run", "--energy", "5 Wh", "--", "touch", "started")
    time.sleep(1)
    assert not (tmp_path / "started").exists()
    _, err = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err
    assert err.count(" waits: ") == 1, err


def test_a_halted_command_leaves_no_process_even_if_it_hides(tmp_path) -> None:
    policy(
        tmp_path,
        "limit: [4 J], unknown_step: admit, enforce: point, rules: [{at: 900%, of: spent, do: halt, grace: 1s}]",
    )
    hidden = f"(setsid {sys.executable} -c '{BURN}' &) ; trap '' TERM; {sys.executable} -c '{BURN}'"
    code, _, err = run(tmp_path, "sh", "-c", hidden)
    assert code == 76, err
    assert "halted" in err
    ledger = ledger_in(tmp_path)
    (entry,) = ledger.entries()
    assert entry.outcome is Outcome.HALTED
    assert step_processes(entry.hold_id) == frozenset()
    assert findings(ledger) == ()


def test_inside_a_metered_step_the_command_is_part_of_that_step(tmp_path) -> None:
    meter = f"{os.getpid()}:{start_ticks(os.getpid())}"
    script = "echo $GREEN_HOLD_ID; exit 4"
    code, out, err = run(tmp_path, "sh", "-c", script, GREEN_HOLD_ID="outer", GREEN_METER=meter)
    assert (code, out, err) == (4, "outer\n", "")
    assert not (tmp_path / ".green").exists()


@pytest.mark.parametrize("meter", ["", "999999999:1", "nonsense"])
def test_a_shell_that_a_dead_meter_left_behind_is_metered_again(tmp_path, meter) -> None:
    code, _, err = run(tmp_path, "true", GREEN_HOLD_ID="outer", GREEN_METER=meter)
    assert code == 0
    assert "energy" in err
    assert (tmp_path / ".green").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command_and_what_it_says_then_counts(tmp_path, number) -> None:
    script = "trap 'exit 5' INT TERM; touch ready; while :; do sleep 0.05; done"
    process = start(tmp_path, "run", "--", "sh", "-c", script)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err


def test_json_tells_the_entry_that_was_posted(tmp_path) -> None:
    process = start(tmp_path, "run", "--json", "--step", "train", "--", "sh", "-c", "echo out; exit 3")
    out, err = process.communicate(timeout=60)
    told = json.loads(err.splitlines()[-1])
    assert (out, process.returncode, told["exit_code"], told["argv"][0]) == ("out\n", 3, 3, "sh")
    subprocess.run([*GREEN, "balance"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    (entry,) = ledger_in(tmp_path).entries()
    assert told["entry"] == entry_to_json(entry, {})
    assert (entry.step, entry.outcome) == ("train", Outcome.FAILED)


def test_a_command_that_does_not_exist_says_so(tmp_path) -> None:
    code, _, err = run(tmp_path, "no-such-command")
    assert code == 127
    assert "cannot run no-such-command" in err
