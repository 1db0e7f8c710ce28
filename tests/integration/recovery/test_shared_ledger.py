"""One ledger, several projects with a spool folder each; and holds whose readings are gone or never were."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mlflow_green.clock import SystemClock
from mlflow_green.errors import LedgerError, LedgerUnavailable
from mlflow_green.ledger.memory import MemoryLedger
from mlflow_green.recorder.late_hold import admit_at_nothing
from mlflow_green.recorder.recovery import recover
from mlflow_green.recorder.spool_session import begin_line, session_line
from mlflow_green.recorder.ticket import Book, entry_of
from mlflow_green.records import (
    Batch,
    Closing,
    ClosingKind,
    Intensity,
    Outcome,
    Site,
    Tick,
    Unit,
)
from mlflow_green.spool import SpoolWriter, to_json
from tests.testkit.ledger_samples import NOON, OWNER, admit_anything, request, term, usage, window
from tests.testkit.recorder_parts import ticket

SITE = Site(
    intensity=Intensity(g_per_kwh=300.0, g_per_kwh_high=450.0, source="test"), price_per_kwh=0.2, currency="EUR"
)
BOOK = Book(project="demo", user="ana", host="node1", site=SITE, sampler_id="sampler1", power_watts_max=10.0)
HELD = {Unit.ENERGY: 1_000, Unit.CARBON: 70, Unit.MONEY: 5}
TERMS = tuple(term(unit=unit, limit=10**12) for unit in HELD)
USED = 5_000_000_000
YESTERDAY = NOON - timedelta(days=1)


@pytest.fixture
def ledger():
    return MemoryLedger(SystemClock())


@pytest.fixture
def said():
    return []


def owner_in(spool: Path):
    return replace(OWNER, spool_dir=str(spool.resolve()))


def held(ledger, owner, name="train"):
    step = ticket(name)
    batch = Batch(requests=(request(name, HELD, *TERMS, hold_id=step.ticket_id),), owner=owner)
    (answer,) = ledger.commit(batch, admit_anything).answers
    step.hold, step.decision, step.began_at, step.duration_seconds = answer.hold, answer.decision, YESTERDAY, 3.0
    return step


def begun(spool: Path, owner, step, *, settled: bool) -> None:
    """What a meter that was killed leaves of a step: settled with readings, or before its first one."""
    writer = SpoolWriter(spool / "sampler1.jsonl")
    writer.append(session_line(owner, BOOK))
    writer.append(begin_line(step))
    if settled:
        step.usage = usage(USED, seconds=3.0)
        closing = Closing(
            kind=ClosingKind.SETTLE, hold_id=step.hold_id, entry=entry_of(step, Outcome.SUCCEEDED, BOOK, NOON)
        )
        tick = Tick(
            sampler_id="sampler1", sequence=1, at=NOON, windows=(window(1, USED),), usages={}, final=frozenset()
        )
        writer.append({"kind": "tick", "tick": to_json(tick)})
        writer.append({"kind": "closing", "closing": to_json(closing)})
    writer.close()


def recover_in(spool: Path, ledger, said) -> int:
    return recover(ledger, spool, host="node1", clock=SystemClock(), say=said.append)


def spent(ledger) -> dict[Unit, int]:
    return {balance.term.unit: balance.spent for balance in ledger.balances(TERMS)}


def test_another_projects_dead_hold_is_left_to_its_own_spool(ledger, said, tmp_path) -> None:
    owner = owner_in(tmp_path / "b")
    begun(tmp_path / "b", owner, held(ledger, owner), settled=True)
    assert recover_in(tmp_path / "a", ledger, said) == 0
    assert len(ledger.open_holds()) == 1
    recover_in(tmp_path / "b", ledger, said)
    assert (ledger.open_holds(), spent(ledger)[Unit.ENERGY]) == ((), USED)
    assert list((tmp_path / "b").iterdir()) == []
    assert [entry.outcome for entry in ledger.entries()] == [Outcome.SUCCEEDED]


@pytest.mark.parametrize("left", ["no folder", "an empty folder", "a spool of somebody else", "a broken spool"])
def test_another_projects_dead_hold_without_a_spool_is_charged(ledger, said, tmp_path, left) -> None:
    spool = tmp_path / "b"
    step = held(ledger, owner_in(spool))
    if left != "no folder":
        spool.mkdir()
    if left == "a spool of somebody else":
        begun(spool, replace(owner_in(spool), pid=43), ticket("other"), settled=False)
    if left == "a broken spool":
        (spool / "broken.jsonl").write_bytes(b'{"kind": "session"}\n')
    assert recover_in(tmp_path / "a", ledger, said) == 1
    assert ledger.open_holds() == ()
    assert [entry.hold_id for entry in ledger.entries()] == [step.hold_id]


@pytest.mark.parametrize("settled", [True, False])
def test_readings_that_turn_up_after_the_hold_was_charged_as_lost_are_charged_in_full(
    ledger, said, tmp_path, settled
) -> None:
    step = held(ledger, OWNER)  # as an older version wrote it: nobody knows where its spool is
    begun(tmp_path / "b", OWNER, step, settled=settled)
    recover_in(tmp_path / "a", ledger, said)
    assert spent(ledger)[Unit.ENERGY] == HELD[Unit.ENERGY]
    recover_in(tmp_path / "b", ledger, said)
    assert spent(ledger)[Unit.ENERGY] == (USED if settled else HELD[Unit.ENERGY])
    assert sum(part.attributed_microjoules for part in ledger.node_windows()) == (USED if settled else 0)
    assert list((tmp_path / "b").iterdir()) == []


def test_a_step_killed_before_its_first_reading_is_charged_in_every_unit(ledger, said, tmp_path) -> None:
    begun(tmp_path, OWNER, held(ledger, OWNER), settled=False)
    recover_in(tmp_path, ledger, said)
    (entry,) = ledger.entries()
    assert entry.energy_charged_microjoules == 600 * 10**6, "10 W over lease and grace"
    assert entry.operational_micrograms_co2e == 50_000
    assert entry.cost_micro_units == 33
    assert (entry.currency, entry.sampler_id, entry.total) == ("EUR", None, None)
    assert spent(ledger) == entry.charged


def test_a_hold_whose_readings_are_gone_is_charged_what_it_held_in_every_unit(ledger, said, tmp_path) -> None:
    held(ledger, OWNER)
    recover_in(tmp_path, ledger, said)
    assert spent(ledger) == HELD


def test_a_hold_that_cannot_be_closed_is_said_and_the_others_are_closed(ledger, said, tmp_path) -> None:
    first = held(ledger, OWNER, "first")
    held(ledger, OWNER, "second")
    stray = entry_of(first, Outcome.SUCCEEDED, BOOK, NOON)  # an entry of the open hold: no loss can be posted any more
    ledger.commit(Batch(closings=(Closing(kind=ClosingKind.SETTLE, hold_id=None, entry=stray),)), admit_at_nothing)
    assert recover_in(tmp_path, ledger, said) == 1
    assert [hold.step.name for hold in ledger.open_holds()] == ["first"]
    assert any("first" in text and "posted before" in text for text in said)


def test_a_promised_hold_that_is_impossible_keeps_nobody_from_starting(said, tmp_path) -> None:
    class NoRequests(MemoryLedger):
        def commit(self, batch, choose):
            if batch.requests:
                raise LedgerError("impossible")
            return super().commit(batch, choose)

    step = ticket("train")
    step.late_request = request("train", 0, *TERMS, hold_id=step.ticket_id)
    step.began_at = NOON
    begun(tmp_path, OWNER, step, settled=True)
    ledger = NoRequests(SystemClock())
    recover_in(tmp_path, ledger, said)
    assert [entry.total.microjoules for entry in ledger.entries()] == [USED]
    assert any("impossible" in text for text in said)


def test_a_ledger_that_is_not_there_keeps_the_spool(said, tmp_path) -> None:
    class Down(MemoryLedger):
        def commit(self, batch, choose):
            raise LedgerUnavailable("locked")

    step = ticket("train")
    step.late_request = request("train", 0, *TERMS, hold_id=step.ticket_id)
    step.began_at = NOON
    begun(tmp_path, OWNER, step, settled=True)
    with pytest.raises(LedgerUnavailable):
        recover_in(tmp_path, Down(SystemClock()), said)
    assert len(list(tmp_path.iterdir())) == 1
