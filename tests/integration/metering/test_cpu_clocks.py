"""Clocks on real processes, compared with what the kernel says of the same processes afterwards."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.metering.cpu_clock import (
    CgroupClock,
    PerfClock,
    ProcessTreeClock,
    metered_popen,
    open_clock,
    start_process,
)
from mlflow_green.records import CpuClockName
from mlflow_green.sensors.proc_stat import TICK_SECONDS
from tests.testkit.workload import private_cgroup

BURN = """
import os, sys, time, threading
def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass
"""
THREADS = (
    BURN
    + "ts = [threading.Thread(target=burn, args=(0.3,)) for _ in range(3)]; [t.start() for t in ts]; [t.join() for t in ts]"
)
STORM = (
    BURN
    + """
for _ in range(COUNT):
    pid = os.fork()
    if pid == 0:
        burn(0.001); os._exit(0)
    os.waitpid(pid, 0)
"""
)
DAEMON = (
    BURN
    + """
r, w = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        burn(0.5); os._exit(0)
    os._exit(0)
os.close(w); os.wait(); os.read(r, 1)
"""
)


def perf_clock() -> PerfClock:
    try:
        return PerfClock.open_on_current_thread()
    except OSError as error:
        pytest.skip(f"perf_event_open is not allowed here: {error}")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(code: str) -> float:
    """CPU seconds of a real process that runs ``code``, as the kernel says."""
    before = children_seconds()
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    return children_seconds() - before


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


# --- the account of a cgroup ---------------------------------------------------------------------

V1_STEP = "/slurm_node1/uid_1000/job_7/step_0/task_0"
V2_STEP = "/system.slice/node1_slurmstepd.scope/job_7/step_batch/user/task_0"
V1_MOUNT = "34 31 0:30 {shown} {at} rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNT = "41 31 0:38 {shown} {at} rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
OTHER_MOUNTS = (
    "23 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


class Tree:
    """A /proc and the cgroup mounts that it tells of, in a folder."""

    def __init__(self, folder: Path, *, own: str, mounts: str) -> None:
        self.proc_root, self.root = folder / "proc", folder / "root"
        (self.proc_root / "self").mkdir(parents=True)
        (self.proc_root / "self/cgroup").write_text(own)
        (self.proc_root / "self/mountinfo").write_text(OTHER_MOUNTS + mounts)

    def write(self, account: str, text: str) -> None:
        path = self.root / account.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def has_process(self, pid: int, parent: int) -> None:
        (self.proc_root / str(pid)).mkdir()
        (self.proc_root / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} {'0 ' * 40}")

    def open(self) -> CgroupClock:
        return CgroupClock.open_own(self.proc_root, self.root)


def v1_tree(folder: Path, path: str = V1_STEP, shown: str = "/", at: str = "/sys/fs/cgroup/cpuacct") -> Tree:
    own = f"9:memory:{path}\n2:cpu,cpuacct:{path}\n0::/\n"
    return Tree(folder, own=own, mounts=V1_MOUNT.format(shown=shown, at=at) + V2_MOUNT.format(shown="/", at="/unified"))


def v2_tree(folder: Path) -> Tree:
    return Tree(folder, own=f"0::{V2_STEP}\n", mounts=V2_MOUNT.format(shown="/", at="/sys/fs/cgroup"))


def test_version_1_counts_nanoseconds_since_the_clock_was_opened(tmp_path):
    tree = v1_tree(tmp_path)
    account = f"/sys/fs/cgroup/cpuacct{V1_STEP}/cpuacct.usage"
    tree.write(account, "5000000000\n")
    clock = tree.open()
    assert (clock.name, clock.seconds()) == (CpuClockName.CGROUP, 0)
    tree.write(account, "7500000000\n")
    assert clock.seconds() == 2.5


def test_version_2_counts_microseconds_since_the_clock_was_opened(tmp_path):
    tree = v2_tree(tmp_path)
    account = f"/sys/fs/cgroup{V2_STEP}/cpu.stat"
    tree.write(account, "usage_usec 4000000\nuser_usec 3000000\nsystem_usec 1000000\n")
    clock = tree.open()
    tree.write(account, "usage_usec 5500000\nuser_usec 4000000\nsystem_usec 1500000\n")
    assert clock.seconds() == 1.5


@pytest.mark.parametrize("shown", ["/slurm_node1/uid_1000/job_7", "/slurm_node1"])
def test_a_container_that_shows_a_part_of_the_tree_is_understood(tmp_path, shown):
    tree = v1_tree(tmp_path, shown=shown, at=r"/my\040mounts/cpu")
    tree.write(f"/my mounts/cpu{V1_STEP.removeprefix(shown)}/cpuacct.usage", "1\n")
    assert tree.open().seconds() == 0


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/user.slice/user-1000.slice/session-2.scope",
        "/docker/0123abcd",
        "/slurm_node1/uid_1000/job_7",  # the job, not one of its steps
        "/jobs/job_7/step_0",
        "/../slurm_node1/uid_1000/job_7/step_0",
    ],
)
def test_only_the_cgroup_of_a_slurm_step_is_a_clock(tmp_path, path):
    tree = v1_tree(tmp_path, path=path)
    tree.write(f"/sys/fs/cgroup/cpuacct{path}/cpuacct.usage", "1\n")
    with pytest.raises(OSError, match="in no cgroup of a Slurm step"):
        tree.open()
    clock = open_clock(own_cgroup=True, proc_root=tree.proc_root, root=tree.root)
    assert clock.name in {CpuClockName.PERF, CpuClockName.POLLING}
    clock.close()


def test_an_account_that_is_missing_or_of_another_form_is_no_clock(tmp_path):
    tree = v2_tree(tmp_path)
    for text in (None, "", "user_usec 5\n", "usage_usec many\n", "usage_usec\n"):
        if text is not None:
            tree.write(f"/sys/fs/cgroup{V2_STEP}/cpu.stat", text)
        with pytest.raises(OSError, match="in no cgroup"):
            tree.open()


def test_a_read_that_fails_is_the_last_value_and_a_closed_cgroup_clock_stands_still(tmp_path):
    tree = v1_tree(tmp_path)
    account = f"/sys/fs/cgroup/cpuacct{V1_STEP}/cpuacct.usage"
    tree.write(account, "0\n")
    clock = tree.open()
    tree.write(account, "1000000000\n")
    assert clock.seconds() == 1
    (tree.root / account.lstrip("/")).unlink()  # as when Slurm removes the step's cgroup
    assert clock.seconds() == 1
    tree.write(account, "2000000000\n")
    clock.close()
    clock.close()
    tree.write(account, "3000000000\n")
    assert clock.seconds() == 2


@given(st.lists(st.integers(0, 10**15) | st.just("broken"), min_size=1, max_size=8))
def test_a_cgroup_clock_never_decreases_whatever_is_read(tmp_path_factory, counts):
    account = tmp_path_factory.mktemp("step") / "cpuacct.usage"
    account.write_text("1000\n")
    clock, seen = CgroupClock(account), [0.0]
    for count in counts:
        account.write_text(f"{count}\n")
        seen.append(clock.seconds())
    assert seen == sorted(seen)
    highest = max([1_000, *(count for count in counts if count != "broken")])
    assert seen[-1] == pytest.approx((highest - 1_000) / 1e9)


CONTAINER = "/docker/0123abcd"
OURS, CHILD, GRANDCHILD, STRANGER = os.getpid(), 10_000_001, 10_000_002, 10_000_003


@pytest.mark.parametrize(
    ("members", "below", "alone"),
    [
        ([OURS], [], True),
        ([OURS, CHILD], [GRANDCHILD], True),
        ([], [], False),
        ([OURS, STRANGER], [], False),
        ([OURS], [STRANGER], False),
        ([OURS, 0], [], False),  # a process that cannot be seen from this container
    ],
)
def test_a_cgroup_is_a_jobs_own_when_it_holds_only_the_meter_and_what_that_started(tmp_path, members, below, alone):
    tree = v1_tree(tmp_path, path=CONTAINER, shown=CONTAINER)
    for pid, parent in [(CHILD, OURS), (GRANDCHILD, CHILD), (STRANGER, 1), (1, 0)]:
        tree.has_process(pid, parent)
    for folder, pids in [("", members), ("/below", below)]:
        tree.write(f"/sys/fs/cgroup/cpuacct{folder}/cgroup.procs", "".join(f"{pid}\n" for pid in pids))
    tree.write("/sys/fs/cgroup/cpuacct/cpuacct.usage", "1\n")
    clock = open_clock(runs_one=True, proc_root=tree.proc_root, root=tree.root)
    assert (clock.name is CpuClockName.CGROUP) == alone
    clock.close()


def test_a_process_that_may_run_more_than_one_job_does_not_take_its_cgroup_for_the_jobs(tmp_path):
    tree = v1_tree(tmp_path, path=CONTAINER, shown=CONTAINER)
    tree.write("/sys/fs/cgroup/cpuacct/cgroup.procs", f"{OURS}\n")
    tree.write("/sys/fs/cgroup/cpuacct/cpuacct.usage", "1\n")
    clock = open_clock(proc_root=tree.proc_root, root=tree.root)
    assert clock.name is not CpuClockName.CGROUP
    clock.close()


ALONE = """
import os, subprocess, sys
group, stranger = sys.argv[1:]
open(group + "/cgroup.procs", "w").write("0")
if stranger:
    open(group + "/cgroup.procs", "w").write(stranger)
from mlflow_green.metering.cpu_clock import open_clock
clock = open_clock(runs_one=True)
subprocess.run([sys.executable, "-S", "-c", "import time\\nwhile time.process_time() < 0.3: pass"], check=True)
print(clock.name, clock.seconds() >= 0.3, flush=True)
"""


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_real_cgroup_is_a_clock_for_whoever_is_alone_in_it(is_shared):
    with private_cgroup() as group, subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            if group is None:
                pytest.skip("only root may make a cgroup here")
            code = [sys.executable, "-c", ALONE, str(group), str(stranger.pid) if is_shared else ""]
            done = subprocess.run(code, capture_output=True, text=True, check=False, timeout=60)
        finally:
            stranger.kill()
    assert done.returncode == 0, done.stderr
    name, counted = done.stdout.split()
    assert (name == "cgroup") == (not is_shared)
    assert counted == "True" or name == "polling"


IN_STEP = (
    """
import os
open("{step}/cgroup.procs", "w").write(str(os.getpid()))
from mlflow_green.metering.cpu_clock import open_clock
clock = open_clock(own_cgroup=True)
"""
    + DAEMON.replace("{", "{{").replace("}", "}}")
    + """
print(clock.name, clock.seconds())
open("{mount}/cgroup.procs", "w").write(str(os.getpid()))
"""
)


@pytest.mark.parametrize("mount", ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"])
def test_a_real_cgroup_counts_a_daemon_that_left_its_session_and_parent(mount):
    step = Path(mount, f"slurm_test{os.getpid()}/uid_0/job_7/step_0")
    if not Path(mount, "cgroup.procs").exists():
        pytest.skip(f"{mount} is no cgroup here")
    try:
        step.mkdir(parents=True)
        code = IN_STEP.format(step=step, mount=mount)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    finally:
        for folder in (step, *step.parents[:3]):
            with suppress(OSError):
                folder.rmdir()
    assert done.returncode == 0, done.stderr
    name, seconds = done.stdout.split()
    assert name == "cgroup"
    assert 0.5 <= float(seconds) < 5


# --- the kernel's task clock ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [THREADS, STORM.replace("COUNT", "2000")], ids=["threads", "2000 short children"])
def test_perf_counts_all_children_and_threads(code):
    clock = perf_clock()
    used_seconds = run(code)
    assert clock.seconds() == pytest.approx(
        used_seconds, rel=0.25, abs=0.1
    )  # the end of a child of 1 ms is not all seen
    clock.close()


def test_perf_counts_a_daemon_that_left_its_session_and_parent():
    clock = perf_clock()
    seen_by_kernel_seconds = run(DAEMON)
    assert clock.seconds() >= seen_by_kernel_seconds + 0.4
    clock.close()


def test_perf_is_read_from_another_thread_while_the_job_runs():
    clock = perf_clock()
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(clock.seconds())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run(THREADS)
    done.set()
    watcher.join()
    assert seen == sorted(seen)
    assert sum(0.1 < seconds < 0.8 for seconds in seen) >= 2
    clock.close()


def test_perf_counts_only_what_its_own_thread_starts():
    clock = perf_clock()
    other = threading.Thread(target=burn, args=(0.3,))
    opened, go = threading.Event(), threading.Event()
    held: list[PerfClock] = []

    def pool_thread() -> None:
        held.append(PerfClock.open_on_current_thread())
        opened.set()
        go.wait()

    pool = threading.Thread(target=pool_thread)
    pool.start()
    opened.wait()
    other.start()
    other.join()
    assert held[0].seconds() < 0.1
    assert clock.seconds() >= 0.3
    go.set()
    pool.join()


def test_a_closed_clock_stands_still_and_closing_twice_does_nothing():
    clock = perf_clock()
    burn(0.05)
    before = clock.seconds()
    clock.close()
    clock.close()
    burn(0.05)
    assert before <= clock.seconds() < before + 0.04


def test_the_best_clock_is_opened():
    clock = open_clock()
    assert clock.name in {CpuClockName.PERF, CpuClockName.POLLING}
    clock.close()


# --- watching the tree ---------------------------------------------------------------------------


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_polling_sees_what_reaped_children_used():
    clock = ProcessTreeClock()
    with start(STORM.replace("COUNT", "500") + "print(flush=True); sys.stdin.read()") as process:
        clock.add_root(process.pid)
        process.stdout.readline()
        seen = clock.seconds()
        assert clock.name is CpuClockName.POLLING
    assert seen >= 0.45  # 500 x 1 ms, all ended and reaped


def test_polling_keeps_what_it_saw_of_a_process_that_ended():
    clock = ProcessTreeClock()
    with start(BURN + "burn(0.3); print(flush=True); sys.stdin.read()") as process:
        clock.add_root(process.pid)
        process.stdout.readline()
        seen = clock.seconds()
    assert seen >= 0.25
    assert clock.seconds() >= seen


def test_an_orphan_once_seen_is_watched_to_its_end():
    clock = ProcessTreeClock()
    code = (
        BURN
        + """
parent = os.getpid()
if os.fork() == 0:
    os.setsid()
    while os.getppid() == parent: time.sleep(0.01)
    burn(0.4); print("burnt", flush=True); sys.stdin.read(); os._exit(0)
print("forked", flush=True); os.read(0, 1)
"""
    )
    process = start(code)
    clock.add_root(process.pid)
    process.stdout.readline()
    clock.seconds()
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.wait()  # the parent ends first
    process.stdout.readline()
    assert clock.seconds() >= 0.35
    process.stdin.close()
    process.stdout.close()


def test_an_orphan_that_no_look_saw_is_found_by_its_mark():
    clock = ProcessTreeClock()
    environ = {**os.environ, "GREEN_HOLD_ID": f"hold-{os.getpid()}"}
    code = DAEMON.replace("burn(0.5)", "burn(0.3); print('burnt', flush=True); sys.stdin.read()")
    code = code.replace("os.read(r, 1)", "pass")
    process = start_process(
        clock,
        [sys.executable, "-S", "-c", code],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.wait()  # nobody has looked yet, and the orphan is another's child now
    process.stdout.readline()
    assert clock.seconds() >= 0.28
    before = clock.seconds()
    process.stdin.close()
    process.stdout.read()  # until it has ended
    process.stdout.close()
    assert clock.seconds() >= before


def test_a_process_of_another_job_is_not_found():
    clock = ProcessTreeClock()
    clock.marked_by(f"hold-{os.getpid()}")
    environ = {**os.environ, "GREEN_HOLD_ID": f"hold-{os.getpid()}-2"}
    code = BURN + "burn(0.2); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert clock.seconds() == 0
        process.stdin.close()


def test_wait4_replaces_what_polling_saw_and_counts_no_child_twice():
    clock = ProcessTreeClock()
    popen = metered_popen(lambda pid, usage: clock.add_finished(pid, usage.ru_utime + usage.ru_stime))
    code = (
        BURN
        + """
if os.fork() == 0:
    burn(0.3); sys.stdin.readline(); os._exit(0)
burn(0.2); print(flush=True); sys.stdin.readline(); os.wait()
"""
    )
    before = children_seconds()
    process = popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    clock.add_root(process.pid)
    process.stdout.readline()
    live_seconds = clock.seconds()
    process.communicate(b"\n\n")
    used_seconds = children_seconds() - before
    assert live_seconds > 0.15
    for _ in range(3):
        assert clock.seconds() == pytest.approx(used_seconds, abs=0.05)
    assert clock.name is CpuClockName.WAIT4


ROOT = 1_000_000


class Forest:
    """A ``/proc`` in a folder, of processes that fork, run and end by the kernel's rules."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.used_ticks = folder, 0
        self.parents: dict[int, int] = {}
        self.own: dict[int, int] = {}
        self.reaped: dict[int, int] = {}
        self.fork(0)

    def fork(self, parent: int) -> None:
        pid = ROOT + len(self.own)
        self.parents[pid], self.own[pid], self.reaped[pid] = parent, 0, 0
        (self.folder / str(pid) / "task" / str(pid)).mkdir(parents=True)

    def run(self, pid: int, ticks: int) -> None:
        self.own[pid] += ticks
        self.used_ticks += ticks

    def end(self, pid: int) -> int:
        """Its parent reaps it; its children become another's. What it and those that it reaped have used, in ticks."""
        total, parent = self.own[pid] + self.reaped[pid], self.parents.pop(pid)
        if parent in self.parents:
            self.reaped[parent] += total
        for child, each in self.parents.items():
            if each == pid:
                self.parents[child] = 1
        (self.folder / str(pid) / "stat").unlink(missing_ok=True)
        (self.folder / str(pid) / "task" / str(pid) / "children").unlink(missing_ok=True)
        return total

    def write(self) -> None:
        for pid, parent in self.parents.items():
            children = " ".join(str(child) for child, each in self.parents.items() if each == pid)
            fields = ["S", parent, *[0] * 9, self.own[pid], 0, self.reaped[pid], 0, *[0] * 4, pid]
            (self.folder / str(pid) / "stat").write_text(f"{pid} (job) {' '.join(map(str, fields))}")
            (self.folder / str(pid) / "task" / str(pid) / "children").write_text(children)


steps = st.lists(
    st.tuples(st.sampled_from(["fork", "run", "run", "end", "look"]), st.integers(0, 9), st.integers(0, 50)),
    max_size=40,
)


@given(steps, st.booleans())
def test_at_each_look_the_tree_has_what_was_used_until_then_and_orphans_never_count_twice(
    tmp_path_factory, steps, may_orphan
):
    forest = Forest(tmp_path_factory.mktemp("proc"))
    clock = ProcessTreeClock(forest.folder)
    clock.add_root(ROOT)
    for what, which, ticks in [*steps, ("look", 0, 0)]:
        pid = sorted(forest.parents)[which % len(forest.parents)]
        if what == "fork":
            forest.fork(pid)
        elif what == "run":
            forest.run(pid, ticks)
        elif what == "end" and pid != ROOT and (may_orphan or pid not in forest.parents.values()):
            forest.end(pid)
        elif what == "look":
            forest.write()
            used_seconds = forest.used_ticks * TICK_SECONDS
            assert clock.seconds() <= used_seconds + 1e-9
            assert may_orphan or clock.seconds() == pytest.approx(used_seconds)  # nothing arrives later
    if ROOT not in list(forest.parents.values()):
        clock.add_finished(ROOT, forest.end(ROOT) * TICK_SECONDS)
        assert clock.seconds() <= forest.used_ticks * TICK_SECONDS + 1e-9
        assert may_orphan or clock.seconds() == pytest.approx(forest.used_ticks * TICK_SECONDS)


# --- reaping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wait", "wait with timeout", "poll", "communicate", "run", "context"])
def test_every_way_of_waiting_keeps_the_exit_code_and_reports_once(how):
    reports: list[tuple[int, float]] = []
    popen = metered_popen(lambda pid, usage: reports.append((pid, usage.ru_utime + usage.ru_stime)))
    process = popen([sys.executable, "-S", "-c", BURN + "burn(0.1); sys.exit(7)"], stdout=subprocess.PIPE)
    with process:
        if how == "wait":
            process.wait()
        elif how == "wait with timeout":
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.001)
            process.wait(timeout=60)
        elif how == "poll":
            while process.poll() is None:
                time.sleep(0.01)
        elif how == "communicate":
            process.communicate(timeout=60)
        elif how == "run":
            process.kill()
    assert process.returncode == (-9 if how == "run" else 7)
    assert [pid for pid, _ in reports] == [process.pid]
    assert how == "run" or reports[0][1] >= 0.09


def test_a_report_that_fails_does_not_break_the_program():
    def broken(pid: int, usage: resource.struct_rusage) -> None:
        raise RuntimeError("broken meter")

    process = metered_popen(broken)([sys.executable, "-S", "-c", "raise SystemExit(3)"])
    assert process.wait() == 3


def test_a_child_that_somebody_else_reaped_ends_as_subprocess_says():
    process = metered_popen(lambda pid, usage: None)([sys.executable, "-S", "-c", "raise SystemExit(3)"])
    os.waitpid(process.pid, 0)
    assert process.poll() == 0
    assert process.wait() == 0
