"""What a step is charged whose meter fell silent: its last reading, and what it may have used since; pure."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

from mlflow_green.recorder.spool_session import SpoolSession
from mlflow_green.recorder.ticket import Book, build_entry
from mlflow_green.records import Closing, ClosingKind, Domain, Energy, Entry, Hold, Outcome, Site, Unit, Usage
from mlflow_green.units import microjoules

LEASE_SECONDS = 30.0
GRACE_SECONDS = 30.0
SILENCE = timedelta(seconds=LEASE_SECONDS + GRACE_SECONDS)
"""The longest that a step is taken to run on unmetered, unless it was seen to."""
BLOCK_SILENCE = timedelta(seconds=5)
"""The same for a part of the process that meters itself: a sampling period, and a leader's answer."""


def lost_after_silence(hold: Hold, session: SpoolSession, *, began_at: datetime, silent_until: datetime) -> Closing:
    """Its last reading + P_max x the silence; no silence if it had ended before its meter died."""
    silence_seconds = max(0.0, (silent_until - last_read_at(hold, session, began_at)).total_seconds())
    power_watts = session.book.power_watts_max
    reason = f"its owner died; {silence_seconds:.0f} s without a reading are charged at {power_watts:.0f} W"
    if hold.hold_id in session.final:
        silence_seconds, reason = 0.0, "its owner died; it was metered to its end"
    unread_microjoules = microjoules(power_watts * silence_seconds)
    return _lost(hold, session, began_at=began_at, unread_microjoules=unread_microjoules, reason=reason)


def lost_as_held(hold: Hold, session: SpoolSession | None, *, began_at: datetime, why: str) -> Closing:
    """What it held, or its last reading where that is more; ``why`` says that nothing better is known."""
    usage = session.usages.get(hold.hold_id) if session else None
    read_microjoules = usage.total.microjoules if usage and usage.total else 0
    unread_microjoules = max(0, hold.amounts.get(Unit.ENERGY, 0) - read_microjoules)
    reason = f"{why}; it is charged what it held"
    closing = _lost(hold, session, began_at=began_at, unread_microjoules=unread_microjoules, reason=reason)
    entry = closing.entry
    assert entry is not None
    if usage is None:  # no meter said where it ran, so its site is not known either
        entry = dataclasses.replace(
            entry,
            operational_micrograms_co2e=hold.amounts.get(Unit.CARBON),
            cost_micro_units=hold.amounts.get(Unit.MONEY),
        )
    return dataclasses.replace(closing, entry=entry)


def last_read_at(hold: Hold, session: SpoolSession, began_at: datetime) -> datetime:
    """When its meter was heard last; when it began, if never."""
    if session.last_read_at is None or hold.hold_id not in session.usages:
        return began_at
    return max(began_at, session.last_read_at)


def earlier_entry(closing: Closing, number: int) -> Entry:
    """The entry of an earlier start of a job that the batch system began again: one of its own, of the same hold."""
    assert closing.entry is not None
    return dataclasses.replace(closing.entry, entry_id=f"{closing.entry.entry_id}-{number}")


def _lost(
    hold: Hold, session: SpoolSession | None, *, began_at: datetime, unread_microjoules: int, reason: str
) -> Closing:
    usage = session.usages.get(hold.hold_id) if session else None
    ended_at = last_read_at(hold, session, began_at) if session else began_at
    book = session.book if session else _unknown_book(hold)
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
        duration_seconds=(ended_at - began_at).total_seconds(),
        usage=_widened(usage, unread_microjoules) if usage else None,
        charged_microjoules=read_microjoules + unread_microjoules,
        book=dataclasses.replace(book, user=hold.user, project=hold.project),
    )
    return Closing(kind=ClosingKind.LOST, hold_id=hold.hold_id, entry=entry, reason=reason)


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
