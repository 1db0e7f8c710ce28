"""A block without root's rights, for tests of files that a user may not read or write."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

NOBODY = 65534
_SETRESUID = {
    "x86_64": 117,
    "aarch64": 147,
}  # the kernel's arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root ignores permission bits, so a test that runs as root becomes nobody; an ordinary user stays who he is.

    Only the calling thread does: ``os.seteuid`` takes root's rights from every thread of the process, and a fake node
    of another test that writes its counters meanwhile would die of it.
    """
    if os.geteuid() != 0:
        yield
        return
    _become(NOBODY)
    try:
        yield
    finally:
        _become(0)


def _become(uid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SETRESUID[platform.machine()], -1, uid, -1) != 0:
        raise OSError(ctypes.get_errno(), f"cannot become user {uid}")
