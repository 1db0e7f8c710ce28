"""Bring the SQLite ledger of ``MLFLOW_GREEN_LEDGER`` to this version; whoever starts it has checked that it may."""

from __future__ import annotations

import os
import sys

from mlflow_green.errors import GreenError
from mlflow_green.ledger.address import ledger_path
from mlflow_green.ledger.migrations import upgrade
from mlflow_green.ledger.sqlite import SqliteStore, explained


def main() -> int:
    path = ledger_path(os.environ["MLFLOW_GREEN_LEDGER"])
    try:
        with explained(path, "upgrade"):
            store = SqliteStore(path, hostname="", boot="")
        try:
            upgrade(store)
        finally:
            store.close()
    except GreenError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
