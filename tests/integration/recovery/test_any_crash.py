"""Whatever a crash left in the spool and in the ledger, recovery closes the books, and again changes nothing."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_green.clock import SystemClock
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.ledger.verify import verify
from mlflow_green.metering.sampler import merge_windows
from mlflow_green.recorder.recovery import recover
from mlflow_green.recorder.spool_session import begin_line, session_line
from mlflow_green.recorder.ticket import Book, Ticket, entry_of
from mlflow_green.records import (
    Action,
    Batch,
    Closing,
    ClosingKind,
    CpuClockName,
    Domain,
    Energy,
    Hold,
    Method,
    NodeWindow,
    Outcome,
    Site,
    Tick,
    Usage,
)
from mlflow_green.spool import to_json
from tests.testkit.ledger_samples import NOON, OWNER, admit_anything
from tests.testkit.recorder_parts import SimplePlanner, ticket

BOOK = Book(project="demo", user="ana", host="node1", site=Site(), sampler_id="sampler1", power_watts_max=10.0)
PLANNER = SimplePlanner(enforces=True, limit=10**12)

# What a meter does next: ask for a step, begin, sample, end and settle the oldest one, or commit what is queued.
ACTIONS = st.lists(
    st.sampled_from(["ask", "begin", "begin_late", "begin_free", "tick", "tick", "settle", "commit"]), max_size=30
)


def energy(microjoules: int) -> Energy:
    return Energy(
        microjoules=microjoules, low_microjoules=microjoules, high_microjoules=microjoules, method=Method.ESTIMATED
    )


@dataclass
class Meter:
    """A meter that does what the recorder does, in the same order: first the spool, then the ledger."""

    ledger: MemoryLedger
    lines: list[bytes] = field(default_factory=list)
    bytes_committed: int = 0  # the spool was at least this long when the ledger last knew of it
    asked: list[Ticket] = field(default_factory=list)
    running: dict[str, Ticket] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    windows: list[NodeWindow] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)
    late: list = field(default_factory=list)
    sequence: int = 0
    names: int = 0

    def write(self, line: dict) -> None:
        self.lines.append(json.dumps(line).encode() + b"\n")

    @property
    def length(self) -> int:
        return sum(map(len, self.lines))

    def act(self, action: str, amount: int) -> None:
        getattr(self, action)(amount)

    def new(self) -> Ticket:
        self.names += 1
        return ticket(f"step{self.names}")

    def ask(self, amount: int) -> None:
        step = self.new()
        batch = Batch(requests=(PLANNER.request(step, self.ledger, NOON),), owner=OWNER)
        answer = self.ledger.commit(batch, admit_anything).answers[0]
        step.hold, step.decision = answer.hold, answer.decision
        self.asked.append(step)

    def begin(self, amount: int) -> None:
        if self.asked:
            self.start(self.asked.pop(0))

    def begin_late(self, amount: int) -> None:
        from dataclasses import replace

        step = self.new()
        step.late_request = replace(PLANNER.bare_request(step, NOON), hold_id=step.ticket_id)
        self.start(step)

    def begin_free(self, amount: int) -> None:
        """Where no budget applies, the ledger hears of a step when it is settled."""
        step = self.new()
        step.hold = Hold(
            hold_id=step.ticket_id,
            step=step.step,
            project="demo",
            user="ana",
            spec=step.spec,
            tier=None,
            decision=Action.ADMIT,
            would_decision=Action.ADMIT,
            amounts={},
            terms=(),
            owner=OWNER,
            opened_at=NOON,
        )
        self.start(step)

    def start(self, step: Ticket) -> None:
        step.began_at = NOON + timedelta(seconds=self.sequence)
        self.write(begin_line(step))
        self.running[step.hold_id] = step
        self.used[step.hold_id] = 0

    def tick(self, amount: int) -> None:
        self.sequence += 1
        for hold_id in self.running:
            self.used[hold_id] += amount
        for hold_id, step in self.running.items():
            step.usage = self.usage(hold_id)
        window = NodeWindow(
            sampler_id="sampler1",
            host="node1",
            boot_id="boot1",
            domain=Domain.CPU,
            sequence_first=self.sequence,
            sequence_last=self.sequence,
            started_at=NOON + timedelta(seconds=self.sequence - 1),
            ended_at=NOON + timedelta(seconds=self.sequence),
            energy=energy(amount * len(self.running) + 5),
            attributed_microjoules=amount * len(self.running),
            idle_microjoules=3,
            other_microjoules=2,
            coverage_ratio=1.0,
        )
        tick = Tick(
            sampler_id="sampler1",
            sequence=self.sequence,
            at=window.ended_at,
            windows=(window,),
            usages={hold_id: step.usage for hold_id, step in self.running.items()},
            final=frozenset(),
        )
        self.write({"kind": "tick", "tick": to_json(tick)})
        self.windows.append(window)

    def usage(self, hold_id: str) -> Usage:
        return Usage(
            energy={Domain.CPU: energy(self.used[hold_id])},
            duration_seconds=1.0,
            cpu_seconds=1.0,
            cpu_clock=CpuClockName.PERF,
            coverage_ratio=1.0,
        )

    def settle(self, amount: int) -> None:
        if not self.running:
            return
        hold_id, step = next(iter(self.running.items()))
        del self.running[hold_id]
        entry = entry_of(step, Outcome.SUCCEEDED, BOOK, NOON)
        closing = Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry)
        self.write({"kind": "closing", "closing": to_json(closing)})
        self.closings.append(closing)
        if step.late_request:
            self.late.append(step.late_request)

    def commit(self, amount: int) -> None:
        for request in self.late:
            self.ledger.commit(Batch(requests=(request,), owner=OWNER), admit_anything)
        batch = Batch(closings=tuple(self.closings), windows=merge_windows(self.windows))
        self.ledger.commit(batch, admit_anything)
        self.late, self.closings, self.windows = [], [], []
        self.bytes_committed = self.length


def books(ledger: MemoryLedger) -> tuple:
    return ledger.entries(), ledger.journal(), ledger.node_windows(), ledger.balances(), ledger.open_holds()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=ACTIONS, amounts=st.lists(st.integers(0, 1000), min_size=30, max_size=30), cut=st.floats(0, 1))
def test_recovery_closes_the_books_after_any_crash_and_a_second_one_changes_nothing(actions, amounts, cut) -> None:
    ledger = MemoryLedger(SystemClock())
    meter = Meter(ledger)
    meter.write(session_line(OWNER, BOOK))
    meter.bytes_committed = meter.length
    for action, amount in zip(actions, amounts, strict=False):
        meter.act(action, amount)
    spooled = b"".join(meter.lines)
    kept = meter.bytes_committed + round(cut * (len(spooled) - meter.bytes_committed))
    left = spooled[:kept]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sampler1.jsonl"

        def run_recovery() -> None:
            recover(ledger, Path(folder), host="node1", clock=SystemClock(), say=lambda text: None)

        path.write_bytes(left)
        run_recovery()
        assert not path.exists()
        assert verify(ledger, lambda owner: False) == ()
        assert ledger.open_holds() == ()
        whole_ticks = [line for line in map(json.loads, left.split(b"\n")[:-1]) if line["kind"] == "tick"]
        assert sum(window.energy.microjoules for window in ledger.node_windows()) == sum(
            window["energy"]["microjoules"] for line in whole_ticks for window in line["tick"]["windows"]
        )

        before = books(ledger)
        path.write_bytes(left)  # as if it was killed between the commit and the removal
        run_recovery()
        assert books(ledger) == before
