"""From polled power to energy, with the bounds that follow from what was seen between the polls. Pure."""

from __future__ import annotations

# NVML renews its power value every 20 to 100 ms (Yang et al. 2024, arXiv:2312.02741); more is never assumed.
UPDATE_SECONDS_MAX = 0.100
POLL_SECONDS_MIN = 0.020
# So many changes of the value must be seen, at the shortest period, before the update period is believed.
CHANGES_MIN = 8
# After so many equal values there is nothing to learn, and polling as seldom as the slowest GPU needs is enough.
EQUAL_POLLS_MAX = 50


class PowerTrace:
    """The energy of a device whose power is polled, as counters in joules that grow from poll to poll.

    A value is the power at its last update, within the ``update_seconds`` before its poll. So the power between two
    polls lies between the least and the greatest value seen from the first of them until the first update after the
    second, as long as no level of power is shorter than the time from one poll to the next. That update has come when
    the value changes, and after ``update_seconds`` at the latest. The point is the trapezoid of the two polls. Where
    ``read`` comes before that update, or polls are missing, the bounds are 0 and ``power_watts_max``. The device's own
    error is not in them.
    """

    def __init__(self, power_watts_max: float) -> None:
        self._power_watts_max = power_watts_max
        self._polls: list[tuple[float, float]] = []  # the last one that is settled, and all after it
        self._changed: tuple[float, float] | None = None  # the polls around the last change of the value
        self._changes = self._equal_polls = 0
        self.update_seconds = UPDATE_SECONDS_MAX
        self.energy_joules = self.low_joules = self.high_joules = 0.0

    @property
    def poll_seconds(self) -> float:
        """How soon the next poll should come, so that no value is missed."""
        if self._changes < CHANGES_MIN and self._equal_polls < EQUAL_POLLS_MAX:
            return POLL_SECONDS_MIN
        return max(POLL_SECONDS_MIN, self.update_seconds / 2)

    @property
    def polled_seconds(self) -> float | None:
        """When the last poll was, ``None`` before the first."""
        return self._polls[-1][0] if self._polls else None

    def poll(self, now_seconds: float, power_watts: float) -> None:
        """Take in one value, in watts; a time that does not advance is passed over."""
        is_update = False
        if self._polls:
            before_seconds, before_watts = self._polls[-1]
            if now_seconds <= before_seconds:
                return
            self.energy_joules += (before_watts + power_watts) / 2 * (now_seconds - before_seconds)
            is_update = power_watts != before_watts
            if is_update:
                self._learn(before_seconds, now_seconds)
            else:
                self._equal_polls += 1
        self._polls.append((now_seconds, power_watts))
        powers_watts = [watts for _, watts in self._polls]
        low_watts, high_watts = min(powers_watts), max(powers_watts)
        while self._polls[2:] and (is_update or self._polls[1][0] + self.update_seconds <= now_seconds):
            self._settle(low_watts, high_watts)

    def read(self) -> None:
        """Settle everything up to the last poll: what its next value would have told stays unknown."""
        while len(self._polls) > 1:
            self._settle(0.0, max(self._power_watts_max, self._polls[0][1], self._polls[1][1]))

    def _settle(self, low_watts: float, high_watts: float) -> None:
        from_seconds, until_seconds = self._polls[0][0], self._polls[1][0]
        seconds = until_seconds - from_seconds
        if seconds > 2 * self.update_seconds:  # polls are missing
            low_watts, high_watts = 0.0, max(self._power_watts_max, high_watts)
        self.low_joules += low_watts * seconds
        self.high_joules += high_watts * seconds
        del self._polls[0]

    def _learn(self, before_seconds: float, now_seconds: float) -> None:
        """The update period is at most the longest time that can lie between two changes of the value."""
        if self._changed is not None:
            self.update_seconds = max(POLL_SECONDS_MIN, min(self.update_seconds, now_seconds - self._changed[0]))
            self._changes += 1
        self._equal_polls = 0
        self._changed = (before_seconds, now_seconds)
