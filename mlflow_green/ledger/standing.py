"""What a batch touches, as the books have it: what the rules read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow_green.ledger.allowances import Extras, LimitKey
from mlflow_green.ledger.holds import BookedHold
from mlflow_green.ledger.windows import WindowKey
from mlflow_green.records import Action, ApprovedLimit, Balance, BucketKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a batch touches, as the books have it: nothing else may be missing, more may be there.

    ``generation`` is the number of the last change of any balance. ``holds`` have every open hold that wants more under
    one of the ``balances``, whose ``pending`` that is. ``entry_ids`` and ``window_keys`` are those of the batch that
    were posted before. ``last_decisions`` maps a step's key to the action and reason that it was answered last.
    ``lost_charges`` is what each hold of the batch's closings that was given up was charged so far, corrections
    included; ``lost_reads`` the microjoules that were metered of it at most in one start. A bucket that inherits from
    one that is here, or that one here inherits from, is here too. ``extras`` are those of the buckets, ``approved`` the
    limits of their budgets.
    """

    generation: int
    balances: Mapping[BucketKey, Balance] = field(default_factory=dict)
    holds: Mapping[str, BookedHold] = field(default_factory=dict)
    entry_ids: frozenset[str] = frozenset()
    window_keys: frozenset[WindowKey] = frozenset()
    last_decisions: Mapping[str, tuple[Action, str]] = field(default_factory=dict)
    lost_charges: Mapping[tuple[str, BucketKey], int] = field(default_factory=dict)
    lost_reads: Mapping[str, int] = field(default_factory=dict)
    extras: Mapping[BucketKey, Extras] = field(default_factory=dict)
    approved: Mapping[LimitKey, ApprovedLimit] = field(default_factory=dict)
