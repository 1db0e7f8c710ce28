"""After a crash: end what still runs, charge what may have been used, and close the holds of dead owners.

The spool tells what was read up to the last sample. What came after it is not known, so a lost hold is
charged its last reading + P_max x the silence (DESIGN law 6): all of the silence where a process of the
step was still found running, at most lease + grace otherwise.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from mlflow_green.clock import Clock
from mlflow_green.errors import HoldClosed
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.metering.sampler import merge_windows
from mlflow_green.metering.supervise import end_processes, owner_alive, step_processes
from mlflow_green.records import (
    Action,
    Balance,
    Batch,
    Closing,
    ClosingKind,
    Decision,
    Domain,
    Energy,
    Hold,
    HoldRequest,
    NodeWindow,
    Outcome,
    Owner,
    Tick,
    Usage,
)
from mlflow_green.recorder.ticket import Book, build_entry
from mlflow_green.spool import from_json, read_spool, to_json
from mlflow_green.units import microjoules

_log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
GRACE_SECONDS = 30.0


@dataclass(slots=True)
class SpoolSession:
    """What one meter's spool file says."""

    path: Path
    owner: Owner | None = None
    book: Book | None = None
    last_seen_at: datetime | None = None
    begun: dict[str, datetime] = field(default_factory=dict)
    usages: dict[str, Usage] = field(default_factory=dict)
    windows: list[NodeWindow] = field(default_factory=list)
    closings: dict[str, Closing] = field(default_factory=dict)
    requests: dict[str, HoldRequest] = field(default_factory=dict)


def session_line(owner: Owner, book: Book) -> dict[str, object]:
    """The first line of a spool file."""
    return {"kind": "session", "owner": to_json(owner), "book": to_json(book)}


def read_session(path: Path) -> SpoolSession:
    """Read a spool file; lines that make no sense are logged and passed over."""
    session = SpoolSession(path=path)
    for line in read_spool(path):
        try:
            _take_line(session, line)
        except (KeyError, TypeError, ValueError, AttributeError):
            _log.warning("%s: a line that cannot be read is passed over", path, exc_info=True)
    return session


def _take_line(session: SpoolSession, line: dict[str, object]) -> None:
    kind = line["kind"]
    if kind == "session":
        session.owner = from_json(Owner, line["owner"])
        session.book = from_json(Book, line["book"])
    elif kind == "begin":
        session.begun[str(line["hold_id"])] = datetime.fromisoformat(str(line["at"]))
    elif kind == "tick":
        tick: Tick = from_json(Tick, line["tick"])
        session.last_seen_at = tick.at
        session.usages.update(tick.usages)
        session.windows.extend(tick.windows)
    elif kind == "request":
        session.requests[str(line["hold_id"])] = from_json(HoldRequest, line["request"])
    elif kind == "closing":
        closing: Closing = from_json(Closing, line["closing"])
        assert closing.entry is not None
        session.closings[closing.entry.entry_id] = closing


def recover(
    ledger: Ledger,
    spool_dir: Path,
    *,
    host: str,
    clock: Clock,
    say: Callable[[str], None],
    posted_sequences: Callable[[str], dict[Domain, int]],
) -> int:
    """Close what dead owners left open and post what their spools hold; the number of lost holds.

    ``posted_sequences`` gives the last posted tick of a sampler by domain. Raises ``LedgerUnavailable``; the
    spool files stay until their content is committed, so that a later call does it.
    """
    dead_holds = [hold for hold in ledger.open_holds() if not owner_alive(hold.owner, host)]
    ran_on = {hold.hold_id for hold in dead_holds if step_processes(hold.hold_id)}
    if ran_on:
        say(f"ending {len(ran_on)} steps that outlived a killed Snakemake")
    for hold_id in ran_on:
        end_processes(hold_id, GRACE_SECONDS)
    lost = 0
    for path in sorted(spool_dir.glob("*.jsonl")) if spool_dir.is_dir() else ():
        session = read_session(path)
        if session.owner is not None and owner_alive(session.owner, host):
            continue
        mine = [hold for hold in dead_holds if hold.owner == session.owner]
        dead_holds = [hold for hold in dead_holds if hold.owner != session.owner]
        lost += _post_session(ledger, session, mine, ran_on, clock.now(), posted_sequences)
        path.unlink(missing_ok=True)
    if dead_holds:  # their spool is gone: nothing was read, so the whole silence is charged
        closings = [_lost(hold, SpoolSession(path=spool_dir), hold.hold_id in ran_on, clock.now()) for hold in dead_holds]
        ledger.commit(Batch(closings=tuple(closings)), admit_all)
        lost += len(closings)
    if lost:
        say(f"{lost} steps of a killed run were charged at their last reading plus the longest they may have run on")
    return lost


def _post_session(
    ledger: Ledger,
    session: SpoolSession,
    holds: Sequence[Hold],
    ran_on: set[str],
    now: datetime,
    posted_sequences: Callable[[str], dict[Domain, int]],
) -> int:
    sampler_id = session.book.sampler_id if session.book else None
    posted = posted_sequences(sampler_id) if sampler_id else {}
    windows = [window for window in session.windows if window.sequence_first > posted.get(window.domain, -1)]
    closings, lost = [], 0
    for hold in holds:
        if hold.hold_id in session.closings:
            continue
        if hold.hold_id not in session.begun and hold.hold_id not in ran_on:
            closings.append(Closing(kind=ClosingKind.VOID, hold_id=hold.hold_id, entry=None, reason="never began"))
        else:
            closings.append(_lost(hold, session, hold.hold_id in ran_on, now))
            lost += 1
    written = [_with_hold(ledger, session, closing) for closing in session.closings.values()]
    closings += [closing for closing in written if closing is not None]
    ledger.commit(Batch(closings=tuple(closings), windows=merge_windows(windows)), admit_all)
    return lost


def _with_hold(ledger: Ledger, session: SpoolSession, closing: Closing) -> Closing | None:
    """A step that was metered without asking the ledger gets its hold now, so that its budgets are charged."""
    entry = closing.entry
    assert entry is not None
    request = session.requests.get(entry.entry_id)
    if closing.hold_id is not None or request is None:
        return closing
    try:
        answer = ledger.commit(Batch(requests=(request,), owner=session.owner), admit_all).answers[0]
    except HoldClosed:
        return None  # an earlier attempt to post this file came this far
    assert answer.hold is not None
    hold_id = answer.hold.hold_id
    return dataclasses.replace(closing, hold_id=hold_id, entry=dataclasses.replace(entry, hold_id=hold_id))


def admit_all(request: HoldRequest, _balances: Sequence[Balance]) -> Decision:
    """For facts: what was spent is held at nothing and posted in full."""
    return Decision(
        action=Action.ADMIT,
        would=Action.ADMIT,
        tier=request.estimates[0].tier if request.estimates else None,
        amounts={},
        reason="metered without a hold",
    )


def _lost(hold: Hold, session: SpoolSession, still_ran: bool, now: datetime) -> Closing:
    usage = session.usages.get(hold.hold_id)
    began = session.begun.get(hold.hold_id, hold.opened_at)
    last_read_at = max(began, session.last_seen_at) if usage and session.last_seen_at else began
    silence_seconds = max(0.0, (now - last_read_at).total_seconds())
    if not still_ran:
        silence_seconds = min(silence_seconds, LEASE_SECONDS + GRACE_SECONDS)
    book = session.book or _unknown_book(hold)
    unread_microjoules = microjoules(book.power_watts_max * silence_seconds)
    read_microjoules = usage.total.microjoules if usage and usage.total else 0
    entry = build_entry(
        entry_id=hold.hold_id,
        hold_id=hold.hold_id,
        step=hold.step,
        spec=hold.spec,
        tier=hold.tier,
        decision=hold.decision,
        would_decision=hold.would_decision,
        reason=f"its owner died; {silence_seconds:.0f} s without a reading are charged at {book.power_watts_max:.0f} W",
        outcome=Outcome.LOST,
        started_at=began,
        duration_seconds=max(0.0, (last_read_at - began).total_seconds()),
        usage=_widened(usage, unread_microjoules) if usage else None,
        charged_microjoules=read_microjoules + unread_microjoules,
        book=dataclasses.replace(book, user=hold.user, project=hold.project),
    )
    return Closing(kind=ClosingKind.LOST, hold_id=hold.hold_id, entry=entry, reason=entry.reason)


def _widened(usage: Usage, unread_microjoules: int) -> Usage:
    """The same readings with the unread energy in the interval's upper end."""
    domain = Domain.CPU if Domain.CPU in usage.energy else next(iter(usage.energy), None)
    if domain is None:
        return usage
    known = usage.energy[domain]
    wide = Energy(
        microjoules=known.microjoules,
        low_microjoules=known.low_microjoules,
        high_microjoules=known.high_microjoules + unread_microjoules,
        method=known.method,
    )
    return dataclasses.replace(usage, energy={**usage.energy, domain: wide})


def _unknown_book(hold: Hold) -> Book:
    from mlflow_green.records import Site

    return Book(
        project=hold.project, user=hold.user, host=hold.owner.host, site=Site(), sampler_id=None, power_watts_max=0.0
    )
