"""Which ready jobs may start now, and which to ask the ledger for next. Under Snakemake's lock: no I/O, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_green.errors import GreenError
from mlflow_green.records import Action, StepSpec
from snakemake_plugin import compat
from snakemake_plugin.job_identity import JobKey, declared, key_of, step_of

if TYPE_CHECKING:
    from mlflow_green.bootstrap import Session, Ticket

LOOK_AHEAD = 16
WAITING_MAX = 64

Greedy = Callable[[Sequence[Any], Any, Mapping[str, int], Any], list[Any]]
"""Snakemake's own choice: (jobs, remaining jobs, free resources, input sizes) -> jobs that fit."""


@dataclass(slots=True)
class _Ready:
    """Snakemake's ready jobs by the answer that they have."""

    admitted: list[Any] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)
    waiting: list[Any] = field(default_factory=list)
    pending: list[Any] = field(default_factory=list)
    unknown: list[Any] = field(default_factory=list)


class Admission:
    """Keeps one ticket a step: a step that runs a second time (a retry, a lost temporary file) gets a new one.

    Tickets belong to rule and wildcards, not to the job object: Snakemake makes new objects when a checkpoint changes
    the DAG, and such a job is not to be held twice.
    """

    def __init__(self, session: Session, greedy: Greedy, warn: Callable[[str], None]) -> None:
        self._session = session
        self._greedy = greedy
        self._warn = warn
        self._tickets: dict[JobKey, Ticket] = {}
        self._keys: dict[int, tuple[Any, tuple[JobKey, ...]]] = {}  # by id of the job, which is kept alive here

    def ticket(self, job: Any) -> Ticket | None:
        """The latest ticket of a single job."""
        return self._tickets.get(key_of(job))

    def refusal(self, job: Any) -> str | None:
        """Why the job, or a member of the group, is refused; ``None`` if it is not."""
        tickets = [self.ticket(part) for part in compat.members(job)]
        reasons = {each.decision.reason for each in tickets if each and each.refused and each.decision}
        return "; ".join(sorted(reasons)) if reasons else None

    def select(
        self, jobs: Sequence[Any], remaining: Any, free: Mapping[str, int], sizes: Any, *, keep_going: bool
    ) -> list[Any]:
        """The jobs to start now. Refused ones are selected too, so that they can fail properly."""
        ready = self._sort_out(jobs)
        if ready.refused and not keep_going:
            return ready.refused  # the workflow ends here, so nothing else is to begin
        chosen = self._greedy(ready.admitted, remaining, free, sizes)
        self._ask_for_more(ready, chosen, remaining, _less(free, chosen), sizes)
        return ready.refused + chosen

    def _sort_out(self, jobs: Sequence[Any]) -> _Ready:
        ready = _Ready()
        for job in jobs:
            tickets = self._open_tickets(job)
            if tickets is None:
                ready.unknown.append(job)
            elif any(ticket.refused for ticket in tickets):
                ready.refused.append(job)
            elif all(ticket.admitted for ticket in tickets):
                ready.admitted.append(job)
            elif any(ticket.decision and ticket.decision.action is Action.WAIT for ticket in tickets):
                ready.waiting.append(job)
            else:
                ready.pending.append(job)
        for few in (ready.admitted, ready.refused, ready.waiting, ready.pending):
            few.sort(key=_order)
        return ready

    def _open_tickets(self, job: Any) -> list[Ticket] | None:
        """The tickets that the job has not used yet; ``None`` if it must be asked for, a group as a whole."""
        found = []
        for key in self._keys_of(job):
            ticket = self._tickets.get(key)
            if ticket is None or ticket.began_at is not None:
                return None
            found.append(ticket)
        return found

    def _keys_of(self, job: Any) -> tuple[JobKey, ...]:
        """Of a job's members; remembered, for every ready job is looked at in every round."""
        known = self._keys.get(id(job))
        if known is None:
            known = self._keys[id(job)] = (job, tuple(key_of(part) for part in compat.members(job)))
        return known[1]

    def _ask_for_more(
        self, ready: _Ready, chosen: Sequence[Any], remaining: Any, free: Mapping[str, int], sizes: Any
    ) -> None:
        """Ask for what could start at once, and, while budgets are far from their thresholds, for some more."""
        cores_free = free.get("_cores", 1)
        ahead = len(ready.admitted) - len(chosen) + len(ready.pending)
        # Refilled by the half: one transaction for several jobs, and none of this work in most rounds.
        room_ahead = LOOK_AHEAD - ahead if self._session.may_look_ahead and ahead <= LOOK_AHEAD // 2 else 0
        if not ready.unknown or (cores_free <= 0 and not room_ahead):
            return
        unknown = sorted(ready.unknown, key=_order)
        fitting = [job for job in ready.pending + unknown if _cores(job) <= cores_free]
        startable = {id(job) for job in self._greedy(fitting, remaining, free, sizes)}
        asked = [job for job in unknown if id(job) in startable]
        others = [job for job in unknown if id(job) not in startable]
        asked += others[: max(0, room_ahead - len(asked))]
        asked = asked[: max(0, WAITING_MAX - len(ready.waiting))]
        if asked:  # all at once: one transaction, and a refusal is known before anything beside it starts
            self._session.ask([ticket for job in asked for ticket in self._new_tickets(job)])

    def _new_tickets(self, job: Any) -> list[Ticket]:
        parts = compat.members(job)
        group = str(job.jobid) if len(parts) > 1 else None
        before = [ticket for part in parts if (ticket := self.ticket(part))]
        self._session.void([ticket for ticket in before if ticket.began_at is None], "its group is started again")
        tickets = [self._new_ticket(part, group) for part in parts]
        self._tickets.update(zip(map(key_of, parts), tickets, strict=True))
        return tickets

    def _new_ticket(self, job: Any, group: str | None) -> Ticket:
        before = self.ticket(job)
        attempt = before.step.attempt + 1 if before else job.attempt
        return self._session.ticket(step_of(job, self._session.workflow_run, attempt), self._spec(job), group)

    def _spec(self, job: Any) -> StepSpec:
        try:
            return self._session.spec(job.rule.name, declared(job))
        except (GreenError, TypeError, ValueError, KeyError, AttributeError) as error:
            self._warn(f"what rule {job.rule.name} declares is ignored: {error}")
            return self._session.spec(job.rule.name, None)


def _order(job: Any) -> tuple[int, bool, Any]:
    """Most urgent first, then as Snakemake numbers them; groups have other ids."""
    return -job.priority, job.is_group(), job.jobid


def _cores(job: Any) -> int:
    return int(job.scheduler_resources.get("_cores", 0))


def _less(free: Mapping[str, int], chosen: Sequence[Any]) -> dict[str, int]:
    """What is left of the resources once the chosen jobs have theirs."""
    left = dict(free)
    for job in chosen:
        for name, amount in job.scheduler_resources.items():
            if name in left:
                left[name] -= amount
    return left
