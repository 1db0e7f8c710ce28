"""What travels with a job that a batch system runs: all that its node needs to meter it and to keep it to its grant.

The node never opens the ledger, so nothing is asked from there. It travels in one environment variable, as base64 of
compressed JSON: no shell and no batch system finds a character in it to quote.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow_green.errors import SettingsError
from mlflow_green.policy.leash import Leash
from mlflow_green.recorder.ticket import Ticket
from mlflow_green.records import Decision, Hold, HoldRequest, Owner, Site, Step, StepSpec, Unit
from mlflow_green.spool import from_json, to_json

VARIABLE = "GREEN_PLACEMENT"
_OBSERVED = "observed."  # readable by a node whose version cannot read the rest


def is_enforced(text: str) -> bool:
    """Whether a hard budget must be kept, or may have to be, for a job that was sent with this text."""
    return not text.startswith(_OBSERVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedStep:
    """One step of the job: the answer that it got, and what ends it."""

    ticket_id: str
    step: Step
    spec: StepSpec
    decision: Decision
    hold: Hold | None
    late_request: HoldRequest | None
    granted: Mapping[Unit, int]
    leashes: tuple[Leash, ...]
    grace_seconds: float

    def ticket(self) -> Ticket:
        """The step's ticket, answered."""
        return Ticket(
            step=self.step,
            spec=self.spec,
            ticket_id=self.ticket_id,
            decision=self.decision,
            hold=self.hold,
            late_request=self.late_request,
            granted=dict(self.granted),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One job of a batch system: one step, or the members of a group.

    ``main`` is the process that posts what the node writes into ``spool_dir``, a folder that both see under this name.
    ``tier_environments`` are the variables that a step of a tier sees, by the tier's name.
    """

    placement_id: str
    main: Owner
    workflow_run: str
    project: str
    user: str
    site: Site
    spool_dir: str
    acts: bool
    enforces: bool
    steps: tuple[PlacedStep, ...]
    tier_environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (self.placement_id, str), (self.main, Owner), (self.site, Site), (self.spool_dir, str)
        inner = *((step, PlacedStep) for step in self.steps), (self.tier_environments, Mapping)
        if not all(isinstance(*part) for part in (*parts, *inner)):
            raise TypeError("a part of it is missing")

    def encoded(self) -> str:
        data = json.dumps(to_json(self), separators=(",", ":")).encode()
        mark = "" if self.enforces else _OBSERVED
        return mark + base64.urlsafe_b64encode(zlib.compress(data, level=9)).decode()

    @classmethod
    def decoded(cls, text: str) -> Placement:
        """Raises ``SettingsError`` if this is not what ``encoded`` made."""
        try:
            placement = from_json(
                cls, json.loads(zlib.decompress(base64.urlsafe_b64decode(text.removeprefix(_OBSERVED))))
            )
            if not isinstance(placement, cls):
                raise TypeError(f"{placement!r} is no placement")  # noqa: TRY301 - told as every other garbage is
        except (binascii.Error, zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SettingsError(
                f"{VARIABLE} is not what the main process sent with this job ({error}); install the same version of"
                " mlflow-green on the nodes and where snakemake is started"
            ) from error
        return placement
