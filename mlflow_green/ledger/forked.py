"""A copy of mutable records to try something on; pure."""

from __future__ import annotations

from copy import copy
from dataclasses import fields
from typing import Any, TypeVar, cast

_Record = TypeVar("_Record")


def forked(record: _Record) -> _Record:
    """A dataclass like this one, whose collections are its own, so that what changes in one stays there.

    Every field is copied, one that is added later too; what a collection holds is shared.
    """
    kind: Any = type(record)
    return cast("_Record", kind(**{each.name: copy(getattr(record, each.name)) for each in fields(kind)}))
