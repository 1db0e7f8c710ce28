"""What one transaction wrote, as a record: written again into an older copy of the books, it gives the same books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, String, case, cast, update

from mlflow_green.errors import LedgerError
from mlflow_green.ledger import schema
from mlflow_green.ledger.effects import Effects
from mlflow_green.ledger.messages import UNTIL_TAKEN, Message
from mlflow_green.ledger.transaction import load_buckets, promise, write, write_facts
from mlflow_green.records import BucketKey, Fact, LetterState

_OUTBOX = schema.outbox.c
_FREED: Mapping[Any, Any] = {
    _OUTBOX.dedup: case(
        (_OUTBOX.dedup.endswith(UNTIL_TAKEN), _OUTBOX.dedup + " as " + cast(_OUTBOX.outbox_id, String)),
        else_=_OUTBOX.dedup,
    )
}
"""What lets a message be promised again that does not wait any more, if it is one of those that may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterChange:
    """How a message of the outbox fared.

    ``retry_at`` alone: claimed until then. With ``error``: it failed, and is tried again then, or never without
    ``retry_at``. Neither: it is delivered.
    """

    outbox_id: int
    retry_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The rows of one transaction: the effects of a batch or an adjustment, or a change of the outbox.

    ``messages`` are promised in place of the rows ``replaced``.
    """

    at: datetime
    effects: Effects | None = None
    message: Message | None = None
    letter: LetterChange | None = None
    facts: tuple[Fact, ...] = ()
    replaced: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether there is anything to write."""
        changes = (self.message, self.letter, self.facts, self.replaced, self.messages)
        return any(changes) or bool(self.effects and self.effects.writes)


def apply(connection: Connection, change: Change, bucket_ids: Mapping[BucketKey, int] | None = None) -> tuple[str, ...]:
    """Write the change; returns the texts of the alerts that were not told before.

    ``bucket_ids`` are the row numbers of the buckets that it touches, if they are known already.

    Raises:
        LedgerError: it does not fit these books.
    """
    told: tuple[str, ...] = ()
    if change.effects is not None:
        if bucket_ids is None:
            changed = {bucket.term.key for bucket in change.effects.buckets}
            _, bucket_ids = load_buckets(connection, {row.key for row in change.effects.journal} | changed)
        told = write(connection, change.effects, bucket_ids, change.at)
    if change.message is not None:
        promise(connection, [change.message], change.at)
    if change.letter is not None:
        _change_letter(connection, change.letter, change.at)
    for outbox_id in change.replaced:
        _change_letter(connection, LetterChange(outbox_id=outbox_id), change.at)
    promise(connection, change.messages, change.at)
    write_facts(connection, change.facts)
    return told


def _change_letter(connection: Connection, change: LetterChange, now: datetime) -> None:
    columns = schema.outbox.c
    query = update(schema.outbox).where(columns.outbox_id == change.outbox_id)
    if change.retry_at is None and change.error is None:
        values: dict[Any, Any] = {
            columns.state: LetterState.DELIVERED.value,
            columns.next_try: now,
            columns.error: None,
            **_FREED,
        }
        if connection.execute(query.values(values)).rowcount != 1:
            raise LedgerError(f"there is no message {change.outbox_id} in the outbox")
        return
    values = {columns.next_try: change.retry_at or now}
    if change.error is not None:
        values |= {columns.tries: columns.tries + 1, columns.error: change.error}
    if change.retry_at is None:
        values |= {columns.state: LetterState.DEAD.value, **_FREED}
    # What another sender has delivered meanwhile stays so.
    connection.execute(query.where(columns.state == LetterState.PENDING.value).values(values))
