"""The tree of accounts: organisation > project > user, as paths such as ``org:lab/project:vision/user:ana``; pure."""

from __future__ import annotations

from itertools import accumulate, pairwise


def ancestry(account: str) -> dict[str, str | None]:
    """The account and all above it, the topmost first, each with the one right above it: ``None`` for the topmost."""
    lineage = list(accumulate(account.split("/"), "{}/{}".format))
    return {lineage[0]: None} | {name: above for above, name in pairwise(lineage)}
