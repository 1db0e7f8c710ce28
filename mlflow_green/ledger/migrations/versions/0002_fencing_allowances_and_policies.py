"""What version 2 adds: fencing and pending top-ups of holds, trees of accounts, allowances, limits, policies.

Every new column of an old table has a default, so a row of version 1 keeps its meaning and no row is rewritten.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


APPROVED_BY_ANOTHER_ROLE = """
CREATE OR REPLACE FUNCTION allowances_by_role() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NEW.kind <> 'rollover' THEN
      IF NEW.approver IS NOT NULL OR NEW.approved_by IS NOT NULL THEN
        RAISE EXCEPTION 'an allowance is approved by another role than the one that asks, afterwards';
      END IF;
      NEW.requested_by := session_user;
    END IF;
    RETURN NEW;
  END IF;
  IF TG_OP = 'DELETE' OR OLD.kind = 'rollover' OR OLD.approved_by IS NOT NULL THEN
    RAISE EXCEPTION 'an allowance is approved once and never changes after that';
  END IF;
  IF session_user = OLD.requested_by THEN
    RAISE EXCEPTION USING MESSAGE =
      'role ' || session_user || ' asked for this allowance itself; another role has to approve it';
  END IF;
  OLD.approved_by := session_user;
  RETURN OLD;
END$$;
CREATE TRIGGER allowances_by_role BEFORE INSERT OR UPDATE OR DELETE ON allowances
FOR EACH ROW EXECUTE FUNCTION allowances_by_role()
"""


APPLIED_STAYS = """
CREATE OR REPLACE FUNCTION limit_changes_only_grow() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'what was applied stays'; END$$;
CREATE TRIGGER limit_changes_never_change BEFORE UPDATE OR DELETE OR TRUNCATE ON limit_changes
FOR EACH STATEMENT EXECUTE FUNCTION limit_changes_only_grow()
"""


def upgrade() -> None:
    op.add_column("accounts", sa.Column("parent", sa.String))
    op.add_column("buckets", sa.Column("previous_period", sa.String))
    op.add_column("buckets", sa.Column("rollover", sa.JSON))
    op.create_index("buckets_by_previous_period", "buckets", ["previous_period"])
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
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("policy_sha256", sa.String(64), nullable=False),
        sa.Column("approved_by", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "limit_changes",
        sa.Column("change_number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("budget", sa.String, nullable=False),
        sa.Column("account", sa.String, nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("before_amount", sa.BigInteger),
        sa.Column("before_mode", sa.String(16)),
        sa.Column("after_amount", sa.BigInteger),
        sa.Column("after_mode", sa.String(16)),
        sa.Column("policy_sha256", sa.String(64), nullable=False),
        sa.Column("requested_by", sa.String, nullable=False),
        sa.Column("approver", sa.String),
        sa.Column("approved_by", sa.String),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(APPROVED_BY_ANOTHER_ROLE)
        op.execute(APPLIED_STAYS)
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER limit_changes_never_{verb.lower()} BEFORE {verb} ON limit_changes BEGIN"
                " SELECT RAISE(ABORT, 'what was applied stays'); END"
            )
    op.execute("UPDATE meta SET schema_version = 2")
