"""A program that meters one step on a RAPL tree, with a keeper, until it is killed or its step ends.

It is what ``run -- CMD`` wires, but for the sampling period, which is short.
"""

from __future__ import annotations

import platform
import threading
import uuid
from pathlib import Path

from mlflow_green.clock import SystemClock, boot_id
from mlflow_green.metering.handover import Handover
from mlflow_green.metering.sampler import Sampler
from mlflow_green.metering.supervise import this_process
from mlflow_green.recorder.admission import Freely
from mlflow_green.recorder.recorder import Recorder
from mlflow_green.recorder.run_command import run_command
from mlflow_green.recorder.spool_only import SpoolOnly
from mlflow_green.recorder.spool_session import session_line
from mlflow_green.recorder.ticket import Book, Ticket, bare_request
from mlflow_green.records import Site, Step, StepSpec
from mlflow_green.sensors.rapl import RaplSensor
from mlflow_green.spool import SpoolWriter

PERIOD_SECONDS = 0.25


def spool_dir_of(folder: Path) -> Path:
    return folder / ".green" / "spool"


def lock_path_of(folder: Path) -> Path:
    return folder / "run" / "lock"


# A tenth of one core, so that many can run side by side.
WORK = "while :; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; sleep 0.05; done"


def main(folder: Path, powercap_root: Path, name: str) -> None:
    clock, spool_dir, lock_path = SystemClock(), spool_dir_of(folder), lock_path_of(folder)
    host, workflow_run = platform.node(), uuid.uuid4().hex
    sampler = Sampler([RaplSensor(powercap_root)], clock=clock, host=host, boot_id=boot_id(), lock_path=lock_path)
    book = Book(
        project="demo",
        user="ana",
        host=host,
        site=Site(),
        sampler_id=sampler.sampler_id if sampler.coordinated else None,
        power_watts_max=sampler.power_watts_max,
    )
    owner = this_process(host, spool_dir)
    spool = SpoolWriter(spool_dir / f"{name}-{uuid.uuid4().hex}.jsonl")
    spool.append(session_line(owner, book, leaves_orphans=True))
    recorder = Recorder(
        sampler=sampler,
        bookkeeper=SpoolOnly(),
        spool=spool,
        enforcer=None,
        book=book,
        clock=clock,
        say=lambda _text: None,
        keeps_spool=True,
        period_seconds=PERIOD_SECONDS,
        handover=Handover(lock_path, powercap_root=powercap_root, host=host, period_seconds=PERIOD_SECONDS),
    )
    ticket = Ticket(step=Step(workflow_run=workflow_run, name=name), spec=StepSpec())
    Freely(lambda ticket, now: bare_request(ticket, book, (), now), clock).admit(ticket)
    run_command(
        recorder,
        ticket,
        ["sh", "-c", WORK],
        environment=lambda ticket: {"GREEN_HOLD_ID": ticket.hold_id},
        answered=threading.Event(),
        say=lambda _text: None,
    )
