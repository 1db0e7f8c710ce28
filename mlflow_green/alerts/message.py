"""What an alert says: what happened, who, how far, where it leads, who used most, and what to do now; pure.

Every line stands by itself, so that a narrow screen loses nothing, and every figure has its unit.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo

from mlflow_green.ledger.messages import HALTED, REFUSED
from mlflow_green.policy.document import Budget
from mlflow_green.policy.exhaustion import LEVEL_PERCENT, Exhaustion
from mlflow_green.policy.raising import percent_short_of, way_to_raise
from mlflow_green.records import Balance, Energy, Mode
from mlflow_green.units import (
    SECONDS_PER_HOUR,
    format_amount,
    format_energy_interval,
    format_hours,
    format_number_of,
    format_percent,
    format_share,
)

ALERTS_SHOWN_MAX = 20
TEXT_LENGTH_MAX = 300
_LABEL_WIDTH = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An alert for one address. ``payload`` is the ledger's, which says less in rows of older versions."""

    alert_id: str
    at: datetime
    payload: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """One of those who used most of a budget in its period; ``amount`` in the unit's integer scale."""

    name: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a budget stands when a letter about it is written; what is not known is ``None``.

    ``budget`` is the policy's, ``forecast`` ``None`` with too few days. ``metered`` is the energy behind what is spent.
    ``stopped`` is how many steps were ``refused`` or ``halted`` so far, by that word and the workflow run.
    ``is_known``: the ledger itself knows who writes.
    """

    balance: Balance
    budget: Budget
    consumers: tuple[Consumer, ...] = ()
    forecast: Exhaustion | None = None
    metered: Energy | None = None
    last_use_at: datetime | None = None
    period_end: datetime | None = None
    stopped: Mapping[tuple[str, str], int] = field(default_factory=dict)
    is_known: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a letter says: to people by ``subject`` and ``text``, to programs by ``data``."""

    subject: str
    text: str
    data: Mapping[str, object]


def write_message(
    notices: Sequence[Notice],
    standings: Mapping[tuple[str, ...], Standing],
    *,
    policy_sha256: str,
    now: datetime,
    zone: tzinfo,
) -> Message:
    """One message about these alerts, at least one; ``standings`` by the key of their bucket, ``bucket_of``."""
    told = _told_apart(notices)
    shown = told[:ALERTS_SHOWN_MAX]
    headlines = [headline(each.payload, _currency(standings, each), _times(standings, each)) for each in shown]
    subject = headlines[0] if len(told) == 1 else f"{len(told)} alerts; first: {headlines[0]}"
    by_bucket: dict[tuple[str, ...], list[Notice]] = {}
    for notice in shown:
        by_bucket.setdefault(bucket_of(notice.payload), []).append(notice)
    parts = []
    for key, about in by_bucket.items():
        parts += [_event(notice, _currency(standings, notice), policy_sha256, zone) for notice in about]
        parts.append(_state([notice.payload for notice in about], standings.get(key), now, zone))
    if len(told) > len(shown):
        parts.append(f"{len(told) - len(shown)} more alerts are not shown; 'mlflow-green alerts list' has them.")
    data = {
        "subject": subject,
        "alert_ids": [notice.alert_id for notice in notices],
        "policy_sha256": policy_sha256,
        "alerts": [
            _alert_data(notice, standings.get(bucket_of(notice.payload)), line, _times(standings, notice))
            for notice, line in zip(shown, headlines, strict=True)
        ],
    }
    return Message(subject=f"mlflow-green: {subject}", text="\n\n".join(parts) + "\n", data=data)


def _told_apart(notices: Sequence[Notice]) -> list[Notice]:
    """Without those that say again of a workflow run that a budget stops its steps: the first stands for all."""
    found: dict[object, Notice] = {}
    for index, notice in enumerate(notices):
        key = (bucket_of(notice.payload), _kind(notice.payload)) if is_about_stopped(notice.payload) else index
        found.setdefault(key, notice)
    return list(found.values())


def is_about_stopped(payload: Mapping[str, object]) -> bool:
    """Whether the alert is about a step that was refused or halted."""
    return payload.get("of") in {REFUSED, HALTED}


def _kind(payload: Mapping[str, object]) -> tuple[str, str]:
    return str(payload.get("of")), str(payload.get("workflow_run"))


def _times(standings: Mapping[tuple[str, ...], Standing], notice: Notice) -> int:
    """How many steps were stopped so far like the one that this is about, 1 at least."""
    standing = standings.get(bucket_of(notice.payload))
    return max(1, standing.stopped.get(_kind(notice.payload), 1) if standing else 1)


def bucket_of(payload: Mapping[str, object]) -> tuple[str, ...]:
    """The budget, account, unit and period that an alert is about."""
    return tuple(str(payload.get(name, "")) for name in ("budget", "account", "unit", "period"))


def is_urgent(payload: Mapping[str, object], budget: Budget) -> bool:
    """Whether steps stop from here on: a hard budget has reached its limit."""
    return budget.mode is Mode.HARD and payload.get("of") != "forecast" and (_number(payload, "at_ratio") or 0) >= 1


def headline(payload: Mapping[str, object], currency: str = "", steps: int = 1) -> str:
    """What happened and to which budget, in one line; ``steps`` is how many were stopped."""
    if is_about_stopped(payload):
        name = format_number_of(steps, "step") + ", first " if steps > 1 else ""
        asked = _asked(payload, currency)
        return _line(f"budget {payload.get('budget')} {payload.get('of')} {name}{payload.get('step')}: {asked}")
    ratio, limit, unit = _number(payload, "at_ratio"), _whole(payload, "limit"), str(payload.get("unit"))
    if ratio is None or limit is None:
        return _line(payload.get("text") or f"budget {payload.get('budget')}: something happened")
    amount = _whole(payload, "after", "amount")
    base = "is expected to spend" if payload.get("of") == "forecast" else f"has {payload.get('of')}"
    return _line(
        f"budget {payload.get('budget')} {base} {format_percent(ratio)} of its {unit} limit"
        f" ({format_amount(unit, amount, currency)} of {format_amount(unit, limit, currency)}, {payload.get('period')})"
    )


def _currency(standings: Mapping[tuple[str, ...], Standing], notice: Notice) -> str:
    """That of the budget; empty where it has none, or is not known any more."""
    standing = standings.get(bucket_of(notice.payload))
    return standing.budget.currency if standing else ""


def _event(notice: Notice, currency: str, policy_sha256: str, zone: tzinfo) -> str:
    """What happened, and who did it."""
    payload = notice.payload
    step = payload.get("step")
    lines = [headline(payload, currency), ""]
    lines += _labelled("Who", _who(payload))
    if is_about_stopped(payload):
        lines += _labelled("Why", _line(payload.get("reason", "not known")))
        lines += _labelled("Run", _line(payload.get("workflow_run", "not known")))
    else:
        lines += _labelled("Use", *_use(payload, currency))
    lines += _labelled("Explain", f"mlflow-green explain {shlex.quote(str(step))}" if step else "mlflow-green explain")
    lines += _labelled("Policy", f"sha256 {str(payload.get('policy_sha256') or policy_sha256)[:12]}")
    lines += _labelled("Alert", f"{notice.alert_id}, {_when(notice.at, zone)}")
    return "\n".join(lines)


def _state(payloads: Sequence[Mapping[str, object]], standing: Standing | None, now: datetime, zone: tzinfo) -> str:
    """How the budget stands when the letter is written, after its alerts."""
    name = _line(payloads[0].get("budget", ""))
    if standing is None:
        return f"How budget {name} stands now is not known: its bucket is not in this ledger, or not in green.yaml."
    balance, unit, currency = standing.balance, standing.balance.term.unit.value, standing.budget.currency
    lines = [f"Budget {name} at {_when(now, zone)}", ""]
    lines += _labelled(
        "Now",
        f"{_share(unit, balance.spent, balance.limit, currency)} spent,"
        f" {_share(unit, balance.held, balance.limit, currency)} held,"
        f" of {format_amount(unit, balance.limit, currency)}",
    )
    lines += _labelled("Forecast", *_forecast(standing, zone))
    lines += _labelled("Most used", *_consumers(standing))
    lines += _labelled("Effect", _effect(payloads, standing.budget))
    lines += _labelled("Do now", *_remedies(standing, zone))
    lines += _labelled("Data", *_data_lines(standing, now))
    return "\n".join(lines)


def _labelled(label: str, *texts: str) -> list[str]:
    return [f"{label if index == 0 else '':<{_LABEL_WIDTH}} {text}" for index, text in enumerate(texts)]


def _who(payload: Mapping[str, object]) -> str:
    known = [f"{name} {payload[name]}" for name in ("user", "project", "step") if payload.get(name)]
    return _line(", ".join(known) or f"no single step; the account is {payload.get('account', 'not known')}")


def _asked(payload: Mapping[str, object], currency: str) -> str:
    """What the step needed, or wanted more when it was halted, and what there was."""
    unit, needed, left = str(payload.get("unit")), _whole(payload, "needed"), _whole(payload, "available")
    more = " more" if payload.get("of") == HALTED else ""
    need = "what it needs is not known" if needed is None else f"{format_amount(unit, needed, currency)}{more} needed"
    if needed is None and more:
        need = "it asked for nothing more"
    return need if left is None else f"{need}, {format_amount(unit, max(0, left), currency)} left"


def _use(payload: Mapping[str, object], currency: str) -> list[str]:
    """Before and after the crossing."""
    unit, limit = str(payload.get("unit")), _whole(payload, "limit")
    before, after = _whole(payload, "before"), _whole(payload, "after", "amount")
    if after is None:
        return ["not known"]
    if before is None:
        return [_share(unit, after, limit, currency)]
    return [f"{_share(unit, before, limit, currency)} before -> {_share(unit, after, limit, currency)} after"]


def _share(unit: str, amount: int, limit: int | None, currency: str = "") -> str:
    text = format_amount(unit, amount, currency)
    return f"{text} ({format_share(amount / limit)})" if limit else text


def _forecast(standing: Standing, zone: tzinfo) -> list[str]:
    found, limit = standing.forecast, standing.balance.limit
    if found is None:
        return ["none: fewer than 7 days, or 5 active ones, are known of this budget"]
    unit, currency = standing.balance.term.unit.value, standing.budget.currency
    lines = [f"{format_amount(unit, found.daily, currency)} a day, the mean"]
    if found.spent_low is not None:
        amounts = (found.spent_point, found.spent_low, found.spent_high)
        point, low, high = (format_amount(unit, amount, currency) for amount in amounts)
        lines.append(f"{point} [{low}, {high}] spent when the period ends")
    if standing.balance.spent >= limit:
        lines.append("the limit is reached already")
    elif found.used_up_last is None and found.used_up_first is not None:
        lines.append(f"too uncertain to say whether the limit is reached; not before {_day(found.used_up_first, zone)}")
    elif found.used_up_middle is None:
        lines.append("the limit is not reached in this time")
    else:
        first, last = _day(found.used_up_first, zone), _day(found.used_up_last, zone)
        lines.append(f"used up on {_day(found.used_up_middle, zone)} [{first}, {last}]")
    return [*lines, f"estimated, {LEVEL_PERCENT} % interval: {found.method}"]


def _day(moment: datetime | None, zone: tzinfo) -> str:
    return "later" if moment is None else f"{moment.astimezone(zone):%Y-%m-%d}"


def _consumers(standing: Standing) -> list[str]:
    unit, spent = standing.balance.term.unit.value, standing.balance.spent
    if not standing.consumers:
        return ["nothing is spent yet"]
    return [
        _line(f"{rank}. {consumer.name}: {_share(unit, consumer.amount, spent, standing.budget.currency)} of it")
        for rank, consumer in enumerate(standing.consumers, start=1)
    ]


def _effect(payloads: Sequence[Mapping[str, object]], budget: Budget) -> str:
    """What the policy does at and beyond this point."""
    if budget.mode is Mode.OBSERVE:
        return "none: this budget only observes"
    steps = [
        f"{rule.do.value} at {format_percent(float(rule.at))} {rule.base}"
        for rule in budget.rules
        if rule.do.value != "notify"
    ]
    if budget.mode is Mode.HARD:
        steps.append("no new hold past 100%")
    stops = any(is_about_stopped(payload) or is_urgent(payload, budget) for payload in payloads)
    acting = "steps are stopped or refused now" if stops else "this alert itself stops nothing"
    return _line(f"{acting}; the rules of this budget: {', '.join(steps) or 'it only notifies'}")


def _remedies(standing: Standing, zone: tzinfo) -> list[str]:
    short = percent_short_of(standing.budget, standing.balance, 0)
    lines = [way_to_raise(standing.budget, is_known=standing.is_known, percent_short=short)]
    if standing.period_end is not None:
        lines.append(f"or wait: the period ends {_when(standing.period_end, zone)}")
    return lines


def _data_lines(standing: Standing, now: datetime) -> list[str]:
    age = "no use is posted yet"
    if standing.last_use_at is not None:
        hours = max(0.0, (now - standing.last_use_at).total_seconds()) / SECONDS_PER_HOUR
        age = f"the last use was posted {format_hours(hours)} ago"
    lines = [f"{age}; what runs now counts as held"]
    if standing.metered is not None:
        energy = standing.metered
        interval = format_energy_interval(energy.microjoules, energy.low_microjoules, energy.high_microjoules)
        lines.append(f"the metered energy behind it is {interval}, {energy.method.value}")
    return lines


def _alert_data(notice: Notice, standing: Standing | None, line: str, steps: int) -> dict[str, object]:
    """The alert for programs: amounts are integers in microjoules, micrograms of CO2e or micro-units of money."""
    found = standing.forecast if standing else None
    kept = {
        name: _plain(value)
        for name, value in notice.payload.items()
        if value is None or isinstance(value, str | int | float)
    }
    now: dict[str, object] | None = None
    if standing is not None:
        now = {"spent": standing.balance.spent, "held": standing.balance.held, "limit": standing.balance.limit}
    return {
        **kept,
        **({"steps": steps} if is_about_stopped(notice.payload) else {}),
        "alert_id": notice.alert_id,
        "at": notice.at.isoformat(),
        "headline": line,
        "now": now,
        "consumers": [
            {"name": _line(consumer.name), "amount": consumer.amount}
            for consumer in (standing.consumers if standing else ())
        ],
        "forecast": None
        if found is None
        else {
            "spent_low": found.spent_low,
            "spent_point": found.spent_point,
            "spent_high": found.spent_high,
            "used_up_first": _iso(found.used_up_first),
            "used_up_middle": _iso(found.used_up_middle),
            "used_up_last": _iso(found.used_up_last),
            "level_percent": LEVEL_PERCENT,
            "method": found.method,
        },
    }


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _plain(value: object) -> object:
    return _line(value) if isinstance(value, str) else value


def _line(value: object) -> str:
    """One line of at most 300 characters, whatever a step or budget is called."""
    text = " ".join(str(value).split())
    return text if len(text) <= TEXT_LENGTH_MAX else text[: TEXT_LENGTH_MAX - 1] + "…"


def _when(moment: datetime, zone: tzinfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M %Z}"


def _number(payload: Mapping[str, object], name: str) -> float | None:
    value = payload.get(name)
    return value if isinstance(value, int | float) else None


def _whole(payload: Mapping[str, object], *names: str) -> int | None:
    """The first of these that is there."""
    return next((value for name in names if isinstance(value := payload.get(name), int)), None)
