"""Every record that flows from one layer to the next: frozen, in named units, checked on creation.

Energies are integers in microjoules, carbon in micrograms of CO2e, money in micro-units. A
missing value is ``None``, never 0. Times are aware UTC; durations come from a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum


class Domain(StrEnum):
    """A part of the node that is metered by itself; domains never overlap."""

    CPU = "cpu"
    DRAM = "dram"
    GPU = "gpu"
    PLATFORM = "platform"


class Method(StrEnum):
    """How a number was obtained: read from a counter, modelled, or a sum of both."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    MIXED = "mixed"


class Boundary(StrEnum):
    """What an energy includes: the metered components, the whole node, or the facility (x PUE)."""

    COMPONENT = "component"
    NODE = "node"
    FACILITY = "facility"


class CpuClockName(StrEnum):
    """How the CPU time of a job was obtained, most exact first."""

    CGROUP = "cgroup"
    PERF = "perf"
    WAIT4 = "wait4"
    POLLING = "polling"

    @property
    def is_exact(self) -> bool:
        """Whether the clock sees all that a job uses; the others' values are lower bounds."""
        return self in {CpuClockName.CGROUP, CpuClockName.PERF}


class Unit(StrEnum):
    """What a budget counts: energy in microjoules, carbon in micrograms, money in micro-units."""

    ENERGY = "energy"
    CARBON = "carbon"
    MONEY = "money"


class Mode(StrEnum):
    """How a budget acts: it watches, it advises, or it decides."""

    OBSERVE = "observe"
    SOFT = "soft"
    HARD = "hard"


class Action(StrEnum):
    """What the policy answers to a step."""

    ADMIT = "admit"
    DOWNGRADE = "downgrade"
    WAIT = "wait"
    REFUSE = "refuse"
    HALT = "halt"


class Outcome(StrEnum):
    """How a step ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    HALTED = "halted"
    REFUSED = "refused"
    LOST = "lost"
    CANCELLED = "cancelled"


def check_aware(moment: datetime, name: str) -> None:
    """Raise ``ValueError`` unless ``moment`` has a time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{name} must be an aware UTC time, got {moment!r}")


# --- energy -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """An energy with its interval, in microjoules: 0 <= low <= point <= high."""

    microjoules: int
    low_microjoules: int
    high_microjoules: int
    method: Method

    def __post_init__(self) -> None:
        if not 0 <= self.low_microjoules <= self.microjoules <= self.high_microjoules:
            raise ValueError(f"not 0 <= low <= point <= high: {self!r}")

    def __add__(self, other: Energy) -> Energy:
        """The sum; low and high add linearly, for errors of one device are not independent."""
        return Energy(
            microjoules=self.microjoules + other.microjoules,
            low_microjoules=self.low_microjoules + other.low_microjoules,
            high_microjoules=self.high_microjoules + other.high_microjoules,
            method=self.method if self.method == other.method else Method.MIXED,
        )


def total_energy(parts: Iterable[Energy]) -> Energy | None:
    """The sum of the parts, ``None`` where there is no part."""
    total: Energy | None = None
    for part in parts:
        total = part if total is None else total + part
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that a sensor reads.

    ``counter_range_microjoules`` is the largest value before the counter wraps to 0, ``None`` if it
    never does. ``counter_is_shared`` says that every process reads one and the same counter, the hardware's, so
    that one process can go on from what another has read; else the counter started when this process opened it.
    ``power_watts_max`` bounds what is believed. ``error_ratio`` is the half-width of
    the device's error band as a part of the reading, with its source in ``error_source``.
    ``aliases`` are other names that a job's environment may give it, e.g. a GPU's index.
    """

    name: str
    domain: Domain
    method: Method
    power_watts_max: float
    error_ratio: float
    error_source: str
    counter_range_microjoules: int | None = None
    counter_is_shared: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """Who used a device between two reads, in weights >= 0 of one scale; all 0 where nobody did.

    ``by_pid`` are the processes that the driver names, as this host numbers them; 0 is somebody without a number.
    ``hidden`` belongs to processes that it does not name, ``idle`` to nobody. ``method`` is ``MEASURED`` where the
    weights are the driver's utilisation, ``ESTIMATED`` where they are an equal split or a hardware partition.
    """

    by_pid: Mapping[int, float]
    hidden: float = 0.0
    idle: float = 0.0
    method: Method = Method.MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value of a device's cumulative energy counter, since an arbitrary start.

    ``energy_microjoules`` is ``None`` when the read failed: a gap, never 0. Sensors that know their
    interval, or the part that the device draws whatever runs, give those as counters too; the
    others leave them ``None`` and the device's ``error_ratio`` applies. ``use`` is ``None`` where it is not known.
    """

    device: str
    monotonic_seconds: float
    energy_microjoules: int | None
    energy_low_microjoules: int | None = None
    energy_high_microjoules: int | None = None
    idle_microjoules: int | None = None
    use: DeviceUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWindow:
    """What one domain of the node used between two readings, and who is charged for it.

    ``attributed + idle + other == energy.microjoules``, exactly. Windows of one sampler and
    domain never overlap; ``sequence_first`` and ``sequence_last`` number the sampler's ticks that
    it covers, both included.
    """

    sampler_id: str
    host: str
    boot_id: str
    domain: Domain
    sequence_first: int
    sequence_last: int
    started_at: datetime
    ended_at: datetime
    energy: Energy
    attributed_microjoules: int
    idle_microjoules: int
    other_microjoules: int
    coverage_ratio: float

    def __post_init__(self) -> None:
        check_aware(self.started_at, "started_at")
        check_aware(self.ended_at, "ended_at")
        parts = self.attributed_microjoules + self.idle_microjoules + self.other_microjoules
        if parts != self.energy.microjoules:
            raise ValueError(f"shares {parts} are not the whole {self.energy.microjoules} microjoules")

    @property
    def duration_seconds(self) -> float:
        return (self.ended_at - self.started_at).total_seconds()

    def joined(self, after: NodeWindow) -> NodeWindow:
        """This window and the next one of its sampler and domain as one: sums, and coverage by time."""
        seconds = self.duration_seconds + after.duration_seconds
        covered = self.duration_seconds * self.coverage_ratio + after.duration_seconds * after.coverage_ratio
        return replace(
            self,
            sequence_last=after.sequence_last,
            ended_at=after.ended_at,
            energy=self.energy + after.energy,
            attributed_microjoules=self.attributed_microjoules + after.attributed_microjoules,
            idle_microjoules=self.idle_microjoules + after.idle_microjoules,
            other_microjoules=self.other_microjoules + after.other_microjoules,
            coverage_ratio=(
                min(1.0, covered / seconds) if seconds > 0 else min(self.coverage_ratio, after.coverage_ratio)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one consumer has used since it joined the sampler, up to the last closed window."""

    energy: Mapping[Domain, Energy]
    duration_seconds: float
    cpu_seconds: float
    cpu_clock: CpuClockName | None
    coverage_ratio: float

    @property
    def total(self) -> Energy | None:
        return total_energy(self.energy.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One closed window of the sampler: the node's windows and every consumer's usage so far.

    ``final`` names the consumers that had left before this window closed: their usage will not
    change any more, and this is the last tick that carries it. ``stolen_seconds`` is the CPU time, >= 0, that the
    hypervisor gave to others in the window though this machine wanted it: charged to nobody, ``None`` where unknown.
    ``others`` is what the windows of a leader have charged to the consumers of other processes so far: the last word
    about them, should their process die.
    """

    sampler_id: str
    sequence: int
    at: datetime
    windows: tuple[NodeWindow, ...]
    usages: Mapping[str, Usage]
    final: frozenset[str]
    stolen_seconds: float | None = None
    others: Mapping[str, Usage] | None = None


# --- footprint ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensitySeries:
    """Carbon intensity over time in g CO2e/kWh: each value counts for ``step_seconds``; ``None`` is a gap."""

    starts_at: datetime
    step_seconds: int
    g_per_kwh: tuple[float | None, ...]

    def __post_init__(self) -> None:
        check_aware(self.starts_at, "starts_at")
        if self.step_seconds <= 0:
            raise ValueError(f"a step of {self.step_seconds} s is no step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """Carbon intensity of a place's electricity in g CO2e/kWh, with its source, year and licence.

    What is used at a time that ``series`` knows is charged at that, all else at ``g_per_kwh``, a mean. Holds are
    made at ``g_per_kwh_high``.
    """

    g_per_kwh: float
    g_per_kwh_high: float
    source: str
    series: IntensitySeries | None = None


class EmbodiedShare(StrEnum):
    """What part of the node a job keeps busy: its CPU time as a part of all cores', or the whole node."""

    CORES = "cores"
    NODE = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Embodied:
    """Carbon from making a node, > 0, spread evenly over the time that it is used, > 0; ``source`` of both."""

    micrograms_co2e: int
    lifetime_seconds: int
    source: str
    share: EmbodiedShare = EmbodiedShare.CORES


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What turns component energy into carbon and money. ``intensity`` is ``None`` for an unknown place."""

    intensity: Intensity | None = None
    pue: float = 1.0
    node_overhead: float = 1.0
    price_per_kwh: float | None = None
    currency: str | None = None
    embodied: Embodied | None = None


# --- steps, estimates and decisions ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A variant of a step; ``energy_ratio`` is its energy as a part of the dearest tier's, in (0, 1]."""

    name: str
    energy_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """What is declared about a step: by ``params: green=`` in the rule or ``steps:`` in green.yaml."""

    tiers: tuple[Tier, ...] = ()
    energy_microjoules: int | None = None
    phase: str | None = None
    checkpoint: str | None = None
    quality_metric: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One execution of a step. ``wildcards`` is canonical text such as ``model=mlp,seed=1``, or empty."""

    workflow_run: str
    name: str
    wildcards: str = ""
    attempt: int = 1

    @property
    def key(self) -> str:
        """The idempotency key: a retry is paid for, a repeated request is not."""
        return f"{self.workflow_run}:{self.name}:{self.wildcards}:{self.attempt}"

    @property
    def label(self) -> str:
        """The step as people know it: ``train[model=mlp]``."""
        return f"{self.name}[{self.wildcards}]" if self.wildcards else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class PastUse:
    """What an earlier execution used; ``censored`` if it was halted before its end.

    ``input_bytes``, >= 0, is the size of its input files, ``None`` where that is not known.
    """

    step: str
    wildcards: str
    tier: str | None
    energy_microjoules: int
    censored: bool
    input_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a tier is expected to need; ``amounts`` is ``None`` when nothing is known.

    ``source`` says in words where it comes from, e.g. ``"maximum of 3 runs of train[model=mlp] x 1.3"``, ``basis``
    which of a few kinds that is, e.g. ``"maximum x 1.3"``. ``amounts`` are what is held. What the next run uses lies
    between ``low_microjoules`` and ``high_microjoules`` in ``level_ratio`` of all cases, in (0, 1); ``None`` where the
    history says nothing about that, and a high end of ``None`` where it has none.
    """

    tier: str | None
    amounts: Mapping[Unit, int] | None
    source: str
    basis: str = ""
    low_microjoules: int | None = None
    high_microjoules: int | None = None
    level_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """Tell ``to`` when spent (or committed) energy crosses ``at_ratio`` of the limit, in (0, ...)."""

    at_ratio: float
    of_committed: bool
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """What a period inherits from the one before, ``previous_period``.

    ``unused_ratio`` of what was left is added to the limit, at most ``cap_ratio`` of the limit; with
    ``carries_overspend`` what was spent beyond the limit is taken off. Both ratios are in [0, 1].
    """

    previous_period: str
    unused_ratio: float
    cap_ratio: float
    carries_overspend: bool


BucketKey = tuple[str, str, str, str]
"""What makes a bucket of the ledger one bucket: budget, account, unit and period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One budget that a step falls under, in one unit and period: the name of a ledger bucket.

    ``account`` is the path from organisation to user, e.g. ``project:load-forecast``; ``period`` is the
    canonical name of the current period, e.g. ``2026-11``, ``2026-W47``, ``total`` or ``workflow:ID``.
    ``limit`` is in the unit's integer scale. ``key``, which follows from the names, is looked up far more often than a
    term is made.
    """

    budget: str
    account: str
    unit: Unit
    period: str
    limit: int
    mode: Mode
    alerts: tuple[AlertRule, ...] = ()
    rollover: Rollover | None = None
    key: BucketKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.budget, self.account, self.unit.value, self.period))


class AllowanceKind(StrEnum):
    """Why a bucket's limit differs from its budget's: raised for its period, raised for a time, or inherited."""

    GRANT = "grant"
    OVERRIDE = "override"
    ROLLOVER = "rollover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What is added to the limit of one bucket, in the unit's integer scale, > 0; a rollover may also take off.

    An override counts until ``expires_at``, the others as long as their bucket. ``approver`` is whom ``requested_by``
    names as having agreed, which nobody verified; ``approved_by`` is who agreed under an identity of his own.
    """

    allowance_id: str
    kind: AllowanceKind
    budget: str
    account: str
    unit: Unit
    period: str
    amount: int
    made_at: datetime
    requested_by: str
    reason: str
    expires_at: datetime | None = None
    approver: str | None = None
    approved_by: str | None = None

    def __post_init__(self) -> None:
        check_aware(self.made_at, "made_at")
        if self.expires_at is not None:
            check_aware(self.expires_at, "expires_at")
        if (self.kind is AllowanceKind.OVERRIDE) != (self.expires_at is not None):
            raise ValueError(f"an override expires and nothing else does: {self!r}")
        if self.kind is not AllowanceKind.ROLLOVER and self.amount <= 0:
            raise ValueError(f"{self.kind} of {self.amount}: an amount is more than 0")

    @property
    def key(self) -> BucketKey:
        """The bucket's, as ``Term.key``."""
        return (self.budget, self.account, self.unit.value, self.period)

    @property
    def is_approved(self) -> bool:
        """Whether it counts, as long as it has not expired."""
        return self.kind is AllowanceKind.ROLLOVER or bool(self.approver or self.approved_by)

    def state(self, now: datetime) -> str:
        """``expired``, ``active`` or ``pending`` at ``now``."""
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "active" if self.is_approved else "pending"

    def is_active(self, now: datetime) -> bool:
        """Whether it counts at ``now``."""
        return self.state(now) == "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedLimit:
    """The highest limit and the loosest mode that ``green.yaml`` may give a budget before a higher one is applied.

    ``policy_sha256`` is the version that said so first, whose approvers decide about another one; empty where it is
    not known. ``approved_by`` names who applied it, empty for the first limit that was seen.
    """

    budget: str
    account: str
    unit: Unit
    limit: int
    mode: Mode
    at: datetime
    policy_sha256: str = ""
    approved_by: str = ""
    reason: str = ""

    @classmethod
    def first(cls, term: Term, policy_sha256: str, at: datetime) -> ApprovedLimit:
        """What a term says of a limit that nobody saw before."""
        return cls(
            budget=term.budget,
            account=term.account,
            unit=term.unit,
            limit=term.limit,
            mode=term.mode,
            at=at,
            policy_sha256=policy_sha256,
        )

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.budget, self.account, self.unit.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedLimit:
    """What ``policy apply`` did to one limit; amounts are in the unit's integer scale.

    ``before`` is ``None`` for a limit that was never seen, ``after`` for one that the policy does not have any more.
    ``requested_by`` used that policy first. ``approver`` and ``approved_by`` are as in an ``Allowance``.
    """

    at: datetime
    budget: str
    account: str
    unit: Unit
    before: int | None
    before_mode: Mode | None
    after: int | None
    after_mode: Mode | None
    policy_sha256: str
    requested_by: str
    approver: str | None
    approved_by: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """A policy file as it was: ``sha256`` of its bytes, who used it first and when."""

    sha256: str
    text: str
    author: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What is spent and held under a term, both >= 0, in the unit's integer scale.

    ``extra`` is what grants, overrides and rollovers add to the term's limit now, or take off where it is negative.
    ``pending``, >= 0, is what running steps have asked for and did not get yet: no new hold may take it.
    """

    term: Term
    spent: int
    held: int
    extra: int = 0
    pending: int = 0

    @property
    def limit(self) -> int:
        """The limit that counts now, >= 0."""
        return max(0, self.term.limit + self.extra)

    @property
    def committed(self) -> int:
        return self.spent + self.held

    @property
    def available(self) -> int:
        """What is left for a new hold; negative when facts have overrun the limit."""
        return self.limit - self.committed - self.pending

    def moved(self, *, held: int, spent: int) -> Balance:
        """The balance with so much more held and spent, or less where that is negative."""
        return replace(self, held=self.held + held, spent=self.spent + spent)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRequest:
    """A step asks to start. ``estimates`` go from the dearest tier to the cheapest.

    Requests of one ``group`` (the members of a pipe) are all admitted or none is. ``hold_id`` is the id that a hold
    gets, for a step that was metered under it already; ``None`` leaves it to the ledger. ``walltime_seconds`` is the
    longest that a step may run which cannot ask for more while it does; ``None`` for one that can. ``input_bytes`` is
    the size of its input files, ``None`` where that is not known.
    """

    step: Step
    project: str
    user: str
    spec: StepSpec
    estimates: tuple[Estimate, ...]
    terms: tuple[Term, ...]
    requested_at: datetime
    waiting_since: datetime | None = None
    group: str | None = None
    hold_id: str | None = None
    walltime_seconds: float | None = None
    input_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The policy's answer. ``reason`` is a sentence for people.

    ``action`` is what happens: ADMIT, DOWNGRADE, WAIT or REFUSE. ``would`` is what would have happened
    had every budget been hard. ``amounts`` is what an admitted step holds; it is empty for a step
    without budgets. For the other answers ``budget``, ``unit``, ``needed`` and ``available`` name
    what did not fit. What begins with ``estimate_`` is that of the tier's ``Estimate``.
    """

    action: Action
    would: Action
    tier: str | None
    amounts: Mapping[Unit, int]
    reason: str
    estimate_source: str = ""
    estimate_basis: str = ""
    estimate_low_microjoules: int | None = None
    estimate_high_microjoules: int | None = None
    estimate_level_ratio: float | None = None
    policy_sha256: str = ""
    budget: str | None = None
    unit: Unit | None = None
    needed: int | None = None
    available: int | None = None

    @property
    def admitted(self) -> bool:
        return self.action in {Action.ADMIT, Action.DOWNGRADE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that answers for a hold; alive while pid and start time still match under this boot.

    ``spool_dir`` is the absolute folder that its readings are in; ``None`` in rows that older versions wrote.
    """

    host: str
    boot_id: str
    pid: int
    started_ticks: int
    spool_dir: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A reserved amount. Closed once: settled, voided or lost.

    ``epoch`` is 1 for who opened it, and one more for each ``owner`` that took it over; a message of an older epoch
    changes nothing. ``wanted`` is what its last top-up asked for and did not get, > 0 in each unit that it names: no
    new hold may take it. It is empty once the hold is closed. ``policy_sha256`` names the policy that admitted it.
    """

    hold_id: str
    step: Step
    project: str
    user: str
    spec: StepSpec
    tier: str | None
    decision: Action
    would_decision: Action
    amounts: Mapping[Unit, int]
    terms: tuple[Term, ...]
    owner: Owner
    opened_at: datetime
    epoch: int = 1
    wanted: Mapping[Unit, int] = field(default_factory=dict)
    policy_sha256: str = ""

    @classmethod
    def of_nothing(cls, request: HoldRequest, decision: Decision, owner: Owner, *, hold_id: str) -> Hold:
        """The hold of a step for which no budget reserves anything."""
        return cls(
            hold_id=hold_id,
            step=request.step,
            project=request.project,
            user=request.user,
            spec=request.spec,
            tier=decision.tier,
            decision=decision.action,
            would_decision=decision.would,
            amounts={},
            terms=(),
            owner=owner,
            opened_at=request.requested_at,
            policy_sha256=decision.policy_sha256,
        )


class ClosingKind(StrEnum):
    """How a hold is closed: with what was used, unused, or with the worst that a dead owner may have used."""

    SETTLE = "settle"
    VOID = "void"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one step cost: the row of the journal that reports, exports and estimates read.

    ``energy`` is what was metered, ``energy_charged_microjoules`` what the budgets were charged: more
    than was metered only for a lost hold. ``None`` means not known, not zero; a refused step has no
    energy. Shares of one ``sampler_id`` sum to its node windows; ``None`` marks an uncoordinated meter.
    """

    entry_id: str
    hold_id: str | None
    project: str
    user: str
    workflow_run: str
    step: str
    wildcards: str
    attempt: int
    host: str
    started_at: datetime
    ended_at: datetime
    duration_seconds: float
    outcome: Outcome
    tier: str | None
    decision: Action
    would_decision: Action
    reason: str
    phase: str | None
    energy: Mapping[Domain, Energy]
    energy_charged_microjoules: int
    boundary: Boundary
    sampler_id: str | None
    cpu_seconds: float | None
    cpu_clock: CpuClockName | None
    coverage_ratio: float | None
    carbon_intensity_g_per_kwh: float | None
    intensity_source: str | None
    pue: float
    operational_micrograms_co2e: int | None
    embodied_micrograms_co2e: int | None
    cost_micro_units: int | None = None
    currency: str | None = None

    def __post_init__(self) -> None:
        check_aware(self.started_at, "started_at")
        check_aware(self.ended_at, "ended_at")

    @property
    def total(self) -> Energy | None:
        return total_energy(self.energy.values())

    @property
    def charged(self) -> Mapping[Unit, int]:
        """What each unit's budgets are charged."""
        amounts = {Unit.ENERGY: self.energy_charged_microjoules}
        if self.operational_micrograms_co2e is not None:
            amounts[Unit.CARBON] = self.operational_micrograms_co2e
        if self.cost_micro_units is not None:
            amounts[Unit.MONEY] = self.cost_micro_units
        return amounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """Close a hold. A void has no entry; a refused step has an entry and no hold.

    ``earlier`` are the entries of earlier starts of the same job, which the batch system began again: entries of
    their own with the same ``hold_id``, charged to the hold together with ``entry``.
    ``epoch`` is that of the hold as its owner knows it, ``None`` to close it whoever owns it.
    """

    kind: ClosingKind
    hold_id: str | None
    entry: Entry | None
    reason: str = ""
    earlier: tuple[Entry, ...] = ()
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUp:
    """A running step asks for more; the ledger grants what there is, down to 0, and keeps room for the rest.

    ``epoch`` is as in ``Closing``. ``may_finish``: the step goes on without the rest (``overrun: finish``), so nobody
    is kept from starting for it.
    """

    hold_id: str
    amounts: Mapping[Unit, int]
    epoch: int | None = None
    may_finish: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something learnt about a step after it ended: ``quality/mape``, ``complexity/parameters``, an MLflow run id.

    Names are those of the MLflow metrics; ``value`` is a number, or text for ``mlflow/run_id``.
    """

    hold_id: str
    name: str
    value: float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Everything that one ledger transaction does, in this order: adopt, close, post, top up, hold.

    ``adoptions`` are ids of open holds that ``owner`` takes over.
    """

    closings: tuple[Closing, ...] = ()
    windows: tuple[NodeWindow, ...] = ()
    facts: tuple[Fact, ...] = ()
    top_ups: tuple[TopUp, ...] = ()
    requests: tuple[HoldRequest, ...] = ()
    owner: Owner | None = None
    adoptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The ledger's answer to one request: the decision, and the hold if it was admitted."""

    decision: Decision
    hold: Hold | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a transaction did: answers and top-ups in the order of the batch, alerts that were crossed.

    ``generation`` grows with every change of a balance, so an unchanged one means that nothing moved.
    ``adopted`` are the adoptions of the batch as they are now, in its order, ``None`` for a hold that is not open.
    ``fenced`` are the holds that a closing left open, because somebody has taken them over since.
    """

    answers: tuple[Answer, ...]
    top_ups: tuple[Mapping[Unit, int], ...]
    alerts: tuple[str, ...]
    generation: int
    adopted: tuple[Hold | None, ...] = ()
    fenced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRow:
    """One append-only line of the ledger; balances are the sums of these, and what was added to limits."""

    journal_id: int
    at: datetime
    hold_id: str | None
    budget: str
    account: str
    unit: Unit
    period: str
    kind: str
    delta_held: int
    delta_spent: int
    reason: str
    delta_limit: int = 0

    @property
    def key(self) -> BucketKey:
        """The bucket's, as ``Term.key``."""
        return (self.budget, self.account, self.unit.value, self.period)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """A decision as it was taken, with the balances that it saw, so that it can be explained afterwards."""

    at: datetime
    hold_id: str | None
    step: Step
    decision: Decision
    balances: tuple[Balance, ...]


class LetterState(StrEnum):
    """What has become of a message: it waits, it is done with, or nobody will try it again."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """A message that was promised: ``kind`` is ``mlflow``, ``alert``, or ``notice`` and ``letter`` made of alerts.

    ``due_at`` is when it may be tried; of a message that is not pending any more, when that came about. ``error`` is
    why the last try failed.
    """

    outbox_id: int
    kind: str
    payload: Mapping[str, object]
    tries: int = 0
    state: LetterState = LetterState.PENDING
    due_at: datetime | None = None
    error: str | None = None


# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """A job that a workflow would run, without running it.

    ``after`` are the positions, in its workload, of the jobs whose outputs it needs. ``resources`` is what it takes of
    the workload's while it runs; for a group, whose members start together, that stands at its first member.
    ``input_bytes`` is the size of those of its ``input_paths``, absolute, that are there now. A step that a
    batch system runs cannot ask for more while it does; ``walltime_seconds`` is then the longest that it may run, where
    that is known. One that ``needs_nothing`` runs no program.
    """

    step: Step
    spec: StepSpec
    after: tuple[int, ...] = ()
    resources: Mapping[str, int]
    group: str | None = None
    priority: int = 0
    input_bytes: int = 0
    input_paths: tuple[str, ...] = ()
    can_ask_for_more: bool = True
    walltime_seconds: float | None = None
    needs_nothing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """All jobs of a workflow that are still to run, in the order in which its host program numbers them.

    ``resources`` is what there is at once, e.g. ``_cores``; one that it does not name is not limited. The host program
    asks for up to ``look_ahead`` jobs before they can start, and for no more while ``waiting_max`` wait.
    ``notes`` are sentences about what is not known before it runs.
    """

    steps: tuple[PlannedStep, ...]
    resources: Mapping[str, int]
    look_ahead: int = 0
    waiting_max: int = 64
    keeps_going: bool = True
    notes: tuple[str, ...] = ()
