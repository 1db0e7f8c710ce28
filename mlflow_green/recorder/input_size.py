"""How large the input files of a step are."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

FILES_MAX = 1_000


def input_bytes(paths: Sequence[str]) -> int | None:
    """The sum of the files' sizes; ``None`` where that is not known.

    It is not for a step without input, for one with a folder, a pipe or a file that is elsewhere among its input, and
    for one with more than ``FILES_MAX``, which would take too long to look at. Reads the file system.
    """
    if not 0 < len(paths) <= FILES_MAX:
        return None
    total = 0
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116 - thousands of these are looked at while steps wait for their answer
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        total += found.st_size
    return total
