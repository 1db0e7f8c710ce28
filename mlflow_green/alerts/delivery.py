"""The sender of alerts: from what the ledger promised to letters that were taken, each at least once.

An ``alert`` is promised in the transaction that crosses a threshold. Here it becomes a ``notice`` for each address of
its channels; the notices that an address may be told become one ``letter``, which is sent until it is taken. Each of
these changes is one transaction that only one of several senders can make, so a sender may die anywhere: what it had
sent and not yet marked is sent again, with the same id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import Protocol
from uuid import uuid4

from mlflow_green.alerts.addresses import Address, addresses
from mlflow_green.alerts.carrier import Letter
from mlflow_green.alerts.message import Notice, bucket_of, is_about_stopped, is_urgent, write_message
from mlflow_green.alerts.standing import AlertBooks, Standings
from mlflow_green.alerts.windows import opens_at
from mlflow_green.clock import Clock
from mlflow_green.errors import ChannelFailed
from mlflow_green.policy.document import Policy, Rule, Verb
from mlflow_green.policy.exhaustion import Exhaustion
from mlflow_green.records import Balance, LetterState, OutboxRow
from mlflow_green.units import format_amount

ALERT, NOTICE, LETTER = "alert", "notice", "letter"

LEASE_SECONDS = 120.0  # longer than any one try of a carrier takes
BACKOFF_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 3_600.0
GIVE_UP_SECONDS = 86_400.0
NOTICES_A_LETTER_MAX = 1_000

Key = tuple[str, ...]


class Fate(StrEnum):
    """What became of a letter or of the notices for an address."""

    SENT = "sent"
    FAILED = "failed"
    DEAD = "dead"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one pass of the sender did for one address; ``at`` is when it goes on, ``None`` when there is nothing to."""

    address: Address
    fate: Fate
    text: str
    at: datetime | None = None


class Post(Protocol):
    """What brings letters to addresses."""

    def carry(self, address: Address, letter: Letter) -> None:
        """Hand the letter over. Raises ``ChannelFailed``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How a sender waits, in seconds: a claim's lease, the first pause after a failure, and how long it goes on."""

    lease: float = LEASE_SECONDS
    backoff: float = BACKOFF_SECONDS
    backoff_max: float = BACKOFF_SECONDS_MAX
    give_up: float = GIVE_UP_SECONDS

    def pause(self, tries: int, asked_seconds: float | None, random: Random) -> float:
        """Until the next try after ``tries`` failures: doubled each time, jittered, or what the other side asks for."""
        backoff = min(self.backoff * 2.0 ** min(tries, 62), self.backoff_max)
        return max(backoff * random.uniform(0.5, 1), min(asked_seconds or 0.0, self.backoff_max))


class Sender:
    """Delivers the alerts of one policy's budgets. Any number of senders may work on one ledger at the same time.

    Raises ``LedgerUnavailable`` as the ledger does; a channel that fails is in the reports.
    """

    def __init__(
        self,
        books: AlertBooks,
        policy: Policy,
        post: Post,
        clock: Clock,
        *,
        random: Random | None = None,
        patience: Patience | None = None,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._books = books
        self._policy = policy
        self._post = post
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - jitter
        self._patience = patience or Patience()
        self._new_id = new_id
        self._budgets = {budget.name: budget for budget in policy.budgets}

    def send(self) -> tuple[Report, ...]:
        """One pass: everything that may be sent now is tried once."""
        self._promise_forecasts()
        self._address_alerts()
        waiting = tuple(self._write_letters())
        return tuple(self._send_letters()) + waiting

    # --- alerts to notices -----------------------------------------------------------------------

    def _promise_forecasts(self) -> None:
        """A rule ``of: forecast`` fires once a bucket, when the whole interval lies beyond it."""
        asking = {
            budget.name: rules
            for budget in self._policy.budgets
            if (rules := [rule for rule in budget.rules_that(Verb.NOTIFY) if rule.base == "forecast"])
        }
        if not asking:
            return
        standings = Standings(self._books, self._policy, self._clock.now())
        for name, rules in asking.items():
            for balance in standings.current(self._budgets[name]):
                forecast = standings.forecast(balance, self._budgets[name])
                for rule in rules:
                    if forecast is not None and forecast.is_sure_of(rule.threshold(balance.limit)):
                        dedup = "|".join((*balance.term.key, str(rule.at), "forecast"))
                        alert = _forecast_alert(balance, rule, forecast, self._budgets[name].currency)
                        self._books.put(ALERT, dedup, {**alert, "policy_sha256": self._policy.sha256})

    def _address_alerts(self) -> None:
        """Alerts of other policies' budgets are left to their senders, who know the channels."""
        for row in self._books.rows(ALERT, LetterState.PENDING):
            if row.payload.get("budget") in self._budgets:
                alert_id, at = self._new_id(), row.due_at or self._clock.now()
                notices = {
                    f"notice|{row.outbox_id}|{address}": {
                        "alert_id": alert_id,
                        "at": at.isoformat(),
                        "project": self._policy.project,
                        "channel": address.channel,
                        "route": address.route,
                        "alert": dict(row.payload),
                    }
                    for address in self._addresses_of(row)
                }
                self._books.replace([row.outbox_id], NOTICE, notices)

    def _addresses_of(self, row: OutboxRow) -> Iterator[Address]:
        named = row.payload.get("to")
        for name in dict.fromkeys(str(each) for each in named) if isinstance(named, list | tuple) else ():
            channel = self._policy.channels.get(name)
            if channel is None:  # it was there when the threshold was crossed
                yield Address(channel=name, route="")
            else:
                yield from addresses(name, channel)

    # --- notices to letters ----------------------------------------------------------------------

    def _write_letters(self) -> Iterator[Report]:
        """At most one letter to an address is under way; what may not be told yet is reported."""
        letters = self._by_address(LETTER, *LetterState)
        standings: Standings | None = None
        for address, rows in self._by_address(NOTICE, LetterState.PENDING).items():
            channel = self._policy.channels.get(address.channel)
            if channel is None or address not in addresses(address.channel, channel):
                problem = f"green.yaml has no {address} any more"
                for row in rows:
                    self._books.failed(row.outbox_id, None, problem)
                yield Report(address=address, fate=Fate.DEAD, text=problem)
                continue
            earlier = letters.get(address, [])
            under_way = [letter for letter in earlier if letter.state is LetterState.PENDING]
            opens = self._opens_at(rows, earlier)
            if under_way or opens > self._clock.now():
                text = f"{len(rows)} waiting {'behind one that is not taken yet' if under_way else 'for its window'}"
                yield Report(address=address, fate=Fate.WAITING, text=text, at=None if under_way else opens)
                continue
            standings = standings or Standings(self._books, self._policy, self._clock.now())
            last = max((letter.outbox_id for letter in earlier), default=0)
            self._write_letter(address, rows[:NOTICES_A_LETTER_MAX], last, standings)

    def _opens_at(self, rows: Sequence[OutboxRow], letters: Sequence[OutboxRow]) -> datetime:
        taken = [letter.due_at for letter in letters if letter.state is LetterState.DELIVERED and letter.due_at]
        alerts = [_alert_of(row) for row in rows]
        budgets = [self._budgets.get(str(alert["budget"])) for alert in alerts]
        return opens_at(
            self._policy.channels[str(rows[0].payload["channel"])],
            [datetime.fromisoformat(str(row.payload["at"])) for row in rows],
            max(taken, default=None),
            is_urgent=any(budget and is_urgent(alert, budget) for alert, budget in zip(alerts, budgets, strict=True)),
            now=self._clock.now(),
            zone=self._policy.zone,
        )

    def _write_letter(self, address: Address, rows: Sequence[OutboxRow], last: int, standings: Standings) -> None:
        notices = [
            Notice(
                alert_id=str(row.payload["alert_id"]),
                at=datetime.fromisoformat(str(row.payload["at"])),
                payload=_alert_of(row),
            )
            for row in rows
        ]
        keys = {bucket_of(notice.payload) for notice in notices}
        stopped = {bucket_of(notice.payload) for notice in notices if is_about_stopped(notice.payload)}
        found = {key: standings.of(key, counts_stopped=key in stopped) for key in keys}
        known = {key: standing for key, standing in found.items() if standing is not None}
        now = self._clock.now()
        message = write_message(notices, known, policy_sha256=self._policy.sha256, now=now, zone=self._policy.zone)
        letter = {
            "letter_id": self._new_id(),
            "written_at": now.isoformat(),
            "project": self._policy.project,
            "channel": address.channel,
            "route": address.route,
            "subject": message.subject,
            "text": message.text,
            "data": message.data,
        }
        # Only one letter comes after the last: of two senders that write at the same time one comes too late.
        dedup = f"letter|{self._policy.project}|{address}|after {last}"
        self._books.replace([row.outbox_id for row in rows], LETTER, {dedup: letter})

    # --- letters ---------------------------------------------------------------------------------

    def _send_letters(self) -> Iterator[Report]:
        for address, rows in self._by_address(LETTER, LetterState.PENDING).items():
            for row in rows:
                now = self._clock.now()
                if self._books.claim(row.outbox_id, now, now + timedelta(seconds=self._patience.lease)):
                    yield self._send(address, row)
                elif row.error is not None:
                    yield Report(address=address, fate=Fate.WAITING, text=f"tried before: {row.error}", at=row.due_at)

    def _send(self, address: Address, row: OutboxRow) -> Report:
        letter = letter_of(row)
        try:
            self._post.carry(address, letter)
        except ChannelFailed as error:
            now = self._clock.now()
            is_over = now >= letter.written_at + timedelta(seconds=self._patience.give_up)
            if error.is_final or is_over:
                self._books.failed(row.outbox_id, None, str(error))
                return Report(address=address, fate=Fate.DEAD, text=str(error))
            pause = self._patience.pause(row.tries, error.retry_after_seconds, self._random)
            retry_at = now + timedelta(seconds=pause)
            self._books.failed(row.outbox_id, retry_at, str(error))
            return Report(address=address, fate=Fate.FAILED, text=str(error), at=retry_at)
        self._books.delivered(row.outbox_id)
        return Report(address=address, fate=Fate.SENT, text=letter.subject)

    def _by_address(self, kind: str, *states: LetterState) -> Mapping[Address, list[OutboxRow]]:
        """The rows of this policy's project, oldest first."""
        found: defaultdict[Address, list[OutboxRow]] = defaultdict(list)
        for row in self._books.rows(kind, *states):
            if row.payload["project"] == self._policy.project:
                found[address_of(row)].append(row)
        return found


def _forecast_alert(balance: Balance, rule: Rule, forecast: Exhaustion, currency: str) -> dict[str, object]:
    term, unit = balance.term, balance.term.unit.value
    return {
        "budget": term.budget,
        "account": term.account,
        "unit": unit,
        "period": term.period,
        "at_ratio": float(rule.at),
        "of": "forecast",
        "amount": forecast.spent_point,
        "limit": balance.limit,
        "spent": balance.spent,
        "held": balance.held,
        "to": list(rule.to),
        "text": (
            f"budget {term.budget} ({term.account}, {term.period}) will have spent at least"
            f" {format_amount(unit, forecast.spent_low, currency)} of {format_amount(unit, balance.limit, currency)}"
            " when its period ends"
        ),
    }


def address_of(row: OutboxRow) -> Address:
    """Where a notice or a letter goes."""
    return Address(channel=str(row.payload["channel"]), route=str(row.payload["route"]))


def letter_of(row: OutboxRow) -> Letter:
    payload = row.payload
    data = payload["data"]
    assert isinstance(data, Mapping)
    return Letter(
        letter_id=str(payload["letter_id"]),
        written_at=datetime.fromisoformat(str(payload["written_at"])),
        subject=str(payload["subject"]),
        text=str(payload["text"]),
        data=data,
    )


def _alert_of(row: OutboxRow) -> Mapping[str, object]:
    alert = row.payload["alert"]
    assert isinstance(alert, Mapping)
    return alert
