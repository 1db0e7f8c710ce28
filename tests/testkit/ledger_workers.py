"""Processes that use one ledger at once, and what each of them does there."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from sqlalchemy import Engine, event

from mlflow_green.clock import SystemClock
from mlflow_green.errors import HoldClosed, LedgerUnavailable
from mlflow_green.ledger.sql import SqlLedger, open_ledger
from mlflow_green.ledger.verify import verify
from mlflow_green.records import Batch, Committed, JournalRow, Term, TopUp, Unit
from tests.testkit.ledger_samples import (
    OWNER,
    SetClock,
    admit_what_fits,
    open_at,
    open_on_share,
    request,
    settle,
    term,
)
from tests.testkit.waiting import comes_true

AMPLE = (term(limit=10**15), term(limit=10**15, unit=Unit.CARBON))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a ledger is, so that any process can open it: a URL, or a journal on a share in ``folder``."""

    folder: Path
    url: str | None = None

    def open(self) -> SqlLedger:
        if self.url is None:
            return open_on_share(self.folder, clock=SystemClock())
        return open_ledger(self.url, mountinfo_path=self.folder / "no-mountinfo", clock=SystemClock())

    @contextmanager
    def opened(self) -> Iterator[SqlLedger]:
        ledger = self.open()
        try:
            yield ledger
        finally:
            ledger.close()


def sqlite_in(folder: Path) -> Place:
    return Place(folder=folder, url=f"sqlite:///{folder / 'ledger.db'}")


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder that waits for no disk: more collisions a second. kill -9 leaves the same files in it as on a disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def processes():
    """Starts processes that have all imports, for hundreds of them would take minutes to import."""
    context = multiprocessing.get_context("forkserver")
    modules = ["tests.testkit.ledger_workers", "tests.testkit.metered_program"]
    context.set_forkserver_preload([*modules, "mlflow_green.ledger.postgres", "sqlalchemy.dialects.postgresql.psycopg"])
    return context


class Crew:
    """Processes of one test. Leaving the block kills those that still run."""

    def __init__(self) -> None:
        self._context = processes()
        self._tasks: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self.members: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for member in self.members:
            member.kill()
            member.join()

    def barrier(self, parties: int):
        return self._context.Barrier(parties)

    def start(self, work: Callable[..., None], *arguments: object):
        self._tasks.append((work, arguments))
        self.members.append(self._started(work, arguments))
        return self.members[-1]

    def restart(self, number: int) -> None:
        """kill -9, and the same work again."""
        self.members[number].kill()
        self.members[number].join()
        self.members[number] = self._started(*self._tasks[number])

    def _started(self, work: Callable[..., None], arguments: tuple[object, ...]):
        process = self._context.Process(target=work, args=arguments)
        process.start()
        return process

    def all_succeed(self, limit_seconds: float) -> bool:
        """Whether each ends by itself and without an error; what it raised is on stderr."""
        deadline = time.monotonic() + limit_seconds
        for member in self.members:
            member.join(max(0.0, deadline - time.monotonic()))
        return [member.exitcode for member in self.members] == [0] * len(self.members)

    @property
    def failed(self) -> bool:
        """Whether one has ended by an error of its own."""
        return any(member.exitcode is not None and member.exitcode > 0 for member in self.members)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def tell(path: Path, text: str) -> None:
    """Append a line that is there once this returns, also after kill -9."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


# --- what is asked of the books ------------------------------------------------------------------------


def over_limit(journal: Sequence[JournalRow], limits: dict[tuple[str, str, str, str], int]) -> list[int]:
    """The rows of the journal after which a bucket was over its limit."""
    committed: Counter[tuple[str, str, str, str]] = Counter()
    found = []
    for row in journal:
        key = row.key
        committed[key] += row.delta_held + row.delta_spent
        if committed[key] > limits[key]:
            found.append(row.journal_id)
    return found


def findings(ledger: SqlLedger) -> tuple[str, ...]:
    """What ``ledger verify`` finds, while the owners of the holds count as alive."""
    return verify(ledger, lambda _owner: True)


# --- what the processes do -------------------------------------------------------------------------------


def fill(place: Place, name: str, terms: Sequence[Term], start, refusals: int, largest: int, report: Path) -> None:
    """Hold and settle until nothing fits any more, not even 1, and this was said ``refusals`` times in all."""
    dice = random.Random(name)
    held, refused, steps, amount = [], 0, 0, largest
    with place.opened() as ledger:
        start.wait(60)
        while refused < refusals or amount > 1:
            amounts = {Unit.ENERGY: amount, Unit.CARBON: 2 * amount}
            batch = Batch(requests=(request(f"{name}-{steps}", amounts, *terms),), owner=OWNER)
            (answer,) = ledger.commit(batch, admit_what_fits).answers
            if answer.hold is None:
                refused, amount = refused + 1, max(1, amount // 2)
                continue
            steps, amount = steps + 1, dice.randint(2, largest)
            held.append(answer.hold)
            if dice.random() < 0.5:
                first = held.pop(0)
                used = dice.randint(0, first.amounts[Unit.ENERGY])
                closing = settle(first, used, operational_micrograms_co2e=2 * used, sampler_id=None)
                ledger.commit(Batch(closings=(closing,)), admit_what_fits)
    tell(report, str(refused))


def hold_and_settle(place: Place, name: str, start, seconds: float, report: Path) -> None:
    """Pairs of transactions for a time; reports how many there were, and the longest that one took."""
    pairs, longest_seconds = 0, 0.0
    with place.opened() as ledger:
        start.wait(60)
        deadline = time.monotonic() + seconds
        while (began := time.monotonic()) < deadline:
            asked = request(f"{name}-{pairs}", {Unit.ENERGY: 5, Unit.CARBON: 2}, *AMPLE)
            (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
            closing = settle(answer.hold, 3, operational_micrograms_co2e=1, sampler_id=None)
            ledger.commit(Batch(closings=(closing,)), admit_what_fits)
            pairs, longest_seconds = pairs + 1, max(longest_seconds, time.monotonic() - began)
    tell(report, f"{pairs} {longest_seconds:.3f}")


def look(place: Place, start, seconds: float) -> None:
    """What ``balance`` and ``ledger verify`` read, again and again; every look finds whole books."""
    with place.opened() as ledger:
        start.wait(60)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ledger.balances()
            assert findings(ledger) == ()
            time.sleep(0.2)


def look_long(place: Place, start, seconds: float, look_seconds: float) -> None:
    """A reader that keeps one snapshot open for long, again and again."""
    with place.opened() as ledger:
        start.wait(60)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with ledger.snapshot():
                before = ledger.balances()
                time.sleep(look_seconds)
                assert ledger.balances() == before
            time.sleep(look_seconds / 2)


def tell_all(place: Place, name: str, told: Path, is_patient: bool = False) -> None:
    """Hold, top up and settle for ever, and tell what was acknowledged; goes on where it was killed.

    One that is patient says the same thing again while the ledger does not answer.
    """

    def commit(batch: Batch) -> Committed:
        while True:
            try:
                return ledger.commit(batch, admit_what_fits)
            except LedgerUnavailable:
                if not is_patient:
                    raise
                time.sleep(0.02)

    with place.opened() as ledger:
        for number in range(_first_unsettled(told), 10**9):
            asked = request(f"{name}-{number}", {Unit.ENERGY: 5, Unit.CARBON: 2}, *AMPLE)
            try:
                (answer,) = commit(Batch(requests=(asked,), owner=OWNER)).answers
            except HoldClosed:  # it was killed before it could tell
                tell(told, f"closed {number} - 0")
                continue
            hold = answer.hold
            tell(told, f"held {number} {hold.hold_id} 0")
            if number % 3 == 0:
                more = TopUp(hold_id=hold.hold_id, amounts={Unit.ENERGY: 4})
                (granted,) = commit(Batch(top_ups=(more,))).top_ups
                tell(told, f"topped {number} {hold.hold_id} {granted[Unit.ENERGY]}")
            closing = settle(hold, 3, operational_micrograms_co2e=1, sampler_id=None)
            commit(Batch(closings=(closing,)))
            tell(told, f"settled {number} {hold.hold_id} 0")


def compact_until_statement(folder: Path, clock: SetClock, statements: int) -> None:
    """Compact a SQLite ledger, and die by kill -9 before its next statement after so many."""
    left = statements
    ledger = open_at(folder, clock=clock)

    def die(*_arguments: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for moment in ("before_cursor_execute", "commit"):
        event.listen(Engine, moment, die)
    ledger.compact(timedelta(0))


@dataclass(frozen=True, slots=True)
class Told:
    """One line of what a worker was told by the ledger: ``verb`` is held, topped, settled or closed."""

    verb: str
    number: int
    hold_id: str
    amount: int


def told_in(path: Path) -> list[Told]:
    lines = path.read_text().splitlines() if path.exists() else []
    words = [line.split() for line in lines]
    return [Told(verb, int(number), hold_id, int(amount)) for verb, number, hold_id, amount in words]


def _first_unsettled(told: Path) -> int:
    lines = told_in(told)
    return 0 if not lines else lines[-1].number + (lines[-1].verb in {"settled", "closed"})


def lost_words(ledger: SqlLedger, told: Sequence[Told]) -> list[str]:
    """What a worker was told and the ledger does not know; empty when nothing acknowledged is lost."""
    rows: dict[str, Counter[str]] = {}
    for row in ledger.journal():
        if row.hold_id is not None and row.unit is Unit.ENERGY:
            of_hold = rows.setdefault(row.hold_id, Counter())
            of_hold[row.kind] += 1
            of_hold[f"{row.kind} amount"] += row.delta_held
    entries = {entry.hold_id for entry in ledger.entries()}
    lost = []
    topped: Counter[str] = Counter()
    for each in told:
        known = rows.get(each.hold_id, Counter())
        topped[each.hold_id] += each.amount
        if (
            (each.verb == "held" and known["hold"] != 1)
            or (each.verb == "topped" and known["top_up amount"] < topped[each.hold_id])
            or (each.verb == "settled" and (known["settle"] != 1 or each.hold_id not in entries))
        ):
            lost.append(f"{each} of {dict(known)}")
    return lost


def kill_storm(place: Place, kills: int, workers: int) -> list[Told]:
    """Workers that tell all; one is killed and started again, ``kills`` times. What all of them were told."""
    place.open().close()
    dice, told = random.Random(4), [place.folder / f"told-{number}" for number in range(workers)]
    with Crew() as crew:
        for number in range(workers):
            crew.start(tell_all, place, f"w{number}", told[number])
        for _ in range(kills):
            wait_for_more(told, 5)
            time.sleep(dice.uniform(0, 0.02))
            assert not crew.failed
            crew.restart(dice.randrange(workers))
    return [each for path in told for each in told_in(path)]


def wait_for_more(told: list[Path], count: int) -> None:
    """Until the workers were told ``count`` things more than now."""

    def size() -> int:
        return sum(path.read_bytes().count(b"\n") for path in told if path.exists())

    enough = size() + count
    assert comes_true(lambda: size() >= enough, 60, 0.005)
