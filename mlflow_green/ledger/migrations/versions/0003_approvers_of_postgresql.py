"""What version 3 adds: PostgreSQL itself checks who approves. A SQLite ledger is of version 2 still, and untouched."""

from __future__ import annotations

from alembic import op

from mlflow_green.ledger.guards import guard

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        guard(op.get_bind())  # frozen as this script is, see there
        op.execute("UPDATE meta SET schema_version = 3")
