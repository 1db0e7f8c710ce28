"""What brings a letter to one address: the Protocol of webhook, mail and Apprise, and what they hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from mlflow_green.records import check_aware

TRY_SECONDS = 10.0
"""How long one answer of a server is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One message to one address. ``letter_id`` is unique in the world and the same however often it is sent."""

    letter_id: str
    written_at: datetime
    subject: str
    text: str
    data: Mapping[str, object]

    def __post_init__(self) -> None:
        check_aware(self.written_at, "written_at")


class Carrier(Protocol):
    """One address. Used from one thread at a time."""

    def carry(self, letter: Letter) -> None:
        """Hand the letter over; when it returns, the other side has taken it.

        Raises:
            ChannelFailed: it did not, or nobody knows; the message holds no secret.
        """
        ...
