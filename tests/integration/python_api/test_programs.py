"""A program with blocks ends as it would without them, whatever happens to the meter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from mlflow_green.bootstrap import open_ledger, recover_into
from mlflow_green.clock import SystemClock
from mlflow_green.records import Domain, Outcome
from mlflow_green.settings import load_settings
from mlflow_green.units import microjoules
from tests.testkit.books import findings, spool_lines
from tests.testkit.nvml import build_fake_nvml

HEAVY = {"mlflow", "pandas", "numpy", "torch", "codecarbon"}
BURN = "\nimport time\ndef burn(s):\n    end = time.process_time() + s\n    while time.process_time() < end: pass\n"


class MinuteLater(SystemClock):
    def now(self) -> datetime:
        return super().now() + timedelta(minutes=1)


def test_importing_the_package_loads_nothing_heavy_and_nothing_of_ours_but_itself():
    code = "import sys, mlflow_green; print(*{name.partition('.')[0] for name in sys.modules}); print(*[n for n in sys.modules if n.startswith('mlflow_green.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded, ours = out.split("\n")[:2]
    assert HEAVY.isdisjoint(loaded.split())
    assert ours == ""


def test_a_block_without_a_hard_budget_loads_nothing_heavy_either(program):
    done = program(
        "import sys, mlflow_green\nwith mlflow_green.meter('train') as m: pass\nprint(m)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    assert done.returncode == 0, done.stderr
    assert (HEAVY | {"sqlalchemy", "alembic", "IPython"}).isdisjoint(done.stdout.splitlines()[-1].split())


def test_a_program_that_ends_right_after_its_block_loses_nothing(program, posted):
    done = program(f"import mlflow_green{BURN}with mlflow_green.meter('train'): burn(0.05)\n")
    assert (done.returncode, done.stderr) == (0, "")
    (entry,) = posted()
    assert entry.outcome is Outcome.SUCCEEDED
    assert entry.cpu_seconds >= 0.05


@pytest.mark.parametrize(
    ("ending", "code", "outcome"),
    [
        ("import sys; sys.exit(3)", 3, Outcome.FAILED),
        ("1 / 0", 1, Outcome.FAILED),
        ("m.__exit__ = None", 0, Outcome.CANCELLED),
    ],
    ids=["exit", "exception", "never-left"],
)
def test_a_program_that_ends_inside_a_block_ends_as_it_would(program, posted, ending, code, outcome):
    done = program(
        f"import mlflow_green\nm = mlflow_green.meter('train')\nm.__enter__()\ntry:\n    {ending}\nexcept BaseException as e:\n    m.__exit__(type(e), e, None)\n    raise\n"
    )
    assert done.returncode == code, done.stderr
    assert [entry.outcome for entry in posted()] == [outcome]


def test_a_killed_program_is_charged_what_was_read_and_a_little_for_its_last_moments(program, folder):
    done = program(
        f"import os, mlflow_green{BURN}with mlflow_green.meter('train'): burn(2.5); os.kill(os.getpid(), {signal.SIGKILL})\n"
    )
    assert done.returncode == -signal.SIGKILL
    power_watts_max = spool_lines(folder)[0]["book"]["power_watts_max"]
    settings = load_settings(folder, os.environ)
    ledger = open_ledger(settings, SystemClock())
    recover_into(ledger, settings, MinuteLater(), lambda _text: None)
    (entry,) = ledger.entries()
    assert (entry.step, entry.outcome) == ("train", Outcome.LOST)
    assert entry.total.low_microjoules > 0
    unread_microjoules = entry.energy_charged_microjoules - entry.total.microjoules
    assert unread_microjoules == pytest.approx(microjoules(power_watts_max * 5), rel=0.01)
    assert findings(ledger) == ()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_multiprocessing_are_views_inside_a_block_and_pay_for_themselves_outside(program, posted, method):
    done = program(
        "import multiprocessing, mlflow_green" + BURN + "def work(name):\n"
        "    with mlflow_green.meter(name) as m: burn(0.1)\n"
        "    return m.record.is_view\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context('{method}')\n"
        "    with mlflow_green.meter('parent'), context.Pool(1) as pool:\n"
        "        assert pool.map(work, ['inner']) == [True]\n"
        "    worker = context.Process(target=work, args=('alone',))\n"
        "    worker.start(); worker.join()\n"
        "    assert worker.exitcode == 0\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [(entry.step, entry.outcome) for entry in posted()] == [
        ("parent", Outcome.SUCCEEDED),
        ("alone", Outcome.SUCCEEDED),
    ]


def test_a_forked_child_that_lives_on_does_not_keep_the_next_block_from_metering_for_all(program, posted):
    done = program(
        "import os, signal, threading, time, mlflow_green\n"
        "with mlflow_green.meter('first'):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: signal.pause()\n"
        "while threading.active_count() > 1: time.sleep(0.02)\n"
        "with mlflow_green.meter('second'): pass\n"
        "os.kill(pid, signal.SIGKILL)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = posted()
    assert first.sampler_id is not None
    assert second.sampler_id is not None


def test_a_forked_child_keeps_neither_the_lock_nor_the_clocks_of_its_parent(program):
    done = program(
        "import os, mlflow_green\n"
        "def kept():\n"
        "    links = set()\n"
        "    for name in os.listdir('/proc/self/fd'):\n"
        "        try: links.add(os.path.basename(os.readlink(f'/proc/self/fd/{name}')))\n"
        "        except OSError: pass\n"
        "    return links & {'lock', 'anon_inode:[perf_event]'}\n"
        "with mlflow_green.meter('train'):\n"
        "    assert 'lock' in kept()\n"
        "    pid = os.fork()\n"
        "    if pid == 0: os._exit(len(kept()))\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "    assert 'lock' in kept()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_inside_a_metered_command_a_block_is_a_view_and_writes_nothing(folder, posted):
    code = (
        "import mlflow_green" + BURN + "with mlflow_green.meter('inner') as m: burn(0.1)\nprint(m.record.is_view, m)\n"
    )
    command = [sys.executable, "-m", "mlflow_green.cli", "run", "--step", "outer", "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True energy"), done.stdout
    assert "not metered" not in done.stdout
    assert [entry.step for entry in posted()] == ["outer"]


def test_the_program_keeps_its_signals_its_threads_and_its_environment(program):
    done = program(
        "import os, signal, threading, time, mlflow_green\n"
        "handlers = lambda: [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]\n"
        "before, environ = handlers(), dict(os.environ)\n"
        "with mlflow_green.meter('train'):\n    assert handlers() == before\n"
        "assert dict(os.environ) == environ\n"
        "end = time.monotonic() + 10\n"
        "while threading.active_count() > 1 and time.monotonic() < end: time.sleep(0.05)\n"
        "print(threading.active_count())\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


# --- when the meter cannot work -----------------------------------------------------------------------

WORKS = "import mlflow_green\nfor _ in range(2):\n    with mlflow_green.meter('train') as m: print('ran')\nprint(m)\n"


def test_switched_off_it_does_nothing_and_says_nothing(program, folder):
    done = program(WORKS, MLFLOW_GREEN_DISABLE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["ran", "ran"]
    assert done.stdout.splitlines()[2].startswith("energy not metered")
    assert not (folder / ".green").exists()


def test_a_folder_that_cannot_be_written_is_said_once_and_the_block_is_measured(program, folder):
    (folder / ".green").write_text("a file where a folder should be")
    done = program(WORKS)
    assert done.returncode == 0
    assert done.stderr.count("mlflow-green:") == 1, done.stderr
    assert "not recorded" in done.stderr
    assert done.stdout.splitlines()[2].startswith("energy 0")


def test_a_full_disk_is_said_once_and_the_block_goes_on(program):
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
    done = program(full + WORKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["ran", "ran"]
    assert done.stderr.count("cannot write") == 1, done.stderr


def test_a_wrong_policy_is_said_once_where_it_only_watches_and_stops_the_block_where_it_is_hard(program, folder):
    (folder / "green.yaml").write_text("version: 1\nbudgetz: []\n")
    done = program(WORKS)
    assert done.returncode == 0
    assert done.stderr.count("unknown key 'budgetz'") == 1, done.stderr
    assert done.stdout.splitlines()[2].startswith("energy not metered")
    (folder / "green.yaml").write_text("version: 1\nbudgetz: [{mode: hard}]\n")
    done = program(WORKS)
    assert done.returncode == 1
    assert "ran" not in done.stdout
    assert "a hard budget cannot be kept" in done.stderr


def test_a_block_that_runs_a_program_is_charged_what_its_own_process_does_on_a_gpu(program, posted, tmp_path):
    library, state = build_fake_nvml(tmp_path), tmp_path / "gpus.conf"
    done = program(
        f"""
import os, subprocess, time, mlflow_green
open({str(state)!r}, "w").write(f"*.energy_mj = 5\\n*.procs = {{os.getpid()}}:1:50\\n")
with mlflow_green.meter("train") as m:
    helper = subprocess.Popen(["sleep", "60"])
    time.sleep(0.2)
m.record
helper.kill()
""",
        LD_LIBRARY_PATH=str(library),
        FAKE_NVML_STATE=str(state),
    )
    assert (done.returncode, done.stderr) == (0, "")
    (entry,) = posted()
    assert entry.energy[Domain.GPU].microjoules >= 0.2 * 60_000_000
