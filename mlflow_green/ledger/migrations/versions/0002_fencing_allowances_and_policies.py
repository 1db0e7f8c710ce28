"""What version 2 adds: fencing and pending top-ups of holds, trees of accounts, allowances, approved limits, policies.

Every new column of an old table has a default, so a row of version 1 keeps its meaning and no row is rewritten.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("accounts", sa.Column("parent", sa.String))
    op.add_column("buckets", sa.Column("previous_period", sa.String))
    op.add_column("holds", sa.Column("policy_sha256", sa.String(64), nullable=False, server_default=""))
    op.add_column("holds", sa.Column("epoch", sa.Integer, nullable=False, server_default="1"))
    op.add_column("holds", sa.Column("wanted", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("journal", sa.Column("delta_limit", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "allowances",
        sa.Column("allowance_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("budget", sa.String, nullable=False),
        sa.Column("account", sa.String, nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("made_at", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.String(32)),
        sa.Column("requested_by", sa.String, nullable=False),
        sa.Column("approver", sa.String),
        sa.Column("approved_by", sa.String),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Index("allowances_by_bucket", "budget", "account", "unit", "period"),
    )
    op.create_table(
        "approved_limits",
        sa.Column("budget", sa.String, primary_key=True),
        sa.Column("account", sa.String, primary_key=True),
        sa.Column("unit", sa.String(16), primary_key=True),
        sa.Column("limit_amount", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
    )
    op.execute("UPDATE meta SET schema_version = 2")
