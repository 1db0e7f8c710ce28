"""What one meter's spool file says, and the lines that say it.

A file in the spool folder belongs to a process of this host. One in ``nodes/PLACEMENT/`` was written where a batch
system ran a job, and belongs to the main process that placed the job there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from mlflow_green.recorder.ticket import Book, Ticket
from mlflow_green.records import Closing, Hold, HoldRequest, NodeWindow, Owner, Tick, Usage
from mlflow_green.spool import from_json, read_spool, to_json

_log = logging.getLogger(__name__)

Line = dict[str, object]


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that started: when, and under which hold or which promise of one."""

    at: datetime
    hold: Hold | None
    request: HoldRequest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A step that was handed to a batch system: nobody on this host runs it, and its hold has no lease.

    ``job_id`` is the batch system's, ``None`` while it is not known.
    """

    at: datetime
    placement_id: str
    hold: Hold | None
    request: HoldRequest | None
    walltime_seconds: float | None
    job_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who sent the job to the node whose meter writes: the main process, its placement, the batch system's job id.

    ``at`` is when this meter started: a job that the batch system began again has one for each start.
    """

    at: datetime
    main: Owner
    placement_id: str
    job_id: str | None


@dataclass(slots=True)
class SpoolSession:
    """What one meter's spool file says. ``ended``: its meter closed it, and nothing will follow.

    ``are_blocks``: its steps are parts of its owner's own process, which died with it.
    ``others`` are steps of other meters, which this one charged as their leader: when it did last, and what in all.
    """

    path: Path
    owner: Owner
    book: Book
    leaves_orphans: bool = False
    are_blocks: bool = False
    origin: Origin | None = None
    last_read_at: datetime | None = None
    last_alive_at: datetime | None = None
    begun: dict[str, Begun] = field(default_factory=dict)
    placed: dict[str, Placed] = field(default_factory=dict)
    usages: dict[str, Usage] = field(default_factory=dict)
    others: dict[str, tuple[datetime, Usage]] = field(default_factory=dict)
    final: set[str] = field(default_factory=set)
    windows: list[NodeWindow] = field(default_factory=list)
    closings: dict[str, Closing] = field(default_factory=dict)
    ended: bool = False

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Steps that began and were not settled, by hold id."""
        return tuple(hold_id for hold_id in self.begun if hold_id not in self.closings)

    @property
    def promised(self) -> Iterable[HoldRequest]:
        """The holds that its steps were promised."""
        promised = [begun.request for begun in self.begun.values()]
        promised += [placed.request for placed in self.placed.values()]
        return [request for request in promised if request]


# --- writing ----------------------------------------------------------------------------------------


def session_line(
    owner: Owner, book: Book, *, leaves_orphans: bool = False, are_blocks: bool = False, origin: Origin | None = None
) -> Line:
    """The first line of a spool file.

    ``leaves_orphans``: what it runs belongs to the user and is not ended when its meter is found dead.
    ``are_blocks``: what it meters is the owner's own process.
    """
    line: Line = {"kind": "session", "owner": to_json(owner), "book": to_json(book), "leaves_orphans": leaves_orphans}
    if are_blocks:
        line["are_blocks"] = True
    return line if origin is None else {**line, "origin": to_json(origin)}


def begin_line(ticket: Ticket) -> Line:
    """A step starts here: enough to charge it, should this process and the ledger be lost."""
    return {
        "kind": "begin",
        "hold_id": ticket.hold_id,
        "at": to_json(ticket.began_at),
        "hold": to_json(ticket.hold),
        "request": to_json(ticket.late_request),
    }


def placed_of(ticket: Ticket) -> Placed:
    """A step that was placed, as its spool tells it."""
    assert ticket.placed_at is not None
    return Placed(
        at=ticket.placed_at,
        placement_id=ticket.placement_id or "",
        hold=ticket.hold,
        request=ticket.late_request,
        walltime_seconds=ticket.walltime_seconds,
        job_id=ticket.job_id,
    )


def placed_line(ticket: Ticket) -> Line:
    """A step is about to be handed to a batch system."""
    return {"kind": "placed", "hold_id": ticket.hold_id, "placed": to_json(placed_of(ticket))}


def submitted_line(ticket: Ticket) -> Line:
    """The batch system has taken the step, under this job id."""
    return {"kind": "submitted", "hold_id": ticket.hold_id, "job_id": ticket.job_id}


def unplaced_line(ticket: Ticket) -> Line:
    """The batch system did not take the step."""
    return {"kind": "unplaced", "hold_id": ticket.hold_id}


def closing_line(closing: Closing) -> Line:
    return {"kind": "closing", "closing": to_json(closing)}


END_LINE: Line = {"kind": "end"}


# --- reading ----------------------------------------------------------------------------------------


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
            are_blocks=bool(first.get("are_blocks")),
            origin=from_json(Origin, first.get("origin")),
        )
    except (StopIteration, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say which process wrote it") from error
    for line in lines:
        try:
            _take_line(session, line)
        except (KeyError, TypeError, ValueError, AttributeError):
            _log.warning("%s: a line that cannot be read is passed over", path, exc_info=True)
    return session


def _take_line(session: SpoolSession, line: Line) -> None:
    kind = line["kind"]
    if kind == "begin":
        session.begun[str(line["hold_id"])] = Begun(
            at=datetime.fromisoformat(str(line["at"])),
            hold=from_json(Hold, line["hold"]),
            request=from_json(HoldRequest, line["request"]),
        )
    elif kind == "placed":
        session.placed[str(line["hold_id"])] = from_json(Placed, line["placed"])
    elif kind == "submitted":
        hold_id = str(line["hold_id"])
        session.placed[hold_id] = dataclasses.replace(session.placed[hold_id], job_id=from_json(str, line["job_id"]))
    elif kind == "unplaced":
        session.placed.pop(str(line["hold_id"]), None)
    elif kind == "tick":
        _take_tick(session, from_json(Tick, line["tick"]))
    elif kind == "alive":
        session.last_alive_at = datetime.fromisoformat(str(line["at"]))
    elif kind == "closing":
        closing: Closing = from_json(Closing, line["closing"])
        if closing.entry is not None:
            session.closings[closing.entry.entry_id] = closing
            session.placed.pop(closing.entry.entry_id, None)
    elif kind == "end":
        session.ended = True


def _take_tick(session: SpoolSession, tick: Tick) -> None:
    session.last_read_at = tick.at
    for hold_id, usage in tick.usages.items():
        known = session.usages.get(hold_id)
        if known is None or total_microjoules(usage) >= total_microjoules(known):
            session.usages[hold_id] = usage
    session.final |= tick.final
    session.windows.extend(tick.windows)
    session.others.update({hold_id: (tick.at, usage) for hold_id, usage in (tick.others or {}).items()})


def total_microjoules(usage: Usage) -> int:
    """What decides between two accounts of a step: the windows have the larger one."""
    return usage.total.microjoules if usage.total else 0


NODE_FILES = "nodes/*/*.jsonl"


def node_folder(spool_dir: Path, placement_id: str) -> Path:
    """Where the meters of one placement write."""
    return spool_dir / "nodes" / placement_id


def read_node_sessions(folder: Path) -> list[SpoolSession]:
    """What the meters of one placement have written so far, the earliest start first; unreadable files are left out."""
    return in_order(_readable(sorted(folder.glob("*.jsonl"))))


def in_order(sessions: Iterable[SpoolSession]) -> list[SpoolSession]:
    """The meters of one placement, the earliest start first."""
    return sorted((each for each in sessions if each.origin), key=lambda each: each.origin.at)  # type: ignore[union-attr]


def unposted_sessions(spool_dir: Path) -> list[SpoolSession]:
    """Every meter whose file is still there: it runs, or what it read has not been posted yet."""
    return _readable((*spool_dir.glob("*.jsonl"), *spool_dir.glob(NODE_FILES)))


def _readable(paths: Iterable[Path]) -> list[SpoolSession]:
    found = []
    for path in paths:
        try:
            found.append(read_session(path))
        except (OSError, ValueError):
            _log.warning("%s cannot be read", path, exc_info=True)
    return found


def remove_node_file(path: Path) -> None:
    """Remove what a node wrote, and the folder of its placement with the last file."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # another start of the same job still has its file there
        path.parent.rmdir()
