"""What Alembic runs for a migration: the transaction and its connection are the caller's."""

from __future__ import annotations

from alembic import context

from mlflow_green.ledger import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    version_table=schema.REVISION_TABLE,
)
context.run_migrations()
