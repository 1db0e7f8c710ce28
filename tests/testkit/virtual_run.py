"""A run of a workload in virtual time: the plugin's admission, Snakemake's greedy scheduler and the ledger's thread.

What is played is Snakemake itself and the jobs, which use what they are told to; all that decides is the real thing.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace

from snakemake.scheduling.greedy import Scheduler as GreedyScheduler
from snakemake.scheduling.greedy import SchedulerSettings as GreedySettings

from mlflow_green.recorder.bookkeeper import Bookkeeper
from mlflow_green.recorder.planner import Planner
from mlflow_green.recorder.rehearsal import VirtualClock
from mlflow_green.recorder.ticket import Ticket, entry_of
from mlflow_green.records import Closing, ClosingKind, Outcome
from snakemake_plugin.admission import Admission
from tests.testkit.ledger_samples import OWNER, usage

LOOKS_MAX = 3_000


@dataclass(eq=False)
class FakeJob:
    """As much of a Snakemake job as the plugin looks at before it runs."""

    planned: object
    jobid: int
    attempt: int = 1

    def __post_init__(self) -> None:
        self.rule = SimpleNamespace(name=self.planned.step.name, params=SimpleNamespace())
        names = (pair.split("=") for pair in self.planned.step.wildcards.split(",") if pair)
        self.wildcards_dict = dict(names)
        self.priority = self.planned.priority
        self.scheduler_resources = {**self.planned.resources, "_job_count": 1}
        self.input = ()
        self.is_norun = self.planned.needs_nothing

    def is_group(self) -> bool:
        return False


class FakeGroup:
    def __init__(self, jobs) -> None:
        self.jobs = jobs
        self.jobid = f"group{jobs[0].jobid:04}"
        self.priority = jobs[0].priority
        self.scheduler_resources = jobs[0].scheduler_resources
        self.input = ()

    def is_group(self) -> bool:
        return True


class VirtualRun:
    """Plays ``workload`` to its end; afterwards ``tickets`` has the ticket of each step that asked, by its key."""

    def __init__(self, workload, policy, book, ledger, clock: VirtualClock, *, uses, durations) -> None:
        self.clock = clock
        self.planner = Planner(policy, book, "run")
        self.book = book
        self.ledger = ledger
        self.uses = uses
        self.durations = durations
        self.workload = workload
        self.keeper = Bookkeeper(
            ledger, self.planner, book, OWNER, clock, wake=lambda: None, say=lambda text: None
        )  # never started: its messages are worked through here
        self.acts = self.planner.acts
        self.workflow_run = "run"
        self.tickets: dict[str, Ticket] = {}
        self._asked = False
        singles = [FakeJob(planned, index) for index, planned in enumerate(workload.steps)]
        self._specs = {planned.step.name: planned.spec for planned in workload.steps}
        groups = {}
        for job in singles:
            groups.setdefault(job.planned.group or job.jobid, []).append(job)
        owner = {}
        self.jobs = []
        for members in groups.values():
            job = FakeGroup(members) if len(members) > 1 else members[0]
            self.jobs.append(job)
            owner.update({member.jobid: job for member in members})
        self.needs = {
            job: {owner[before] for part in self._parts(job) for before in part.planned.after} - {job}
            for job in self.jobs
        }
        self._greedy = GreedyScheduler(None, GreedySettings(), None)
        self.admission = Admission(self, self._choose, warn=lambda text: None, runs_here=lambda job: True)

    # --- the session that the plugin sees -------------------------------------------------------------

    @property
    def may_look_ahead(self) -> bool:
        return not self.planner.tight

    def spec(self, rule, declared):
        return self._specs[rule]

    def ticket(self, step, spec, group=None) -> Ticket:
        ticket = self.tickets[step.label] = Ticket(step=step, spec=spec, group=group)
        return ticket

    def ask(self, tickets) -> None:
        self._asked = True
        self.keeper.ask(tickets)

    def void(self, tickets, reason) -> None:
        if tickets:
            self.keeper.void(tickets, reason)

    # --- Snakemake ------------------------------------------------------------------------------------

    def play(self) -> None:
        free = dict(self.workload.resources)
        waiting_for = set(self.jobs)
        done, running, order = set(), [], 0
        for _ in range(LOOKS_MAX):
            ready = [job for job in waiting_for if self.needs[job] <= done]
            self._asked = False
            selected = self.admission.select(ready, (), free, {}, keep_going=True)
            self._pump()
            for job in selected:
                waiting_for.discard(job)
                if self.admission.refusal(job) is None:
                    self._start(job, free)
                    ends = self.clock.now() + timedelta(seconds=max(self._seconds(part) for part in self._parts(job)))
                    heapq.heappush(running, (ends, order, job))
                    order += 1
            if selected or self._asked or self._looks_again():
                continue
            if not running and not self.keeper.has_waiting:
                return
            looks = [self.clock.now() + timedelta(hours=1)] if self.keeper.has_waiting else []
            looks += [
                look
                for ticket in self.tickets.values()
                if ticket.waiting_since and not ticket.admitted and not ticket.refused
                for look in [self.planner.next_look(ticket.waiting_since, self.clock.now())]
                if look
            ]
            self.clock.move_to(min([*looks, *(ends for ends, _, _ in running[:1])]))
            if not running or running[0][0] > self.clock.now():
                self.keeper.recheck()
                self._pump()
            while running and running[0][0] <= self.clock.now():
                job = heapq.heappop(running)[2]
                if self._end(job, free):
                    done.add(job)
        raise AssertionError("it does not end")

    def _looks_again(self) -> bool:
        """As the ticker does every few seconds, whatever happens."""
        before = len(self.keeper._waiting)
        if before:
            self.keeper.recheck()
            self._pump()
        return len(self.keeper._waiting) != before

    def _choose(self, jobs, remaining, free, sizes):
        return (
            list(self._greedy.select_jobs(list(jobs), remaining, {**free, "_job_count": len(jobs)}, sizes))
            if jobs
            else []
        )

    @staticmethod
    def _parts(job):
        return job.jobs if job.is_group() else (job,)

    def _seconds(self, part) -> float:
        return self.durations[part.planned.step.name]

    def _start(self, job, free) -> None:
        for name, amount in self.workload.resources.items():
            free[name] -= min(amount, job.scheduler_resources.get(name, 0))
        for part in self._parts(job):
            self.admission.ticket(part).began_at = self.clock.now()

    def _end(self, job, free) -> bool:
        for name, amount in self.workload.resources.items():
            free[name] += min(amount, job.scheduler_resources.get(name, 0))
        settled = [self._settle(self.admission.ticket(part)) for part in self._parts(job)]
        for ticket, closing in settled:
            self.keeper.settle(ticket, closing)
        self._pump()
        return not any(ticket.halt_reason for ticket, _ in settled)

    def _settle(self, ticket: Ticket):
        used = 0 if ticket.needs_nothing else self.uses(ticket.step, ticket.spec, ticket.decision.tier)
        ticket.duration_seconds = (self.clock.now() - ticket.began_at).total_seconds()
        ticket.usage = usage(used, ticket.duration_seconds)
        if ticket.hold is not None and self.planner.enforces:
            balances = self.ledger.balances(ticket.hold.terms)
            ticket.halt_reason = self.planner.judge(ticket, balances).halt_reason
        ticket.outcome = Outcome.HALTED if ticket.halt_reason else Outcome.SUCCEEDED
        entry = entry_of(ticket, ticket.outcome, self.book, self.clock.now())
        return ticket, Closing(kind=ClosingKind.SETTLE, hold_id=entry.hold_id, entry=entry)

    def _pump(self) -> None:
        while not self.keeper._inbox.empty():
            self.keeper._do(self.keeper._receive())
