"""A policy with channels, books that cross its thresholds, and a post that fails as it is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

from mlflow_green.alerts.addresses import Address
from mlflow_green.alerts.carrier import Letter
from mlflow_green.errors import ChannelFailed
from mlflow_green.policy.decide import decide
from mlflow_green.policy.document import Policy, parse_policy
from mlflow_green.policy.terms import terms
from mlflow_green.records import Action, Batch, Term
from tests.testkit.ledger_samples import NOON, OWNER, SetClock, admit_what_fits, request, settle

CHANNELS = """
channels:
  team: {webhook: "env:HOOK", secret: "env:HOOK_SECRET", quiet: 1h}
  leads: {email: [ana@lab.example, bo@lab.example], quiet: 0s}
"""
WH = 3_600_000_000
"""A watt-hour in microjoules."""


def policy(rules: str, *, channels: str = CHANNELS, mode: str = "soft", period: str = "month", **keys: str) -> Policy:
    more = "".join(f"    {name}: {value}\n" for name, value in keys.items())
    text = f"""
version: 1
project: demo
timezone: Europe/Paris
budgets:
  - name: month
    limit: 100 Wh
    period: {period}
    mode: {mode}
    rules: [{rules}]
{more}{channels}"""
    return parse_policy(text.encode())


def notify(*percents: int, to: str = "team", of: str = "spent") -> str:
    return ", ".join(f"{{at: {percent}%, of: {of}, do: notify, to: [{to}]}}" for percent in percents)


class Spender:
    """Spends under the policy's budgets, a hold and a settlement at a time."""

    def __init__(self, ledger, policy: Policy, clock: SetClock) -> None:
        self._ledger, self._policy, self._clock, self._count = ledger, policy, clock, 0

    def terms(self) -> tuple[Term, ...]:
        now = self._clock.now()
        return terms(self._policy, project="demo", user="ana", org=None, now=now, workflow_run="run1")

    def spend(self, amount: int, step: str = "train", **more) -> None:
        self._count += 1
        asked = request(step, amount, *self.terms(), attempt=self._count, **more)
        (answer,) = self._ledger.commit(Batch(requests=(asked,), owner=OWNER), admit_what_fits).answers
        assert answer.hold is not None, answer.decision.reason
        self._ledger.commit(Batch(closings=(settle(answer.hold, amount),)), admit_what_fits)

    def refuse(self, amount: int, step: str = "train") -> None:
        """Ask for what the policy refuses."""
        self._count += 1
        asked = request(f"{step}{self._count}", amount, *self.terms())
        choose = partial(decide, self._policy, now=self._clock.now(), power_watts_max=100.0)
        (answer,) = self._ledger.commit(Batch(requests=(asked,), owner=OWNER), choose).answers
        assert answer.decision.action is Action.REFUSE, answer.decision.reason


class ScriptedPost:
    """Keeps what is carried. ``fails(address, letter)`` says why one is not taken, ``None`` if it is."""

    def __init__(self, clock: SetClock) -> None:
        self._clock = clock
        self.carried: list[tuple[float, str, Letter]] = []
        self.tried: list[tuple[float, str, str]] = []
        self.fails: Callable[[Address, Letter], ChannelFailed | None] = lambda _address, _letter: None

    def carry(self, address: Address, letter: Letter) -> None:
        seconds = (self._clock.now() - NOON).total_seconds()
        self.tried.append((seconds, str(address), letter.letter_id))
        problem = self.fails(address, letter)
        if problem is not None:
            raise problem
        self.carried.append((seconds, str(address), letter))

    def alert_ids(self, address: str | None = None) -> list[str]:
        return [
            alert_id
            for _, carried_to, letter in self.carried
            if address in {None, carried_to}
            for alert_id in letter.data["alert_ids"]
        ]


def hours(count: float) -> float:
    return timedelta(hours=count).total_seconds()
