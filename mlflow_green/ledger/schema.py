"""The tables of the SQL ledger, version 2; version 3, of PostgreSQL alone, has the same and the triggers of ``guards``.

Amounts are integers in the unit's scale (microjoules, micrograms CO2e, micro-units of money). The
journal is the truth and only grows; ``buckets`` are its running sums, the lock and the guard.
What a hold holds in a bucket is ``amounts[unit]`` of the hold, so no table of legs repeats it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION = 2
SCHEMA_VERSION_POSTGRES = 3


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time as ISO 8601 text of one length, so that text order is time order."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else datetime.fromisoformat(value)


# SQLite numbers rows itself only for a column whose type is exactly INTEGER.
_ROW_NUMBER = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("meta_id", Integer, CheckConstraint("meta_id = 1"), primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("host", String),
    Column("boot_id", String),
)

accounts = Table(
    "accounts",
    metadata,
    Column("account", String, primary_key=True),
    Column("opened_at", UtcTime, nullable=False),
    Column("parent", String),
)

buckets = Table(
    "buckets",
    metadata,
    Column("bucket_id", _ROW_NUMBER, primary_key=True),
    Column("budget", String, nullable=False),
    Column("account", String, ForeignKey("accounts.account"), nullable=False),
    Column("unit", String(16), nullable=False),
    Column("period", String, nullable=False),
    Column("limit_amount", BigInteger, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("alerts", JSON, nullable=False),
    # Facts are never refused, so nothing here says spent <= limit.
    Column("spent", BigInteger, CheckConstraint("spent >= 0"), nullable=False),
    Column("held", BigInteger, CheckConstraint("held >= 0"), nullable=False),
    # What its period inherits from that one is settled when the bucket is opened: policies change, this does not.
    Column("previous_period", String),
    Column("rollover", JSON),
    UniqueConstraint("budget", "account", "unit", "period"),
    Index("buckets_by_previous_period", "previous_period"),
)

holds = Table(
    "holds",
    metadata,
    Column("hold_number", _ROW_NUMBER, primary_key=True),
    Column("hold_id", String(64), nullable=False, unique=True),
    Column("step_key", String, nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("step", JSON, nullable=False),
    Column("project", String, nullable=False),
    Column("user", String, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("tier", String),
    Column("decision", String(16), nullable=False),
    Column("would_decision", String(16), nullable=False),
    Column("policy_sha256", String(64), nullable=False, server_default=""),
    Column("amounts", JSON, nullable=False),
    Column("terms", JSON, nullable=False),
    Column("owner", JSON, nullable=False),
    Column("opened_at", UtcTime, nullable=False),
    Column("epoch", Integer, nullable=False, server_default="1"),
    Column("wanted", JSON, nullable=False, server_default="{}"),
    Index("holds_by_state", "state"),
)

journal = Table(
    "journal",
    metadata,
    Column("journal_id", _ROW_NUMBER, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("hold_id", String(64)),
    Column("bucket_id", ForeignKey("buckets.bucket_id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("delta_held", BigInteger, nullable=False),
    Column("delta_spent", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("delta_limit", BigInteger, nullable=False, server_default="0"),
    Index("journal_by_hold", "hold_id"),
)

entries = Table(
    "entries",
    metadata,
    Column("entry_number", _ROW_NUMBER, primary_key=True),
    Column("entry_id", String(64), nullable=False, unique=True),
    Column("hold_id", String(64)),
    Column("project", String, nullable=False),
    Column("user", String, nullable=False),
    Column("workflow_run", String, nullable=False),
    Column("step", String, nullable=False),
    Column("wildcards", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("host", String, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("duration_seconds", Float, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("tier", String),
    Column("decision", String(16), nullable=False),
    Column("would_decision", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("phase", String),
    Column("energy", JSON, nullable=False),
    Column("energy_total_microjoules", BigInteger),
    Column("energy_charged_microjoules", BigInteger, nullable=False),
    Column("boundary", String(16), nullable=False),
    Column("sampler_id", String),
    Column("cpu_seconds", Float),
    Column("cpu_clock", String(16)),
    Column("coverage_ratio", Float),
    Column("carbon_intensity_g_per_kwh", Float),
    Column("intensity_source", String),
    Column("pue", Float, nullable=False),
    Column("operational_micrograms_co2e", BigInteger),
    Column("embodied_micrograms_co2e", BigInteger),
    Column("cost_micro_units", BigInteger),
    Column("currency", String),
    Index("entries_by_hold", "hold_id"),
    Index("entries_by_step", "project", "step", "entry_number"),
    Index("entries_by_workflow_run", "workflow_run"),
)

node_windows = Table(
    "node_windows",
    metadata,
    Column("window_number", _ROW_NUMBER, primary_key=True),
    Column("sampler_id", String, nullable=False),
    Column("host", String, nullable=False),
    Column("boot_id", String, nullable=False),
    Column("domain", String(16), nullable=False),
    Column("sequence_first", BigInteger, nullable=False),
    Column("sequence_last", BigInteger, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("energy_microjoules", BigInteger, nullable=False),
    Column("energy_low_microjoules", BigInteger, nullable=False),
    Column("energy_high_microjoules", BigInteger, nullable=False),
    Column("method", String(16), nullable=False),
    Column("attributed_microjoules", BigInteger, nullable=False),
    Column("idle_microjoules", BigInteger, nullable=False),
    Column("other_microjoules", BigInteger, nullable=False),
    Column("coverage_ratio", Float, nullable=False),
    UniqueConstraint("sampler_id", "domain", "sequence_first"),
)

facts = Table(
    "facts",
    metadata,
    Column("hold_id", String(64), primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", JSON, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", _ROW_NUMBER, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("step_key", String, nullable=False),
    Column("hold_id", String(64)),
    Column("action", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("step", JSON, nullable=False),
    Column("decision", JSON, nullable=False),
    Column("balances", JSON, nullable=False),
    Index("decisions_by_step_key", "step_key", "decision_id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("outbox_id", _ROW_NUMBER, primary_key=True),
    Column("dedup", String, nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("next_try", UtcTime, nullable=False),  # of a row that is not pending any more: when that came about
    Column("tries", Integer, nullable=False),
    Column("error", Text),
    Index("outbox_by_state", "state", "kind", "outbox_id"),
)

allowances = Table(
    "allowances",
    metadata,
    Column("allowance_id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("budget", String, nullable=False),
    Column("account", String, nullable=False),
    Column("unit", String(16), nullable=False),
    Column("period", String, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("made_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("requested_by", String, nullable=False),
    Column("approver", String),
    Column("approved_by", String),
    Column("reason", Text, nullable=False),
    Index("allowances_by_bucket", "budget", "account", "unit", "period"),
)

approved_limits = Table(
    "approved_limits",
    metadata,
    Column("budget", String, primary_key=True),
    Column("account", String, primary_key=True),
    Column("unit", String(16), primary_key=True),
    Column("limit_amount", BigInteger, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("policy_sha256", String(64), nullable=False),
    Column("approved_by", String, nullable=False),
    Column("reason", Text, nullable=False),
)

limit_changes = Table(
    "limit_changes",
    metadata,
    Column("change_number", _ROW_NUMBER, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("budget", String, nullable=False),
    Column("account", String, nullable=False),
    Column("unit", String(16), nullable=False),
    Column("before_amount", BigInteger),
    Column("before_mode", String(16)),
    Column("after_amount", BigInteger),
    Column("after_mode", String(16)),
    Column("policy_sha256", String(64), nullable=False),
    Column("requested_by", String, nullable=False),
    Column("approver", String),
    Column("approved_by", String),
    Column("reason", Text, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("text", Text, nullable=False),
    Column("author", String, nullable=False),
    Column("at", UtcTime, nullable=False),
)

for _verb in ("UPDATE", "DELETE"):
    event.listen(
        journal,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER journal_never_{_verb.lower()} BEFORE {_verb} ON journal BEGIN"
            " SELECT RAISE(ABORT, 'the journal only grows: correct it with a new row'); END"
        ).execute_if(dialect="sqlite"),
    )

for _verb in ("UPDATE", "DELETE"):
    event.listen(
        limit_changes,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER limit_changes_never_{_verb.lower()} BEFORE {_verb} ON limit_changes BEGIN"
            " SELECT RAISE(ABORT, 'what was applied stays'); END"
        ).execute_if(dialect="sqlite"),
    )

REVISION_TABLE = "ledger_revision"
revision = Table(REVISION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True))
"""Where Alembic notes how far the migrations have run. It is Alembic's, so it is not one of the ledger's tables."""


def revision_of(version: int) -> str:
    """The name of the migration that leads to a version."""
    return f"{version:04}"


_ONLY_GROWS = """
CREATE OR REPLACE FUNCTION journal_only_grows() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'the journal only grows: correct it with a new row'; END$$;
CREATE TRIGGER journal_never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON journal
FOR EACH STATEMENT EXECUTE FUNCTION journal_only_grows()
"""
event.listen(journal, "after_create", DDL(_ONLY_GROWS).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]

_APPLIED_STAYS = """
CREATE OR REPLACE FUNCTION limit_changes_only_grow() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'what was applied stays'; END$$;
CREATE TRIGGER limit_changes_never_change BEFORE UPDATE OR DELETE OR TRUNCATE ON limit_changes
FOR EACH STATEMENT EXECUTE FUNCTION limit_changes_only_grow()
"""
event.listen(limit_changes, "after_create", DDL(_APPLIED_STAYS).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]

# The database knows who asks and who approves, whatever a program says. A rollover is arithmetic: nobody asks for it.
_APPROVED_BY_ANOTHER_ROLE = """
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
event.listen(
    allowances,
    "after_create",
    DDL(_APPROVED_BY_ANOTHER_ROLE).execute_if(dialect="postgresql"),  # type: ignore[no-untyped-call]
)
