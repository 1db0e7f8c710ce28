"""Do the books close? Every law that the ledger can prove from its own rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Protocol

from mlflow_green.ledger.allowances import NOTHING, extras_of, inheritance, previous_key
from mlflow_green.ledger.charges import charged_sum
from mlflow_green.ledger.holds import BookedHold, HoldState
from mlflow_green.ledger.ledger import Ledger, LedgerReader
from mlflow_green.records import Allowance, Balance, BucketKey, Domain, Entry, Hold, JournalRow, NodeWindow, Owner, Unit
from mlflow_green.units import format_amount

TERMINAL_KINDS = frozenset({"settle", "void", "lost"})


class Books(Ledger, LedgerReader, Protocol):
    """A ledger that can be read as a whole."""

    def allowances(self) -> tuple[Allowance, ...]: ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Everything read inside belongs together."""
        ...

    def accounts(self) -> Mapping[str, str | None]:
        """Every account with the one right above it; ``None`` for the topmost."""
        ...

    def booked_holds(self) -> tuple[BookedHold, ...]:
        """Every hold there is, open or closed, oldest first."""
        ...


def verify(
    books: Books, owner_alive: Callable[[Owner], bool], running_samplers: Collection[str] = ()
) -> tuple[str, ...]:
    """What does not close, one sentence each; empty when everything does.

    ``owner_alive`` says whether the process that answers for an open hold still runs. ``running_samplers`` have not
    posted all that they read, so their shares cannot sum up yet.
    """
    with books.snapshot():
        try:
            balances, journal, entries = books.balances(), books.journal(), books.entries()
            windows, accounts, booked = books.node_windows(), books.accounts(), books.booked_holds()
            allowances = books.allowances()
        except ValueError as error:  # a record refused what the store holds
            return (f"a stored row breaks its own rules: {error}",)
    holds = [each.hold for each in booked if each.state is HoldState.HELD]
    return (
        *_balance_findings(balances, journal),
        *_account_findings(balances, accounts),
        *_limit_findings(balances, journal, allowances),
        *_hold_findings(journal, holds),
        *_state_findings(booked),
        *_entry_findings(journal, entries, holds),
        *_window_findings(windows),
        *_share_findings(windows, entries, holds, running_samplers),
        *_owner_findings(holds, owner_alive),
    )


def _name(key: BucketKey) -> str:
    budget, account, unit, period = key
    return f"budget {budget} ({account}, {unit}, {period})"


def _balance_findings(balances: Iterable[Balance], journal: Iterable[JournalRow]) -> Iterator[str]:
    held: Counter[BucketKey] = Counter()
    spent: Counter[BucketKey] = Counter()
    for row in journal:
        key = row.key
        held[key] += row.delta_held
        spent[key] += row.delta_spent
        if held[key] < 0 or spent[key] < 0:
            yield f"{_name(key)} is below zero after journal row {row.journal_id}"
    for balance in balances:
        key = balance.term.key
        sums = (held.pop(key, 0), spent.pop(key, 0))
        if sums != (balance.held, balance.spent):
            yield (
                f"{_name(key)} says held {balance.held} and spent {balance.spent},"
                f" its journal sums to {sums[0]} and {sums[1]}"
            )
    for key in held:
        yield f"the journal has rows of {_name(key)}, which does not exist"


def _limit_findings(
    balances: Iterable[Balance], journal: Iterable[JournalRow], allowances: Collection[Allowance]
) -> Iterator[str]:
    """What was ever added to a limit is what was approved, and what is inherited is what the period before left."""
    added: Counter[BucketKey] = Counter()
    approved: Counter[BucketKey] = Counter()
    for row in journal:
        added[row.key] += row.delta_limit
    for allowance in allowances:
        approved[allowance.key] += allowance.amount if allowance.is_approved else 0
    for key in {*added, *approved}:
        if added[key] != approved[key]:
            yield f"the journal adds {added[key]} to the limit of {_name(key)}, its allowances sum to {approved[key]}"
    extras = extras_of(allowances)
    known = {balance.term.key: balance for balance in balances}
    for key, balance in known.items():
        term, previous = balance.term, known.get(previous_key(balance.term) or ("", "", "", ""))
        if term.limit < 0:
            yield f"{_name(key)} has a limit below zero: {term.limit}"
        due, before = 0, "no period before it"
        if term.rollover is not None and previous is not None:
            due = inheritance(term.rollover, term.limit, previous, extras.get(previous.term.key, NOTHING))
            before = _name(previous.term.key)
        has = extras.get(key, NOTHING).inherited
        if has != due:
            yield f"{_name(key)} inherited {has}, {before} leaves it {due}"


def _account_findings(balances: Iterable[Balance], accounts: Mapping[str, str | None]) -> Iterator[str]:
    for balance in balances:
        if balance.term.account not in accounts:
            yield f"{_name(balance.term.key)} is of an account that does not exist"
    for account, parent in accounts.items():
        if parent is not None and parent not in accounts:
            yield f"account {account} is below {parent}, which does not exist"


def _hold_findings(journal: Iterable[JournalRow], open_holds: Iterable[Hold]) -> Iterator[str]:
    """Under each of its terms a hold has one opening row, at most one terminal row, and nothing left once closed."""
    is_open = {hold.hold_id: hold for hold in open_holds}
    by_hold = _by_hold_and_bucket(journal)
    for (hold_id, key), rows in by_hold.items():
        kinds = [row.kind for row in rows if row.kind in TERMINAL_KINDS]
        left = sum(row.delta_held for row in rows)
        hold = is_open.get(hold_id)
        wanted = 0 if hold is None else hold.amounts.get(rows[0].unit, 0)
        name = f"hold {hold_id} in {_name(key)}"
        if [row.kind for row in rows].count("hold") != 1:
            yield f"{name} has {[row.kind for row in rows].count('hold')} opening rows, not one"
        if len(kinds) != (hold is None):
            yield f"{name} is {'closed' if hold is None else 'open'} and has {len(kinds)} closing rows {kinds}"
        if left != wanted:
            yield f"{name} holds {left} by its journal, {wanted} by its state"
    for hold_id, kinds_of in _terminal_kinds(journal).items():
        if len(kinds_of) > 1:
            yield f"hold {hold_id} was closed in different ways: {', '.join(sorted(kinds_of))}"
    for hold in is_open.values():
        for term in hold.terms:
            if (hold.hold_id, term.key) not in by_hold:
                yield f"open hold {hold.hold_id} of {hold.step.label} has no row in the journal of {_name(term.key)}"


def _state_findings(booked: Iterable[BookedHold]) -> Iterator[str]:
    """Only an open hold wants more, and each owner of a hold has an epoch of its own, the first of them 1."""
    for hold, state in ((each.hold, each.state) for each in booked):
        if hold.wanted and state is not HoldState.HELD:
            yield f"hold {hold.hold_id} of {hold.step.label} is {state.value} and still wants {dict(hold.wanted)}"
        if any(amount <= 0 for amount in hold.wanted.values()):
            yield f"hold {hold.hold_id} of {hold.step.label} wants {dict(hold.wanted)}, and an amount is above 0"
        if hold.epoch < 1:
            yield f"hold {hold.hold_id} of {hold.step.label} has epoch {hold.epoch}, and the first is 1"


def _by_hold_and_bucket(journal: Iterable[JournalRow]) -> dict[tuple[str, BucketKey], list[JournalRow]]:
    rows: dict[tuple[str, BucketKey], list[JournalRow]] = defaultdict(list)
    for row in journal:
        if row.hold_id is not None:
            rows[row.hold_id, row.key].append(row)
    return rows


def _terminal_kinds(journal: Iterable[JournalRow]) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = defaultdict(set)
    for row in journal:
        if row.hold_id is not None and row.kind in TERMINAL_KINDS:
            kinds[row.hold_id].add(row.kind)
    return kinds


def _entry_findings(
    journal: Iterable[JournalRow], entries: Iterable[Entry], open_holds: Iterable[Hold]
) -> Iterator[str]:
    """A settled or lost hold has one entry for each start, and its budgets were charged what they say together."""
    by_hold: dict[str, list[Entry]] = defaultdict(list)
    times: Counter[str] = Counter()
    for entry in entries:
        times[entry.entry_id] += 1
        if entry.hold_id is not None:
            by_hold[entry.hold_id].append(entry)
    for entry_id, count in times.items():
        if count > 1:
            yield f"entry {entry_id} was posted {count} times"
    for hold in open_holds:
        if hold.hold_id in by_hold:
            yield f"hold {hold.hold_id} of {hold.step.label} is open and was posted already"
    rows = list(journal)
    corrected = {row.hold_id for row in rows if row.kind == "adjust"}
    for row in rows:
        if row.kind == "void" and row.hold_id in corrected:
            continue  # it ran after all, and was charged by corrections
        if row.kind in TERMINAL_KINDS and row.hold_id is not None:
            yield from _charge_findings(row, row.hold_id, by_hold.get(row.hold_id, []))


def _charge_findings(row: JournalRow, hold_id: str, posted: list[Entry]) -> Iterator[str]:
    if row.kind != "void" and not posted:
        yield f"hold {hold_id} was closed by {row.kind} and has no entry"
    charged = charged_sum(posted)[row.unit]
    if row.delta_spent != charged:
        yield (
            f"hold {hold_id} was charged {format_amount(row.unit, row.delta_spent)} in {_name(row.key)},"
            f" its entries say {format_amount(row.unit, charged)}"
        )


def _window_findings(windows: Iterable[NodeWindow]) -> Iterator[str]:
    by_domain: dict[tuple[str, Domain], list[NodeWindow]] = defaultdict(list)
    for window in windows:
        by_domain[window.sampler_id, window.domain].append(window)
        parts = window.attributed_microjoules + window.idle_microjoules + window.other_microjoules
        if parts != window.energy.microjoules:
            yield f"the shares of window {_window_name(window)} sum to {parts}, not to {window.energy.microjoules}"
    for one_domain in by_domain.values():
        one_domain.sort(key=lambda window: window.sequence_first)
        for first, second in pairwise(one_domain):
            if second.sequence_first <= first.sequence_last:
                yield f"windows {_window_name(first)} and {_window_name(second)} overlap"


def _window_name(window: NodeWindow) -> str:
    return f"{window.sampler_id}/{window.domain.value}/{window.sequence_first}-{window.sequence_last}"


def _share_findings(
    windows: Iterable[NodeWindow],
    entries: Iterable[Entry],
    open_holds: Iterable[Hold],
    running_samplers: Collection[str],
) -> Iterator[str]:
    """What a sampler attributed is what its entries sum to, once no hold of its host is open any more."""
    busy = {(hold.owner.host, hold.owner.boot_id) for hold in open_holds}
    attributed: Counter[tuple[str, Domain]] = Counter()
    unfinished: set[str] = set(running_samplers)
    for window in windows:
        attributed[window.sampler_id, window.domain] += window.attributed_microjoules
        if (window.host, window.boot_id) in busy:
            unfinished.add(window.sampler_id)
    posted = _posted_energy(entries)
    for sampler_id, domain in sorted({*attributed, *posted}):
        shares, whole = posted.get((sampler_id, domain), 0), attributed[sampler_id, domain]
        if shares != whole and sampler_id not in unfinished:
            yield (
                f"sampler {sampler_id}, {domain.value}: entries sum to {format_amount(Unit.ENERGY, shares)} ({shares}"
                f" microjoules), its windows attributed {format_amount(Unit.ENERGY, whole)} ({whole} microjoules)"
            )


def _posted_energy(entries: Iterable[Entry]) -> Mapping[tuple[str, Domain], int]:
    posted: Counter[tuple[str, Domain]] = Counter()
    for entry in entries:
        if entry.sampler_id is not None:
            for domain, energy in entry.energy.items():
                posted[entry.sampler_id, domain] += energy.microjoules
    return posted


def _owner_findings(open_holds: Iterable[Hold], owner_alive: Callable[[Owner], bool]) -> Iterator[str]:
    for hold in open_holds:
        if not owner_alive(hold.owner):
            yield (
                f"hold {hold.hold_id} of {hold.step.label} is open and its owner, process {hold.owner.pid} on"
                f" {hold.owner.host}, is gone; the next run of this project charges and closes it"
            )
