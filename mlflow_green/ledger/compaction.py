"""What a grown ledger can do without: pure rules, shared by every ledger that is compacted.

Nobody asks any more for a message that was delivered, for an answer that another one has replaced, and for the single
windows of a sampler that is over. The journal, the entries, holds, facts, allowances and policies stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from mlflow_green.records import NodeWindow

ONCE_ONLY = "|forecast"
"""How the ``dedup`` of an alert ends that nothing but its row keeps from being promised again."""

Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What went, or would go. ``windows`` is how many fewer there are now that some are joined.

    ``messages`` is by kind. ``bytes_before`` and ``bytes_after`` are what the ledger takes on the disk, ``None`` where
    that is not known. ``kept`` says why this ledger is never compacted, ``problem`` why its file is as large as before.
    """

    messages: Mapping[str, int]
    decisions: int
    windows: int
    bytes_before: int | None = None
    bytes_after: int | None = None
    kept: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An answer: its number, which grows, and what decides whether it is needed."""

    number: int
    at: datetime
    step_key: str
    has_hold: bool
    waits: bool


def latest_letters(delivered: Iterable[tuple[int, str]]) -> frozenset[int]:
    """The last delivered letter to each address, of their numbers and ``dedup``.

    An address's quiet window counts from it, and the next letter is numbered after it.
    """
    return frozenset({dedup.rpartition("|")[0]: number for number, dedup in sorted(delivered)}.values())


def superseded(answers: Iterable[Given], before: datetime) -> Iterator[int]:
    """The numbers of the answers before a time that no question needs any more.

    Of a step that has its answer, that one and the last wait stay; of one that waits, where the waiting began and where
    it stands. What led to a hold stays, and so does the row that the next answer is compared with.
    """
    by_step: defaultdict[str, list[Given]] = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: (answer.at, answer.number)):
        by_step[answer.step_key].append(answer)
    for rows in by_step.values():
        needed = _needed(rows) | {max(row.number for row in rows)}
        yield from (row.number for row in rows if row.at < before and not row.has_hold and row.number not in needed)


def _needed(rows: Sequence[Given]) -> set[int]:
    waits = [row.number for row in rows if row.waits]
    if not rows[-1].waits:
        return {rows[-1].number, *waits[-1:]}
    amid = {
        row.number
        for (earlier, row), (_, later) in pairwise(pairwise(rows))
        if earlier.waits and row.waits and later.waits
    }
    return {row.number for row in rows} - amid


def adjoining(windows: Iterable[NodeWindow], runs: Mapping[str, Sequence[Span]]) -> Iterator[tuple[NodeWindow, ...]]:
    """The windows that may be joined into one, two at least, in their order.

    ``runs`` are the times of the workflow runs that each sampler metered: a report about one of them sums the windows
    that touch it, so what touches a run is never joined with what does not.
    """
    by_domain: defaultdict[tuple[str, ...], list[NodeWindow]] = defaultdict(list)
    for window in windows:
        by_domain[window.sampler_id, window.host, window.boot_id, window.domain].append(window)
    for (sampler_id, *_), of_domain in by_domain.items():
        of_domain.sort(key=lambda window: window.sequence_first)
        chain = of_domain[:1]
        for first, second in pairwise(of_domain):
            if not _adjoin(first, second, runs.get(sampler_id, ())):
                if len(chain) > 1:
                    yield tuple(chain)
                chain = []
            chain.append(second)
        if len(chain) > 1:
            yield tuple(chain)


def _adjoin(first: NodeWindow, second: NodeWindow, runs: Sequence[Span]) -> bool:
    follows = second.sequence_first == first.sequence_last + 1 and second.started_at == first.ended_at
    return follows and all(_touches(first, run) == _touches(second, run) for run in runs)


def _touches(window: NodeWindow, run: Span) -> bool:
    return window.started_at <= run[1] and window.ended_at >= run[0]


def joined(chain: Sequence[NodeWindow]) -> NodeWindow:
    """The windows of a chain as one; at least one."""
    whole = chain[0]
    for window in chain[1:]:
        whole = whole.joined(window)
    return whole
