"""A step on its way through the recorder, from the question to the posted entry."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from mlflow_green.emissions.embodied import busy_seconds, embodied_micrograms
from mlflow_green.emissions.intensity_series import site_during
from mlflow_green.emissions.operational import cost_micro_units, operational_micrograms
from mlflow_green.records import (
    Action,
    Boundary,
    Decision,
    Domain,
    EmbodiedShare,
    Energy,
    Entry,
    Estimate,
    Hold,
    HoldRequest,
    Outcome,
    Site,
    Step,
    StepSpec,
    Term,
    Unit,
    Usage,
)

_WALLTIME_SECONDS = 3600.0  # of a batch job that says nothing


@dataclass(eq=False, slots=True, kw_only=True)
class Ticket:
    """The state of one step. Every field has one writing thread at a time, so readers need no lock.

    The asking thread creates it; the ledger thread writes the answer, what is granted and ``late_request``; the
    job's thread writes begin and end, or that it was placed; the ticker writes usage and halting; the host program
    tells the outcome.
    ``top_up_pending`` is set by the ticker with the question, and taken back by the ledger thread with the answer.

    ``late_request`` is there for a step that was admitted without a hold: the hold that it gets when it is settled,
    so that its budgets are charged. ``top_up_refused``: the last answer was less than what was asked for.

    ``needs_nothing``: it runs no program.
    ``is_view``: it is a part of a step that another meter, or another ticket of this one, posts and charges.
    ``is_own_process``: it is work of this process, such as a block, and not of one that is started for it.
    """

    step: Step
    spec: StepSpec
    group: str | None = None
    input_paths: tuple[str, ...] = ()
    needs_nothing: bool = False
    is_view: bool = False
    is_own_process: bool = False
    ticket_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    decision: Decision | None = None
    hold: Hold | None = None
    waiting_since: datetime | None = None
    late_request: HoldRequest | None = None
    granted: Mapping[Unit, int] = field(default_factory=dict)
    top_up_pending: bool = False
    top_up_asked_seconds: float = 0.0
    top_up_refused: bool = False
    overrun_said: bool = False

    # For a step that a batch system runs: the longest that it may run, if that is known, and where it was handed over.
    can_ask_for_more: bool = True
    walltime_seconds: float | None = None
    placed_at: datetime | None = None
    placement_id: str | None = None
    submitted: bool = False
    job_id: str | None = None
    told_at: datetime | None = None

    began_at: datetime | None = None
    began_monotonic_seconds: float = 0.0
    is_leaving: bool = False  # its main process has ended: too late to halt it
    ended_at: datetime | None = None
    duration_seconds: float | None = None

    usage: Usage | None = None
    usage_final: bool = False
    halt_reason: str | None = None
    over_grant: str | None = None  # why it should have been halted, for one that nobody may halt
    outcome: Outcome | None = None
    metrics_path: Path | None = None

    @property
    def hold_id(self) -> str:
        """The id under which the step is metered: the hold's, or its own where the ledger gave none."""
        return self.hold.hold_id if self.hold else self.ticket_id

    @property
    def asks_nobody(self) -> bool:
        """Whether no budget is asked for it; in a group it asks for nothing, and is answered with the others."""
        return self.needs_nothing and self.group is None

    @property
    def admitted(self) -> bool:
        return self.decision is not None and self.decision.admitted

    @property
    def refused(self) -> bool:
        return self.decision is not None and self.decision.action is Action.REFUSE

    @property
    def started(self) -> bool:
        """Whether it began here or was handed to a batch system: from then on its hold cannot be released."""
        return self.began_at is not None or self.placed_at is not None

    @property
    def running(self) -> bool:
        return self.began_at is not None and not self.is_leaving

    @property
    def charged_hold_id(self) -> str | None:
        """The hold that its entry settles; ``None`` for a step that was refused."""
        return self.hold_id if self.hold or self.late_request else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What is the same for every entry of one workflow execution.

    ``cores`` are the logical cores of the host, ``None`` in spools that older versions wrote.
    """

    project: str
    user: str
    host: str
    site: Site
    sampler_id: str | None
    power_watts_max: float
    cores: int | None = None


def bare_request(ticket: Ticket, book: Book, terms: Sequence[Term], now: datetime) -> HoldRequest:
    """Who pays for a step, without an estimate of what: for one that runs without a hold; pure."""
    dearest = ticket.spec.tiers[0].name if ticket.spec.tiers else None
    return HoldRequest(
        step=ticket.step,
        project=book.project,
        user=book.user,
        spec=ticket.spec,
        estimates=(Estimate(tier=dearest, amounts=None, source="not asked"),),
        terms=tuple(terms),
        requested_at=now,
        walltime_seconds=None if ticket.can_ask_for_more else ticket.walltime_seconds or _WALLTIME_SECONDS,
        hold_id=ticket.ticket_id,  # what is metered under one id stays under it
    )


def entry_of(ticket: Ticket, outcome: Outcome, book: Book, now: datetime) -> Entry:
    """The entry of a step that ended, or that was refused; pure."""
    usage = ticket.usage
    energy: Mapping[Domain, Energy] = usage.energy if usage else {}
    began = ticket.began_at or now
    duration = ticket.duration_seconds or 0.0
    decision = ticket.decision
    reason = ticket.halt_reason or (decision.reason if decision else "")
    return build_entry(
        entry_id=ticket.hold_id,
        hold_id=ticket.charged_hold_id,
        step=ticket.step,
        spec=ticket.spec,
        tier=decision.tier if decision else None,
        decision=decision.action if decision else Action.ADMIT,
        would_decision=decision.would if decision else Action.ADMIT,
        reason=reason,
        outcome=outcome,
        started_at=began,
        duration_seconds=duration,
        usage=usage,
        charged_microjoules=sum(part.microjoules for part in energy.values()),
        book=book,
    )


def build_entry(  # noqa: PLR0913 - an entry has many parts, and every one is named
    *,
    entry_id: str,
    hold_id: str | None,
    step: Step,
    spec: StepSpec,
    tier: str | None,
    decision: Action,
    would_decision: Action,
    reason: str,
    outcome: Outcome,
    started_at: datetime,
    duration_seconds: float,
    usage: Usage | None,
    charged_microjoules: int,
    book: Book,
) -> Entry:
    """Join what is known about a step into its entry; pure. Carbon and money follow the charged energy."""
    ended_at = started_at + timedelta(seconds=duration_seconds)
    site = site_during(book.site, started_at, ended_at)
    # A step that was killed before its first reading is charged all the same; one that was refused is not.
    counts = usage is not None or charged_microjoules > 0
    return Entry(
        entry_id=entry_id,
        hold_id=hold_id,
        project=book.project,
        user=book.user,
        workflow_run=step.workflow_run,
        step=step.name,
        wildcards=step.wildcards,
        attempt=step.attempt,
        host=book.host,
        started_at=started_at,
        ended_at=ended_at,
        duration_seconds=duration_seconds,
        outcome=outcome,
        tier=tier,
        decision=decision,
        would_decision=would_decision,
        reason=reason,
        phase=spec.phase,
        energy=usage.energy if usage else {},
        energy_charged_microjoules=charged_microjoules,
        boundary=Boundary.COMPONENT,
        sampler_id=book.sampler_id if usage else None,
        cpu_seconds=usage.cpu_seconds if usage else None,
        cpu_clock=usage.cpu_clock if usage else None,
        coverage_ratio=usage.coverage_ratio if usage else None,
        carbon_intensity_g_per_kwh=site.intensity.g_per_kwh if site.intensity else None,
        intensity_source=site.intensity.source if site.intensity else None,
        pue=site.pue,
        operational_micrograms_co2e=operational_micrograms(charged_microjoules, site) if counts else None,
        embodied_micrograms_co2e=_embodied(usage, duration_seconds, book),
        cost_micro_units=cost_micro_units(charged_microjoules, site) if counts else None,
        currency=site.currency if counts else None,
    )


def _embodied(usage: Usage | None, duration_seconds: float, book: Book) -> int | None:
    embodied = book.site.embodied
    if embodied is None or usage is None:
        return None
    gpu = usage.energy.get(Domain.GPU)
    if embodied.share is EmbodiedShare.CORES and gpu is not None and gpu.high_microjoules > 0:
        return None  # time on the cores says nothing about time on the GPUs
    cpu_seconds = usage.cpu_seconds if usage.cpu_clock else None
    busy = busy_seconds(embodied, duration_seconds=duration_seconds, cpu_seconds=cpu_seconds, cores=book.cores)
    return None if busy is None else embodied_micrograms(embodied, busy)
