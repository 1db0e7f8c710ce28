"""Energy budgets for machine-learning pipelines: meter, record, and stay inside the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_green.blocks import meter, metered

__all__ = ["entries", "load_ipython_extension", "meter", "metered"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What few programs use is imported when it is asked for."""
    if name in {"meter", "metered"}:
        from mlflow_green import blocks

        return getattr(blocks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext mlflow_green``: the cell magic ``%%green [NAME]``."""
    from mlflow_green.notebook import load

    load(shell)


def entries(ledger_url: str | None = None) -> pd.DataFrame:
    """Every entry of the ledger as a pandas DataFrame with nullable types, oldest first.

    The ledger is the one that ``mlflow-green`` would use in the working directory, unless ``ledger_url``
    (an SQLAlchemy URL) names another. Energies are integers in microjoules, carbon is in grams of CO2e.

    Raises:
        LedgerUnavailable: the ledger cannot be read; the message says why.
    """
    import os
    from pathlib import Path

    from mlflow_green.bootstrap import open_reader
    from mlflow_green.reports.frame import entries_frame
    from mlflow_green.settings import load_settings

    books = open_reader(load_settings(Path.cwd(), os.environ, ledger_url=ledger_url))
    try:
        return entries_frame(books)
    finally:
        books.close()
