"""After a crash: end what still runs here, charge what may have been used, and close the holds of dead owners.

What is ended and charged is taken over first, so that neither its owner, should that live after all, nor another
recovery can close it meanwhile.

The spool tells what was read up to the last sample, and up to the end of a step that a keeper went on with. What came
after the last sample is not known, so a lost hold is charged its last reading + P_max x the silence: all of the silence
where a process of the step was still found running, at most lease + grace otherwise; for a block of a Python program,
which died with its meter, no longer than two samples are apart. Steps that a dead process had
handed to a batch system may be well: they are closed by what their nodes wrote, by what the batch system says, or long
after their wall time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from mlflow_green.clock import Clock, boot_id
from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger.ledger import Ledger
from mlflow_green.metering.supervise import end_processes, owner_alive, step_processes, this_process
from mlflow_green.recorder.late_hold import admit_at_nothing, hold_late, promised_hold, told_if_refused
from mlflow_green.recorder.loss import (
    BLOCK_SILENCE,
    GRACE_SECONDS,
    SILENCE,
    last_read_at,
    lost_after_silence,
    lost_as_held,
)
from mlflow_green.recorder.placed import JobEnds
from mlflow_green.recorder.placed_recovery import close_placed, has_ended, placed_steps
from mlflow_green.recorder.spool_session import (
    NODE_FILES,
    SpoolSession,
    read_session,
    remove_node_file,
    total_microjoules,
)
from mlflow_green.recorder.windows import unposted_windows
from mlflow_green.records import Batch, Closing, ClosingKind, Hold, Owner
from mlflow_green.spool import from_json, nobody_goes_on, read_spool
from mlflow_green.units import format_number_of

_log = logging.getLogger(__name__)

KEEPER_SECONDS_MAX = 5.0  # from the end of a step to its keeper's last line: a sampling period, and a leader's answer
_LOOK_SECONDS = 0.1

Alive = Callable[[Owner], bool]


def recover(
    ledger: Ledger,
    spool_dir: Path,
    *,
    host: str,
    clock: Clock,
    say: Callable[[str], None],
    job_ends: JobEnds = lambda _job_ids: {},
) -> int:
    """Close what dead owners left open and post what their spools hold; the number of lost steps.

    Raises ``LedgerUnavailable``; the spool files stay until their content is committed, so that a later call does it.
    Any number of processes may do this at once, and be killed at it: every step of it changes nothing when it is done
    again. Other projects may use the same ledger: a hold whose readings are in another spool folder is left to the
    next run there.
    """

    def alive(owner: Owner) -> bool:
        if ledger.excludes_other_hosts and owner.boot_id != boot_id():
            return False  # whatever it does, it cannot write to this ledger any more
        return owner_alive(owner, host)

    # Spools before holds: an owner that is dead now opens no hold any more, and none of its readings is missed.
    everybody = _sessions(spool_dir.glob("*.jsonl"), say)
    sessions = [session for session in everybody if _is_closed(session) or not alive(session.owner)]
    nodes = [node for node in _sessions(spool_dir.glob(NODE_FILES), say) if not alive(_answering(node))]
    for session in (*sessions, *nodes):
        with told_if_refused(say, f"the holds of {session.path}"):
            hold_late(ledger, session.promised, session.origin.main if session.origin else session.owner)
    placed = placed_steps(sessions, nodes)
    waiting, over, lost = close_placed(ledger, placed, nodes, job_ends, clock.now(), say)
    open_holds = ledger.open_holds()
    dead = _dead_holds(open_holds, spool_dir, alive, sessions)
    for hold_id in placed:
        dead.pop(hold_id, None)
    unfinished = {hold_id for session in sessions if not session.leaves_orphans for hold_id in session.unfinished}
    ran_on = _running(sessions, unfinished | dead.keys())
    # Nobody is robbed who may live: what another recovery left open may have been taken over by a process that lives.
    left = [hold for hold in open_holds if not alive(hold.owner) or hold.epoch > 1]
    left = [hold for hold in left if hold.hold_id in unfinished | ran_on]
    taken = _take_over(ledger, left, ran_on, this_process(host, spool_dir))
    _end_orphans(ran_on, say)
    lost += _close_sessions(ledger, sessions, everybody, dead, taken, waiting, clock.now(), say)
    closed = [node for node in nodes if not waiting & node.begun.keys()]
    _post_nodes(ledger, [node for node in closed if has_ended(node, over, clock.now())], say)
    # Their spool is gone, and with it every reading: they are charged what they held.
    for hold_id, hold in dead.items():
        closing = lost_as_held(hold, None, began_at=hold.opened_at, why="its owner died and its readings are gone")
        with told_if_refused(say, f"hold {hold_id} of {hold.step.label}, whose owner died"):
            lost += not ledger.commit(Batch(closings=taken.stamped([closing])), admit_at_nothing).fenced
    if lost:
        steps = format_number_of(lost, "step")
        say(
            f"{steps} of a killed run: charged what was metered, and the greatest power for the time in which it may"
            " have run on unseen; 'mlflow-green explain' names them"
        )
    if waiting:
        say(f"{len(waiting)} steps of a killed run may still run on the cluster; they are charged when their jobs end")
    return lost


@dataclasses.dataclass(frozen=True, slots=True)
class _Taken:
    """Holds that were taken over, with their epochs; and which steps ran on after their meter, or may have."""

    epochs: Mapping[str, int]
    ran_on: set[str]

    def stamped(self, closings: Iterable[Closing]) -> tuple[Closing, ...]:
        """The closings, which count only if nobody has taken their holds over since."""
        return tuple(dataclasses.replace(each, epoch=self.epochs.get(each.hold_id or "")) for each in closings)


def _take_over(ledger: Ledger, holds: Sequence[Hold], ran_on: set[str], owner: Owner) -> _Taken:
    """Take over these holds. What another recovery took just before, and may have ended, counts as having run on."""
    if not holds:
        return _Taken({}, ran_on)
    batch = Batch(adoptions=tuple(hold.hold_id for hold in holds), owner=owner)
    adopted = [hold for hold in ledger.commit(batch, admit_at_nothing).adopted if hold]
    seen = {hold.hold_id: hold.epoch for hold in holds}
    return _Taken(
        epochs={hold.hold_id: hold.epoch for hold in adopted},
        ran_on=ran_on | {hold.hold_id for hold in adopted if hold.epoch > seen[hold.hold_id] + 1},
    )


def _close_sessions(
    ledger: Ledger,
    sessions: Sequence[SpoolSession],
    everybody: Sequence[SpoolSession],
    dead: dict[str, Hold],
    taken: _Taken,
    waiting: set[str],
    now: datetime,
    say: Callable[[str], None],
) -> int:
    """Post what the dead processes of this host left, and take their holds out of ``dead``; how many were lost."""
    lost = 0
    for session in sessions:
        mine = [dead.pop(hold_id) for hold_id, hold in list(dead.items()) if _belongs(hold, session, sessions)]
        if session.leaves_orphans and (_still_runs(session, now) or _is_written_elsewhere(session)):
            continue
        with _last_words(session) as said:
            if said is None:
                continue
            _hear_leaders(said, everybody)
            closings = taken.stamped(_closings(said, mine, taken.ran_on, now))
            if _post_session(ledger, said, closings, say):
                lost += sum(closing.kind is ClosingKind.LOST for closing in closings)
                if not waiting & said.placed.keys():
                    said.path.unlink(missing_ok=True)
    return lost


@contextmanager
def _last_words(session: SpoolSession) -> Iterator[SpoolSession | None]:
    """What its file says when no keeper writes to it any more; ``None`` while one does, or when it is posted.

    A keeper whose steps have just ended gets the time for its last line.
    """
    with ExitStack() as held:
        yield _claimed(session, held)


def _claimed(session: SpoolSession, held: ExitStack) -> SpoolSession | None:
    until_seconds = time.monotonic() + KEEPER_SECONDS_MAX
    with suppress(FileNotFoundError):
        while not held.enter_context(nobody_goes_on(session.path)):
            if time.monotonic() > until_seconds or any(step_processes(hold_id) for hold_id in session.unfinished):
                return None
            time.sleep(_LOOK_SECONDS)
        return read_session(session.path)
    return None


def _post_nodes(ledger: Ledger, nodes: Iterable[SpoolSession], say: Callable[[str], None]) -> None:
    """Post what the nodes of closed holds wrote; a hold that was given up meanwhile is corrected by it."""
    for node in nodes:
        if _post_session(ledger, node, list(node.closings.values()), say):
            remove_node_file(node.path)


def _dead_holds(
    open_holds: Iterable[Hold], spool_dir: Path, alive: Alive, sessions: Sequence[SpoolSession]
) -> dict[str, Hold]:
    """Open holds of dead owners, but for those whose readings wait in another project's spool folder."""
    dead = [hold for hold in open_holds if not alive(hold.owner)]
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


def _sessions(paths: Iterable[Path], say: Callable[[str], None]) -> list[SpoolSession]:
    """What the files say; those of no known owner are put aside."""
    found = []
    for path in sorted(paths):
        try:
            found.append(read_session(path))
        except FileNotFoundError:
            continue
        except ValueError as error:
            _put_aside(path, str(error), say)
    return found


def _is_closed(session: SpoolSession) -> bool:
    """Whether nothing will follow in its file: a process that goes on may have closed a meter of its own for good."""
    return session.ended and session.origin is None and not session.placed


def _answering(node: SpoolSession) -> Owner:
    """The process that would post it: who sent its job to a node."""
    return node.origin.main if node.origin else node.owner


def _hear_leaders(session: SpoolSession, everybody: Iterable[SpoolSession]) -> None:
    """Add what a leader has charged to the session's steps after their own meter wrote last: its windows say so too."""
    for other in everybody:
        for hold_id in set(session.unfinished) & other.others.keys():
            at, usage = other.others[hold_id]
            known = session.usages.get(hold_id)
            if known is None or total_microjoules(usage) > total_microjoules(known):
                session.usages[hold_id] = usage
                session.last_read_at = max(at, session.last_read_at or at)


def _put_aside(path: Path, problem: str, say: Callable[[str], None]) -> None:
    aside = path.with_suffix(".unreadable")
    with suppress(OSError):
        path.rename(aside)
    say(f"{problem}; it is kept as {aside} and not counted, please report it")


def _running(sessions: Sequence[SpoolSession], hold_ids: Iterable[str]) -> set[str]:
    """Which of these steps outlived their meter and are to be ended."""
    spared = {hold_id for session in sessions if session.leaves_orphans for hold_id in session.begun}
    return {hold_id for hold_id in hold_ids if hold_id not in spared and step_processes(hold_id)}


def _end_orphans(ran_on: set[str], say: Callable[[str], None]) -> None:
    if ran_on:
        say(f"ending {format_number_of(len(ran_on), 'step')} that outlived a killed run")
        end_processes(ran_on, GRACE_SECONDS)


def _still_runs(session: SpoolSession, now: datetime) -> bool:
    """Whether a step of the session runs on without a meter; says so in its spool."""
    if not any(step_processes(hold_id) for hold_id in session.unfinished):
        return False
    with session.path.open("a") as file:
        file.write(json.dumps({"kind": "alive", "at": now.isoformat()}) + "\n")
    return True


def _is_written_elsewhere(session: SpoolSession) -> bool:
    """Whether a command on another host, which needs no ledger while it runs, has just written its spool.

    By the clock of whoever keeps the file: those of two hosts differ.
    """
    if session.owner.boot_id == boot_id():
        return False
    with suppress(OSError), tempfile.TemporaryFile(dir=session.path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - session.path.stat().st_mtime < SILENCE.total_seconds()
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
        if hold is None and begun.request is not None:  # closed before, perhaps by somebody who knew less
            hold = promised_hold(begun.request, session.owner)
        if hold is not None:
            closings.append(_lost(hold, begun.at, session, still_ran=hold_id in ran_on, now=now))
    for hold_id, hold in by_id.items():
        if hold_id in ran_on and hold_id not in session.begun:
            closings.append(_lost(hold, hold.opened_at, session, still_ran=True, now=now))
        elif hold_id not in session.begun:
            closings.append(Closing(kind=ClosingKind.VOID, hold_id=hold_id, entry=None, reason="never began"))
    return closings


def _post_session(
    ledger: Ledger, session: SpoolSession, closings: Sequence[Closing], say: Callable[[str], None]
) -> bool:
    try:
        windows = unposted_windows(ledger, session.windows)
        committed = ledger.commit(Batch(closings=tuple(closings), windows=windows), admit_at_nothing)
    except LedgerUnavailable:
        raise
    except LedgerError as error:  # one impossible file must not keep every later run from starting
        _put_aside(session.path, f"the ledger did not take {session.path}: {error}", say)
        return False
    return not committed.fenced  # else another recovery is at it, and needs the file


def _lost(hold: Hold, began_at: datetime, session: SpoolSession, *, still_ran: bool, now: datetime) -> Closing:
    """All of the silence counts if it was found running, at most lease + grace otherwise.

    A block died with its meter, unless a program that it had started was seen since.
    """
    silent_until = now
    if not still_ran:
        last_alive_at = max(last_read_at(hold, session, began_at), session.last_alive_at or began_at)
        died_too = session.are_blocks and session.last_alive_at is None
        silent_until = min(now, last_alive_at + (BLOCK_SILENCE if died_too else SILENCE))
    return lost_after_silence(hold, session, began_at=began_at, silent_until=silent_until)
