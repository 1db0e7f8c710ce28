"""Everything that the commands reach through ``bootstrap``, in one place and imported only when it is needed.

Tests give a command other doors: ``CliRunner.invoke(cli, [...], obj=Place(..., doors=MyDoors()))``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from mlflow_green.ledger import verify
from mlflow_green.ledger.ledger import AllowanceBook, Compactable, PolicyBook, SharedOutbox
from mlflow_green.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlflow_green.alerts.addresses import Address
    from mlflow_green.alerts.delivery import Sender
    from mlflow_green.bootstrap import Ran
    from mlflow_green.ledger.allowances import LimitKey
    from mlflow_green.ledger.migrations import Migration
    from mlflow_green.ledger.whereabouts import Whereabouts
    from mlflow_green.metering.calibration import Comparison
    from mlflow_green.policy.document import Policy
    from mlflow_green.recorder.plan import Plan
    from mlflow_green.recorder.replay import Replay
    from mlflow_green.recorder.waits import Waiting
    from mlflow_green.records import Balance, CpuClockName, Site
    from mlflow_green.sensors.detect import Detection
    from mlflow_green.sensors.node_meter import NodeMeter


class Books(verify.Books, SharedOutbox, AllowanceBook, PolicyBook, Compactable, Protocol):
    """A ledger as the commands see it."""

    def unguarded(self) -> str:
        """What a database that knows who writes leaves to its clients all the same; empty where there is nothing."""
        ...


class Doors:
    """The real doors. Each raises the ``GreenError`` of what it opens."""

    def open_reader(self, settings: Settings) -> Books:
        """The ledger, after left-over spool files were posted, orphaned steps ended and dead holds closed."""
        from mlflow_green.bootstrap import open_reader

        return open_reader(settings, say=lambda text: click.echo(f"mlflow-green: {text}", err=True))

    def unused_balances(self, settings: Settings, used: Sequence[Balance], books: Books | None) -> tuple[Balance, ...]:
        """What counts of green.yaml and nothing was spent of yet."""
        from mlflow_green.bootstrap import unused_balances

        return unused_balances(settings, used, books)

    def unknown_to_policy(
        self, settings: Settings, balances: Sequence[Balance], approved: Collection[LimitKey]
    ) -> tuple[Balance, ...]:
        """Those whose budget green.yaml does not have."""
        from mlflow_green.bootstrap import unknown_to_policy

        return unknown_to_policy(settings, balances, approved)

    def whereabouts(self, settings: Settings) -> Whereabouts:
        """Where the ledger is kept, and who else has it; opens and makes nothing."""
        from mlflow_green.ledger.whereabouts import whereabouts

        return whereabouts(settings.ledger_url, settings.mountinfo_path)

    def load_policy(self, settings: Settings) -> Policy:
        from mlflow_green.bootstrap import load_policy_for

        return load_policy_for(settings)

    def policy_as_agreed(self, settings: Settings, books: Books) -> Policy:
        """green.yaml with what a run would keep to."""
        from mlflow_green.bootstrap import policy_as_agreed
        from mlflow_green.clock import SystemClock

        return policy_as_agreed(books, self.load_policy(settings), SystemClock())

    def site(self, settings: Settings, policy: Policy) -> Site:
        """What turns joules into grams and money now."""
        from mlflow_green.bootstrap import site_of
        from mlflow_green.clock import SystemClock

        return site_of(policy, settings, SystemClock().now())

    def detect(self, settings: Settings) -> Detection:
        from mlflow_green.bootstrap import detect

        return detect(settings)

    def rapl_access_help(self, settings: Settings) -> tuple[str, ...]:
        """Ways to open RAPL's counters where they are closed, each with its commands."""
        from mlflow_green.bootstrap import rapl_help

        return rapl_help(settings)

    def cpu_clock(self) -> CpuClockName:
        """By which clock the CPU time of a job would be taken here."""
        from mlflow_green.bootstrap import cpu_clock_here

        return cpu_clock_here()

    def node_meter(self, settings: Settings, kind: str | None, environ: Mapping[str, str]) -> NodeMeter:
        """The BMC of this node; opened, so it has answered once."""
        from mlflow_green.bootstrap import open_node_meter

        return open_node_meter(settings, kind, environ)

    def compare(
        self,
        settings: Settings,
        meter: NodeMeter | None,
        *,
        seconds: float,
        with_load: bool,
        say: Callable[[str], None],
    ) -> Comparison:
        """Watch components and node side by side for so long."""
        from mlflow_green.bootstrap import compare_with_node, load_every_core

        start_load = load_every_core if with_load else None
        return compare_with_node(settings, meter, seconds=seconds, start_load=start_load, say=say)

    def user_name(self) -> str:
        """Who runs this command: the name of the uid."""
        from mlflow_green.bootstrap import user_name

        return user_name()

    def verify(self, settings: Settings, books: Books) -> tuple[str, ...]:
        """One sentence for each thing that does not close."""
        from mlflow_green.bootstrap import verify_books

        return verify_books(settings, books)

    def migrate(self, settings: Settings, *, only_look: bool) -> Migration:
        """Bring the ledger's tables to this version, or only see of which version they are."""
        from mlflow_green.ledger.migrations import Migration, migrate
        from mlflow_green.ledger.sql import open_store

        store = open_store(settings.ledger_url, mountinfo_path=settings.mountinfo_path)
        try:
            if only_look:
                return Migration(before=store.version(), version=store.schema_version)
            return migrate(store)
        finally:
            store.close()

    def run_command(
        self, settings: Settings, argv: Sequence[str], *, project: str | None, step: str | None, energy: str | None
    ) -> Ran:
        """Run a command as a metered step."""
        from mlflow_green.bootstrap import run_command

        return run_command(settings, argv, project=project, step=step, energy=energy)

    def plan(self, settings: Settings, arguments: Sequence[str], *, cwd: Path, environ: Mapping[str, str]) -> Plan:
        """What the jobs of ``snakemake ARGUMENTS`` would be answered now. Writes nothing."""
        from mlflow_green.planning import plan_workload, snakemake_workload

        return plan_workload(settings, snakemake_workload(settings, arguments, cwd=cwd, environ=environ))

    def open_alerts(self, settings: Settings, books: Books, environ: Mapping[str, str]) -> Sender:
        """What sends the alerts of these books."""
        from mlflow_green.bootstrap import open_alerts

        return open_alerts(settings, books, environ)

    def lacks_of_channels(self, settings: Settings, policy: Policy, environ: Mapping[str, str]) -> tuple[str, ...]:
        """What keeps channels of the policy from working here and now."""
        from mlflow_green.bootstrap import lacks_of_channels

        return lacks_of_channels(settings, policy, environ)

    def try_channel(
        self, settings: Settings, name: str, environ: Mapping[str, str]
    ) -> Iterator[tuple[Address, str | None]]:
        """Send a test; each address and why it did not take it."""
        from mlflow_green.bootstrap import try_channel

        return try_channel(settings, name, environ)

    def replay(self, settings: Settings, file: Path, *, since: datetime, until: datetime) -> Replay:
        """What the policy in ``file`` would have answered to the steps that ran. Writes nothing."""
        from mlflow_green.planning import replay_policy

        return replay_policy(settings, file, since=since, until=until)

    def waits(self, settings: Settings, books: Books, now: datetime) -> tuple[Waiting, ...]:
        """The steps that wait now, of every workflow run that goes on."""
        from mlflow_green.planning import waits_now

        return waits_now(settings, books, now)

    def sync(self, settings: Settings) -> int:
        """Write to MLflow what was not written; how many rows are left."""
        from mlflow_green.bootstrap import sync

        return sync(settings)


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a command works: the folder and environment it was started in, and the global options."""

    cwd: Path = field(default_factory=Path.cwd)
    environ: Mapping[str, str]
    doors: Doors = field(default_factory=Doors)
    policy_path: Path | None = None
    ledger_url: str | None = None

    def settings(self) -> Settings:
        return load_settings(self.cwd, self.environ, policy_path=self.policy_path, ledger_url=self.ledger_url)


def has_history(settings: Settings) -> bool:
    """Whether there is anything to read: a ledger, its journal, or meters' files that wait to be posted."""
    from mlflow_green.planning import has_ledger

    return has_ledger(settings) or (settings.spool_dir.is_dir() and any(settings.spool_dir.iterdir()))
