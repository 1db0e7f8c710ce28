"""Looking for keepers: the processes that go on metering for steps whose program died."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def keepers_of(folder: Path) -> list[int]:
    """The keepers whose lock is somewhere below the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            is_keeper = any(b"import keeper" in word for word in words) and b"sh" not in words  # which starts it
            if is_keeper and any(word.startswith(f"{folder}/".encode()) for word in words):
                found.append(int(path.parent.name))
    return found


def keeper_of(folder: Path) -> int | None:
    return next(iter(keepers_of(folder)), None)
