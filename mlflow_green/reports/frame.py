"""The ledger's entries as a pandas DataFrame, with nullable types: missing stays missing, integers stay integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_green.ledger.ledger import LedgerReader
from mlflow_green.records import Domain
from mlflow_green.reports.export import JsonObject, entry_to_json

if TYPE_CHECKING:
    import pandas as pd

_TEXT, _INTEGER, _REAL, _TIME = "string", "Int64", "Float64", "datetime64[us, UTC]"

COLUMN_TYPES: dict[str, str] = {
    "entry_id": _TEXT,
    "hold_id": _TEXT,
    "project": _TEXT,
    "user": _TEXT,
    "workflow_run": _TEXT,
    "step": _TEXT,
    "wildcards": _TEXT,
    "attempt": _INTEGER,
    "host": _TEXT,
    "started_at": _TIME,
    "ended_at": _TIME,
    "duration_seconds": _REAL,
    "outcome": _TEXT,
    "tier": _TEXT,
    "decision": _TEXT,
    "would_decision": _TEXT,
    "reason": _TEXT,
    "phase": _TEXT,
    **{f"energy_{name}_microjoules": _INTEGER for name in (*(d.value for d in Domain), "total")},
    "energy_charged_microjoules": _INTEGER,
    "energy_low_microjoules": _INTEGER,
    "energy_high_microjoules": _INTEGER,
    "method": _TEXT,
    "boundary": _TEXT,
    "sampler_id": _TEXT,
    "cpu_seconds": _REAL,
    "cpu_clock": _TEXT,
    "coverage_ratio": _REAL,
    "carbon_intensity_g_per_kwh": _REAL,
    "intensity_source": _TEXT,
    "pue": _REAL,
    "operational_g_co2e": _REAL,
    "embodied_g_co2e": _REAL,
    "mlflow_run_id": _TEXT,
}
"""Columns in their order: the fields of ``ledger export``, with the energies side by side."""


def entries_frame(reader: LedgerReader) -> pd.DataFrame:
    """One row an entry, oldest first; the columns are those of ``COLUMN_TYPES``, also for an empty ledger."""
    import pandas as pd

    facts = reader.facts()
    rows = [_flat(entry_to_json(entry, facts)) for entry in reader.entries()]
    frame = pd.DataFrame(rows, columns=list(COLUMN_TYPES), dtype=object)
    for name, column_type in COLUMN_TYPES.items():
        values = pd.to_datetime(frame[name], utc=True, format="ISO8601") if column_type == _TIME else frame[name]
        frame[name] = values.astype(pd.api.types.pandas_dtype(column_type))
    return frame


def _flat(entry: JsonObject) -> JsonObject:
    energies = entry.pop("energy_microjoules")
    return {**entry, **{f"energy_{name}_microjoules": value for name, value in energies.items()}}
