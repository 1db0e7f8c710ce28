"""The tables as of version 1."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ONLY_GROWS = "the journal only grows: correct it with a new row"


def upgrade() -> None:
    row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "meta",
        sa.Column("meta_id", sa.Integer, sa.CheckConstraint("meta_id = 1"), primary_key=True),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("host", sa.String),
        sa.Column("boot_id", sa.String),
    )
    op.create_table(
        "accounts",
        sa.Column("account", sa.String, primary_key=True),
        sa.Column("opened_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "buckets",
        sa.Column("bucket_id", row_number, primary_key=True),
        sa.Column("budget", sa.String, nullable=False),
        sa.Column("account", sa.String, sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("limit_amount", sa.BigInteger, nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("alerts", sa.JSON, nullable=False),
        sa.Column("spent", sa.BigInteger, sa.CheckConstraint("spent >= 0"), nullable=False),
        sa.Column("held", sa.BigInteger, sa.CheckConstraint("held >= 0"), nullable=False),
        sa.UniqueConstraint("budget", "account", "unit", "period"),
    )
    op.create_table(
        "holds",
        sa.Column("hold_number", row_number, primary_key=True),
        sa.Column("hold_id", sa.String(64), nullable=False, unique=True),
        sa.Column("step_key", sa.String, nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.JSON, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("user", sa.String, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("tier", sa.String),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("would_decision", sa.String(16), nullable=False),
        sa.Column("amounts", sa.JSON, nullable=False),
        sa.Column("terms", sa.JSON, nullable=False),
        sa.Column("owner", sa.JSON, nullable=False),
        sa.Column("opened_at", sa.String(32), nullable=False),
        sa.Index("holds_by_state", "state"),
    )
    op.create_table(
        "journal",
        sa.Column("journal_id", row_number, primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("hold_id", sa.String(64)),
        sa.Column("bucket_id", row_number, sa.ForeignKey("buckets.bucket_id"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("delta_held", sa.BigInteger, nullable=False),
        sa.Column("delta_spent", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Index("journal_by_hold", "hold_id"),
    )
    op.create_table(
        "entries",
        sa.Column("entry_number", row_number, primary_key=True),
        sa.Column("entry_id", sa.String(64), nullable=False, unique=True),
        sa.Column("hold_id", sa.String(64)),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("user", sa.String, nullable=False),
        sa.Column("workflow_run", sa.String, nullable=False),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("wildcards", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("started_at", sa.String(32), nullable=False),
        sa.Column("ended_at", sa.String(32), nullable=False),
        sa.Column("duration_seconds", sa.Float, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("tier", sa.String),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("would_decision", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("phase", sa.String),
        sa.Column("energy", sa.JSON, nullable=False),
        sa.Column("energy_total_microjoules", sa.BigInteger),
        sa.Column("energy_charged_microjoules", sa.BigInteger, nullable=False),
        sa.Column("boundary", sa.String(16), nullable=False),
        sa.Column("sampler_id", sa.String),
        sa.Column("cpu_seconds", sa.Float),
        sa.Column("cpu_clock", sa.String(16)),
        sa.Column("coverage_ratio", sa.Float),
        sa.Column("carbon_intensity_g_per_kwh", sa.Float),
        sa.Column("intensity_source", sa.String),
        sa.Column("pue", sa.Float, nullable=False),
        sa.Column("operational_micrograms_co2e", sa.BigInteger),
        sa.Column("embodied_micrograms_co2e", sa.BigInteger),
        sa.Column("cost_micro_units", sa.BigInteger),
        sa.Column("currency", sa.String),
        sa.Index("entries_by_hold", "hold_id"),
        sa.Index("entries_by_step", "project", "step", "entry_number"),
        sa.Index("entries_by_workflow_run", "workflow_run"),
    )
    op.create_table(
        "node_windows",
        sa.Column("window_number", row_number, primary_key=True),
        sa.Column("sampler_id", sa.String, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("boot_id", sa.String, nullable=False),
        sa.Column("domain", sa.String(16), nullable=False),
        sa.Column("sequence_first", sa.BigInteger, nullable=False),
        sa.Column("sequence_last", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.String(32), nullable=False),
        sa.Column("ended_at", sa.String(32), nullable=False),
        sa.Column("energy_microjoules", sa.BigInteger, nullable=False),
        sa.Column("energy_low_microjoules", sa.BigInteger, nullable=False),
        sa.Column("energy_high_microjoules", sa.BigInteger, nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("attributed_microjoules", sa.BigInteger, nullable=False),
        sa.Column("idle_microjoules", sa.BigInteger, nullable=False),
        sa.Column("other_microjoules", sa.BigInteger, nullable=False),
        sa.Column("coverage_ratio", sa.Float, nullable=False),
        sa.UniqueConstraint("sampler_id", "domain", "sequence_first"),
    )
    op.create_table(
        "facts",
        sa.Column("hold_id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("decision_id", row_number, primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("step_key", sa.String, nullable=False),
        sa.Column("hold_id", sa.String(64)),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("step", sa.JSON, nullable=False),
        sa.Column("decision", sa.JSON, nullable=False),
        sa.Column("balances", sa.JSON, nullable=False),
        sa.Index("decisions_by_step_key", "step_key", "decision_id"),
    )
    op.create_table(
        "outbox",
        sa.Column("outbox_id", row_number, primary_key=True),
        sa.Column("dedup", sa.String, nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("next_try", sa.String(32), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Index("outbox_by_state", "state", "kind", "outbox_id"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER journal_never_{verb.lower()} BEFORE {verb} ON journal BEGIN"
                f" SELECT RAISE(ABORT, '{ONLY_GROWS}'); END"
            )
    else:
        op.execute(
            "CREATE OR REPLACE FUNCTION journal_only_grows() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN RAISE EXCEPTION '{ONLY_GROWS}'; END$$"
        )
        op.execute(
            "CREATE TRIGGER journal_never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON journal"
            " FOR EACH STATEMENT EXECUTE FUNCTION journal_only_grows()"
        )
    op.bulk_insert(
        sa.table("meta", sa.column("meta_id"), sa.column("schema_version"), sa.column("generation")),
        [{"meta_id": 1, "schema_version": 1, "generation": 0}],
    )
