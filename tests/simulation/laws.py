"""What must hold after every event, and at the end: checked from the journal and the truth, not by the rules' own code.

A balance is never asked what is left in it: sums are kept here, row by row, and compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

from mlflow_green.ledger.verify import verify
from mlflow_green.recorder.loss import SILENCE
from mlflow_green.records import (
    Action,
    Allowance,
    AllowanceKind,
    Answer,
    Batch,
    Committed,
    HoldRequest,
    JournalRow,
    LetterState,
    Mode,
    Term,
    Unit,
)

if TYPE_CHECKING:
    from tests.simulation.world import Job, World

TermKey = tuple[str, str, str, str]
TAKES = {"hold", "top_up"}
ENDS = {"settle", "void", "lost"}


class Broken(AssertionError):
    """A law is broken; the text is the history."""


def demand(holds: bool, law: str, *facts: object) -> None:
    """Raise with the name of the law and the facts."""
    if not holds:
        raise AssertionError(f"{law}: {' | '.join(map(str, facts))}")


class Laws:
    """The books as they must be. Sums by bucket are (held, spent) of all journal rows so far."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rows = 0
        self._decisions = 0
        self._held: Counter[TermKey] = Counter()
        self._spent: Counter[TermKey] = Counter()
        self._by_leg: dict[tuple[str, TermKey], list[str]] = {}
        self._charged: Counter[tuple[str, TermKey]] = Counter()
        self._id_by_key: dict[str, str] = {}
        self._seen: set[TermKey] = set()
        self._inherited: Counter[TermKey] = Counter()
        self._raised: list[Allowance] = []
        self._epochs: dict[str, int] = {}
        self._age: dict[str, tuple[datetime, str]] = {}
        self._wanted: dict[str, dict[Unit, int]] = {}
        self.terms: dict[TermKey, Term] = {}
        self._thresholds: list[tuple[TermKey, float, bool, tuple[int, int]]] = []
        self._crossed: Counter[tuple[TermKey, float, bool]] = Counter()
        self._units = Counter(
            (budget.name, limit.unit) for budget in world.scenario.policy.budgets for limit in budget.limit
        )

    # --- after every transaction -----------------------------------------------------------------

    def before(self, batch: Batch) -> None:
        for request in batch.requests:
            for term in request.terms:
                if term.key not in self.terms:
                    self.terms[term.key] = term
                    self._thresholds += [
                        (term.key, rule.at_ratio, rule.of_committed, _written(rule.at_ratio).as_integer_ratio())
                        for rule in term.alerts
                    ]

    def limit(self, key: TermKey) -> int:
        """The limit that counts now: the budget's, what it inherited, and what was added and has not expired."""
        limit = self.terms[key].limit + self._inherited.get(key, 0)
        if self._raised:
            now = self._world.clock.now()
            limit += sum(
                a.amount for a in self._raised if a.key == key and (a.expires_at is None or now < a.expires_at)
            )
        return max(0, limit)

    def after_raising(self, allowance: Allowance) -> None:
        """Somebody has added to a limit: what was spent and held stays as it was."""
        self._raised.append(allowance)
        fresh = self._world.ledger._journal[self._rows :]
        self._rows += len(fresh)
        for row in fresh:
            demand(not row.delta_held and not row.delta_spent, "a limit that is raised moves nothing else", row)
            self._add(row)
        self._balances_are_sums()

    def nothing_happened(self, batch: Batch) -> None:
        demand(len(self._world.ledger._journal) == self._rows, "a transaction that failed wrote nothing", batch)

    def after(self, batch: Batch, committed: Committed, choose: Callable) -> None:
        journal = self._world.ledger._journal
        fresh = journal[self._rows :]
        self._rows = len(journal)
        held, spent = dict(self._held), dict(self._spent)
        limits = {key: self.limit(key) for key in self.terms}
        for row in fresh:
            self._add(row)
        self._fences(batch, committed, fresh)
        self._wants(batch, committed)
        for row in fresh:
            if row.kind in TAKES and row.delta_held > 0:
                self._within_the_limit(row)
        self._balances_are_sums()
        self._crossings(held, spent, limits, committed, is_relimited=any(row.delta_limit for row in fresh))
        requests = {request.step.key: request for request in batch.requests}
        for answer, request in zip(committed.answers, batch.requests, strict=True):
            self._answer(answer, request)
        self._groups(batch, committed)
        self._whole(fresh, committed)
        self._decisions_can_be_had_again(requests, choose)

    def _add(self, row: JournalRow) -> None:
        key = _key(row)
        self._held[key] += row.delta_held
        if row.kind == AllowanceKind.ROLLOVER:
            self._inherited[key] += row.delta_limit
        self._spent[key] += row.delta_spent
        demand(self._held[key] >= 0 and self._spent[key] >= 0, "nothing is below zero", row)
        if row.hold_id is None:
            return
        self._charged[row.hold_id, key] += row.delta_spent
        kinds = self._by_leg.setdefault((row.hold_id, key), [])
        is_closed = not ENDS.isdisjoint(kinds)
        if row.kind in ENDS:
            demand(not is_closed, "one closing row a leg", row, kinds)
        if row.kind in TAKES:
            demand(not is_closed, "nothing is granted to a closed hold", row, kinds)
            demand(row.kind == "top_up" or not kinds, "one opening row a leg", row, kinds)
        kinds.append(row.kind)
        self._age.setdefault(row.hold_id, (row.at, row.hold_id))

    def _within_the_limit(self, row: JournalRow) -> None:
        key = _key(row)
        term = self.terms[key]
        if term.mode is Mode.HARD:
            committed = self._spent[key] + self._held[key]
            limit = self.limit(key)
            demand(committed <= limit, "spent + held <= limit after a hold", row, committed, limit)
            before = None if row.kind == "hold" else self._age[row.hold_id]
            pending = self._pending(key, before)
            law = "a hold leaves what running steps wait for, a top-up what older ones do"
            demand(committed + pending <= limit, law, row, pending)

    def _fences(self, batch: Batch, committed: Committed, fresh: Iterable[JournalRow]) -> None:
        """Who has lost a hold to another owner gets no more for it and does not close it."""
        for adopted in committed.adopted:
            if adopted is not None:
                before = self._epochs.get(adopted.hold_id, 1)
                demand(adopted.epoch > before, "a new owner begins an epoch", adopted, before)
                demand(adopted.owner == batch.owner, "who takes over owns it", adopted, batch.owner)
                self._epochs[adopted.hold_id] = adopted.epoch
        by_owner = {each.hold_id for each in batch.closings if not self._is_fenced(each.hold_id, each.epoch)}
        for row in fresh:
            if row.kind in ENDS:
                demand(row.hold_id in by_owner, "only its owner closes a hold", row, self._epochs)
        for asked, granted in zip(batch.top_ups, committed.top_ups, strict=True):
            if self._is_fenced(asked.hold_id, asked.epoch):
                demand(not any(granted.values()), "who was fenced is granted nothing", asked, granted)

    def _is_fenced(self, hold_id: str | None, epoch: int | None) -> bool:
        return epoch is not None and epoch < self._epochs.get(hold_id or "", 1)

    def _wants(self, batch: Batch, committed: Committed) -> None:
        """What the last top-up of each open hold asked for and did not get; nothing for one that may go on without."""
        for asked, granted in zip(batch.top_ups, committed.top_ups, strict=True):
            if not self._is_fenced(asked.hold_id, asked.epoch):
                lacking = {unit: amount - granted[unit] for unit, amount in asked.amounts.items()}
                self._wanted[asked.hold_id] = {} if asked.may_finish else lacking

    def _pending(self, key: TermKey, before: tuple[datetime, str] | None) -> int:
        """What open holds wait for in a bucket: all of them, or those that are older."""
        return sum(
            wanted.get(Unit(key[2]), 0)
            for hold_id, wanted in self._wanted.items()
            if wanted
            and not ENDS & {*self._by_leg.get((hold_id, key), ENDS)}
            and (before is None or self._age[hold_id] < before)
        )

    def _balances_are_sums(self) -> None:
        for key, balance in self._world.ledger._balances.items():
            sums = (self._held[key], self._spent[key])
            demand((balance.held, balance.spent) == sums, "balances are the sums of the journal", balance, sums)
        for key, term in self.terms.items():
            if term.rollover is not None and key in self._world.ledger._balances:
                due = self._inheritance(term, (*key[:3], term.rollover.previous_period))
                demand(self._inherited[key] == due, "a period inherits what the one before left", key, due)

    def _inheritance(self, term: Term, key: TermKey) -> int:
        """What is left of the period before, as the policy shares it; what is held counts as spent."""
        rule, previous = term.rollover, self.terms.get(key)
        if rule is None or previous is None or key not in self._world.ledger._balances:
            return 0
        raised = {
            kind: sum(a.amount for a in self._raised if a.key == key and a.kind is kind) for kind in AllowanceKind
        }
        granted, inherited = raised[AllowanceKind.GRANT], self._inherited[key]
        committed = self._spent[key] + self._held[key]
        unused = max(0, previous.limit + granted + min(0, inherited) - committed)
        over = max(0, committed - previous.limit - granted - inherited - raised[AllowanceKind.OVERRIDE])
        parts = (_written(rule.unused_ratio) * unused, _written(rule.cap_ratio) * term.limit)
        return min(int(part) for part in parts) - (over if rule.carries_overspend else 0)

    def _answer(self, answer: Answer, request: HoldRequest) -> None:
        decision = answer.decision
        if all(term.mode is Mode.OBSERVE for term in request.terms):
            demand(decision.action is Action.ADMIT, "observe never changes what runs", decision)
            demand(decision.tier == request.estimates[0].tier, "observe never changes the tier", decision)
        demand((answer.hold is not None) == decision.admitted, "what is admitted has a hold", answer)
        if answer.hold is None:
            return
        known = self._id_by_key.setdefault(request.step.key, answer.hold.hold_id)
        demand(known == answer.hold.hold_id, "one key, one hold", request.step.key, known, answer.hold.hold_id)
        amounts = [estimate.amounts for estimate in request.estimates if estimate.tier == decision.tier]
        if decision.amounts and None not in amounts and answer.decision.estimate_source:
            demand(decision.amounts in amounts, "a step holds what its tier is expected to need", decision, amounts)

    def _groups(self, batch: Batch, committed: Committed) -> None:
        by_group: dict[str, set[bool]] = {}
        for answer, request in zip(committed.answers, batch.requests, strict=True):
            if request.group:
                by_group.setdefault(request.group, set()).add(answer.hold is not None)
        demand(all(len(held) == 1 for held in by_group.values()), "a pipe starts together or not at all", by_group)

    def _whole(self, fresh: Iterable[JournalRow], committed: Committed) -> None:
        """A new hold takes its amount under every budget and unit."""
        opened: dict[str, Counter[tuple[str, Unit]]] = {}
        amounts = {answer.hold.hold_id: answer.hold.amounts for answer in committed.answers if answer.hold}
        for row in fresh:
            if row.kind == "hold" and row.hold_id is not None:
                opened.setdefault(row.hold_id, Counter())[row.budget, row.unit] += 1
                wanted = amounts[row.hold_id].get(row.unit, 0)
                demand(row.delta_held == wanted, "all units are held, each in its own", row, amounts)
        for hold_id, legs in opened.items():
            demand(legs == self._units, "all budgets or none", hold_id, legs, self._units)

    def _crossings(
        self,
        held: Mapping[TermKey, int],
        spent: Mapping[TermKey, int],
        limits: Mapping[TermKey, int],
        committed: Committed,
        *,
        is_relimited: bool,
    ) -> None:
        crossed = 0
        limits_now = {key: self.limit(key) for key in self.terms} if is_relimited else limits
        for key, ratio, of, (part, whole) in self._thresholds:
            was = key in self._seen and (spent.get(key, 0) + of * held.get(key, 0)) * whole >= part * limits[key]
            is_past = (self._spent[key] + of * self._held[key]) * whole >= part * limits_now[key]
            if is_past and not was:
                crossed += 1
                self._crossed[key, ratio, of] += 1
        self._seen |= self.terms.keys()
        demand(len(committed.alerts) == crossed, "each crossing is told once", committed.alerts, crossed)

    def _decisions_can_be_had_again(self, requests: Mapping[str, HoldRequest], choose: Callable) -> None:
        """In one seed of eight, for it takes time: the balances that were kept give the decision again."""
        fresh = self._world.ledger._decisions[self._decisions :]
        self._decisions += len(fresh)
        if self._world.seed % 8:
            return
        for row in fresh:
            request = requests[row.step.key]
            if request.group is None:
                again = choose(request, row.balances)
                demand(again == row.decision, "the same balances give the same decision", again, row.decision)

    # --- at the end ------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """Nobody lives any more, and recovery has looked after everybody."""
        world = self._world
        demand(not world.ledger.open_holds(), "nothing is held when all is over", world.ledger.open_holds())
        demand(not any(self._held.values()), "nothing is held when all is over", self._held)
        findings = verify(world.ledger, lambda _owner: False)
        demand(not findings, "the books close", *findings)
        self._alerts_are_in_the_outbox()
        for hold_id, job in world.jobs.items():
            self._charge(hold_id, job)
        total: Counter[tuple[str, str]] = Counter()
        for (_, key), charged in self._charged.items():
            total[key[0], key[2]] += charged
        for key, spent in self._spent.items():
            total[key[0], key[2]] -= spent
        demand(not any(total.values()), "the periods of a budget sum to what its steps were charged", total)

    def _alerts_are_in_the_outbox(self) -> None:
        told = Counter(
            ((row["budget"], row["account"], row["unit"], row["period"]), row["at_ratio"], row["of"] == "committed")
            for row in (row.payload for row in self._world.ledger.rows("alert", LetterState.PENDING))
            if row["of"] in {"spent", "committed"}
        )
        demand(told == +self._crossed, "each crossing is one row of the outbox", told, self._crossed)

    def _charge(self, hold_id: str, job: Job) -> None:
        """What a step is charged in the end: its readings, or for a lost one at least the truth, never clipped."""
        world = self._world
        legs = {key: charged for (leg, key), charged in self._charged.items() if leg == hold_id}
        if job.began_ms is None:
            demand(not any(legs.values()), "a step that never began is charged nothing", job.name, legs)
            return
        demand(len(legs) == self._units.total(), "a step that ran is charged everywhere", job.name, legs)
        true, error = job.used_microjoules(world.clock.ms), world.scenario.reading_error
        closing = job.closing if job.settled else None
        entry = closing.entry if closing else None
        for key, charged in legs.items():
            if entry is not None:
                wanted = entry.charged.get(Unit(key[2]), 0)
                demand(charged == wanted, "facts are booked as they are", job.name, key, charged, wanted)
            elif key[2] == "energy":
                least = true * (1 - error)
                most = true * (1 + error) + world.scenario.power_milliwatts_max * SILENCE.total_seconds() * 1000
                demand(least - 1 <= charged, "a lost step is charged all that it used", job.name, charged, true)
                demand(
                    charged <= most + 1, "a lost step is charged no more than it can have used", job.name, charged, most
                )
        if entry is not None and entry.total is not None:
            low, high = entry.total.low_microjoules, entry.total.high_microjoules
            demand(low <= true <= high, "the interval of a settled step covers the truth", job.name, low, true, high)
        if not error and entry is not None:
            demand(entry.energy_charged_microjoules == true, "the meter reads the truth", job.name, true)


@cache
def _written(ratio: float) -> Fraction:
    """The ratio as the policy says it: 0.8 is four fifths."""
    return Fraction(str(ratio))


def _key(row: JournalRow) -> TermKey:
    return (row.budget, row.account, row.unit.value, row.period)
