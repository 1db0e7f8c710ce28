"""How a step ends that a batch system ran: by its node's last word, by what the batch system says, or by its wall time.

Pure. Nobody here can see whether a job on another host lives, so silence alone ends nothing before its time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlflow_green.recorder.loss import SILENCE, earlier_entry, last_read_at, lost_after_silence, lost_as_held
from mlflow_green.recorder.spool_session import Placed, SpoolSession
from mlflow_green.records import Closing, ClosingKind, Hold, Outcome

WALLTIME_MARGIN = timedelta(hours=1)
WALLTIME_UNKNOWN = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """The batch system says that a job is over.

    ``started`` is ``None`` where it does not say whether it ever began; of one that was begun again, it is about the
    last time. ``failed_after`` is how long one ran that did not succeed, ``None`` where that is not known.
    """

    at: datetime
    started: bool | None
    failed_after: timedelta | None = None


JobEnds = Callable[[Collection[str]], Mapping[str, JobEnd | None]]
"""Asks the batch system how these jobs ended: ``None`` for one that runs or will begin. An unknown one is left out."""


def closing_of(
    hold: Hold,
    placed: Placed,
    sessions: Sequence[SpoolSession],
    end: JobEnd | None,
    now: datetime,
    *,
    is_known: bool = False,
) -> Closing | None:
    """How the hold of a placed step is closed now; ``None``: it stays open, for its job may still run or begin.

    ``sessions`` are those of its placement, the earliest start first: a job that was begun again has several.
    ``is_known``: the batch system knows the job, so that without an ``end`` no silence is too long.
    """
    heard_at = _heard_at(placed, sessions)
    is_given_up = not is_known and now >= heard_at + _silence_max(placed)
    if end is None and not is_given_up and not _has_last_word(placed, sessions, now - heard_at):
        return None
    closings = [
        _closing_of_start(hold, sessions, number, end)
        for number, session in enumerate(sessions)
        if hold.hold_id in session.begun
    ]
    if not closings:
        return _never_began(hold, placed, sessions, end)
    *before, last = closings
    earlier = tuple(earlier_entry(closing, number) for number, closing in enumerate(before, 1))
    return dataclasses.replace(last, earlier=earlier) if earlier else last


def heard_of(session: SpoolSession) -> datetime | None:
    """When the meter was heard last; ``None`` where its file does not tell."""
    moments = [session.origin.at if session.origin else None, session.last_read_at]
    moments += [begun.at for begun in session.begun.values()]
    moments += [closing.entry.ended_at for closing in session.closings.values() if closing.entry]
    return max((moment for moment in moments if moment), default=None)


def _heard_at(placed: Placed, sessions: Sequence[SpoolSession]) -> datetime:
    return max(moment for moment in (placed.at, *map(heard_of, sessions)) if moment)


def _has_last_word(placed: Placed, sessions: Sequence[SpoolSession], silence: timedelta) -> bool:
    """Whether no other start of the job will follow: one that failed or was cut off can be begun again."""
    if not sessions or not sessions[-1].ended:
        return False
    outcomes = {closing.entry.outcome for closing in sessions[-1].closings.values() if closing.entry}
    if outcomes and outcomes <= {Outcome.SUCCEEDED, Outcome.HALTED}:
        return True
    return placed.job_id is None and silence >= SILENCE


def _closing_of_start(hold: Hold, sessions: Sequence[SpoolSession], number: int, end: JobEnd | None) -> Closing:
    """One start: its own last word, else its last reading and the silence, which ended with the next start."""
    session = sessions[number]
    own = session.closings.get(hold.hold_id)
    if own is not None:
        return own
    began_at = session.begun[hold.hold_id].at
    silent_until = last_read_at(hold, session, began_at) + SILENCE
    following = sessions[number + 1].origin if number + 1 < len(sessions) else None
    if following is not None:
        silent_until = min(following.at, silent_until)
    elif end is None:
        return lost_as_held(hold, session, began_at=began_at, why="no word from its job since long after its wall time")
    elif end.started is not False:
        silent_until = end.at
    return lost_after_silence(hold, session, began_at=began_at, silent_until=silent_until)


def _never_began(hold: Hold, placed: Placed, sessions: Sequence[SpoolSession], end: JobEnd | None) -> Closing:
    """No meter has seen it begin. Where its meter had no time to say so, it is charged all the same."""
    if (sessions and sessions[-1].ended) or (end is not None and end.started is False):
        return Closing(kind=ClosingKind.VOID, hold_id=hold.hold_id, entry=None, reason="its job ended before it began")
    if not sessions and end is not None and end.failed_after is not None and end.failed_after <= SILENCE:
        # A meter starts before its first step does, so this job died on its way there.
        reason = f"its job failed {end.failed_after.total_seconds():.0f} s after it began, before its meter started"
        return Closing(kind=ClosingKind.VOID, hold_id=hold.hold_id, entry=None, reason=reason)
    why = "its job ended without a word from its node's meter"
    if end is None:
        why = "no word from its job since long after its wall time"
    return lost_as_held(hold, None, began_at=placed.at, why=why)


def _silence_max(placed: Placed) -> timedelta:
    """The longest that a job which runs or waits may go unheard."""
    if placed.walltime_seconds is None:
        return WALLTIME_UNKNOWN
    return timedelta(seconds=placed.walltime_seconds) + WALLTIME_MARGIN
