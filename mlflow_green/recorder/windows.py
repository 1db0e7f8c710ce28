"""Node windows as spools hold them: single ticks, some of them posted before, some of them in two files."""

from __future__ import annotations

from collections.abc import Iterable

from mlflow_green.ledger.ledger import Ledger
from mlflow_green.metering.sampler import merge_windows
from mlflow_green.records import NodeWindow


def unposted_windows(ledger: Ledger, windows: Iterable[NodeWindow]) -> tuple[NodeWindow, ...]:
    """Those of single ticks that the ledger has not seen, each once, and joined where they follow each other.

    A sampler's last window is in two spools when the process that closed it died before anybody knew it was written.
    """
    found = {(window.sampler_id, window.domain, window.sequence_first): window for window in windows}
    posted = {sampler_id: ledger.posted_sequences(sampler_id) for sampler_id in {key[0] for key in found}}
    return merge_windows(
        [
            window
            for (sampler_id, domain, sequence), window in found.items()
            if not any(first <= sequence <= last for first, last in posted[sampler_id].get(domain, ()))
        ]
    )
