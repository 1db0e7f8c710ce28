"""Letters through Apprise (Slack, Teams, Mattermost, Matrix and more): the extra ``mlflow-green[apprise]``."""

from __future__ import annotations

import logging

from mlflow_green.alerts.carrier import Letter
from mlflow_green.errors import ChannelFailed


class AppriseCarrier:
    """Hands letters to one Apprise address, which holds the secret of its service: it is in no message of ours."""

    def __init__(self, url: str) -> None:
        self._url = url

    def carry(self, letter: Letter) -> None:
        try:
            import apprise
        except ImportError:
            raise ChannelFailed("Apprise is missing; install it: pip install 'mlflow-green[apprise]'") from None
        log = logging.getLogger("apprise")
        was_disabled, log.disabled = log.disabled, True  # it writes the addresses, with their secrets
        text = f"{letter.text}\nMessage id: {letter.letter_id}"
        try:
            door = apprise.Apprise()
            is_known = door.add(self._url)
            is_taken = is_known and door.notify(title=letter.subject, body=text, body_format=apprise.NotifyFormat.TEXT)
        except Exception as error:  # noqa: BLE001 - a host: whatever a service's plugin does, the letter is tried again
            raise ChannelFailed(f"Apprise failed: {type(error).__name__}") from None
        finally:
            log.disabled = was_disabled
        if not is_known:
            raise ChannelFailed("Apprise does not know such an address; see github.com/caronc/apprise/wiki")
        if not is_taken:
            raise ChannelFailed("the service did not take it; Apprise does not say why")
