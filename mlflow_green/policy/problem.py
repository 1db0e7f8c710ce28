"""One thing that is wrong with a policy, and where."""

from __future__ import annotations

from dataclasses import dataclass

KeyPath = tuple[str | int, ...]
"""The way to a value: ``("budgets", 0, "limit")``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place in the text; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: ``mark`` where the text itself is broken, else the path to the value or its key."""

    message: str
    path: KeyPath = ()
    suggestion: str | None = None
    on_key: bool = False
    mark: Mark | None = None
