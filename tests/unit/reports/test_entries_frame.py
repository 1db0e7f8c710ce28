import pandas as pd

from mlflow_green.reports.frame import COLUMN_TYPES, entries_frame
from tests.testkit.report_samples import ToldBooks, entry, pipeline_books, pipeline_entries


def test_the_frame_has_a_row_an_entry_and_the_exported_columns():
    frame = entries_frame(pipeline_books())
    assert len(frame) == len(pipeline_entries())
    assert list(frame.columns) == list(COLUMN_TYPES)


def test_missing_energy_stays_missing_and_integers_stay_integers():
    frame = entries_frame(pipeline_books())
    assert frame["energy_total_microjoules"].dtype == pd.Int64Dtype()
    assert frame.loc[frame["outcome"] == "refused", "energy_total_microjoules"].isna().all()
    assert frame["energy_total_microjoules"].sum() == sum(e.total.microjoules for e in pipeline_entries() if e.total)


def test_an_energy_beyond_the_exact_floats_is_exact():
    big = 2**53 + 1
    frame = entries_frame(ToldBooks(told_entries=[entry("a", energy=big), entry("b", energy=None)]))
    assert frame["energy_total_microjoules"][0] == big


def test_an_empty_ledger_gives_an_empty_frame_of_the_same_types():
    assert entries_frame(ToldBooks()).dtypes.equals(entries_frame(pipeline_books()).dtypes)
