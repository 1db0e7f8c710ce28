"""How long a hold and its settlement take, with 1, 4 and 16 processes at one ledger, on SQLite and on PostgreSQL.

    python tests/benchmarks/ledger_latency.py [--seconds 10] [--writers 1 4 16] [--folder DIR]

Each writer holds and settles in turn, energy and carbon under one hard budget: two durable transactions a pair. Beside
it, in the same run: ``together``, where a settlement and the next hold share a transaction, as they do under Snakemake;
and ``floor``, the very same SQL statements sent by Python's sqlite3 alone. A time is that of one transaction, from the
call to its return. The disk is asked before each line how long it takes to keep 4 kB (fdatasync), and the kernel how
long somebody waited for a CPU or for the disk meanwhile (PSI, /proc/pressure: some).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from sqlalchemy import Engine, event

from mlflow_green.ledger.gate import Gate
from mlflow_green.ledger.sqlite import sqlite_engine
from mlflow_green.records import Batch, Unit
from tests.testkit.ledger_samples import OWNER, admit_what_fits, request, settle
from tests.testkit.ledger_workers import AMPLE, Crew, Place, sqlite_in, tell
from tests.testkit.postgres import postgres_server

Statement = tuple[str, object, bool]
Pair = Callable[[str], Iterator[float]]
"""Does one pair under this name; yields the seconds of each of its transactions."""


def pairs_of_ledger(place: Place) -> Pair:
    ledger = place.open()

    def pair(name: str) -> Iterator[float]:
        began = time.perf_counter()
        asked = request(name, {Unit.ENERGY: 5, Unit.CARBON: 2}, *AMPLE)
        (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
        held = time.perf_counter()
        yield held - began
        closing = settle(answer.hold, 3, operational_micrograms_co2e=1, sampler_id=None)
        ledger.commit(Batch(closings=(closing,)), admit_what_fits)
        yield time.perf_counter() - held

    return pair


def pairs_together(place: Place) -> Pair:
    ledger, before = place.open(), []

    def pair(name: str) -> Iterator[float]:
        began = time.perf_counter()
        asked = request(name, {Unit.ENERGY: 5, Unit.CARBON: 2}, *AMPLE)
        closings = tuple(settle(hold, 3, operational_micrograms_co2e=1, sampler_id=None) for hold in before)
        batch = Batch(closings=closings, requests=(asked,), owner=OWNER)
        before[:] = [answer.hold for answer in ledger.commit(batch, admit_what_fits).answers]
        yield time.perf_counter() - began

    return pair


def pairs_of_statements(place: Place) -> Pair:
    """What ``pairs_of_ledger`` sends, sent again with other names."""
    list(pairs_of_ledger(place)(f"first-{uuid.uuid4().hex}"))  # which makes the buckets
    recorded, names = recorded_pair(place)
    path = place.folder / "ledger.db"
    raw = sqlite_engine(path).connect().connection.dbapi_connection
    gate = Gate(path.with_name(path.name + ".lock"))

    def pair(name: str) -> Iterator[float]:
        new = {names[0]: name, names[1]: uuid.uuid4().hex}
        for statements in recorded:
            began = time.perf_counter()
            with gate.passed():
                for sql, values, many in statements:
                    renamed = [renaming(row, new) for row in values] if many else renaming(values, new)
                    (raw.executemany if many else raw.execute)(sql, renamed).fetchall()
                raw.execute("COMMIT")
            yield time.perf_counter() - began

    return pair


def recorded_pair(place: Place) -> tuple[list[list[Statement]], tuple[str, str]]:
    """The statements of each transaction of a pair, and the name and the hold's id in them."""
    name, recorded = f"recorded-{uuid.uuid4().hex}", []

    class Noting(sqlite3.Cursor):
        def execute(self, sql, values=()):
            if sql == "BEGIN IMMEDIATE":
                recorded.append([])
            recorded[-1].append((sql, values, False))
            return super().execute(sql, values)

        def executemany(self, sql, rows):
            values = list(rows)
            recorded[-1].append((sql, values, True))
            return super().executemany(sql, values)

    class Noted(sqlite3.Connection):
        def cursor(self):
            return super().cursor(Noting)

        def execute(self, sql, values=()):
            return self.cursor().execute(sql, values)

        def executemany(self, sql, rows):
            return self.cursor().executemany(sql, rows)

    def connect(_dialect, _record, _arguments, options):
        options["factory"] = Noted

    recorded.append([])  # what opens it
    event.listen(Engine, "do_connect", connect)
    with place.opened() as ledger:
        del recorded[:]
        asked = request(name, {Unit.ENERGY: 5, Unit.CARBON: 2}, *AMPLE)
        (answer,) = ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
        closing = settle(answer.hold, 3, operational_micrograms_co2e=1, sampler_id=None)
        ledger.commit(Batch(closings=(closing,)), admit_what_fits)
    event.remove(Engine, "do_connect", connect)
    return recorded, (name, answer.hold.hold_id)


def renaming(values, new: dict[str, str]) -> tuple[object, ...]:
    def renamed(value):
        if isinstance(value, str):
            for old, name in new.items():
                value = value.replace(old, name)
        return value

    return tuple(map(renamed, values))


def write(opened: Callable[[Place], Pair], place: Place, name: str, start, seconds: float, report: Path) -> None:
    """One writer; reports the seconds of each transaction, how many pairs there were and the CPU seconds of all."""
    pair, times, pairs = opened(place), [], 0
    list(pair(f"{name}-warm"))
    start.wait(60)
    cpu_seconds, deadline = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        times += pair(f"{name}-{pairs}")
        pairs += 1
    tell(report, json.dumps({"times": times, "pairs": pairs, "cpu_seconds": time.process_time() - cpu_seconds}))


@dataclass(frozen=True)
class Pressure:
    """For how long somebody has waited for a resource, in seconds since boot."""

    waited_seconds: float
    at: float

    @classmethod
    def of(cls, resource: str) -> Pressure:
        some = Path(f"/proc/pressure/{resource}").read_text().splitlines()[0]
        return cls(int(some.rpartition("=")[2]) / 1e6, time.monotonic())

    def percent_until(self, later: Pressure) -> float:
        return 100 * (later.waited_seconds - self.waited_seconds) / (later.at - self.at)


def fdatasync_milliseconds(folder: Path) -> float:
    """Median of 50 writes of 4 kB in place."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(400_000))
        os.fsync(file.fileno())
        times = []
        for number in range(50):
            began = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 4096, 4096 * number)
            os.fdatasync(file.fileno())
            times.append(1e3 * (time.perf_counter() - began))
    return median(times)


def measure(name: str, opened: Callable[[Place], Pair], place: Place, writers: int, seconds: float) -> None:
    report = place.folder / f"report-{uuid.uuid4().hex}"
    place.open().close()
    disk = fdatasync_milliseconds(place.folder)
    with Crew() as crew:
        start = crew.barrier(writers + 1)
        for number in range(writers):
            crew.start(write, opened, place, f"w{number}-{uuid.uuid4().hex[:6]}", start, seconds, report)
        start.wait(60)
        before = [Pressure.of("cpu"), Pressure.of("io")]
        assert crew.all_succeed(seconds + 120)
        after = [Pressure.of("cpu"), Pressure.of("io")]
    done = [json.loads(line) for line in report.read_text().splitlines()]
    times = sorted(1e3 * each for one in done for each in one["times"])
    pairs = sum(one["pairs"] for one in done)
    p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
    cpu = 1e3 * sum(one["cpu_seconds"] for one in done) / pairs
    psi = [b.percent_until(a) for b, a in zip(before, after, strict=True)]
    print(
        f"{name:20}{writers:8}{pairs / seconds:9.0f}{p50:9.1f}{p99:9.1f}{times[-1]:9.0f}{cpu:9.1f}"
        f"{disk:11.2f}{psi[0]:9.0f}{psi[1]:9.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are, e.g. on the disk to be measured"
    )
    parser.add_argument("--only", nargs="+", default=["sqlite", "postgres"])
    options = parser.parse_args()
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()},"
        f" SQLite {sqlite3.sqlite_version}, load average {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{'':20}{'writers':>8}{'pairs/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'CPU ms':>9}"
        f"{'disk ms':>11}{'PSI cpu':>9}{'PSI io':>9}"
    )
    with ExitStack() as opened:
        server = opened.enter_context(postgres_server(durable=True)) if "postgres" in options.only else None
        for writers in options.writers:
            if "sqlite" in options.only:
                for name, pairs in (
                    ("SQLite", pairs_of_ledger),
                    ("SQLite, together", pairs_together),
                    ("SQLite, floor", pairs_of_statements),
                ):
                    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
                    measure(name, pairs, sqlite_in(folder), writers, options.seconds)
            if server is not None:
                for name, pairs in (("PostgreSQL", pairs_of_ledger), ("PostgreSQL, together", pairs_together)):
                    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
                    measure(name, pairs, Place(folder=folder, url=server.new_database()), writers, options.seconds)


if __name__ == "__main__":
    main()
