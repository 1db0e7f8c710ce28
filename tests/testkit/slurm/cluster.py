"""A real Slurm with accounting on this one machine: virtual nodes, loopback only, everything in one folder.

One slurmctld, one slurmd for each virtual node (they share this machine's cores), a private munged, and slurmdbd on a
private MariaDB, so that sacct answers. Nothing in /etc is read or written, and a Slurm or MariaDB of the machine is not
touched.

Each node has an energy counter of its own, at a constant power: Slurm reports it as ConsumedEnergy, and every task
finds it as the powercap tree of its node, so that two virtual nodes look like two machines to a meter.
"""

import itertools
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.testkit.slurm.daemons import ClusterError, Daemons, free_ports, is_listening
from tests.testkit.slurm.energy import EnergyThread, NodeCounters, build_shim
from tests.testkit.waiting import comes_true

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd", "cc")
CLIENTS = ("sacct", "sacctmgr", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "sstat")
NAME = "testcluster"
ACCOUNT = "test"
POWER_WATTS = (100.0, 60.0)  # node1, node2, and so on around

SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired, usually 120 s.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
# Bind to the address that our own host name resolves to.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/spool/ctld
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/spool/slurmctld.pid
SlurmdPidFile={folder}/spool/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
# No cgroups: the processes of a job are found by walking /proc.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1,energy=1
AcctGatherEnergyType=acct_gather_energy/pm_counters
# Every second would starve the pings: a dead node would never be noticed.
AcctGatherNodeFreq=3
TaskProlog={folder}/etc/task_prolog
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
# Schedule quickly, forget slowly.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=300
KillWait=2
ReturnToService=2
# A dead node is noticed after about 17 s: a ping that fails takes MessageTimeout, and two have to.
SlurmdTimeout=10
MessageTimeout=5
# The nodes' CPUs and memory are what is said here, not what the machine has.
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=energy
# Snakemake puts the rule's name and wildcards into the comment.
AccountingStoreFlags=job_comment
"""
NODE_CONF = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 State=UNKNOWN\n"
PARTITION_CONF = "PartitionName=main Nodes=ALL Default=YES DefMemPerCPU=100 MaxTime=60 State=UP\n"
# What the administrator of a cluster would set on each machine. All nodes are this one machine, whose memory each would
# model as its own; without it their energy is what their counters show.
TASK_PROLOG = """\
#!/bin/sh
echo "export MLFLOW_GREEN_POWERCAP_ROOT={folder}/nodes/$SLURMD_NODENAME/powercap"
echo "export MLFLOW_GREEN_RUNTIME_DIR={folder}/nodes/$SLURMD_NODENAME/runtime"
echo "export MLFLOW_GREEN_MEMORY_WATTS_PER_GIB=none"
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser={user}
PidFile={folder}/spool/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CommunicationParameters=NoInAddrAny
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path=_search_path())]


class SlurmCluster:
    """A started cluster. ``environ`` is what a process needs to use it; ``stop`` ends every job and daemon."""

    def __init__(self, nodes: int = 2) -> None:
        # Not pytest's folder: munge and MariaDB listen on sockets, whose paths have at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._ports = free_ports(3 + nodes)
        self._daemons = Daemons(self.folder, self._sub("log"))
        self._counters = {
            node: NodeCounters(self._sub(f"nodes/{node}"), power_watts)
            for node, power_watts in zip(self.nodes, itertools.cycle(POWER_WATTS), strict=False)
        }
        self._energy = EnergyThread(self._counters)
        self.environ = {
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
            "PATH": f"{self.folder / 'bin'}:{_search_path()}",
        }
        try:
            self._shim = build_shim(self.folder)
            self._configure()
            self._start()
        except BaseException:
            self.stop()
            raise

    def run(self, *argv: str, check: bool = True) -> str:
        """The standard output of one of Slurm's commands."""
        return _run(argv, self.environ, check=check)

    def stop(self) -> None:
        with suppress(ClusterError, FileNotFoundError):
            if jobs := self.run("squeue", "-h", "-o", "%A").split():
                self.run("scancel", *jobs)
                comes_true(lambda: not self.run("squeue", "-h").strip(), 15)
        self._daemons.stop_all()
        _kill(self._processes_of_jobs())
        self._energy.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- energy --------------------------------------------------------------------------------------

    def powercap_root(self, node: str) -> Path:
        """What plays /sys/class/powercap on the node."""
        return self._counters[node].powercap_root

    def counter_microjoules(self, node: str) -> int:
        """The node's energy since the cluster was made, as of now."""
        return self._energy.microjoules(node)

    def set_power(self, node: str, power_watts: float) -> None:
        """From now on the node draws this; at most 125 W, for its powercap tree says that no more is possible."""
        self._energy.set_power(node, power_watts)

    # --- configuration -------------------------------------------------------------------------------

    def _sub(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _configure(self) -> None:
        named = {
            "name": NAME,
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "user": _user(),
            "controller_port": self._ports[0],
            "accounting_port": self._ports[1],
            "database_port": self._ports[2],
        }
        etc = self._sub("etc")
        nodes = [
            NODE_CONF.format(node=node, port=port, **named)
            for node, port in zip(self.nodes, self._ports[3:], strict=True)
        ]
        (etc / "slurm.conf").write_text(SLURM_CONF.format(**named) + "".join(nodes) + PARTITION_CONF)
        (etc / "task_prolog").write_text(TASK_PROLOG.format(**named))
        (etc / "task_prolog").chmod(0o755)
        (etc / "cgroup.conf").write_text("CgroupAutomount=no\n")  # without this file slurmd looks in /etc/slurm
        (etc / "slurmdbd.conf").touch(mode=0o600)
        (etc / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**named))
        for name in ("ctld", *self.nodes):
            self._sub(f"spool/{name}")
        self._wrap_clients()

    def _wrap_clients(self) -> None:
        """Slurm's commands, knowing this cluster where SLURM_CONF is unset.

        snakemake-executor-plugin-slurm-jobstep takes all but a few SLURM_ variables away from its inner srun.
        """
        for client in CLIENTS:
            script = self._sub("bin") / client
            conf = shlex.quote(str(self.folder / "etc/slurm.conf"))
            real = shutil.which(client, path=_search_path())
            script.write_text(f'#!/bin/sh\nSLURM_CONF=${{SLURM_CONF:-{conf}}}\nexport SLURM_CONF\nexec {real} "$@"\n')
            script.chmod(0o755)

    # --- daemons -------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._start_munge()
        self._start_database()
        self._start_accounting()
        self._daemons.start("slurmctld", ["slurmctld", "-D"], self.environ)
        self._daemons.wait_until("slurmctld", lambda: is_listening(self._ports[0]), 30)
        for node in self.nodes:
            self._start_slurmd(node)
        self._wait_for(self.nodes)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node that was killed; returns when the node takes jobs again."""
        self._start_slurmd(node)
        self._wait_for([node])

    def kill_node(self, node: str, *, with_jobs: bool = False) -> None:
        """End the node's slurmd and, as a power cut would, ``with_jobs`` every process that ran there.

        Slurm notices after about 17 s: the node is down, its jobs have the state NODE_FAIL, and batch jobs wait to run
        again.
        """
        self._daemons.signal(f"slurmd-{node}", signal.SIGKILL)
        if with_jobs:
            _kill(self._processes_of_jobs(node))

    def node_state(self, node: str) -> str:
        """What sinfo says of the node: idle, mixed, allocated, completing, down*; empty where Slurm is silent."""
        return self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T", check=False).strip()

    def _start_slurmd(self, node: str) -> None:
        counters = {"LD_PRELOAD": str(self._shim), "FAKE_PM_COUNTERS": str(self._counters[node].pm_counters)}
        self._daemons.start(f"slurmd-{node}", ["slurmd", "-D", "-N", node], {**self.environ, **counters})

    def _wait_for(self, nodes: list[str]) -> None:
        ready, port_of = {"idle", "mixed", "allocated"}, dict(zip(self.nodes, self._ports[3:], strict=True))

        def takes_jobs(node: str) -> bool:
            return is_listening(port_of[node]) and self.node_state(node) in ready

        if not comes_true(lambda: all(map(takes_jobs, nodes)), 60):
            raise ClusterError(f"{', '.join(nodes)} did not come up\n{self._daemons.tail('slurmctld')}")

    def _start_munge(self) -> None:
        folder, munge_socket = self._sub("munge"), f"{self.folder}/munge.socket"
        folder.chmod(0o700)
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        argv = ["munged", "--foreground", f"--key-file={key}", f"--socket={munge_socket}", "--num-threads=2"]
        argv += [f"--pid-file={folder}/pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"]
        self._daemons.start("munged", argv, self.environ)
        self._daemons.wait_until("munged", lambda: _succeeds(["munge", "-S", munge_socket, "-n"], self.environ), 15)

    def _start_database(self) -> None:
        data = self._sub("mariadb")
        scratch = f"--tmpdir={self._sub('mariadb-tmp')}"  # a server that starts empties it of others' tables
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={_user()}", "--skip-test-db"]
        _run([*install, scratch, "--auth-root-authentication-method=normal", "--skip-name-resolve"], self.environ)
        argv = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={data}/sock", f"--pid-file={data}/pid"]
        argv += [f"--user={_user()}", "--bind-address=127.0.0.1", f"--port={self._ports[2]}", "--skip-name-resolve"]
        argv += ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M", "--innodb-lock-wait-timeout=900"]
        self._daemons.start("mariadbd", [*argv, scratch, "--innodb-flush-log-at-trx-commit=0"], self.environ)
        client = ["mariadb", "--no-defaults", f"--socket={data}/sock", "--user=root", "--execute"]
        self._daemons.wait_until("mariadbd", lambda: _succeeds([*client, "SELECT 1"], self.environ), 60)
        statements = "CREATE DATABASE slurm_acct; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';"
        _run([*client, f"{statements} GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1';"], self.environ)

    def _start_accounting(self) -> None:
        self._daemons.start("slurmdbd", ["slurmdbd", "-D"], self.environ)
        self._daemons.wait_until("slurmdbd", lambda: is_listening(self._ports[1]), 60)
        # Without its cluster and account rows slurmctld would run, but record nothing.
        user = ["user", _user(), f"Account={ACCOUNT}", "AdminLevel=Admin"]
        for what in (["cluster", NAME], ["account", ACCOUNT, f"Cluster={NAME}"], user):
            self.run("sacctmgr", "--immediate", "add", *what, check=False)
        if NAME not in self.run("sacctmgr", "-nP", "show", "cluster", "format=cluster"):
            raise ClusterError(f"slurmdbd did not register the cluster\n{self._daemons.tail('slurmdbd')}")

    def _processes_of_jobs(self, *nodes: str) -> list[int]:
        """Processes of jobs on these nodes, or on all: only they carry our SLURM_CONF and the id of a job."""
        ours, found = f"SLURM_CONF={self.environ['SLURM_CONF']}".encode(), []
        places = {f"SLURMD_NODENAME={node}".encode() for node in nodes}
        places |= {f"FAKE_PM_COUNTERS={self._counters[node].pm_counters}".encode() for node in nodes}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                names = set((folder / "environ").read_bytes().split(b"\0"))
                is_job = any(name.startswith(b"SLURM_JOB_ID=") for name in names)
                is_step = (folder / "cmdline").read_bytes().startswith(b"slurmstepd")
                is_there = not nodes or not places.isdisjoint(names)
                if ours in names and (is_job or is_step) and is_there and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _search_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _run(argv, environ: dict[str, str], *, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environ}, timeout=120, check=False)
    if check and done.returncode:
        raise ClusterError(f"{' '.join(argv)}: exit status {done.returncode}\n{(done.stderr or done.stdout)[-15000:]}")
    return done.stdout


def _succeeds(argv, environ: dict[str, str]) -> bool:
    try:
        _run(argv, environ)
    except ClusterError:
        return False
    return True
