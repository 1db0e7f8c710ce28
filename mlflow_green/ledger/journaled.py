"""The ledger's truth on a network file system: a journal there, written by one host at a time, and its cache here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection

from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.cache import Cache, create_position, read_position, write_position
from mlflow_green.ledger.change import Change, apply
from mlflow_green.ledger.journal_file import JournalFile, open_journal
from mlflow_green.ledger.lease import Lease, take_lease
from mlflow_green.ledger.sqlite import SqliteStore

_log = logging.getLogger(__name__)


def open_shared_journal(folder: Path, cache_folder: Path, *, host: str, boot: str) -> SharedJournal:
    """Open the journal in ``folder`` for this host; afterwards its cache fits it, or there is none.

    Raises:
        LedgerUnavailable: another host has it, or it is damaged; the message says what to do.
        OSError: as the file systems do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache = Cache(cache_folder)
    try:
        with cache.opening(), ExitStack() as undo:
            is_alone = cache.is_alone()
            lease = take_lease(folder, host=host, boot=boot, cache=cache_folder, cache_id=cache.identity())
            undo.callback(lease.close)
            if is_alone:
                undo.callback(lease.release)
            file = open_journal(folder, lease.holder.epoch, is_takeover=lease.holder.is_takeover)
            undo.callback(file.close)
            if is_alone and not cache.fits(file, boot):
                cache.discard()
            cache.share()
            undo.pop_all()
    except BaseException:
        cache.close()
        raise
    return SharedJournal(cache, lease, file, boot)


class JournaledStore(SqliteStore):
    """The cache of a journal: what it commits is in the journal before."""

    excludes_other_hosts = True  # the lease keeps every other host out while this is open
    only_grows = "on a network file system the ledger is a journal, which only grows"

    def __init__(self, journal: SharedJournal, *, hostname: str, boot: str) -> None:
        super().__init__(journal.cache_path, hostname=hostname, boot=boot, is_cache=True)
        self._journal = journal
        self._is_recorded = False
        self._is_behind = False

    def prepare(self) -> None:
        super().prepare()
        self._catch_up()

    def reading(self) -> AbstractContextManager[Connection]:
        if self._is_behind and not self._connection.in_transaction():
            self._catch_up()
        return super().reading()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        if self._is_behind:
            self._catch_up()
        self._is_recorded = False
        try:
            with super().writing() as connection:
                self._journal.catch_up(connection)
                yield connection
        except LedgerUnavailable as error:
            if not self._is_recorded:
                raise
            self._is_behind = True
            _log.warning("a transaction is in the journal, and not in its cache yet: %s", error)

    def record(self, connection: Connection, change: Change) -> None:
        if change.writes:
            self._journal.append(connection, change)
            self._is_recorded = True

    def close(self) -> None:
        super().close()
        self._journal.close()

    def _upgrade(self, version: int) -> None:
        raise LedgerUnavailable(
            f"the cache {self.path} is in use by an older mlflow-green (schema {version}); end its processes on this"
            " host, and try again: the cache is made anew"
        )

    def _create_in(self, connection: Connection) -> None:
        super()._create_in(connection)
        self._journal.create_in(connection)

    def _catch_up(self) -> None:
        with super().writing() as connection:
            self._journal.catch_up(connection)
        self._is_behind = False


class SharedJournal:
    """The journal that a ``JournaledStore`` is the cache of; used inside the ledger's write transactions.

    These keep the processes of this host apart, the lease keeps the other hosts out. A transaction counts once its
    line is on the server's disk and the lease was still held after that; the cache is committed last, and what it
    lacks after a crash is applied by the next transaction. Methods raise ``LedgerUnavailable``.
    """

    def __init__(self, cache: Cache, lease: Lease, file: JournalFile, boot: str) -> None:
        self.cache_path = cache.path
        self._cache = cache
        self._lease = lease
        self._file = file
        self._boot = boot
        self._position = file.beginning
        self._pid = os.getpid()
        self._is_closed = False

    def create_in(self, connection: Connection) -> None:
        """Mark an empty cache as one that has none of the journal's lines yet."""
        create_position(connection, self._file.beginning, self._boot)

    def catch_up(self, connection: Connection) -> None:
        """Apply the lines that the cache lacks. The first thing in a transaction."""
        if os.getpid() != self._pid:
            raise LedgerUnavailable(
                f"{self._file.path} was opened before this process was forked; open the ledger again"
            )
        self._lease.check()
        known = self._position = read_position(connection)
        if not self._file.has(known):
            self._lease.check()  # a host that takes over just now removes the file too, after it has the lease
            raise LedgerUnavailable(
                f"the journal {self._file.path} was replaced or removed while it was in use; end every mlflow-green"
                " process on this host, and try again"
            )
        for change, position in self._file.after(known):
            apply(connection, change)
            self._position = position
        if self._position is not known:
            write_position(connection, self._position)

    def append(self, connection: Connection, change: Change) -> None:
        """Make the change durable. The last thing in a transaction, for it counts even if the cache loses it."""
        data, position = self._file.line(self._position, self._lease.holder.epoch, change)
        write_position(connection, position)
        self._file.append(data, self._position)
        self._lease.check()

    def close(self) -> None:
        """Let other hosts have it, if no other process of this one has it open."""
        if self._is_closed:
            return
        self._is_closed = True
        if os.getpid() == self._pid:
            with suppress(OSError, LedgerUnavailable), self._cache.opening():
                if self._cache.is_alone():
                    self._file.sync()
                    self._lease.release()
        self._file.close()
        self._lease.close()
        self._cache.close()
