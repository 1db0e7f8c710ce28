"""When an address may get its next message: quiet windows, quiet hours and digests; pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo

from mlflow_green.policy.document import Channel


def opens_at(
    channel: Channel,
    waiting: Sequence[datetime],
    last_at: datetime | None,
    *,
    is_urgent: bool,
    now: datetime,
    zone: tzinfo,
) -> datetime:
    """When the alerts that came at these times may be told, all in one message; not before ``now``.

    ``last_at`` is when the address took its last message: never within ``quiet`` after that. With ``digest`` not before
    the first alert is that old; not in the quiet hours of ``zone``, unless it is urgent. ``waiting`` is not empty.
    """
    moment = max(now, min(waiting) + timedelta(seconds=channel.digest_seconds or 0))
    if last_at is not None:
        moment = max(moment, last_at + timedelta(seconds=channel.quiet_seconds))
    if is_urgent or channel.quiet_hours is None:
        return moment
    return channel.quiet_hours.end_after(moment, zone) or moment
