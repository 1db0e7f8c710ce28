"""From successive readings of one counter to energy: wraps, resets, gaps. Pure.

A gap is filled with the device's mean power so far, and the next counter value puts that right: over time, what is
emitted is what the counter counted. Only a reset, or a counter that was not read yet, loses energy for good. The
interval says so, and the point is then the mean power of the time before. Where none was known, it is half of the
greatest power, put right by the first power that is known if that comes soon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlflow_green.records import Device, Energy, Method, Reading
from mlflow_green.units import microjoules

# A wrap or a reset? Nothing draws more than this times its stated maximum for a whole window.
WRAP_POWER_FACTOR = 1.5
# The longest time of unknown power that is put right later. After more, others would pay than those who were charged.
UNKNOWN_SECONDS_MAX = 10.0
# No device draws nothing for so long: a counter that has not moved does not count (some virtual machines show such).
STILL_SECONDS = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEnergy:
    """What one device used in one window of ``seconds``, of which ``covered_seconds`` lay between valid reads.

    ``idle_microjoules`` is the sensor's own idle part, ``None`` where the sensor has none. ``is_as_counted`` says that
    the energy is the counter's for just this time: nothing is estimated, and nothing of an estimate put right.
    ``hidden_microjoules`` of the energy's high end are for work that the sensor may not have seen yet.
    """

    device: Device
    energy: Energy
    idle_microjoules: int | None
    seconds: float
    covered_seconds: float
    is_as_counted: bool
    hidden_microjoules: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What must be remembered of a device between two windows.

    ``last`` is the last valid reading, ``begun_seconds`` the first look at the device and ``until_seconds`` the end of
    the last window, on the monotonic clock (``None`` before the first look).
    ``known_microjoules`` in ``known_seconds`` give the mean power so far. ``ahead_microjoules`` were emitted for gaps
    and the counter has not confirmed them yet.
    """

    device: Device
    last: Reading | None = None
    begun_seconds: float | None = None
    until_seconds: float | None = None
    known_microjoules: int = 0
    known_seconds: float = 0.0
    ahead_microjoules: int = 0


def advance(track: Track, reading: Reading) -> tuple[Track, DeviceEnergy | None]:
    """Close the window that ends with ``reading``; ``None`` at the first look, and where no time has passed."""
    now_seconds, is_valid = reading.monotonic_seconds, reading.energy_microjoules is not None
    if track.until_seconds is None:
        last = reading if is_valid else None
        return replace(track, last=last, begun_seconds=now_seconds, until_seconds=now_seconds), None
    seconds = now_seconds - track.until_seconds
    if seconds <= 0:
        return track, None
    if not is_valid:
        return _uncovered(track, now_seconds, seconds)
    gained = None if track.last is None else counter_gain_microjoules(track.device, track.last, reading)
    stands_still = gained == 0 and seconds >= STILL_SECONDS and track.device.method is Method.MEASURED
    if stands_still:
        return _uncovered(track, now_seconds, seconds)
    if track.last is None or gained is None:
        after, window = _uncovered(track, now_seconds, seconds)
        ahead = after.ahead_microjoules if _is_put_right(track, reading) else 0
        return replace(after, last=reading, ahead_microjoules=ahead), window
    return _covered(track, track.last, reading, gained, seconds)


def counter_gain_microjoules(device: Device, before: Reading, after: Reading) -> int | None:
    """How far the counter moved between two valid readings, never negative; ``None`` when it was reset.

    It wrapped, rather than was reset, only if the power that this implies is possible and the time too short for
    another wrap. Over a longer time the number of wraps is unknown, which is as good as a reset.
    """
    assert before.energy_microjoules is not None
    assert after.energy_microjoules is not None
    gain = after.energy_microjoules - before.energy_microjoules
    if device.counter_range_microjoules is None:
        return gain if gain >= 0 else None
    seconds = after.monotonic_seconds - before.monotonic_seconds
    if microjoules(device.power_watts_max * seconds) >= device.counter_range_microjoules:
        return None
    if gain >= 0:
        return gain
    wrapped = gain + device.counter_range_microjoules + 1
    possible = microjoules(WRAP_POWER_FACTOR * device.power_watts_max * seconds)
    return wrapped if 0 <= wrapped <= possible else None


def _covered(track: Track, last: Reading, reading: Reading, gained: int, seconds: float) -> tuple[Track, DeviceEnergy]:
    low, high = _interval(track.device, last, reading, gained)
    bridged_seconds = max(0.0, reading.monotonic_seconds - last.monotonic_seconds - seconds)
    low = max(0, low - microjoules(track.device.power_watts_max * bridged_seconds))  # drawn before this window
    due = gained + _unknown_microjoules(track, last, reading, gained) - track.ahead_microjoules
    emitted = max(0, due)
    window = DeviceEnergy(
        device=track.device,
        energy=Energy(
            microjoules=emitted,
            low_microjoules=min(low, emitted),
            high_microjoules=max(high, emitted),
            method=track.device.method,
        ),
        idle_microjoules=_idle(last, reading, emitted),
        seconds=seconds,
        covered_seconds=seconds,
        is_as_counted=emitted == gained and bridged_seconds == 0,
    )
    after = replace(
        track,
        last=reading,
        until_seconds=reading.monotonic_seconds,
        known_microjoules=track.known_microjoules + gained,
        known_seconds=track.known_seconds + reading.monotonic_seconds - last.monotonic_seconds,
        ahead_microjoules=max(0, -due),
    )
    return after, window


def _unknown_microjoules(track: Track, last: Reading, reading: Reading, gained: int) -> int:
    """What the device drew before any power was known of it, at the first power that is.

    It was charged half of its greatest power for that time, which is far off on an idle machine.
    """
    if track.begun_seconds is None or not _is_put_right(track, last):
        return 0
    unknown_seconds = max(0.0, last.monotonic_seconds - track.begun_seconds)
    return round(gained * unknown_seconds / (reading.monotonic_seconds - last.monotonic_seconds))


def _is_put_right(track: Track, first_valid: Reading) -> bool:
    """Whether the time up to this reading had no known power, and was short."""
    if track.known_seconds > 0 or track.begun_seconds is None:
        return False
    return first_valid.monotonic_seconds - track.begun_seconds <= UNKNOWN_SECONDS_MAX


def _uncovered(track: Track, now_seconds: float, seconds: float) -> tuple[Track, DeviceEnergy]:
    """Time without a valid read: estimated as mean power so far, anything from 0 to P_max.

    The greatest power of a model is a value like its others, so the high end has the model's error too.

    Before any power is known the point is half of P_max x time. Zero would make a broken sensor free, P_max would
    charge an idle machine as a busy one; the middle of the interval is the value that can be least wrong.
    """
    most = microjoules(track.device.power_watts_max * seconds)
    highest = most
    if track.device.method is Method.ESTIMATED:
        highest = round(most * (1 + track.device.error_ratio))
    point = most // 2
    if track.known_seconds > 0:
        point = round(track.known_microjoules * seconds / track.known_seconds)
    window = DeviceEnergy(
        device=track.device,
        energy=Energy(
            microjoules=point,
            low_microjoules=0,
            high_microjoules=max(point, highest),
            method=Method.ESTIMATED,
        ),
        idle_microjoules=None,
        seconds=seconds,
        covered_seconds=0.0,
        is_as_counted=False,
    )
    after = replace(track, until_seconds=now_seconds, ahead_microjoules=track.ahead_microjoules + point)
    return after, window


def _interval(device: Device, last: Reading, reading: Reading, gained: int) -> tuple[int, int]:
    """The sensor's own interval where it has one, else the device's error band; it always holds the point."""
    low = _gain(last.energy_low_microjoules, reading.energy_low_microjoules)
    high = _gain(last.energy_high_microjoules, reading.energy_high_microjoules)
    if low is None:
        low = round(gained * (1 - device.error_ratio))
    if high is None:
        high = round(gained * (1 + device.error_ratio))
    return max(0, min(low, gained)), max(high, gained)


def _idle(last: Reading, reading: Reading, emitted: int) -> int | None:
    idle = _gain(last.idle_microjoules, reading.idle_microjoules)
    return None if idle is None else min(idle, emitted)


def _gain(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None or after < before else after - before
