"""Making a file on a network file system so that one of all hosts makes it, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from mlflow_green.errors import LedgerUnavailable

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def scratch_file(folder: Path) -> Iterator[tuple[Path, int]]:
    """A new file under a name that nobody else uses, open for reading and writing; its name is gone afterwards."""
    path = folder / f"{uuid4().hex}.tmp"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield path, fd
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def publish(path: Path, fd: int, name: Path) -> bool:
    """Give the scratch file its name; ``False`` if the name is taken. It is on the server's disk before.

    Raises:
        LedgerUnavailable: this file system has no hard links.
    """
    os.fsync(fd)
    is_refused = False
    try:
        os.link(path, name)
    except FileExistsError:  # perhaps by ourselves: the answer to a first attempt can get lost
        is_refused = True
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _no_links(name) from error
        raise
    link_count = server_stat(fd).st_nlink
    if link_count == 1 and not is_refused:
        raise _no_links(name)
    if link_count == 2:  # noqa: PLR2004 - the scratch name and the new one
        _sync_folder(name.parent)
        return True
    return False


def numbered(folder: Path, suffix: str) -> list[Path]:
    """The files ``NUMBER.suffix``, the highest number last."""
    found = [path for path in folder.iterdir() if path.suffix == suffix and path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem))


def newest(folder: Path, suffix: str) -> Path | None:
    """The file ``NUMBER.suffix`` with the highest number."""
    found = numbered(folder, suffix)
    return found[-1] if found else None


def server_stat(fd: int) -> os.stat_result:
    """The file as the server has it, touched now by the server's clock: a client may answer a mere stat from memory."""
    os.utime(fd)
    return os.fstat(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with suppress(OSError):  # some file systems cannot, and make names durable by themselves
        os.fsync(fd)
    os.close(fd)


def _no_links(name: Path) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"the file system of {name.parent} has no hard links, which keep two hosts from writing one ledger;"
        " set MLFLOW_GREEN_LEDGER to a file on a local disk of this host, e.g. sqlite:////var/tmp/green-ledger.db"
    )
