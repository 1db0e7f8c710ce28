"""The mark that a step's processes carry: its hold's id, in the environment with which each of them was started."""

from __future__ import annotations

from pathlib import Path

MARK = "GREEN_HOLD_ID"


def marked(hold_id: str) -> bytes:
    """The entry of the environment that marks a process as one of this step."""
    return f"{MARK}={hold_id}".encode()


def environment_entries(pid: int | str, proc_root: Path) -> list[bytes]:
    """``NAME=value`` of a process, as it was started; none where it is gone or belongs to another user."""
    try:
        return (proc_root / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
