"""A ledger in plain dicts: the model that the SQL ledger is checked against, and the one for dry runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from mlflow_green.clock import Clock
from mlflow_green.errors import AllowanceRefused
from mlflow_green.ledger.accounts import ancestry
from mlflow_green.ledger.allowances import (
    NOTHING,
    UNREVIEWED,
    Agreed,
    Extras,
    LimitKey,
    Reviewed,
    counted,
    extras_of,
    limit_key,
)
from mlflow_green.ledger.charges import metered_microjoules
from mlflow_green.ledger.compaction import (
    ONCE_ONLY,
    Compaction,
    Given,
    Span,
    adjoining,
    joined,
    latest_letters,
    superseded,
)
from mlflow_green.ledger.effects import BucketChange, Effects
from mlflow_green.ledger.holds import BookedHold, HoldState
from mlflow_green.ledger.ledger import Choose
from mlflow_green.ledger.messages import UNTIL_TAKEN, Message
from mlflow_green.ledger.past_uses import HISTORY_LENGTH_MAX, INPUT_BYTES_FACT, past_use
from mlflow_green.ledger.pending import with_pending
from mlflow_green.ledger.posting import post, post_adjustment, post_allowances, post_applied, post_approval, post_policy
from mlflow_green.ledger.standing import Standing
from mlflow_green.ledger.windows import WindowKey, joined_ranges, window_key
from mlflow_green.records import (
    Action,
    Allowance,
    AppliedLimit,
    ApprovedLimit,
    Balance,
    Batch,
    BucketKey,
    Committed,
    DecisionRow,
    Domain,
    Entry,
    Fact,
    Hold,
    JournalRow,
    LetterState,
    NodeWindow,
    OutboxRow,
    PastUse,
    PolicyVersion,
    Term,
    Unit,
)


class MemoryLedger:
    """``Ledger``, ``LedgerReader`` and ``Outbox`` in memory. Not thread-safe; nothing survives the process."""

    def __init__(
        self,
        clock: Clock,
        balances: Iterable[Balance] = (),
        allowances: Iterable[Allowance] = (),
        approved: Iterable[ApprovedLimit] = (),
    ) -> None:
        """What it starts from: what happened before is in the ``balances`` only."""
        self._clock = clock
        self._generation = 0
        self._balances: dict[BucketKey, Balance] = {balance.term.key: balance for balance in balances}
        self._holds: dict[str, BookedHold] = {}
        self._journal: list[JournalRow] = []
        self._charges: Counter[tuple[str, BucketKey]] = Counter()  # of each hold, corrections included
        self._entries: dict[str, Entry] = {}
        self._reads: dict[str, int] = {}  # of each hold the most that was metered in one start
        self._windows: dict[WindowKey, NodeWindow] = {}
        self._window_keys: set[WindowKey] = set()
        self._facts: dict[str, dict[str, float | str]] = {}
        self._decisions: list[DecisionRow] = []
        self._last_decisions: dict[str, tuple[Action, str]] = {}  # by step key
        self._letters: dict[str, OutboxRow] = {}
        self._allowances: dict[str, Allowance] = {each.allowance_id: each for each in allowances}
        self._approved: dict[LimitKey, ApprovedLimit] = {each.key: each for each in approved}
        self._applied: list[AppliedLimit] = []
        self._policies: dict[str, PolicyVersion] = {}

    # --- Ledger ----------------------------------------------------------------------------------

    def commit(self, batch: Batch, choose: Choose) -> Committed:
        now = self._clock.now()
        effects = post(batch, self._standing(now), choose, now=now, new_hold_id=lambda: uuid4().hex)
        alerts = self._apply(effects)
        return Committed(
            answers=effects.answers,
            top_ups=effects.top_ups,
            alerts=alerts,
            generation=self._generation,
            adopted=effects.adopted,
            fenced=effects.fenced,
        )

    def adjust(self, hold_id: str, amounts: Mapping[Unit, int], reason: str) -> bool:
        """Correct what a closed hold was charged; ``False`` if this reason was given for it before.

        ``amounts`` are added to what was spent and may be negative.
        """
        if any(row.hold_id == hold_id and row.kind == "adjust" and row.reason == reason for row in self._journal):
            return False
        now = self._clock.now()
        self._apply(post_adjustment(hold_id, amounts, reason, self._standing(now), now))
        return True

    def balances(self, terms: Sequence[Term] = ()) -> tuple[Balance, ...]:
        now = self._with_extras(extras_of(self._allowances.values(), self._clock.now()))
        if not terms:
            return with_pending(now.values(), self.open_holds())
        known = (now.get(term.key) or Balance(term=term, spent=0, held=0) for term in terms)
        told = (counted(term, self._approved.get(limit_key(term))) for term in terms)
        named = (replace(balance, term=term) for balance, term in zip(known, told, strict=True))
        return with_pending(named, self.open_holds())

    def open_holds(self) -> tuple[Hold, ...]:
        return tuple(booked.hold for booked in self._holds.values() if booked.state is HoldState.HELD)

    def history(self, project: str, step: str) -> tuple[PastUse, ...]:
        own = (entry for entry in self._entries.values() if (entry.project, entry.step) == (project, step))
        uses = (past_use(entry, self._input_bytes(entry.hold_id)) for entry in own)
        return tuple(use for use in uses if use is not None)[-HISTORY_LENGTH_MAX:]

    def _input_bytes(self, hold_id: str | None) -> int | None:
        told = self._facts.get(hold_id or "", {}).get(INPUT_BYTES_FACT)
        return None if told is None else int(told)

    def posted_sequences(self, sampler_id: str) -> dict[Domain, tuple[tuple[int, int], ...]]:
        ranges: defaultdict[Domain, list[tuple[int, int]]] = defaultdict(list)
        for window in self._windows.values():
            if window.sampler_id == sampler_id:
                ranges[window.domain].append((window.sequence_first, window.sequence_last))
        return {domain: joined_ranges(of_domain) for domain, of_domain in ranges.items()}

    @property
    def excludes_other_hosts(self) -> bool:
        return False

    def close(self) -> None:
        """There is nothing to release."""

    # --- LedgerReader ----------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside belongs together; in memory it does anyway."""
        yield

    def accounts(self) -> Mapping[str, str | None]:
        return {name: above for each in self._balances.values() for name, above in ancestry(each.term.account).items()}

    def booked_holds(self) -> tuple[BookedHold, ...]:
        return tuple(self._holds.values())

    def entries(self, *, workflow_run: str | None = None) -> tuple[Entry, ...]:
        return tuple(e for e in self._entries.values() if workflow_run in {None, e.workflow_run})

    def facts(self) -> Mapping[str, Mapping[str, float | str]]:
        return {hold_id: dict(told) for hold_id, told in self._facts.items()}

    def node_windows(self) -> tuple[NodeWindow, ...]:
        return tuple(self._windows.values())

    def journal(self) -> tuple[JournalRow, ...]:
        return tuple(self._journal)

    def decisions(self) -> tuple[DecisionRow, ...]:
        return tuple(self._decisions)

    # --- Compactable -----------------------------------------------------------------------------

    def compact(self, keep: timedelta, *, only_look: bool = False) -> Compaction:
        before = self._clock.now() - keep
        letters, decisions = self._spare_letters(before), self._spare_decisions(before)
        chains = self._spare_chains(before)
        done = Compaction(
            messages=dict(sorted(Counter(self._letters[dedup].kind for dedup in letters).items())),
            decisions=len(decisions),
            windows=sum(len(chain) - 1 for chain in chains),
        )
        if not only_look:
            self._letters = {dedup: row for dedup, row in self._letters.items() if dedup not in letters}
            self._decisions = [row for number, row in enumerate(self._decisions) if number not in decisions]
            for chain in chains:
                for window in chain:
                    del self._windows[window_key(window)]
                self._windows[window_key(chain[0])] = joined(chain)
        return done

    def _spare_letters(self, before: datetime) -> set[str]:
        delivered = [(dedup, row) for dedup, row in self._letters.items() if row.state is LetterState.DELIVERED]
        kept = latest_letters((row.outbox_id, dedup) for dedup, row in delivered if row.kind == "letter")
        kept |= {self._last_letter}
        return {
            dedup
            for dedup, row in delivered
            if row.due_at and row.due_at < before and not dedup.endswith(ONCE_ONLY) and row.outbox_id not in kept
        }

    def _spare_decisions(self, before: datetime) -> set[int]:
        answers = (
            Given(
                number=number,
                at=row.at,
                step_key=row.step.key,
                has_hold=row.hold_id is not None,
                waits=row.decision.action is Action.WAIT,
            )
            for number, row in enumerate(self._decisions)
        )
        return set(superseded(answers, before))

    def _spare_chains(self, before: datetime) -> list[tuple[NodeWindow, ...]]:
        running = {window.sampler_id for window in self._windows.values() if window.ended_at >= before}
        over = [window for window in self._windows.values() if window.sampler_id not in running]
        runs: dict[tuple[str, str], Span] = {}
        for entry in self._entries.values():
            if entry.sampler_id is not None:
                start, end = runs.get((entry.sampler_id, entry.workflow_run), (entry.started_at, entry.ended_at))
                span = (min(start, entry.started_at), max(end, entry.ended_at))
                runs[entry.sampler_id, entry.workflow_run] = span
        by_sampler: defaultdict[str, list[Span]] = defaultdict(list)
        for (sampler_id, _run), span in runs.items():
            by_sampler[sampler_id].append(span)
        return list(adjoining(over, by_sampler))

    # --- AllowanceBook ---------------------------------------------------------------------------

    def allow(
        self,
        allowance: Allowance,
        term: Term | None = None,
        *,
        max_extra: Decimal | None = None,
        to: Sequence[str] = (),
    ) -> None:
        self.allow_all([(allowance, term)], max_extra=max_extra, to=to)

    def allow_all(
        self,
        asked: Sequence[tuple[Allowance, Term | None]],
        *,
        max_extra: Decimal | None = None,
        to: Sequence[str] = (),
    ) -> None:
        asked = [each for each in asked if each[0].allowance_id not in self._allowances]
        now = self._clock.now()
        self._apply(post_allowances(asked, self._standing(now), now, max_extra=max_extra, to=to))

    def include(self, allowance: Allowance) -> None:
        """Count this from now on, whoever agreed to it; the journal says nothing of it."""
        self._allowances[allowance.allowance_id] = allowance

    def approve(
        self, allowance_id: str, approved_by: str, *, max_extra: Decimal | None = None, to: Sequence[str] = ()
    ) -> Allowance:
        asked = self._allowances.get(allowance_id)
        if asked is None:
            raise AllowanceRefused(f"nobody asked for {allowance_id}; 'mlflow-green budget list' shows what was")
        now = self._clock.now()
        standing = self._standing(now)
        self._apply(post_approval(asked, approved_by, standing, now, max_extra=max_extra, to=to))
        return self._allowances[allowance_id]

    def allowances(self) -> tuple[Allowance, ...]:
        return tuple(self._allowances.values())

    def identity(self) -> str | None:
        return None

    # --- PolicyBook ------------------------------------------------------------------------------

    def record_policy(self, version: PolicyVersion, terms: Sequence[Term] = ()) -> tuple[ApprovedLimit, ...]:
        now = self._clock.now()
        self._apply(post_policy(version, terms, self._standing(now), now))
        return self.approved_limits()

    def apply_policy(
        self,
        version: PolicyVersion,
        terms: Sequence[Term],
        *,
        approved_by: str | None,
        reason: str = "",
        to: Sequence[str] = (),
        requested_by: str = "",
        approver: str | None = None,
        reviewed: Reviewed = UNREVIEWED,
    ) -> None:
        now = self._clock.now()
        standing = self._standing(now)
        agreed = Agreed(requested_by, approver, approved_by, reason)
        self._apply(post_applied(version, terms, standing, now, agreed=agreed, to=to, reviewed=reviewed))

    def approved_limits(self) -> tuple[ApprovedLimit, ...]:
        return tuple(self._approved.values())

    def applied_limits(self) -> tuple[AppliedLimit, ...]:
        return tuple(self._applied)

    def policies(self) -> tuple[PolicyVersion, ...]:
        return tuple(self._policies.values())

    # --- Outbox ----------------------------------------------------------------------------------

    def pending(self, kind: str, now: datetime, limit: int = 100) -> tuple[OutboxRow, ...]:
        due = (row for row in self.rows(kind, LetterState.PENDING) if row.due_at is None or row.due_at <= now)
        return tuple(due)[:limit]

    def delivered(self, outbox_id: int, facts: Sequence[Fact] = ()) -> None:
        self._change_letter(outbox_id, state=LetterState.DELIVERED, due_at=self._clock.now(), error=None)
        self._tell(facts)

    def failed(self, outbox_id: int, retry_at: datetime | None, error: str) -> None:
        _, row = self._letter(outbox_id)
        if row.state is LetterState.PENDING:
            state = LetterState.DEAD if retry_at is None else LetterState.PENDING
            due_at = retry_at or self._clock.now()
            self._change_letter(outbox_id, state=state, due_at=due_at, tries=row.tries + 1, error=error)

    def put(self, kind: str, dedup: str, payload: Mapping[str, object]) -> None:
        self._promise(Message(kind=kind, dedup=dedup, payload=payload))

    def count(self, kind: str) -> int:
        return len(self.rows(kind, LetterState.PENDING))

    def now(self) -> datetime:
        return self._clock.now()

    def claim(self, outbox_id: int, now: datetime, until: datetime) -> bool:
        _, row = self._letter(outbox_id)
        if row.state is not LetterState.PENDING or (row.due_at and row.due_at > now):
            return False
        self._change_letter(outbox_id, due_at=until)
        return True

    def replace(self, outbox_ids: Sequence[int], kind: str, messages: Mapping[str, Mapping[str, object]]) -> bool:
        letters = [self._letter(outbox_id)[1] for outbox_id in outbox_ids]
        if any(row.state is not LetterState.PENDING for row in letters) or messages.keys() & self._letters.keys():
            return False
        for outbox_id in outbox_ids:
            self.delivered(outbox_id)
        for dedup, payload in messages.items():
            self.put(kind, dedup, payload)
        return True

    def rows(self, kind: str, *states: LetterState) -> tuple[OutboxRow, ...]:
        return tuple(row for row in self._letters.values() if row.kind == kind and row.state in states)

    # --- inside ----------------------------------------------------------------------------------

    def _with_extras(self, extras: Mapping[BucketKey, Extras]) -> dict[BucketKey, Balance]:
        totals = ((key, each, extras.get(key, NOTHING).total) for key, each in self._balances.items())
        return {key: each if each.extra == total else replace(each, extra=total) for key, each, total in totals}

    def _standing(self, now: datetime) -> Standing:
        extras = extras_of(self._allowances.values(), now)
        pending = with_pending(self._with_extras(extras).values(), (booked.hold for booked in self._holds.values()))
        return Standing(
            generation=self._generation,
            balances={balance.term.key: balance for balance in pending},
            extras=extras,
            approved=self._approved,
            holds=self._holds,
            entry_ids=frozenset(self._entries),
            window_keys=frozenset(self._window_keys),
            last_decisions=self._last_decisions,
            lost_charges=self._charges,
            lost_reads=self._reads,
        )

    def _apply(self, effects: Effects) -> tuple[str, ...]:
        """Write the effects; returns the alerts that were not told before."""
        for change in effects.buckets:
            self._change_bucket(change)
        for booked in (*effects.opened, *effects.changed):
            self._holds[booked.hold.hold_id] = booked
        for row in effects.journal:
            self._journal.append(replace(row, journal_id=len(self._journal) + 1))
            if row.hold_id is not None:
                self._charges[row.hold_id, row.key] += row.delta_spent
        self._entries.update({entry.entry_id: entry for entry in effects.entries})
        for entry in effects.entries:
            if entry.hold_id is not None:
                self._reads[entry.hold_id] = max(metered_microjoules(entry), self._reads.get(entry.hold_id, 0))
        self._windows.update({window_key(window): window for window in effects.windows})
        self._window_keys.update(map(window_key, effects.windows))
        self._tell(effects.facts)
        self._decisions += effects.decisions
        self._last_decisions.update(
            {row.step.key: (row.decision.action, row.decision.reason) for row in effects.decisions}
        )
        self._allowances.update({each.allowance_id: each for each in (*effects.allowances, *effects.approvals)})
        self._approved.update({limit.key: limit for limit in effects.limits})
        for limit in effects.dropped:
            del self._approved[limit.key]
        self._applied.extend(effects.applied)
        self._policies.update({each.sha256: each for each in effects.policies if each.sha256 not in self._policies})
        self._generation += effects.balances_changed
        for message in effects.messages:
            self._promise(message)
        return tuple(alert.text for alert in effects.alerts if self._promise(alert))

    def _change_bucket(self, change: BucketChange) -> None:
        key = change.term.key
        before = self._balances.get(key) or Balance(term=change.term, spent=0, held=0)
        self._balances[key] = Balance(
            term=change.term, spent=before.spent + change.delta_spent, held=before.held + change.delta_held
        )

    def _tell(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            self._facts.setdefault(fact.hold_id, {})[fact.name] = fact.value

    def _promise(self, message: Message) -> bool:
        if message.dedup in self._letters:
            return False
        self._letters[message.dedup] = OutboxRow(
            outbox_id=self._last_letter + 1,
            kind=message.kind,
            payload=dict(message.payload),
            due_at=self._clock.now(),
        )
        return True

    @property
    def _last_letter(self) -> int:
        return next(reversed(self._letters.values())).outbox_id if self._letters else 0

    def _letter(self, outbox_id: int) -> tuple[str, OutboxRow]:
        return next(found for found in self._letters.items() if found[1].outbox_id == outbox_id)

    def _change_letter(self, outbox_id: int, **changes: Any) -> None:
        dedup, row = self._letter(outbox_id)
        self._letters[dedup] = changed = replace(row, **changes)
        if changed.state is not LetterState.PENDING and dedup.endswith(UNTIL_TAKEN):
            freed = f"{dedup} as {outbox_id}"
            self._letters = {freed if known == dedup else known: each for known, each in self._letters.items()}
