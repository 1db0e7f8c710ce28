"""Laws 2 and 4 with real processes: nothing over the limit, nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch
from tests.testkit.ledger_samples import OWNER, admit_what_fits, open_at, request, term

ROOT = Path(__file__).parents[3]

# Each worker takes 7 of 1000 until nothing fits any more, and says what it got.
AT_THE_LIMIT = """
import sys
from pathlib import Path
from tests.testkit.ledger_samples import *
from mlflow_green.records import Batch
ledger, me = open_at(Path(sys.argv[1])), sys.argv[2]
refused = held = n = 0
while refused < 20:
    n += 1
    batch = Batch(requests=(request(f"{me}-{n}", 7, term(limit=1000)),), owner=OWNER)
    (answer,) = ledger.commit(batch, admit_what_fits).answers
    held, refused = held + bool(answer.hold), refused + (not answer.hold)
print(held)
"""

# Holds and settles for ever, and tells each one after it was acknowledged.
FOR_EVER = """
import os, sys
from pathlib import Path
from tests.testkit.ledger_samples import *
from mlflow_green.records import Batch
ledger, me, n = open_at(Path(sys.argv[1])), sys.argv[2], 0
budget = term(limit=10**12)
while True:
    n += 1
    (answer,) = ledger.commit(Batch(requests=(request(f"{me}-{n}", 5, budget),), owner=OWNER), admit_what_fits).answers
    os.write(1, f"held {answer.hold.hold_id}\\n".encode())
    ledger.commit(Batch(closings=(settle(answer.hold, 3),)), admit_what_fits)
    os.write(1, f"settled {answer.hold.hold_id}\\n".encode())
"""


def start(script, *arguments):
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE)


def test_four_processes_at_the_limit_hold_all_of_it_and_no_more(tmp_path):
    workers = [start(AT_THE_LIMIT, tmp_path, name) for name in "abcd"]
    got = [int(worker.communicate(timeout=120)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
    ledger = open_at(tmp_path)
    assert sum(got) == 1000 // 7
    assert ledger.balances()[0].held == sum(got) * 7
    committed = 0
    for row in ledger.journal():
        committed += row.delta_held + row.delta_spent
        assert committed <= 1000
    assert verify(ledger, lambda _owner: True) == ()
    ledger.close()


def test_what_was_acknowledged_survives_kill_nine(tmp_path):
    dice = random.Random(4)
    acknowledged = {"held": set(), "settled": set()}
    open_at(tmp_path).close()
    for storm in range(4):
        workers = [start(FOR_EVER, tmp_path, f"{storm}{name}") for name in "ab"]
        lines = [worker.stdout.readline() for worker in workers]
        time.sleep(dice.uniform(0.05, 0.4))
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        for worker, line in zip(workers, lines, strict=True):
            rest = worker.stdout.read()
            worker.wait(timeout=30)
            for told in (line + rest).decode().splitlines():
                verb, hold_id = told.split()
                acknowledged[verb].add(hold_id)
    ledger = open_at(tmp_path)
    assert len(acknowledged["settled"]) > 10
    assert acknowledged["held"] <= {row.hold_id for row in ledger.journal() if row.kind == "hold"}
    assert acknowledged["settled"] <= {row.hold_id for row in ledger.journal() if row.kind == "settle"}
    assert acknowledged["settled"] <= {entry.hold_id for entry in ledger.entries()}
    assert [text for text in verify(ledger, lambda _owner: True) if "windows attributed" not in text] == []
    after = Batch(requests=(request("after", 1, term(limit=10**12)),), owner=OWNER)
    assert ledger.commit(after, admit_what_fits).answers[0].hold
    ledger.close()


def test_eight_processes_that_open_a_new_ledger_at_once_make_one(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.testkit.ledger_samples import *;"
        "open_at(Path(sys.argv[1])).put('alert', sys.argv[2], {})"
    )
    workers = [start(script, tmp_path / "new", n) for n in range(8)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 8
    ledger = open_at(tmp_path / "new")
    assert ledger.count("alert") == 8
    ledger.close()
