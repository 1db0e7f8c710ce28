"""What is tried on a copy of the books leaves the books as they were."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

from mlflow_green.ledger.standing import Standing
from mlflow_green.ledger.working_books import WorkingBooks

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def collections(record):
    """Every collection of a record by its name, those of the records in it too."""
    for each in fields(record):
        value = getattr(record, each.name)
        if hasattr(value, "__dataclass_fields__"):
            yield from collections(value)
        elif isinstance(value, (dict, list, set)):
            yield each.name, value


def fill(collection):
    if isinstance(collection, dict):
        collection["new"] = "new"
    elif isinstance(collection, list):
        collection.append("new")
    else:
        collection.add("new")


def test_no_collection_of_a_fork_is_one_of_the_books():
    books = WorkingBooks.of(Standing(generation=1), NOW)
    fork = books.fork()
    assert fork == books
    for _, collection in collections(fork):
        fill(collection)
    assert {name: len(value) for name, value in collections(books)} == {name: 0 for name, _ in collections(fork)}
    assert all(len(value) == 1 for _, value in collections(fork))
