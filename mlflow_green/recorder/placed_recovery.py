"""After a crash of the main process: what it had handed to a batch system, found again and closed once it is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from mlflow_green.ledger.ledger import Ledger
from mlflow_green.recorder.late_hold import admit_at_nothing, promised_hold, told_if_refused
from mlflow_green.recorder.loss import SILENCE
from mlflow_green.recorder.placed import JobEnd, JobEnds, closing_of, heard_of
from mlflow_green.recorder.second_opinion import job_id_facts
from mlflow_green.recorder.spool_session import Placed, SpoolSession, in_order, node_folder
from mlflow_green.records import Batch, Closing, ClosingKind, Hold, Owner


@dataclass(frozen=True, slots=True)
class Handed:
    """A step that ``main`` handed to a batch system; its nodes write into ``folder``, which goes when all is posted."""

    step: Placed
    main: Owner
    folder: Path


class Closed(NamedTuple):
    """What ``close_placed`` left open, by hold id; the placements that ended; how many steps were lost."""

    waiting: set[str]
    over: set[str]
    lost: int


def placed_steps(sessions: Iterable[SpoolSession], nodes: Iterable[SpoolSession]) -> dict[str, Handed]:
    """What dead main processes handed to a batch system, by hold id; also what only a node's meter knows of."""
    found: dict[str, Handed] = {}
    job_ids: dict[str, str] = {}
    for node in nodes:
        if node.origin is None:
            continue
        if node.origin.job_id:
            job_ids[node.origin.placement_id] = node.origin.job_id
        for hold_id, begun in node.begun.items():
            step = Placed(
                at=begun.at,
                placement_id=node.origin.placement_id,
                hold=begun.hold,
                request=begun.request,
                walltime_seconds=None,
                job_id=node.origin.job_id,
            )
            found[hold_id] = Handed(step, node.origin.main, node.path.parent)
    for session in sessions:
        for hold_id, placed in session.placed.items():
            step = dataclasses.replace(placed, job_id=placed.job_id or job_ids.get(placed.placement_id))
            found[hold_id] = Handed(step, session.owner, node_folder(session.path.parent, placed.placement_id))
    return found


def close_placed(
    ledger: Ledger,
    placed: Mapping[str, Handed],
    nodes: Sequence[SpoolSession],
    job_ends: JobEnds,
    now: datetime,
    say: Callable[[str], None],
) -> Closed:
    """Close what is over.

    What it has posted of ``nodes`` is taken out of their closings: alone, the last word about one start of a job would
    undo what its other starts were charged.
    """
    starts = _by_placement(nodes)
    holds = _open_holds(ledger, placed)
    asked = {job_id for hold_id in holds if (job_id := placed[hold_id].step.job_id)}
    ends = job_ends(asked) if asked else {}
    decided = {hold_id: _decided(hold, placed[hold_id].step, starts, ends, now) for hold_id, hold in holds.items()}
    closings = [(holds[hold_id], closing) for hold_id, closing in decided.items() if closing]
    lost = 0
    for hold, closing in (*closings, *_corrections(placed, starts, holds, now)):
        with told_if_refused(say, f"the end of {hold.step.label}, which ran on the cluster"):
            facts = job_id_facts(hold.hold_id, placed[hold.hold_id].step.job_id) if closing.entry else ()
            ledger.commit(Batch(closings=(closing,), facts=facts), admit_at_nothing)
            lost += closing.kind is ClosingKind.LOST and hold.hold_id in holds
            for session in starts.get(placed[hold.hold_id].step.placement_id, ()):
                session.closings.pop(hold.hold_id, None)
    waiting = {hold_id for hold_id, closing in decided.items() if closing is None}
    placements = {placed[hold_id].step.placement_id for hold_id in waiting}
    for handed in placed.values():
        if handed.step.placement_id not in placements:
            with suppress(OSError):  # what its nodes wrote is there, and is posted first
                handed.folder.rmdir()
    ended = {job_id for job_id, end in ends.items() if end is not None}
    closed = {key: sessions[-1] for key, sessions in starts.items() if key not in placements}
    return Closed(waiting, {key for key, last in closed.items() if _writes_no_more(last, ended, now)}, lost)


def _decided(
    hold: Hold,
    step: Placed,
    starts: Mapping[str, Sequence[SpoolSession]],
    ends: Mapping[str, JobEnd | None],
    now: datetime,
) -> Closing | None:
    job_id, sessions = step.job_id or "", starts.get(step.placement_id, ())
    return closing_of(hold, step, sessions, ends.get(job_id), now, is_known=job_id in ends)


def has_ended(node: SpoolSession, over: set[str], now: datetime) -> bool:
    """Whether all is over of which the node's meter tells: ``over`` are the placements that ended."""
    return _writes_no_more(node, (), now) if node.origin is None else node.origin.placement_id in over


def _writes_no_more(node: SpoolSession, ended_jobs: Collection[str], now: datetime) -> bool:
    """Whether the node's meter has ended: it said so, its job is over, or it has long been silent."""
    is_over = node.origin is not None and node.origin.job_id in ended_jobs
    return node.ended or is_over or now - (heard_of(node) or now) > SILENCE


def _by_placement(nodes: Sequence[SpoolSession]) -> dict[str, list[SpoolSession]]:
    """The meters of each placement, the earliest start first."""
    found: dict[str, list[SpoolSession]] = {}
    for node in in_order(nodes):
        assert node.origin is not None
        found.setdefault(node.origin.placement_id, []).append(node)
    return found


def _open_holds(ledger: Ledger, placed: Mapping[str, Handed]) -> dict[str, Hold]:
    """A step that falls under no budget has no hold in the ledger: it is open while its folder is there."""
    holds = {
        hold_id: handed.step.hold
        for hold_id, handed in placed.items()
        if handed.step.hold and not handed.step.hold.terms and handed.folder.is_dir()
    }
    return holds | {hold.hold_id: hold for hold in ledger.open_holds() if hold.hold_id in placed}


def _corrections(
    placed: Mapping[str, Handed],
    starts: Mapping[str, Sequence[SpoolSession]],
    open_holds: Collection[str],
    now: datetime,
) -> Iterable[tuple[Hold, Closing]]:
    """What was read of steps that were closed before: one that was given up is charged it, together with all starts."""
    over = JobEnd(at=now, started=False)  # how it ended was decided when it was closed
    for hold_id, handed in placed.items():
        step, sessions = handed.step, starts.get(handed.step.placement_id, ())
        if hold_id in open_holds or not any(hold_id in session.closings for session in sessions):
            continue
        hold = step.hold or (promised_hold(step.request, handed.main) if step.request else None)
        closing = closing_of(hold, step, sessions, over, now) if hold else None
        if hold and closing:
            yield hold, closing
