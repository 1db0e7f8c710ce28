"""One host at a time: whoever holds the newest lease on the share may write the journal beside it.

The lease of epoch N is the file ``N.lease``. Who takes over makes ``N+1.lease`` by a hard link, which one host wins,
then removes the older ones, and only then reads the journal. A holder acknowledges only what was on the server's disk
while its own file still had its name, so a new holder sees all that was acknowledged, however long the old one was
stopped or cut off. Ages are judged by the file server's clock alone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.share import newest, numbered, publish, scratch_file, server_stat
from mlflow_green.ledger.sqlite import explained

LEASE_SECONDS = 30
ATTEMPTS_MAX = 100

_SUFFIX = ".lease"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lease: all processes of one boot that use one cache folder, together.

    ``epoch`` grows by one with every holder. ``is_takeover``: the holder before did not release its lease, so a write
    of that host may still be on its way.
    """

    host: str
    boot_id: str
    cache: str
    cache_id: str
    since: str
    epoch: int = 0
    is_takeover: bool = False

    def is_same(self, other: Holder) -> bool:
        """Whether both are this kernel and this cache; containers have host names of their own."""
        same_kernel = self.boot_id == other.boot_id and (self.boot_id != "unknown" or self.host == other.host)
        return same_kernel and self.cache_id == other.cache_id


def take_lease(folder: Path, *, host: str, boot: str, cache: Path, cache_id: str) -> Lease:
    """Join the lease that processes of this host hold, or take one that is free.

    The caller keeps other processes with this cache from doing the same at the same time.

    Raises:
        LedgerUnavailable: another host holds it, or this file system has no hard links.
        OSError: the folder cannot be written.
    """
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    me = Holder(host=host, boot_id=boot, cache=str(cache), cache_id=cache_id, since=since)
    for _ in range(ATTEMPTS_MAX):
        lease = _try_to_take(folder, me)
        if lease is not None:
            return lease
    raise LedgerUnavailable(
        f"the lease in {folder} changed hands {ATTEMPTS_MAX} times while it was asked for; try again"
    )


def _try_to_take(folder: Path, me: Holder) -> Lease | None:
    """``None`` when another host was faster."""
    with scratch_file(folder) as (scratch, fd):
        now = server_stat(fd).st_mtime
        last = newest(folder, _SUFFIX)
        is_released = True
        if last is not None:
            found = _look(last)
            if found is None:
                return None
            holder, age_seconds = found[0], abs(now - found[1])
            if holder is not None and holder.is_same(me):
                return _joined(last, holder)
            is_released = holder is None
            if holder is not None and age_seconds <= LEASE_SECONDS:
                raise LedgerUnavailable(in_use_text(folder, holder, me, age_seconds))
        epoch = (int(last.stem) if last else 0) + 1
        mine, path = replace(me, epoch=epoch, is_takeover=not is_released), folder / f"{epoch}{_SUFFIX}"
        os.pwrite(fd, json.dumps(asdict(mine)).encode(), 0)
        if not publish(scratch, fd, path):
            return None
    if newest(folder, _SUFFIX) != path:  # this one was slow, and its number had been used and removed before
        path.unlink(missing_ok=True)
        return None
    for older in numbered(folder, _SUFFIX)[:-1]:
        older.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        return Lease(path, mine)
    return None


def _look(path: Path) -> tuple[Holder | None, float] | None:
    """Who holds it, ``None`` if it was released, and its time of modification; ``None`` if it is gone."""
    try:
        with path.open("rb") as file:
            text, modified_at = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        return (Holder(**json.loads(text)) if text else None), modified_at
    except (ValueError, TypeError) as error:
        raise LedgerUnavailable(
            f"the lease {path} cannot be read ({error}); if it was written by a newer mlflow-green, run"
            " 'pip install --upgrade mlflow-green'; if no mlflow-green runs on any host, delete it"
        ) from error


def _joined(path: Path, holder: Holder) -> Lease | None:
    """``None`` if another host took it over meanwhile."""
    try:
        lease = Lease(path, holder)
    except FileNotFoundError:
        return None
    if not lease.is_held():
        # A process that was killed while it took the lease leaves a second name.
        for stray in path.parent.glob("*.tmp"):
            if stray.exists() and path.exists() and stray.samefile(path):
                stray.unlink(missing_ok=True)
    if lease.is_held():
        return lease
    lease.close()
    return None


class Lease:
    """A lease that is held, renewed by a thread of its own. Any thread may use it; a forked child only closes it.

    Raises ``OSError`` as the file system does.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self.holder = holder
        self._path = path
        self._pid = os.getpid()
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="mlflow-green-lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Renew it, and say whether no other host has it."""
        try:
            found = server_stat(self._fd)
            # An NFS client gives a file that it has open another name when the file is removed through it.
            return found.st_nlink == 1 and os.path.samestat(found, self._path.stat())
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.ESTALE:  # how a server tells that the file is gone
                return False
            raise

    def check(self) -> None:
        """Raise ``LedgerUnavailable`` if another host has taken over."""
        with explained(self._path, "renew"):
            is_held = self.is_held()
        if not is_held:
            raise LedgerUnavailable(
                f"the ledger in {self._path.parent} was taken over{self._by_whom()}, for this host gave no sign of life"
                f" for {LEASE_SECONDS} s; the last transaction was not recorded; end this process, and start it again"
                " when the ledger is free"
            )

    def _by_whom(self) -> str:
        try:
            last = newest(self._path.parent, _SUFFIX)
            found = None if last is None else _look(last)
        except (OSError, LedgerUnavailable):
            return ""
        return "" if found is None or found[0] is None else f" by host {found[0].host}"

    def release(self) -> None:
        """Let the next host have it at once. Only for the last process of this host."""
        if self.is_held():
            os.ftruncate(self._fd, 0)
            os.fsync(self._fd)

    def close(self) -> None:
        """Renew it no longer; without ``release`` it lapses, unless other processes of this host renew it."""
        self._stopped.set()
        if self._pid == os.getpid():
            self._thread.join(timeout=1)
            if self._thread.is_alive():  # a server that hangs: the thread still uses the file
                return
        os.close(self._fd)

    def _renew(self) -> None:
        while not self._stopped.wait(LEASE_SECONDS / 3):
            try:
                if not self.is_held():
                    _log.warning("the ledger in %s was taken over%s", self._path.parent, self._by_whom())
                    return
            except OSError:
                _log.debug("the lease %s could not be renewed", self._path, exc_info=True)


def other_holder(folder: Path, me: Holder) -> tuple[Holder, float] | None:
    """Who but ``me`` has the lease, and the seconds since the last sign of life; ``None`` if nobody. Takes nothing.

    Raises:
        LedgerUnavailable: the lease cannot be read.
        OSError: the folder cannot be written, by which the server tells its time.
    """
    last = newest(folder, _SUFFIX)
    found = None if last is None else _look(last)
    if found is None or found[0] is None or found[0].is_same(me):
        return None
    with scratch_file(folder) as (_, fd):
        return found[0], abs(server_stat(fd).st_mtime - found[1])


def in_use_text(folder: Path, holder: Holder, me: Holder, age_seconds: float) -> str:
    """Who has the ledger, since when, and what to do."""
    where = f"host {holder.host}"
    if holder.boot_id == me.boot_id:
        where += f" (this one) through the cache {holder.cache}"
        where += (
            ", which was deleted here or is another container's"
            if holder.cache == me.cache
            else f" and not {me.cache}, that is by another user or with another MLFLOW_GREEN_RUNTIME_DIR"
        )
    return (
        f"the ledger in {folder} is in use by {where}, since {holder.since}, last sign of life {age_seconds:.0f} s ago;"
        " work there, or wait: it is free as soon as the last mlflow-green process there has ended, or"
        f" {LEASE_SECONDS} s after the last sign of life"
    )
