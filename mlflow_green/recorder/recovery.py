"""After a crash: end what still runs, charge what may have been used, and close the holds of dead owners.

The spool tells what was read up to the last sample. What came after it is not known, so a lost hold is
charged its last reading + P_max x the silence: all of the silence where a process of the
step was still found running, at most lease + grace otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from mlflow_green.clock import Clock
from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.metering.sampler import merge_windows
from mlflow_green.metering.supervise import end_processes, owner_alive, step_processes
from mlflow_green.recorder.late_hold import admit_at_nothing, hold_late
from mlflow_green.recorder.ticket import Book, build_entry
from mlflow_green.records import (
    Batch,
    Closing,
    ClosingKind,
    Domain,
    Energy,
    Hold,
    HoldRequest,
    NodeWindow,
    Outcome,
    Owner,
    Site,
    Tick,
    Unit,
    Usage,
)
from mlflow_green.spool import from_json, read_spool, to_json
from mlflow_green.units import microjoules

_log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
GRACE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that started: when, and under which hold or which promise of one."""

    at: datetime
    hold: Hold | None
    request: HoldRequest | None


@dataclass(slots=True)
class SpoolSession:
    """What one meter's spool file says."""

    path: Path
    owner: Owner
    book: Book
    leaves_orphans: bool = False
    last_read_at: datetime | None = None
    last_alive_at: datetime | None = None
    begun: dict[str, Begun] = field(default_factory=dict)
    usages: dict[str, Usage] = field(default_factory=dict)
    final: set[str] = field(default_factory=set)
    windows: list[NodeWindow] = field(default_factory=list)
    closings: dict[str, Closing] = field(default_factory=dict)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Steps that began and were not settled, by hold id."""
        return tuple(hold_id for hold_id in self.begun if hold_id not in self.closings)


def session_line(owner: Owner, book: Book, *, leaves_orphans: bool = False) -> dict[str, object]:
    """The first line of a spool file.

    ``leaves_orphans``: what it runs belongs to the user and is not ended when its meter is found dead.
    """
    return {"kind": "session", "owner": to_json(owner), "book": to_json(book), "leaves_orphans": leaves_orphans}


def read_session(path: Path) -> SpoolSession:
    """Read a spool file; lines that make no sense are logged and passed over.

    Raises:
        ValueError: its first line does not say whose it is.
        FileNotFoundError: another process has posted it meanwhile.
    """
    lines = read_spool(path)
    try:
        first = next(lines)
        session = SpoolSession(
            path=path,
            owner=from_json(Owner, first["owner"]),
            book=from_json(Book, first["book"]),
            leaves_orphans=bool(first.get("leaves_orphans")),
        )
    except (StopIteration, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say which process wrote it") from error
    for line in lines:
        try:
            _take_line(session, line)
        except (KeyError, TypeError, ValueError, AttributeError):
            _log.warning("%s: a line that cannot be read is passed over", path, exc_info=True)
    return session


def _take_line(session: SpoolSession, line: dict[str, object]) -> None:
    kind = line["kind"]
    if kind == "begin":
        session.begun[str(line["hold_id"])] = Begun(
            at=datetime.fromisoformat(str(line["at"])),
            hold=from_json(Hold, line["hold"]),
            request=from_json(HoldRequest, line["request"]),
        )
    elif kind == "tick":
        tick: Tick = from_json(Tick, line["tick"])
        session.last_read_at = tick.at
        session.usages.update(tick.usages)
        session.final |= tick.final
        session.windows.extend(tick.windows)
    elif kind == "alive":
        session.last_alive_at = datetime.fromisoformat(str(line["at"]))
    elif kind == "closing":
        closing: Closing = from_json(Closing, line["closing"])
        if closing.entry is not None:
            session.closings[closing.entry.entry_id] = closing


def recover(
    ledger: Ledger,
    spool_dir: Path,
    *,
    host: str,
    clock: Clock,
    say: Callable[[str], None],
    posted_sequences: Callable[[str], dict[Domain, int]] | None = None,
) -> int:
    """Close what dead owners left open and post what their spools hold; the number of lost steps.

    ``posted_sequences`` gives the last posted tick of a sampler by domain; the ledger knows it too. Raises
    ``LedgerUnavailable``; the spool files stay until their content is committed, so that a later call does it. Any
    number of processes may do this at once, and be killed at it: every step of it changes nothing when it is done
    again. Other projects may use the same ledger: a hold whose readings are in another spool folder is left to the
    next run there.
    """
    posted_sequences = posted_sequences or ledger.last_sequences
    # Spools before holds: an owner that is dead now opens no hold any more, and none of its readings is missed.
    sessions = [session for path in sorted(spool_dir.glob("*.jsonl")) if (session := _dead_session(path, host, say))]
    for session in sessions:
        promised = [begun.request for begun in session.begun.values() if begun.request]
        with _said(say, f"the holds of {session.path}"):
            hold_late(ledger, promised, session.owner)
    dead = _dead_holds(ledger, spool_dir, host, sessions)
    ran_on = _end_orphans(sessions, dead, say)
    lost = 0
    for session in sessions:
        mine = [dead.pop(hold_id) for hold_id, hold in list(dead.items()) if _belongs(hold, session, sessions)]
        if session.leaves_orphans and _still_runs(session, clock.now()):
            continue
        closings = _closings(session, mine, ran_on, clock.now())
        if _post_session(ledger, session, closings, posted_sequences, say):
            lost += sum(closing.kind is ClosingKind.LOST for closing in closings)
    # Their spool is gone, and with it every reading: they are charged what they held.
    for hold_id, hold in dead.items():
        closing = _lost(hold, hold.opened_at, None, still_ran=hold_id in ran_on, now=clock.now())
        with _said(say, f"hold {hold_id} of {hold.step.label}, whose owner died"):
            ledger.commit(Batch(closings=(closing,)), admit_at_nothing)
            lost += 1
    if lost:
        say(f"{lost} steps of a killed run were charged at their last reading plus the longest they may have run on")
    return lost


@contextmanager
def _said(say: Callable[[str], None], subject: str) -> Iterator[None]:
    """What the ledger does not take is said and passed over: it must not keep every later run from starting."""
    try:
        yield
    except LedgerUnavailable:
        raise
    except LedgerError as error:
        say(f"the ledger did not take {subject}: {error}; please report it")


def _dead_holds(ledger: Ledger, spool_dir: Path, host: str, sessions: Sequence[SpoolSession]) -> dict[str, Hold]:
    """Open holds of dead owners, but for those whose readings wait in another project's spool folder."""
    dead = [hold for hold in ledger.open_holds() if not owner_alive(hold.owner, host)]
    here = {session.owner for session in sessions}
    begun = {hold_id for session in sessions for hold_id in session.begun}
    elsewhere = {owner for owner in {hold.owner for hold in dead} - here if _is_spooled_elsewhere(owner, spool_dir)}
    return {hold.hold_id: hold for hold in dead if hold.owner not in elsewhere or hold.hold_id in begun}


def _is_spooled_elsewhere(owner: Owner, spool_dir: Path) -> bool:
    if owner.spool_dir is None or owner.spool_dir == str(spool_dir.resolve()):
        return False
    folder = Path(owner.spool_dir)
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a glob would not tell a folder that is gone from a closed one
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # it is there, and nothing here proves that the readings are not
        return True
    return any(_may_be_spool_of(owner, folder / name) for name in names if name.endswith(".jsonl"))


def _may_be_spool_of(owner: Owner, path: Path) -> bool:
    try:
        return bool(from_json(Owner, next(read_spool(path))["owner"]) == owner)
    except FileNotFoundError:  # posted meanwhile
        return False
    except OSError:
        return True
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError):
        return False


def _dead_session(path: Path, host: str, say: Callable[[str], None]) -> SpoolSession | None:
    """What the file says, if its owner is dead."""
    try:
        session = read_session(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        _put_aside(path, str(error), say)
        return None
    return None if owner_alive(session.owner, host) else session


def _put_aside(path: Path, problem: str, say: Callable[[str], None]) -> None:
    aside = path.with_suffix(".unreadable")
    with suppress(OSError):
        path.rename(aside)
    say(f"{problem}; it is kept as {aside} and not counted, please report it")


def _end_orphans(sessions: Sequence[SpoolSession], dead: Mapping[str, Hold], say: Callable[[str], None]) -> set[str]:
    """End what outlived a dead meter; the hold ids of what was found running."""
    spared = {hold_id for session in sessions if session.leaves_orphans for hold_id in session.begun}
    unfinished = {hold_id for session in sessions for hold_id in session.unfinished}
    ran_on = {hold_id for hold_id in (unfinished | dead.keys()) - spared if step_processes(hold_id)}
    if ran_on:
        say(f"ending {len(ran_on)} steps that outlived a killed run")
        end_processes(ran_on, GRACE_SECONDS)
    return ran_on


def _still_runs(session: SpoolSession, now: datetime) -> bool:
    """Whether a step of the session runs on without a meter; says so in its spool."""
    if not any(step_processes(hold_id) for hold_id in session.unfinished):
        return False
    with session.path.open("a") as file:
        file.write(json.dumps({"kind": "alive", "at": now.isoformat()}) + "\n")
    return True


def _belongs(hold: Hold, session: SpoolSession, sessions: Sequence[SpoolSession]) -> bool:
    """One process may have written several spools: a hold belongs to the one where it began, else to any."""
    if hold.hold_id in session.begun:
        return True
    return hold.owner == session.owner and not any(hold.hold_id in other.begun for other in sessions)


def _closings(session: SpoolSession, holds: Sequence[Hold], ran_on: set[str], now: datetime) -> list[Closing]:
    """How everything that the session left behind is closed: settled if it got that far, void if it never began."""
    closings = list(session.closings.values())
    by_id = {hold.hold_id: hold for hold in holds}
    for hold_id in session.unfinished:
        begun = session.begun[hold_id]
        hold = by_id.get(hold_id) or begun.hold  # a ledger that was deleted knows it no more
        if hold is not None:
            closings.append(_lost(hold, begun.at, session, still_ran=hold_id in ran_on, now=now))
    for hold_id, hold in by_id.items():
        if hold_id in ran_on and hold_id not in session.begun:
            closings.append(_lost(hold, hold.opened_at, session, still_ran=True, now=now))
        elif hold_id not in session.begun:
            closings.append(Closing(kind=ClosingKind.VOID, hold_id=hold_id, entry=None, reason="never began"))
    return closings


def _post_session(
    ledger: Ledger,
    session: SpoolSession,
    closings: Sequence[Closing],
    posted_sequences: Callable[[str], dict[Domain, int]],
    say: Callable[[str], None],
) -> bool:
    sampler_id = session.book.sampler_id
    posted = posted_sequences(sampler_id) if sampler_id else {}
    windows = [window for window in session.windows if window.sequence_first > posted.get(window.domain, -1)]
    try:
        ledger.commit(Batch(closings=tuple(closings), windows=merge_windows(windows)), admit_at_nothing)
    except LedgerUnavailable:
        raise
    except LedgerError as error:  # one impossible file must not keep every later run from starting
        _put_aside(session.path, f"the ledger did not take {session.path}: {error}", say)
        return False
    session.path.unlink(missing_ok=True)
    return True


def _lost(hold: Hold, began_at: datetime, session: SpoolSession | None, *, still_ran: bool, now: datetime) -> Closing:
    """Close a hold at its last reading + P_max x the silence; no silence if it had ended before its meter died."""
    usage = session.usages.get(hold.hold_id) if session else None
    book = session.book if session else _unknown_book(hold)
    last_read_at = max(began_at, session.last_read_at) if session and usage and session.last_read_at else began_at
    silent_until = now
    if not still_ran:
        last_alive_at = max(last_read_at, (session and session.last_alive_at) or last_read_at)
        silent_until = min(now, last_alive_at + timedelta(seconds=LEASE_SECONDS + GRACE_SECONDS))
    silence_seconds = max(0.0, (silent_until - last_read_at).total_seconds())
    if session and hold.hold_id in session.final:
        silence_seconds = 0.0
    unread_microjoules = microjoules(book.power_watts_max * silence_seconds)
    reason = f"its owner died; {silence_seconds:.0f} s without a reading are charged at {book.power_watts_max:.0f} W"
    if session is None:
        unread_microjoules = hold.amounts.get(Unit.ENERGY, 0)
        reason = "its owner died and its readings are gone; it is charged what it held"
    read_microjoules = usage.total.microjoules if usage and usage.total else 0
    entry = build_entry(
        entry_id=hold.hold_id,
        hold_id=hold.hold_id,
        step=hold.step,
        spec=hold.spec,
        tier=hold.tier,
        decision=hold.decision,
        would_decision=hold.would_decision,
        reason=reason,
        outcome=Outcome.LOST,
        started_at=began_at,
        duration_seconds=max(0.0, (last_read_at - began_at).total_seconds()),
        usage=_widened(usage, unread_microjoules) if usage else None,
        charged_microjoules=read_microjoules + unread_microjoules,
        book=dataclasses.replace(book, user=hold.user, project=hold.project),
    )
    if session is None:
        entry = dataclasses.replace(
            entry,
            operational_micrograms_co2e=hold.amounts.get(Unit.CARBON),
            cost_micro_units=hold.amounts.get(Unit.MONEY),
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
    return Book(
        project=hold.project, user=hold.user, host=hold.owner.host, site=Site(), sampler_id=None, power_watts_max=0.0
    )
