"""What a budget will have spent when its period ends, and when it will be used up; pure.

The method is a two-stage bootstrap of days (B. Efron, "Bootstrap methods", Annals of Statistics 7, 1979): the daily
spends of the last 7 to 28 whole days are resampled, and the days to come are drawn from that sample. So the interval
covers both how much days differ and how few of them are known. It takes days for alike: a weekly rhythm widens the
interval, and a change of habits is not foreseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from itertools import accumulate
from math import ceil
from random import Random

DAYS_MIN = 7
DAYS_MAX = 28
ACTIVE_DAYS_MIN = 5
DRAWS = 500
LEVEL_PERCENT = 90
HORIZON_DAYS = 366
METHOD = "two-stage bootstrap of the daily spends of the last {days} days, {active} of them active"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhaustion:
    """A forecast with its interval: 90 % of the draws lie in [low, high].

    ``spent_*`` is what is spent when the period ends, in the unit's integer scale; ``None`` for a period without an
    end. ``used_up_*`` is the end of the day on which the limit is reached; ``None`` where that is not before the end of
    the period, or of a year. ``daily`` is the mean spend a day.
    """

    spent_low: int | None
    spent_point: int | None
    spent_high: int | None
    used_up_first: datetime | None
    used_up_middle: datetime | None
    used_up_last: datetime | None
    daily: int
    method: str

    def is_sure_of(self, amount: int) -> bool | None:
        """Whether ``amount`` is reached in the period; ``None`` where the interval lies on both sides of it."""
        if self.spent_low is None or self.spent_high is None:
            return None
        if self.spent_low >= amount:
            return True
        return None if self.spent_high >= amount else False


def daily_spends(spends: Sequence[tuple[datetime, int]], *, now: datetime, zone: tzinfo) -> tuple[int, ...]:
    """The sum of each whole day before today, oldest first: from the first spend on, at most 28; a day without is 0."""
    today = now.astimezone(zone).date()
    by_day: dict[int, int] = {}
    for at, amount in spends:
        age = (today - at.astimezone(zone).date()).days
        if age > 0:
            by_day[age] = by_day.get(age, 0) + amount
    oldest = min(max(by_day, default=0), DAYS_MAX)
    return tuple(by_day.get(age, 0) for age in range(oldest, 0, -1))


def exhaustion(
    days: Sequence[int], *, spent: int, limit: int, now: datetime, end: datetime | None
) -> Exhaustion | None:
    """The forecast from the daily spends ``days``; ``None`` with fewer than 7 days or 5 active ones.

    ``end`` is when the period ends, ``None`` if it never does. The same arguments give the same answer.
    """
    active = sum(1 for amount in days if amount)
    if len(days) < DAYS_MIN or active < ACTIVE_DAYS_MIN:
        return None
    left_days = HORIZON_DAYS if end is None else max(0.0, (end - now) / timedelta(days=1))
    ends, crossings = _draws(days, spent=spent, limit=limit, left_days=left_days)
    horizon = None if end is None else _quantiles(ends)
    moments = [None if day > left_days else now + timedelta(days=day) for day in _quantiles(crossings)]
    return Exhaustion(
        spent_low=horizon and horizon[0],
        spent_point=horizon and horizon[1],
        spent_high=horizon and horizon[2],
        used_up_first=moments[0],
        used_up_middle=moments[1],
        used_up_last=moments[2],
        daily=round(sum(days) / len(days)),
        method=METHOD.format(days=len(days), active=active),
    )


def _draws(days: Sequence[int], *, spent: int, limit: int, left_days: float) -> tuple[list[int], list[int]]:
    """What each draw has spent at the end, and after how many days it reaches the limit.

    The last day counts for the part of it that is left. A draw that never reaches it says one day more than there are.
    """
    random = Random(0)  # noqa: S311 - a fixed seed: a forecast can be repeated
    count = ceil(left_days)
    missing = count - left_days
    ends, crossings = [], []
    for _ in range(DRAWS):
        drawn = random.choices(random.choices(days, k=len(days)), k=count)
        if drawn:
            drawn[-1] = round(drawn[-1] * (1 - missing))
        totals = list(accumulate(drawn, initial=spent))
        ends.append(totals[-1])
        crossings.append(next((day for day, total in enumerate(totals) if total >= limit), count + 1))
    return ends, crossings


def _quantiles(values: Sequence[int]) -> tuple[int, int, int]:
    """The low end, the middle and the high end of the interval."""
    ordered = sorted(values)
    tail = len(ordered) * (100 - LEVEL_PERCENT) // 200
    return ordered[tail], ordered[len(ordered) // 2], ordered[-1 - tail]
