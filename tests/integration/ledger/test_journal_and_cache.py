"""Every trouble of the journal or of its cache is one clear message, or none at all; nothing acknowledged is lost."""

from __future__ import annotations

import logging
import shutil
import sqlite3

import pytest

from mlflow_green.errors import LedgerUnavailable
from mlflow_green.ledger.journal_file import _sealed, _unsealed
from mlflow_green.records import Batch
from tests.testkit.ledger_samples import (
    OWNER,
    admit_what_fits,
    die,
    journal_path,
    lease_path,
    let_lapse,
    open_on_share,
    request,
    settle,
    term,
)


def hold_one(ledger, name, amount=5):
    batch = Batch(requests=(request(name, amount, term(limit=10**12)),), owner=OWNER)
    return ledger.commit(batch, admit_what_fits).answers[0].hold


def cache_path(folder):
    return folder / "cache of login1" / "ledger.db"


@pytest.fixture
def three(tmp_path):
    """Three holds in a journal that nobody has open."""
    ledger = open_on_share(tmp_path)
    holds = tuple(hold_one(ledger, name) for name in "abc")
    ledger.close()
    return holds


def lines_of(folder):
    return journal_path(folder).read_bytes().splitlines(keepends=True)


def write_lines(folder, lines):
    journal_path(folder).write_bytes(b"".join(lines))


def opened(folder):
    ledger = open_on_share(folder)
    holds = ledger.open_holds()
    ledger.close()
    return holds


# --- the journal ----------------------------------------------------------------------------------


def test_a_line_that_was_not_written_whole_does_not_count_and_the_next_begins_afresh(tmp_path, three):
    *kept, last = lines_of(tmp_path)
    write_lines(tmp_path, [*kept, last[:-20]])
    ledger = open_on_share(tmp_path)
    assert ledger.open_holds() == three[:2]
    after = hold_one(ledger, "after")
    ledger.close()
    assert [bool(_unsealed(line)) for line in lines_of(tmp_path)] == [True] * 4
    shutil.rmtree(cache_path(tmp_path).parent)
    assert opened(tmp_path) == (*three[:2], after)


def test_a_last_line_that_was_written_whole_and_damaged_later_is_not_passed_over(tmp_path, three):
    lines = lines_of(tmp_path)
    write_lines(tmp_path, [*lines[:-1], lines[-1].replace(b"demo", b"dema")])
    with pytest.raises(LedgerUnavailable, match="is damaged at line 4"):
        opened(tmp_path)


@pytest.mark.parametrize("how", ["changed", "missing", "torn"])
def test_a_journal_damaged_in_the_middle_is_refused_with_the_line_and_a_way_out(tmp_path, three, how):
    lines = lines_of(tmp_path)
    lines[2] = {
        "changed": lines[2].replace(b'"s', b'"S', 1).replace(b"demo", b"dema"),
        "missing": b"",
        "torn": lines[2][:50],
    }[how]
    write_lines(tmp_path, lines)
    shutil.rmtree(cache_path(tmp_path).parent)
    with pytest.raises(LedgerUnavailable, match=r"jsonl is damaged at line 3: .*restore.*snapshot.*head -n 2"):
        open_on_share(tmp_path)
    write_lines(tmp_path, lines[:2])
    assert opened(tmp_path) == three[:1], "the way out leads out, and the refusal kept nobody out"


def test_what_a_fenced_host_wrote_too_late_is_passed_over_and_told(tmp_path, three, caplog):
    ledger = open_on_share(tmp_path)
    after = hold_one(ledger, "of the second epoch")
    ledger.close()
    lines = lines_of(tmp_path)
    late = _unsealed(lines[-1]) | {"sequence": 5, "epoch": 1}
    write_lines(tmp_path, [*lines, _sealed(late)])
    shutil.rmtree(cache_path(tmp_path).parent)
    with caplog.at_level(logging.WARNING):
        assert opened(tmp_path) == (*three, after)
    assert "line 5 of epoch 1 came too late" in caplog.text


def test_a_line_of_a_newer_version_is_left_alone(tmp_path, three):
    lines = lines_of(tmp_path)
    newer = _unsealed(lines[-1]) | {"sequence": 4, "change": {"at": "2026-11-21T12:00:00+00:00", "swap": {}}}
    write_lines(tmp_path, [*lines, _sealed(newer)])
    with pytest.raises(LedgerUnavailable, match=r"line 5 of .* newer mlflow-green.*pip install --upgrade"):
        open_on_share(tmp_path)
    header = _unsealed(lines[0]) | {"format": 2}
    write_lines(tmp_path, [_sealed(header), *lines[1:]])
    with pytest.raises(LedgerUnavailable, match=r"line 1 of .* newer mlflow-green"):
        open_on_share(tmp_path)


def test_a_journal_whose_first_line_is_damaged_is_refused(tmp_path, three):
    write_lines(tmp_path, [b"nonsense\n", *lines_of(tmp_path)[1:]])
    with pytest.raises(LedgerUnavailable, match="does not begin as a journal"):
        open_on_share(tmp_path)


def test_a_lease_that_cannot_be_read_is_named(tmp_path):
    die(open_on_share(tmp_path))
    lease_path(tmp_path).write_text("{")
    with pytest.raises(LedgerUnavailable, match=r"1.lease cannot be read.*delete it"):
        open_on_share(tmp_path)


def test_a_journal_that_is_taken_away_while_it_is_in_use_stops_the_writer(tmp_path):
    ledger = open_on_share(tmp_path)
    hold_one(ledger, "train")
    journal_path(tmp_path).unlink()
    with pytest.raises(LedgerUnavailable, match="replaced or removed while it was in use"):
        hold_one(ledger, "more")
    ledger.close()


def test_a_transaction_that_changes_nothing_writes_no_line(tmp_path):
    ledger = open_on_share(tmp_path)
    hold = hold_one(ledger, "train")
    closing = Batch(closings=(settle(hold, 3),))
    ledger.commit(closing, admit_what_fits)
    before = len(lines_of(tmp_path))
    ledger.commit(closing, admit_what_fits)
    ledger.commit(Batch(), admit_what_fits)
    ledger.put("alert", "a", {})
    ledger.put("alert", "a", {})
    assert len(lines_of(tmp_path)) == before + 2, "a promise given twice may be written twice and counts once"
    assert ledger.count("alert") == 1
    ledger.close()


# --- the cache ------------------------------------------------------------------------------------


def empty(path):
    path.write_bytes(b"")


def not_a_database(path):
    path.write_bytes(b"this is a text file, not a database" * 500)


def of_another_version(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE position SET schema_version = 99")


def of_another_journal(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE position SET journal_id = 'other'")


def with_a_line_that_is_not_there(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE position SET checksum = '0123456789abcdef'")


def of_an_earlier_boot(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE position SET boot_id = 'yesterday'")


@pytest.mark.parametrize(
    "spoil",
    [empty, not_a_database, of_another_version, of_another_journal, with_a_line_that_is_not_there, of_an_earlier_boot],
)
def test_a_cache_that_does_not_fit_is_thrown_away_and_made_anew(tmp_path, three, spoil):
    with sqlite3.connect(cache_path(tmp_path)) as connection:  # so that only a new cache shows all three
        connection.execute("DELETE FROM holds WHERE hold_id = ?", [three[0].hold_id])
    spoil(cache_path(tmp_path))
    assert opened(tmp_path) == three


def test_a_cache_that_fits_is_kept(tmp_path, three):
    with sqlite3.connect(cache_path(tmp_path)) as connection:
        connection.execute("DELETE FROM holds WHERE hold_id = ?", [three[0].hold_id])
    assert opened(tmp_path) == three[1:]


def test_a_journal_that_was_restored_from_an_older_copy_makes_the_cache_anew(tmp_path, three):
    write_lines(tmp_path, lines_of(tmp_path)[:2])
    assert opened(tmp_path) == three[:1]


def test_what_another_host_did_meanwhile_is_added_to_the_cache_that_is_there(tmp_path, three):
    before = cache_path(tmp_path).stat().st_ino
    elsewhere = open_on_share(tmp_path, host="node7")
    more = hold_one(elsewhere, "d")
    die(elsewhere)
    let_lapse(tmp_path)
    assert opened(tmp_path) == (*three, more)
    assert cache_path(tmp_path).stat().st_ino == before


# --- full disks -----------------------------------------------------------------------------------


def hold_until_it_fails(ledger, acknowledged):
    for n in range(1000):
        acknowledged.append(hold_one(ledger, f"{n}-" + "x" * 3000))


def test_a_full_share_loses_nothing_that_was_acknowledged(small_disk, tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:2 / {small_disk} rw - nfs4 server:/ rw\n")
    (small_disk / "share").mkdir()
    (small_disk / "mountinfo").symlink_to(mounts)
    ledger = open_on_share(small_disk, cache_dir=tmp_path / "cache")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    acknowledged = []
    with pytest.raises(LedgerUnavailable, match=r"cannot write .*jsonl: .*nothing was written; free some space"):
        hold_until_it_fails(ledger, acknowledged)
    assert list(ledger.open_holds()) == acknowledged
    ballast.unlink()
    acknowledged.append(hold_one(ledger, "after"))
    ledger.close()
    shutil.rmtree(tmp_path / "cache")
    rebuilt = open_on_share(small_disk, cache_dir=tmp_path / "cache")
    assert list(rebuilt.open_holds()) == acknowledged
    rebuilt.close()


def test_a_full_local_disk_loses_nothing_that_was_acknowledged(small_disk, tmp_path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    ledger = open_on_share(tmp_path, cache_dir=small_disk / "cache")
    acknowledged = []
    with pytest.raises(LedgerUnavailable, match=r"(?i)full"):
        hold_until_it_fails(ledger, acknowledged)
    ballast.unlink()
    assert list(ledger.open_holds())[: len(acknowledged)] == acknowledged
    acknowledged.append(hold_one(ledger, "after"))
    assert all(hold in ledger.open_holds() for hold in acknowledged)
    ledger.close()
    rebuilt = open_on_share(tmp_path, cache_dir=tmp_path / "another")
    assert all(hold in rebuilt.open_holds() for hold in acknowledged)
    rebuilt.close()
