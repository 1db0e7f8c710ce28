"""What the next estimate of a step is made from: what it used before, and the size of its input; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlflow_green.records import Answer, Entry, Fact, HoldRequest, Outcome, PastUse

HISTORY_LENGTH_MAX = 200
INPUT_BYTES_FACT = "input/bytes"


def past_use(entry: Entry, input_bytes: int | None = None) -> PastUse | None:
    """What an entry teaches the next estimate; ``None`` when it was neither finished nor halted, or not metered."""
    total = entry.total
    if total is None or entry.outcome not in {Outcome.SUCCEEDED, Outcome.HALTED}:
        return None
    return PastUse(
        step=entry.step,
        wildcards=entry.wildcards,
        tier=entry.tier,
        energy_microjoules=total.microjoules,
        censored=entry.outcome is Outcome.HALTED,
        input_bytes=input_bytes,
    )


def input_sizes(requests: Sequence[HoldRequest], answers: Sequence[Answer]) -> Iterable[Fact]:
    """How large the input is of every step that got its hold, where that is known."""
    for request, answer in zip(requests, answers, strict=True):
        if answer.hold is not None and request.input_bytes is not None:
            yield Fact(hold_id=answer.hold.hold_id, name=INPUT_BYTES_FACT, value=request.input_bytes)
