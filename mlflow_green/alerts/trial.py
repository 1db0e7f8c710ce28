"""A message that says that it is a test, to every address of one channel; the ledger does not know of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import uuid4

from mlflow_green.alerts.addresses import Address, Carriers, addresses
from mlflow_green.alerts.carrier import Letter
from mlflow_green.errors import ChannelFailed
from mlflow_green.policy.document import Channel


def try_channel(carriers: Carriers, name: str, channel: Channel, now: datetime) -> Iterator[tuple[Address, str | None]]:
    """Each address and why it did not take the message, ``None`` where it did."""
    text = (
        f"This is a test of channel {name} by 'mlflow-green alerts test'. No budget has changed; nothing is to be done."
    )
    letter = Letter(
        letter_id=uuid4().hex,
        written_at=now,
        subject=f"mlflow-green: TEST of channel {name}",
        text=text + "\n",
        data={"subject": f"TEST of channel {name}", "is_test": True, "alert_ids": [], "alerts": []},
    )
    for address in addresses(name, channel):
        try:
            carriers.carry(address, letter)
        except ChannelFailed as error:
            yield address, str(error)
        else:
            yield address, None
