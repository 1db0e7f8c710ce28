"""Small records for the tests of the ledger: amounts are bare numbers, so that sums can be seen."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlflow_green.ledger.sql import SqlLedger, open_ledger
from mlflow_green.records import (
    Action,
    Balance,
    Boundary,
    Closing,
    ClosingKind,
    CpuClockName,
    Decision,
    Domain,
    Energy,
    Entry,
    Estimate,
    Hold,
    HoldRequest,
    Method,
    Mode,
    NodeWindow,
    Outcome,
    Owner,
    Step,
    StepSpec,
    Term,
    Tier,
    Unit,
    Usage,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
OWNER = Owner(host="node1", boot_id="boot1", pid=42, started_ticks=7)


class SetClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.moment = NOON

    def now(self) -> datetime:
        return self.moment

    def monotonic_seconds(self) -> float:
        return (self.moment - NOON).total_seconds()

    def move(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def open_at(folder: Path, **options) -> SqlLedger:
    """A ledger in ``folder``; no mount is known there unless ``mountinfo_path`` says so."""
    options.setdefault("mountinfo_path", folder / "no-mountinfo")
    return open_url(f"sqlite:///{folder / 'ledger.db'}", **options)


def open_url(url: str, **options) -> SqlLedger:
    """The ledger of a URL, e.g. of a new database of the fixture ``postgres``."""
    options.setdefault("mountinfo_path", Path("/no-mountinfo"))
    options.setdefault("clock", SetClock())
    return open_ledger(url, **options)


def open_on_share(folder: Path, *, host: str = "login1", boot: str | None = None, **options) -> SqlLedger:
    """A ledger in ``folder / "share"``, which a network file system is mounted on; the cache of each host is its own."""
    mounts = folder / "mountinfo"
    if not mounts.exists():
        (folder / "share").mkdir(parents=True, exist_ok=True)
        mounts.write_text(
            f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {folder / 'share'} rw - nfs4 server:/share rw\n"
        )
    return open_at(
        folder / "share",
        mountinfo_path=mounts,
        hostname=host,
        boot=boot or f"boot of {host}",
        cache_dir=options.pop("cache_dir", folder / f"cache of {host}"),
        **options,
    )


def journal_path(folder: Path) -> Path:
    """The journal of ``open_on_share(folder)``."""
    return max((folder / "share" / "ledger.journal").glob("*.jsonl"), key=lambda path: int(path.stem))


def lease_path(folder: Path) -> Path:
    """The lease of ``open_on_share(folder)``."""
    return max((folder / "share" / "ledger.journal").glob("*.lease"), key=lambda path: int(path.stem))


def let_lapse(folder: Path) -> None:
    """Make the holder's last sign of life an hour old; if it lives, the next one comes within 10 s."""
    hour_ago = time.time() - 3600
    os.utime(lease_path(folder), (hour_ago, hour_ago))


def die(ledger: SqlLedger) -> None:
    """Leave a ledger on a share as kill -9 does: nothing is released, nobody renews the lease any more."""
    ledger._store._journal._pid = 0
    ledger.close()


def term(budget: str = "month", *, limit: int = 100, mode: Mode = Mode.HARD, unit: Unit = Unit.ENERGY, **more) -> Term:
    values = {"account": "project:demo", "period": "2026-11"} | more
    return Term(budget=budget, unit=unit, limit=limit, mode=mode, **values)


def request(name: str, amount: int | Mapping[Unit, int], *terms: Term, **more) -> HoldRequest:
    amounts = {Unit.ENERGY: amount} if isinstance(amount, int) else amount
    step = Step(workflow_run="run1", name=name, attempt=more.pop("attempt", 1))
    values = {"project": "demo", "user": "ana", "requested_at": NOON} | more
    return HoldRequest(
        step=step,
        spec=StepSpec(tiers=(Tier(name="full", energy_ratio=1.0),), energy_microjoules=5, phase="training"),
        estimates=(Estimate(tier="full", amounts=amounts, source="declared"),),
        terms=terms,
        **values,
    )


def admit_what_fits(request: HoldRequest, balances: Sequence[Balance]) -> Decision:
    """Admit the first estimate if every hard budget has room, else wait."""
    amounts = dict(request.estimates[0].amounts)
    for balance in balances:
        needed = amounts.get(balance.term.unit, 0)
        if balance.term.mode is Mode.HARD and needed > balance.available:
            return Decision(
                action=Action.WAIT,
                would=Action.WAIT,
                tier=None,
                amounts={},
                reason=f"needs {needed} of {balance.available}",
                budget=balance.term.budget,
                unit=balance.term.unit,
                needed=needed,
                available=balance.available,
            )
    return Decision(action=Action.ADMIT, would=Action.ADMIT, tier="full", amounts=amounts, reason="fits")


def admit_anything(request: HoldRequest, balances: Sequence[Balance]) -> Decision:
    """A broken policy."""
    return Decision(
        action=Action.ADMIT,
        would=Action.ADMIT,
        tier=None,
        amounts=dict(request.estimates[0].amounts),
        reason="whatever",
    )


def energy(microjoules: int) -> Energy:
    return Energy(
        microjoules=microjoules,
        low_microjoules=microjoules,
        high_microjoules=microjoules + 1,
        method=Method.ESTIMATED,
    )


def usage(used: int, seconds: float = 1.0) -> Usage:
    """What a step used that kept one core busy for ``seconds``."""
    return Usage(
        energy={Domain.CPU: energy(used)},
        duration_seconds=seconds,
        cpu_seconds=seconds,
        cpu_clock=CpuClockName.PERF,
        coverage_ratio=1.0,
    )


def entry(hold: Hold, used: int, **more) -> Entry:
    base = Entry(
        entry_id=f"entry-{hold.hold_id}",
        hold_id=hold.hold_id,
        project=hold.project,
        user=hold.user,
        workflow_run=hold.step.workflow_run,
        step=hold.step.name,
        wildcards=hold.step.wildcards,
        attempt=hold.step.attempt,
        host="node1",
        started_at=NOON,
        ended_at=NOON + timedelta(seconds=3),
        duration_seconds=3.0,
        outcome=Outcome.SUCCEEDED,
        tier=hold.tier,
        decision=hold.decision,
        would_decision=hold.would_decision,
        reason="",
        phase="training",
        energy={Domain.CPU: energy(used)},
        energy_charged_microjoules=used,
        boundary=Boundary.COMPONENT,
        sampler_id="sampler1",
        cpu_seconds=1.5,
        cpu_clock=None,
        coverage_ratio=1.0,
        carbon_intensity_g_per_kwh=None,
        intensity_source=None,
        pue=1.0,
        operational_micrograms_co2e=None,
        embodied_micrograms_co2e=None,
    )
    return replace(base, **more)


def settle(hold: Hold, used: int, **more) -> Closing:
    return Closing(kind=ClosingKind.SETTLE, hold_id=hold.hold_id, entry=entry(hold, used, **more))


def lose(hold: Hold, used: int, charged: int) -> Closing:
    lost = entry(hold, used, energy_charged_microjoules=charged, outcome=Outcome.LOST)
    return Closing(kind=ClosingKind.LOST, hold_id=hold.hold_id, entry=lost, reason="owner is gone")


def void(hold: Hold) -> Closing:
    return Closing(kind=ClosingKind.VOID, hold_id=hold.hold_id, entry=None, reason="not used")


def window(first: int, attributed: int, *, last: int | None = None, **more) -> NodeWindow:
    values = {"sampler_id": "sampler1", "domain": Domain.CPU, "boot_id": "boot1"} | more
    return NodeWindow(
        host="node1",
        sequence_first=first,
        sequence_last=first if last is None else last,
        started_at=NOON,
        ended_at=NOON + timedelta(seconds=1),
        energy=energy(attributed + 30),
        attributed_microjoules=attributed,
        idle_microjoules=20,
        other_microjoules=10,
        coverage_ratio=1.0,
        **values,
    )
