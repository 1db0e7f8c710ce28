"""What pydantic finds wrong with a policy, in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mlflow_green.policy.problem import KeyPath, Problem
from mlflow_green.policy.source import close_name, is_secret

_FORMER_WORDS = {"hold": "wait", "deny": "refuse", "kill": "halt", "stop": "halt", "warn": "notify", "alert": "notify"}
_KINDS = {"string": "text", "model": "a mapping", "dict": "a mapping", "list": "a list", "tuple": "a list"}
_MISSING_HINTS = {
    "version": "; write 'version: 1'",
    "project": "; write 'project: NAME'",
    "limit": "; write e.g. 'limit: [5 kWh]'",
    "at": "; write e.g. 'at: 80%'",
    "approvers": "; write e.g. 'approvers: [user:ana]'",
    "max_extra": "; write e.g. 'max_extra: 20%'",
    "metric": "; write e.g. 'metric: mape'",
    "carbon": "; write e.g. 'carbon: 1300 kgCO2e'",
    "lifetime": "; write e.g. 'lifetime: 5 years'",
    "source": "; say where the number comes from, e.g. 'source: data sheet of the maker, 2024'",
}


_MAPPINGS = {
    "site": "{country: FRA}",
    "embodied": "{carbon: 1300 kgCO2e, lifetime: 5 years, source: data sheet}",
    "scope": "{project: NAME}",
    "rollover": "{unused: 25%, cap: 50%}",
    "override": '{approvers: "user:ana", max_extra: 20%}',
    "quality": "{metric: mape, goal: min}",
    "env": '{EPOCHS: "5"}',
}
"""What a mapping looks like, by its key."""


def problem_of(details: ErrorDetails, document: type[BaseModel], prefix: KeyPath = ()) -> Problem:
    """One of pydantic's errors; ``document`` is the model of the whole file, ``prefix`` where in it the data is."""
    path: KeyPath = (*prefix, *details["loc"])
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if is_secret(path) and value is not None:
        value = _Hidden()
    if kind == "extra_forbidden":
        return _unknown_key(path, _known_keys(document, path[:-1]))
    if kind == "missing":
        message = f"{path[-1]!r} is missing{_missing_hint(document, path)}"
        return Problem(path=path, on_key=True, message=message)
    if kind == "green":
        return Problem(path=path, message=context["message"], suggestion=context["suggestion"])
    if kind in {"literal_error", "enum"}:
        return _not_allowed(path, value, re.findall(r"'([^']*)'", str(context["expected"])))
    return Problem(path=path, message=_type_message(kind, value, path, details["msg"]))


class _Hidden:
    """Stands for a value that may be a secret."""

    def __repr__(self) -> str:
        return "this value"


def _known_keys(document: type[BaseModel], path: KeyPath) -> tuple[str, ...]:
    """The keys that a mapping at ``path`` may have, as people write them."""
    return tuple(_fields_of(_type_at(document, path)))


def _type_at(kind: Any, path: KeyPath) -> Any:
    """The type that the schema has at ``path``; ``None`` where it has none."""
    for part in path:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif not isinstance(part, int):
            field = _fields_of(kind).get(part)
            kind = field.annotation if field else None
    return kind


def _fields_of(kind: Any) -> dict[str, FieldInfo]:
    return {field.alias or name: field for model in _models_in(kind) for name, field in model.model_fields.items()}


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    """The models inside optional, annotated and sequence types."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from _models_in(inner)


def _unknown_key(path: KeyPath, known: tuple[str, ...]) -> Problem:
    meant = close_name(path[-1], known)
    allowed = "" if meant else f"; known keys: {', '.join(known)}"
    if ":" in str(path[-1]) and "tiers" in known:
        allowed = '; put the tiers in quotes, e.g. tiers: "full:1,half:0.5"'
    return Problem(path=path, on_key=True, message=f"unknown key {path[-1]!r}{allowed}", suggestion=meant)


def _not_allowed(path: KeyPath, value: object, allowed: list[str]) -> Problem:
    if path == ("version",):
        return Problem(path=path, message=f"version {value!r} is not known here; this mlflow-green reads 'version: 1'")
    former = _FORMER_WORDS.get(str(value))
    meant = former if former in allowed else close_name(value, allowed)
    return Problem(
        path=path, message=f"{value!r} is not allowed here; write one of {', '.join(allowed)}", suggestion=meant
    )


def _missing_hint(document: type[BaseModel], path: KeyPath) -> str:
    kind = _type_at(document, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"; write one of {', '.join(kind)}"
    return _MISSING_HINTS.get(str(path[-1]), "")


def _type_message(kind: str, value: object, path: KeyPath, message: str) -> str:
    if value is None:
        return "has no value"
    wanted, key = _KINDS.get(kind.removesuffix("_type")), path[-1] if path else ""
    if wanted == "text" and isinstance(value, bool | int | float):
        return f'{value!r} must be text; put it in quotes: "{str(value).lower()}"'
    if wanted == "a list":
        return f"{value!r} must be a list; put it in [ ]"
    if wanted == "a mapping" and key in _MAPPINGS:
        return f"{value!r} must be a mapping; write e.g. '{key}: {_MAPPINGS[str(key)]}'"
    if wanted:
        return f"{value!r} must be {wanted}"
    return f"{value!r} is wrong: {message[0].lower()}{message[1:]}"
