"""Inside one SQL transaction: find the rows that the ledger can do without, and take them out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, not_, select, update

from mlflow_green.ledger import rows, schema
from mlflow_green.ledger.compaction import ONCE_ONLY, Given, Span, adjoining, joined, latest_letters, superseded
from mlflow_green.records import Action, LetterState, NodeWindow

_OUTBOX, _DECISIONS, _WINDOWS, _ENTRIES = (
    schema.outbox.c,
    schema.decisions.c,
    schema.node_windows.c,
    schema.entries.c,
)
_ASKED_AGAIN = select(_DECISIONS.step_key).group_by(_DECISIONS.step_key).having(func.count() > 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareRows:
    """What may go: a condition on the outbox and what it finds, numbers of decisions, and windows to be joined."""

    is_spare_message: ColumnElement[bool]
    messages: Mapping[str, int]
    decisions: Sequence[int]
    chains: Sequence[tuple[NodeWindow, ...]]

    @property
    def has_any(self) -> bool:
        return bool(self.messages or self.decisions or self.chains)

    @property
    def windows(self) -> int:
        """How many fewer windows there are once they are joined."""
        return sum(len(chain) - 1 for chain in self.chains)


def find_spare(connection: Connection, before: datetime) -> SpareRows:
    """What was over before that time and is not needed any more."""
    is_spare = _spare_message(connection, before)
    by_kind = select(_OUTBOX.kind, func.count()).where(is_spare).group_by(_OUTBOX.kind)
    return SpareRows(
        is_spare_message=is_spare,
        messages={kind: int(count) for kind, count in connection.execute(by_kind.order_by(_OUTBOX.kind))},
        decisions=tuple(superseded(_answers(connection), before)),
        chains=tuple(_chains(connection, before)),
    )


def remove(connection: Connection, spare: SpareRows) -> None:
    """Take the rows out; a chain of windows becomes its first one."""
    connection.execute(delete(schema.outbox).where(spare.is_spare_message))
    if spare.decisions:
        connection.execute(
            delete(schema.decisions).where(_DECISIONS.decision_id == bindparam("number")),
            [{"number": number} for number in spare.decisions],
        )
    for chain in spare.chains:
        whole = joined(chain)
        is_in_domain = and_(_WINDOWS.sampler_id == whole.sampler_id, _WINDOWS.domain == whole.domain.value)
        others = _WINDOWS.sequence_first.between(whole.sequence_first + 1, whole.sequence_last)
        connection.execute(delete(schema.node_windows).where(is_in_domain, others))
        is_first = _WINDOWS.sequence_first == whole.sequence_first
        connection.execute(update(schema.node_windows).where(is_in_domain, is_first).values(rows.window_row(whole)))


def _spare_message(connection: Connection, before: datetime) -> ColumnElement[bool]:
    is_delivered = _OUTBOX.state == LetterState.DELIVERED.value
    letters = select(_OUTBOX.outbox_id, _OUTBOX.dedup).where(is_delivered, _OUTBOX.kind == "letter")
    latest = latest_letters((number, dedup) for number, dedup in connection.execute(letters))
    return and_(
        is_delivered,
        _OUTBOX.next_try < before,
        not_(_OUTBOX.dedup.endswith(ONCE_ONLY)),
        _OUTBOX.outbox_id.not_in(latest),
        # SQLite would give the greatest number to the next row, and a slow sender would take that one for its own.
        _OUTBOX.outbox_id < select(func.max(_OUTBOX.outbox_id)).scalar_subquery(),
    )


def _answers(connection: Connection) -> list[Given]:
    columns = (_DECISIONS.decision_id, _DECISIONS.at, _DECISIONS.step_key, _DECISIONS.hold_id, _DECISIONS.action)
    found = connection.execute(select(*columns).where(_DECISIONS.step_key.in_(_ASKED_AGAIN)))
    return [
        Given(number=number, at=at, step_key=key, has_hold=hold_id is not None, waits=action == Action.WAIT.value)
        for number, at, key, hold_id, action in found
    ]


def _chains(connection: Connection, before: datetime) -> list[tuple[NodeWindow, ...]]:
    over = select(_WINDOWS.sampler_id).group_by(_WINDOWS.sampler_id).having(func.max(_WINDOWS.ended_at) < before)
    found = connection.execute(select(schema.node_windows).where(_WINDOWS.sampler_id.in_(over))).mappings()
    runs: defaultdict[str, list[Span]] = defaultdict(list)
    spans = (
        select(_ENTRIES.sampler_id, func.min(_ENTRIES.started_at), func.max(_ENTRIES.ended_at))
        .where(_ENTRIES.sampler_id.in_(over))
        .group_by(_ENTRIES.sampler_id, _ENTRIES.workflow_run)
    )
    for sampler_id, start, end in connection.execute(spans):
        runs[sampler_id].append((start, end))
    return list(adjoining(map(rows.window_of, found), runs))
