"""From the tables of an older version to those of this one, by Alembic, in one transaction: whole or not at all.

Alembic is imported here only, and by programs of their own: a ledger that is opened starts
``python -m mlflow_green.ledger.migrations`` with the ledger's URL in ``MLFLOW_GREEN_LEDGER``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select

from mlflow_green.ledger import schema
from mlflow_green.ledger.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What was done: from which version of the schema, ``None`` if there were no tables, and what was kept of it.

    ``version`` is the one that this mlflow-green uses there.
    """

    before: int | None
    version: int
    copy: Path | None = None


def migrate(store: Store) -> Migration:
    """Bring a ledger's tables to this version; make them where there are none.

    Raises:
        LedgerUnavailable: it cannot be written, is of another host or program, or is newer than this version.
    """
    before = store.version()
    if before is None:
        store.prepare()
    return upgrade(store) if before else Migration(before=before, version=store.schema_version)


def upgrade(store: Store) -> Migration:
    """Bring tables that are there to this version, unless another process was faster."""
    with store.writing() as connection:
        before: int = connection.execute(select(schema.meta.c.schema_version)).scalar_one()
        if before >= store.schema_version:
            return Migration(before=before, version=store.schema_version)
        copy = store.keep_copy(before)
        run_scripts(connection, before, store.schema_version)
    return Migration(before=before, version=store.schema_version, copy=copy)


def run_scripts(connection: Connection, before: int, target: int) -> None:
    """Run what leads from version ``before`` of the schema to ``target``; 0 for no tables at all."""
    from alembic import command
    from alembic.config import Config

    if before and not inspect(connection).has_table(schema.REVISION_TABLE):  # version 1 knew nothing of Alembic
        schema.revision.create(connection)
        connection.execute(insert(schema.revision), {"version_num": schema.revision_of(before)})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, schema.revision_of(target))
