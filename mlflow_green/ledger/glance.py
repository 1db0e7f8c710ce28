"""Whether a ledger may know a hard budget, told without opening it.

Programs ask that need no ledger else, so this is the standard library alone, and makes no file.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from mlflow_green.ledger.filesystem import journal_path


def may_know_hard(url: str) -> bool:
    """Whether a hard limit may be written in the ledger of ``url``: a database server has to be asked.

    A file that is not there has none, and one that cannot be read may have any.
    """
    if not url.startswith("sqlite"):
        return True
    path = Path(url.partition(":///")[2].partition("?")[0])
    try:
        if journal_path(path).is_dir():
            return any(map(_says_hard, journal_path(path).glob("*.jsonl")))
        return path.is_file() and _has_hard_row(path)
    except OSError:
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
