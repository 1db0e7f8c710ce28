"""A ledger on a network file system: one host at a time, whoever is stopped, cut off or killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.lease import Lease
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.share import publish
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch
from tests.testkit.ledger_samples import (
    OWNER,
    SetClock,
    admit_what_fits,
    die,
    journal_path,
    lease_path,
    let_lapse,
    open_at,
    open_on_share,
    request,
    term,
)
from tests.testkit.nobody import as_nobody
from tests.testkit.waiting import comes_true

ROOT = Path(__file__).parents[3]

# Takes the ledger as one of several hosts, says whether it got it, and keeps it until its input ends.
ONE_OF_MANY = """
import sys
from pathlib import Path
from mlflow_green.errors import LedgerUnavailable
from tests.testkit.ledger_samples import *
from mlflow_green.records import Batch
input()
try:
    ledger = open_on_share(Path(sys.argv[1]), host=sys.argv[2])
except LedgerUnavailable as error:
    print("refused", error, flush=True)
else:
    held = ledger.commit(Batch(requests=(request(sys.argv[2], 1, term()),), owner=OWNER), admit_what_fits).answers
    print("got it", len(held), flush=True)
    sys.stdin.read()
    ledger.close()
"""

# Takes each of many leases at the same moment as its rivals, and says which of them it got.
RIVAL = """
import sys, time
from pathlib import Path
from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.lease import take_lease
folder, me = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
begin, leases = float(input()), []
for n in range(100):
    while time.monotonic() < begin + n / 50:
        pass
    try:
        leases.append(take_lease(folder / str(n), host=me, boot=me, cache=folder, cache_id=me))
        print(n, flush=True)
    except LedgerUnavailable:
        pass
print("done", flush=True)
sys.stdin.read()
"""

# Takes 5 of 100 until nothing fits any more, and says what it got.
AT_THE_LIMIT = """
import sys
from pathlib import Path
from tests.testkit.ledger_samples import *
from mlflow_green.records import Batch
ledger, me, hold, n = open_on_share(Path(sys.argv[1])), sys.argv[2], True, 0
while hold:
    n += 1
    batch = Batch(requests=(request(f"{me}-{n}", 5, term(limit=100)),), owner=OWNER)
    hold = ledger.commit(batch, admit_what_fits).answers[0].hold
    if hold:
        print(hold.hold_id)
ledger.close()
"""

# Holds for ever, and tells each hold after it was acknowledged; then why it could not go on.
FOR_EVER = """
import os, sys
from pathlib import Path
from mlflow_green.errors import LedgerUnavailable
from tests.testkit.ledger_samples import *
from mlflow_green.records import Batch
ledger, me, n = open_on_share(Path(sys.argv[1])), sys.argv[2], 0
budget = term(limit=10**12)
try:
    while True:
        n += 1
        batch = Batch(requests=(request(f"{me}-{n}", 5, budget),), owner=OWNER)
        (answer,) = ledger.commit(batch, admit_what_fits).answers
        os.write(1, f"{answer.hold.hold_id}\\n".encode())
except LedgerUnavailable as error:
    os.write(2, str(error).encode())
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hold_one(ledger, name, amount=5):
    batch = Batch(requests=(request(name, amount, term(limit=10**12)),), owner=OWNER)
    return ledger.commit(batch, admit_what_fits).answers[0].hold


def held(ledger):
    return {hold.hold_id for hold in ledger.open_holds()}


def test_a_second_host_is_told_who_has_the_ledger_and_what_to_do(tmp_path):
    ledger = open_on_share(tmp_path, host="login1")
    with pytest.raises(LedgerUnavailable) as caught:
        open_on_share(tmp_path, host="node7")
    assert "in use by host login1, since 20" in str(caught.value)
    assert "last sign of life 0 s ago" in str(caught.value)
    assert "work there, or wait" in str(caught.value)
    assert hold_one(ledger, "train")
    ledger.close()


def test_the_last_process_that_closes_frees_the_ledger_at_once(tmp_path):
    first, second = open_on_share(tmp_path), open_on_share(tmp_path)
    hold = hold_one(first, "train")
    first.close()
    first.close()
    with pytest.raises(LedgerUnavailable, match="in use by host login1"):
        open_on_share(tmp_path, host="node7")
    assert hold_one(second, "more")
    second.close()
    elsewhere = open_on_share(tmp_path, host="node7")
    assert hold in elsewhere.open_holds()
    elsewhere.close()


def test_a_host_that_gave_no_sign_of_life_is_replaced_and_cannot_write_any_more(tmp_path):
    first = open_on_share(tmp_path, host="login1")
    hold = hold_one(first, "before")
    let_lapse(tmp_path)
    second = open_on_share(tmp_path, host="node7")
    with pytest.raises(LedgerUnavailable, match="was taken over by host node7"):
        hold_one(first, "late")
    assert first.open_holds() == (hold,)
    after = hold_one(second, "after")
    first.close()
    assert hold_one(second, "still the holder")
    assert second.open_holds()[:2] == (hold, after)
    second.close()
    assert verify(open_on_share(tmp_path, host="third"), lambda _owner: True) == ()


def test_a_write_that_was_under_way_when_the_host_was_replaced_reaches_nobody(tmp_path):
    first = open_on_share(tmp_path, host="login1")
    hold_one(first, "before")
    with journal_path(tmp_path).open("r+b") as late:
        let_lapse(tmp_path)
        second = open_on_share(tmp_path, host="node7")
        holds = [hold_one(second, name) for name in "ab"]
        late.seek(0, os.SEEK_END)
        late.write(b"half a line of the first host")
    assert hold_one(second, "c")
    second.close()
    die(first)
    third = open_on_share(tmp_path, host="third")
    assert held(third) > {hold.hold_id for hold in holds}
    third.close()


def test_a_host_that_is_replaced_in_the_middle_of_a_transaction_does_not_acknowledge_it(tmp_path):
    first, others = open_on_share(tmp_path, host="login1"), []

    def so_slow_that_another_host_takes_over(asked, balances):
        let_lapse(tmp_path)
        others.append(open_on_share(tmp_path, host="node7"))
        return admit_what_fits(asked, balances)

    batch = Batch(requests=(request("late", 5, term()),), owner=OWNER)
    with pytest.raises(LedgerUnavailable, match="was taken over by host node7"):
        first.commit(batch, so_slow_that_another_host_takes_over)
    assert first.open_holds() == others[0].open_holds() == ()
    hold = hold_one(others[0], "after")
    assert others[0].open_holds() == (hold,)
    first.close()
    others[0].close()


def test_a_lapsed_lease_that_nobody_took_is_renewed_by_the_next_write(tmp_path):
    ledger = open_on_share(tmp_path)
    let_lapse(tmp_path)
    assert hold_one(ledger, "train")
    with pytest.raises(LedgerUnavailable, match="in use by host login1"):
        open_on_share(tmp_path, host="node7")
    ledger.close()


def test_a_process_that_has_it_open_and_writes_nothing_renews_the_lease(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow_green.ledger.lease.LEASE_SECONDS", 0.3)
    ledger = open_on_share(tmp_path)
    before = lease_path(tmp_path).stat().st_mtime_ns
    assert comes_true(lambda: lease_path(tmp_path).stat().st_mtime_ns > before, 10)
    ledger.close()
    after = lease_path(tmp_path).stat().st_mtime_ns
    assert not comes_true(lambda: lease_path(tmp_path).stat().st_mtime_ns != after, 0.5)


def test_after_a_restart_the_same_host_waits_like_any_other(tmp_path):
    die(open_on_share(tmp_path, boot="a"))
    with pytest.raises(LedgerUnavailable, match="in use by host login1"):
        open_on_share(tmp_path, boot="b")
    let_lapse(tmp_path)
    open_on_share(tmp_path, boot="b").close()


def test_a_process_of_the_same_boot_goes_on_at_once_after_a_kill(tmp_path):
    ledger = open_on_share(tmp_path)
    hold = hold_one(ledger, "train")
    die(ledger)
    again = open_on_share(tmp_path)
    assert again.open_holds() == (hold,)
    again.close()


def test_a_process_that_was_killed_while_it_took_the_lease_is_in_nobodys_way(tmp_path):
    die(open_on_share(tmp_path))
    stray = lease_path(tmp_path).with_name("0123.tmp")
    os.link(lease_path(tmp_path), stray)
    ledger = open_on_share(tmp_path)
    assert hold_one(ledger, "train")
    assert not stray.exists()
    ledger.close()


def test_containers_of_one_kernel_share_the_ledger_if_they_share_the_cache(tmp_path):
    first = open_on_share(tmp_path, host="container1", boot="a", cache_dir=tmp_path / "cache")
    second = open_on_share(tmp_path, host="container2", boot="a", cache_dir=tmp_path / "cache")
    assert held(second) == set()
    assert hold_one(first, "a").hold_id in held(second)
    with pytest.raises(LedgerUnavailable, match="another MLFLOW_GREEN_RUNTIME_DIR"):
        open_on_share(tmp_path, host="container3", boot="a", cache_dir=tmp_path / "another")
    first.close()
    second.close()


def test_of_many_hosts_that_find_a_lapsed_lease_one_gets_it(tmp_path):
    die(open_on_share(tmp_path, host="dead"))
    for _round in range(3):
        let_lapse(tmp_path)
        hosts = [start(ONE_OF_MANY, tmp_path, f"node{n}") for n in range(6)]
        for host in hosts:
            host.stdin.write("go\n")
            host.stdin.flush()
        told = [host.stdout.readline() for host in hosts]
        assert sorted(text.split()[0] for text in told) == ["got", *["refused"] * 5], told
        winner = next(host for host, text in zip(hosts, told, strict=True) if text.startswith("got"))
        winner.kill()
        for host in hosts:
            host.communicate(timeout=60)
        assert len(list((tmp_path / "share/ledger.journal").iterdir())) == 2, "one lease and one journal are left"


def test_no_race_gives_one_lease_to_two_hosts(tmp_path):
    hour_ago = time.time() - 3600
    for n in range(100):
        (tmp_path / str(n)).mkdir()
        lapsed = tmp_path / str(n) / "1.lease"
        lapsed.write_text(json.dumps({"host": "dead", "boot_id": "b", "cache": "c", "cache_id": "i", "since": "s"}))
        os.utime(lapsed, (hour_ago, hour_ago))
    rivals = [start(RIVAL, tmp_path, f"node{n}") for n in range(3)]
    assert [rival.stdout.readline() for rival in rivals] == ["ready\n"] * 3
    begin = time.monotonic() + 0.2
    for rival in rivals:
        rival.stdin.write(f"{begin}\n")
        rival.stdin.flush()
    got = [line.strip() for rival in rivals for line in iter(rival.stdout.readline, "done\n")]
    for rival in rivals:
        rival.communicate(timeout=60)
    assert sorted(map(int, got)) == list(range(100))


def test_a_host_that_is_stopped_and_goes_on_after_a_takeover_loses_nothing_that_it_acknowledged(tmp_path):
    for n in range(3):
        worker = start(FOR_EVER, tmp_path, f"worker{n}")
        told = [worker.stdout.readline() for _ in range(5 + 7 * n)]
        worker.send_signal(signal.SIGSTOP)
        let_lapse(tmp_path)
        elsewhere = open_on_share(tmp_path, host="node7")
        mine = {hold_one(elsewhere, f"{n}-{m}").hold_id for m in range(3)}
        worker.send_signal(signal.SIGCONT)
        rest, problem = worker.communicate(timeout=60)
        assert "was taken over by host node7" in problem
        acknowledged = {*"".join(told).split(), *rest.split()}
        assert acknowledged | mine <= held(elsewhere)
        elsewhere.close()
        shutil.rmtree(tmp_path / "cache of node7")
    rebuilt = open_on_share(tmp_path, host="third")
    assert acknowledged | mine <= held(rebuilt)
    assert verify(rebuilt, lambda _owner: True) == ()
    rebuilt.close()


def test_a_takeover_just_after_the_lease_was_looked_at_is_told_as_one(tmp_path, monkeypatch):
    stopped = open_on_share(tmp_path)
    check, elsewhere = Lease.check, []

    def taken_over_after(lease):
        monkeypatch.undo()
        check(lease)
        let_lapse(tmp_path)
        elsewhere.append(open_on_share(tmp_path, host="node7"))

    monkeypatch.setattr(Lease, "check", taken_over_after)
    with pytest.raises(LedgerUnavailable, match="was taken over by host node7"):
        hold_one(stopped, "train")
    assert held(elsewhere[0]) == set()
    die(stopped)
    elsewhere[0].close()


def test_what_was_acknowledged_survives_kill_nine_and_the_loss_of_the_cache(tmp_path):
    acknowledged = set()
    for storm in range(4):
        workers = [start(FOR_EVER, tmp_path, f"{storm}{name}") for name in "ab"]
        told = [worker.stdout.readline() for worker in workers for _ in range(3 + storm)]
        for worker in workers:
            worker.kill()
        told += [worker.communicate(timeout=60)[0] for worker in workers]
        acknowledged |= set("".join(told).split())
    before = open_on_share(tmp_path)
    balances, journal = before.balances(), before.journal()
    die(before)
    shutil.rmtree(tmp_path / "cache of login1")
    let_lapse(tmp_path)
    ledger = open_on_share(tmp_path)
    assert len(acknowledged) > 10
    assert acknowledged <= held(ledger)
    assert (ledger.balances(), ledger.journal()) == (balances, journal)
    assert verify(ledger, lambda _owner: True) == ()
    assert hold_one(ledger, "after")
    ledger.close()


def test_four_processes_of_one_host_hold_all_of_a_budget_and_no_more(tmp_path):
    workers = [start(AT_THE_LIMIT, tmp_path, name) for name in "abcd"]
    got = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    shutil.rmtree(tmp_path / "cache of login1")
    ledger = open_on_share(tmp_path)
    assert held(ledger) == {hold_id for ids in got for hold_id in ids}
    assert ledger.balances()[0].held == 100
    ledger.close()


def test_a_forked_child_neither_writes_nor_frees_the_ledger(tmp_path):
    ledger = open_on_share(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            hold_one(ledger, "child")
        except LedgerUnavailable as error:
            ledger.close()
            os._exit(42 if "forked" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    with pytest.raises(LedgerUnavailable, match="in use by host login1"):
        open_on_share(tmp_path, host="node7")
    assert hold_one(ledger, "parent")
    ledger.close()
    open_on_share(tmp_path, host="node7").close()


def test_only_a_ledger_on_a_share_keeps_other_hosts_out(tmp_path):
    on_share, on_disk = open_on_share(tmp_path), open_at(tmp_path / "disk")
    assert on_share.excludes_other_hosts
    assert not on_disk.excludes_other_hosts
    assert not MemoryLedger(SetClock()).excludes_other_hosts
    on_share.close()
    on_disk.close()


def test_a_sqlite_file_that_was_moved_to_a_share_is_left_alone(tmp_path):
    open_at(tmp_path / "share").close()
    with pytest.raises(LedgerUnavailable, match=r"nfs4.*cp .*then set MLFLOW_GREEN_LEDGER=sqlite:////var/tmp/"):
        open_on_share(tmp_path)
    assert not (tmp_path / "share" / "ledger.journal").exists()


def test_the_cache_lies_on_a_local_disk_where_only_its_owner_can_read_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path / "runtime"))
    open_on_share(tmp_path, cache_dir=None).close()
    (cache,) = (tmp_path / "runtime").glob("mlflow-green-*/ledger-*/ledger.db")
    assert cache.parents[1].stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_on_the_share_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path / "share" / "runtime"))
    ledger = open_on_share(tmp_path, cache_dir=None)
    assert not (tmp_path / "share" / "runtime").exists()
    cache = Path(ledger._store.path).parent
    ledger.close()
    shutil.rmtree(cache)


def test_without_any_local_disk_the_refusal_says_so(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text("1 0 0:1 / / rw - lustre server:/ rw\n")
    with pytest.raises(LedgerUnavailable, match=r"lustre.*MLFLOW_GREEN_RUNTIME_DIR.*MLFLOW_GREEN_LEDGER"):
        open_at(tmp_path / "project", mountinfo_path=mounts)
    assert not (tmp_path / "project").exists()


def test_a_link_to_a_share_leads_to_the_share(tmp_path):
    ledger = open_on_share(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "share")
    with pytest.raises(LedgerUnavailable, match="in use by host login1"):
        open_at(tmp_path / "link", mountinfo_path=tmp_path / "mountinfo", hostname="b", cache_dir=tmp_path / "b")
    ledger.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder of somebody else's needs root")
def test_a_cache_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_GREEN_RUNTIME_DIR", str(tmp_path))
    foreign = tmp_path / f"mlflow-green-{os.geteuid()}"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    with pytest.raises(LedgerUnavailable, match="belongs to user 65534"):
        open_on_share(tmp_path, cache_dir=None)


@pytest.mark.skipif(
    os.geteuid() != 0 or Path("/proc/sys/fs/protected_hardlinks").read_text() != "1\n",
    reason="a kernel that refuses a link needs root and protected_hardlinks",
)
def test_a_file_system_without_hard_links_is_refused_with_a_way_out():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    fd = os.open(folder / "mine", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with as_nobody(), pytest.raises(LedgerUnavailable, match=r"no hard links.*MLFLOW_GREEN_LEDGER"):
            publish(folder / "mine", fd, folder / "1.lease")
    finally:
        os.close(fd)
        shutil.rmtree(folder)


def test_the_lease_tells_people_who_holds_it(tmp_path):
    ledger = open_on_share(tmp_path)
    told = json.loads(lease_path(tmp_path).read_text())
    assert (told["host"], told["boot_id"], told["epoch"]) == ("login1", "boot of login1", 1)
    ledger.close()
    with sqlite3.connect(tmp_path / "cache of login1" / "ledger.db") as connection:
        assert connection.execute("SELECT sequence FROM position").fetchone() == (0,)
