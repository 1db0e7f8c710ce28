"""Which ready jobs may start now, and which to ask the ledger for next. Under Snakemake's lock: no I/O, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_green.errors import GreenError
from mlflow_green.records import Action, StepSpec
from snakemake_plugin import compat
from snakemake_plugin.job_identity import JobKey, declared, input_paths, key_of, step_of

if TYPE_CHECKING:
    from mlflow_green.bootstrap import NodeSession, Session, Ticket

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


class Admission:
    """Keeps one ticket a step: a step that runs a second time (a retry, a lost temporary file) gets a new one.

    Tickets belong to rule and wildcards, not to the job object: Snakemake makes new objects when a checkpoint changes
    the DAG, and such a job is not to be held twice.
    """

    def __init__(
        self,
        session: Session | NodeSession,
        greedy: Greedy,
        warn: Callable[[str], None],
        runs_here: Callable[[Any], bool],
    ) -> None:
        """``runs_here`` says of a job whether this process runs it, and not a batch system."""
        self._session = session
        self._runs_here = runs_here
        self._greedy = greedy
        self._warn = warn
        self._tickets: dict[JobKey, Ticket] = {}
        # Of the jobs that have been ready and were not selected yet. Thousands can be ready in every round, so each is
        # looked at closely only once.
        self._asked: dict[Any, tuple[Ticket, ...]] = {}
        self._unasked: dict[Any, _Rank] = {}

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
        ready_jobs = set(jobs)
        self._meet(ready_jobs)
        ready = self._sort_out(ready_jobs)
        if ready.refused and not keep_going:
            selected = ready.refused  # the workflow ends here, so nothing else is to begin
        else:
            chosen = self._greedy(ready.admitted, remaining, free, sizes)
            self._ask_for_more(ready, ready_jobs, chosen, remaining, _less(free, chosen), sizes)
            selected = ready.refused + chosen
        for job in selected:
            del self._asked[job]
        return selected

    def _meet(self, ready_jobs: set[Any]) -> None:
        """Jobs seen for the first time, or again after they ran: a group is asked for as a whole."""
        for job in ready_jobs.difference(self._asked, self._unasked):
            tickets = [self.ticket(part) for part in compat.members(job)]
            unused = tuple(ticket for ticket in tickets if ticket and not ticket.started)
            if len(unused) == len(tickets):
                self._asked[job] = unused
            else:
                self._unasked[job] = _rank(job)

    def _sort_out(self, ready_jobs: set[Any]) -> _Ready:
        ready = _Ready()
        for job, tickets in self._asked.items():
            if job not in ready_jobs:
                continue
            if any(ticket.refused for ticket in tickets):
                ready.refused.append(job)
            elif all(ticket.admitted for ticket in tickets):
                ready.admitted.append(job)
            elif any(ticket.decision and ticket.decision.action is Action.WAIT for ticket in tickets):
                ready.waiting.append(job)
            else:
                ready.pending.append(job)
        for few in (ready.admitted, ready.refused, ready.waiting, ready.pending):
            few.sort(key=_rank)
        return ready

    def _ask_for_more(
        self,
        ready: _Ready,
        ready_jobs: set[Any],
        chosen: Sequence[Any],
        remaining: Any,
        free: Mapping[str, int],
        sizes: Any,
    ) -> None:
        """Ask for what could start at once, and, while budgets are far from their thresholds, for some more."""
        cores_free = free.get("_cores", 1)
        ahead = len(ready.admitted) - len(chosen) + len(ready.pending)
        # Refilled by the half: one transaction for several jobs, and none of this work in most rounds.
        room_ahead = LOOK_AHEAD - ahead if self._session.may_look_ahead and ahead <= LOOK_AHEAD // 2 else 0
        if not self._unasked or (cores_free <= 0 and not room_ahead):
            return
        unasked = sorted(ready_jobs.intersection(self._unasked), key=self._unasked.__getitem__)
        fitting = [job for job in ready.pending + unasked if _cores(job) <= cores_free]
        startable = set(self._greedy(fitting, remaining, free, sizes))
        asked = [job for job in unasked if job in startable]
        others = [job for job in unasked if job not in startable]
        asked += others[: max(0, room_ahead - len(asked))]
        asked = asked[: max(0, WAITING_MAX - len(ready.waiting))]
        if asked:  # all at once: one transaction, and a refusal is known before anything beside it starts
            for job in asked:
                del self._unasked[job]
                self._asked[job] = self._new_tickets(job)
            self._session.ask([ticket for job in asked for ticket in self._asked[job]])

    def _new_tickets(self, job: Any) -> tuple[Ticket, ...]:
        parts = compat.members(job)
        group = str(job.jobid) if len(parts) > 1 else None
        before = [ticket for part in parts if (ticket := self.ticket(part))]
        self._session.void([ticket for ticket in before if not ticket.started], "its group is started again")
        tickets = tuple(self._new_ticket(part, group) for part in parts)
        self._tickets.update(zip(map(key_of, parts), tickets, strict=True))
        return tickets

    def _new_ticket(self, job: Any, group: str | None) -> Ticket:
        before = self.ticket(job)
        attempt = before.step.attempt + 1 if before else job.attempt
        ticket = self._session.ticket(step_of(job, self._session.workflow_run, attempt), self._spec(job), group)
        ticket.input_paths, ticket.needs_nothing = input_paths(job), compat.runs_nothing(job)
        if not self._runs_here(job):
            ticket.can_ask_for_more = False
            ticket.walltime_seconds = compat.wall_time_seconds(job)
        return ticket

    def _spec(self, job: Any) -> StepSpec:
        try:
            return self._session.spec(job.rule.name, declared(job))
        except (GreenError, TypeError, ValueError, KeyError, AttributeError) as error:
            self._warn(f"what rule {job.rule.name} declares is ignored: {error}")
            return self._session.spec(job.rule.name, None)


_Rank = tuple[int, bool, Any]


def _rank(job: Any) -> _Rank:
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
