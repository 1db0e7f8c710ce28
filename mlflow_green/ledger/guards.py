"""What PostgreSQL itself refuses, whatever a program says: limits that nobody with the right to has agreed to.

Members of the role ``green_approver`` raise limits and approve allowances. A server without such a role leaves that to
its clients, as versions before 3 of the tables did. What follows from the rows is proved from the rows, for everybody:
a rollover, and the journal's lines about limits.

The functions run with the rights of who writes, and find nothing but what is in their own schema and PostgreSQL's: a
temporary table or an operator of the writer's own hides nothing from them.

This is what version 3 of the tables has, in a ledger that was migrated as in one that was made so. Once that is
released it is not edited any more: a later version has a module of its own that replaces functions and triggers of
these, and that its migration and ``PostgresStore`` run after this one.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

APPROVERS = "green_approver"
WRITERS_LOCK = 0x6D6C67726E  # "mlgrn"; advisory locks are of one database

_ROLES = f"""
CREATE OR REPLACE FUNCTION green_has_approvers() RETURNS boolean LANGUAGE sql STABLE AS
$$SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = '{APPROVERS}')$$;

CREATE OR REPLACE FUNCTION green_only_approvers(what text) RETURNS void LANGUAGE plpgsql AS
$$BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{APPROVERS}' AND NOT pg_has_role(session_user, oid, 'MEMBER')) THEN
    RAISE EXCEPTION USING MESSAGE =
      'role ' || session_user || ' is no member of {APPROVERS}, and only a member may ' || what;
  END IF;
END$$;

CREATE OR REPLACE FUNCTION green_is_looser(after text, before text) RETURNS boolean LANGUAGE sql IMMUTABLE AS
$$SELECT coalesce(array_position(modes, after) < array_position(modes, before), true)
  FROM (SELECT ARRAY['observe', 'soft', 'hard'] AS modes) AS known$$;
"""  # noqa: S608 - a name of ours

# A policy's limits, rules and approvers are those of the version that its row names. A version that is new may name
# itself where the one before only observed, or where there was none (``allowances.told``).
_APPROVED_LIMITS = """
CREATE OR REPLACE FUNCTION approved_limits_by_role() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NEW.approved_by <> '' OR NEW.reason <> '' THEN
      PERFORM green_only_approvers('say who approved the limit of ' || NEW.budget);
    END IF;
    RETURN NEW;
  ELSIF TG_OP = 'DELETE' THEN
    PERFORM green_only_approvers('drop the limit of ' || OLD.budget);
    RETURN OLD;
  END IF;
  IF (NEW.budget, NEW.account, NEW.unit) IS DISTINCT FROM (OLD.budget, OLD.account, OLD.unit) THEN
    PERFORM green_only_approvers('drop the limit of ' || OLD.budget);
  ELSIF NEW.limit_amount > OLD.limit_amount OR green_is_looser(NEW.mode, OLD.mode) THEN
    PERFORM green_only_approvers('raise or loosen the limit of ' || OLD.budget);
  ELSIF (NEW.approved_by, NEW.reason) IS DISTINCT FROM (OLD.approved_by, OLD.reason) OR (
    NEW.policy_sha256 <> OLD.policy_sha256 AND OLD.policy_sha256 <> ''
    AND (OLD.mode <> 'observe' OR NEW.mode = 'observe')
  ) THEN
    PERFORM green_only_approvers('apply another policy to ' || OLD.budget);
  END IF;
  RETURN NEW;
END$$;
CREATE TRIGGER approved_limits_by_role BEFORE INSERT OR UPDATE OR DELETE ON approved_limits
FOR EACH ROW EXECUTE FUNCTION approved_limits_by_role();

CREATE OR REPLACE FUNCTION limit_changes_by_role() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
  IF NEW.before_amount IS NOT NULL AND (
    NEW.after_amount IS NULL OR NEW.after_amount > NEW.before_amount
    OR green_is_looser(NEW.after_mode, NEW.before_mode)
  ) THEN
    PERFORM green_only_approvers('raise or loosen the limit of ' || NEW.budget);
  END IF;
  IF green_has_approvers() THEN
    NEW.approver := NULL;
    NEW.approved_by := session_user;
  END IF;
  RETURN NEW;
END$$;
CREATE TRIGGER limit_changes_by_role BEFORE INSERT ON limit_changes
FOR EACH ROW EXECUTE FUNCTION limit_changes_by_role();

CREATE OR REPLACE FUNCTION policies_by_role() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
  IF green_has_approvers() THEN
    NEW.author := session_user;
  END IF;
  -- The first version that said something counts, so none may say that it is older than those that are here.
  NEW.at := greatest(NEW.at, (SELECT max(at COLLATE "C") FROM policies) COLLATE "C");
  RETURN NEW;
END$$;
CREATE TRIGGER policies_by_role BEFORE INSERT ON policies FOR EACH ROW EXECUTE FUNCTION policies_by_role();
"""

# What a bucket inherits is settled when it is opened.
_ROWS_STAY = """
CREATE OR REPLACE FUNCTION rows_stay() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION USING MESSAGE = 'what is in ' || TG_TABLE_NAME || ' stays'; END$$;
CREATE TRIGGER policies_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON policies
FOR EACH STATEMENT EXECUTE FUNCTION rows_stay();
CREATE TRIGGER approved_limits_stay BEFORE TRUNCATE ON approved_limits
FOR EACH STATEMENT EXECUTE FUNCTION rows_stay();
CREATE TRIGGER allowances_stay BEFORE TRUNCATE ON allowances
FOR EACH STATEMENT EXECUTE FUNCTION rows_stay();
CREATE TRIGGER buckets_stay BEFORE DELETE OR TRUNCATE
OR UPDATE OF bucket_id, budget, account, unit, period, previous_period, rollover ON buckets
FOR EACH STATEMENT EXECUTE FUNCTION rows_stay();
"""

_BUCKETS = """
CREATE OR REPLACE FUNCTION bucket_limit_is_approved() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
  PERFORM green_alone();
  IF NOT EXISTS (
    SELECT FROM approved_limits WHERE (budget, account, unit) = (NEW.budget, NEW.account, NEW.unit)
    AND NEW.limit_amount <= limit_amount
  ) THEN
    PERFORM green_only_approvers('give a period of ' || NEW.budget || ' more than its limit');
  END IF;
  RETURN NULL;
END$$;
CREATE CONSTRAINT TRIGGER bucket_limit_is_approved_first AFTER INSERT ON buckets
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION bucket_limit_is_approved();
CREATE CONSTRAINT TRIGGER bucket_limit_is_approved AFTER UPDATE ON buckets
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.limit_amount > OLD.limit_amount)
EXECUTE FUNCTION bucket_limit_is_approved();
"""

# The sums are those of ``allowances.inheritance``. Two transactions that add to one limit must see each other.
_ALLOWANCES = f"""
CREATE OR REPLACE FUNCTION green_alone() RETURNS void LANGUAGE plpgsql AS
$$BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'what adds to a limit is written in READ COMMITTED only';
  END IF;
  PERFORM pg_advisory_xact_lock({WRITERS_LOCK});
END$$;

CREATE OR REPLACE FUNCTION allowances_by_role() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NEW.approver IS NOT NULL OR NEW.approved_by IS NOT NULL THEN
      RAISE EXCEPTION 'an allowance is approved by another role than the one that asks, afterwards';
    END IF;
    IF NEW.kind <> 'rollover' THEN
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
  PERFORM green_only_approvers('approve an allowance');
  OLD.approved_by := session_user;
  RETURN OLD;
END$$;

CREATE OR REPLACE FUNCTION rollover_follows() RETURNS trigger LANGUAGE plpgsql AS
$$DECLARE
  bucket record;
  previous record;
  extras record;
  rule json;
  unused numeric;
  overspend numeric;
  due numeric := 0;
  has numeric;
BEGIN
  PERFORM green_alone();
  SELECT * INTO bucket FROM buckets
  WHERE (budget, account, unit, period) = (NEW.budget, NEW.account, NEW.unit, NEW.period);
  SELECT * INTO previous FROM buckets
  WHERE (budget, account, unit, period) = (NEW.budget, NEW.account, NEW.unit, bucket.previous_period)
  AND period COLLATE "C" < NEW.period COLLATE "C";
  IF FOUND THEN
    SELECT
      coalesce(sum(amount) FILTER (WHERE kind = 'grant'), 0) AS granted,
      coalesce(sum(amount) FILTER (WHERE kind = 'rollover'), 0) AS inherited,
      coalesce(sum(amount) FILTER (WHERE kind = 'override'), 0) AS overridden
    INTO extras FROM allowances
    WHERE (budget, account, unit, period) = (previous.budget, previous.account, previous.unit, previous.period)
    AND (kind = 'rollover' OR approver IS NOT NULL OR approved_by IS NOT NULL);
    rule := bucket.rollover;
    unused := previous.limit_amount + extras.granted + least(0, extras.inherited) - previous.spent - previous.held;
    overspend := previous.spent + previous.held
      - previous.limit_amount - extras.granted - extras.inherited - extras.overridden;
    due := least(
      trunc((rule->>'unused_ratio')::numeric * greatest(0, unused)),
      trunc(least(1, (rule->>'cap_ratio')::numeric) * bucket.limit_amount)
    );
    IF (rule->>'carries_overspend')::boolean THEN
      due := due - greatest(0, overspend);
    END IF;
  END IF;
  SELECT coalesce(sum(amount), 0) INTO has FROM allowances
  WHERE (budget, account, unit, period) = (NEW.budget, NEW.account, NEW.unit, NEW.period) AND kind = 'rollover';
  IF has IS DISTINCT FROM due THEN
    RAISE EXCEPTION USING MESSAGE = format(
      '%s (%s, %s, %s) would inherit %s, and the period before leaves it %s',
      NEW.budget, NEW.account, NEW.unit, NEW.period, has, due
    );
  END IF;
  RETURN NULL;
END$$;
CREATE CONSTRAINT TRIGGER rollover_follows AFTER INSERT ON allowances
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.kind = 'rollover') EXECUTE FUNCTION rollover_follows();
"""  # noqa: S608 - a number of ours

# Lines about limits belong to no hold, so the journal's index by hold finds the few of them.
_JOURNAL = """
CREATE OR REPLACE FUNCTION journal_of_limits_follows() RETURNS trigger LANGUAGE plpgsql AS
$$DECLARE
  told bigint;
  allowed bigint;
BEGIN
  PERFORM green_alone();
  SELECT count(*) INTO told FROM journal
  WHERE hold_id IS NULL AND (bucket_id, kind, delta_limit) = (NEW.bucket_id, NEW.kind, NEW.delta_limit);
  SELECT count(*) INTO allowed FROM allowances JOIN buckets USING (budget, account, unit, period)
  WHERE (bucket_id, kind, amount) = (NEW.bucket_id, NEW.kind, NEW.delta_limit)
  AND (kind = 'rollover' OR approver IS NOT NULL OR approved_by IS NOT NULL);
  IF NEW.hold_id IS NOT NULL OR told > allowed THEN
    RAISE EXCEPTION USING MESSAGE = format('no allowance adds %s to this limit as a %s', NEW.delta_limit, NEW.kind);
  END IF;
  RETURN NULL;
END$$;
CREATE CONSTRAINT TRIGGER journal_of_limits_follows AFTER INSERT ON journal
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.delta_limit <> 0 OR NEW.kind IN ('grant', 'override', 'rollover'))
EXECUTE FUNCTION journal_of_limits_follows();
"""

_SEARCH_PATHS = """
DO $$DECLARE each regprocedure;
BEGIN
  FOR each IN SELECT DISTINCT tgfoid FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE NOT tgisinternal AND relnamespace = quote_ident(current_schema())::regnamespace
    UNION SELECT oid FROM pg_proc
    WHERE proname ^@ 'green_' AND pronamespace = quote_ident(current_schema())::regnamespace
  LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp', each, current_schema());
  END LOOP;
END$$
"""


def guard(connection: Connection) -> None:
    """Have the database guard the limits of a ledger of version 2, from version 3 on."""
    for statements in (_ROLES, _ALLOWANCES, _APPROVED_LIMITS, _ROWS_STAY, _BUCKETS, _JOURNAL, _SEARCH_PATHS):
        connection.execute(text(statements))
