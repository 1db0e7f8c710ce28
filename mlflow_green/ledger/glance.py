"""Whether a ledger may know a hard budget, told without opening it.

Programs ask that need no ledger else, so this is the standard library alone, and makes no file.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from mlflow_green.ledger.filesystem import journal_path


def may_know_hard(url: str) -> bool:
    """Whether a hard limit may be written in the ledger of ``url``: a database server has to be asked.

    A file that is not there has none, and what cannot be read, or is no address of a ledger, may have any.
    """
    named = url.partition(":///")[2].partition("?")[0]
    if not url.startswith("sqlite") or not named:
        return True
    path = Path(named)
    try:
        if _is_there(journal_path(path)):
            with os.scandir(journal_path(path)) as journals:  # unlike glob, it says what it may not list
                return any(_says_hard(Path(each.path)) for each in journals if each.name.endswith(".jsonl"))
        return _is_there(path) and _has_hard_row(path)
    except (OSError, ValueError):
        return True


def _is_there(path: Path) -> bool:
    """Raises ``OSError`` where that is not told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _says_hard(journal: Path) -> bool:
    """Whether any limit in it was ever hard. A line may be of any length, and so is read whole."""
    with journal.open("rb") as lines:
        return any(b'"hard"' in line for line in lines)


def _has_hard_row(path: Path) -> bool:
    import sqlite3

    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)) as database:
            row = database.execute("SELECT 1 FROM approved_limits WHERE mode = 'hard' LIMIT 1").fetchone()
    except sqlite3.Error:
        return True
    return row is not None
