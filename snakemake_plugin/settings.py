"""Options of ``--scheduler green``. Snakemake reads real types here, so no postponed annotations."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from snakemake_interface_scheduler_plugins.settings import SchedulerSettingsBase

if TYPE_CHECKING:
    from snakemake_plugin import compat


@dataclass
class SchedulerSettings(SchedulerSettingsBase):
    policy: Optional[str] = field(  # noqa: UP045 - Snakemake does not understand "str | None"
        default=None,
        metadata={
            "help": "Policy file with the project's energy budgets. Default: the nearest green.yaml, "
            "searched upward from the working directory; without one, everything is observed.",
        },
    )

    def __post_init__(self) -> None:
        """A dry run makes no scheduler of ours, but it makes this: it is told to print a plan at its end."""
        from snakemake_plugin import compat

        compat.after_dry_run(self._print_plan)

    def _print_plan(self, snakemake: "compat.SnakemakeInternals", logger: logging.Logger) -> None:
        from snakemake_plugin.dry_run import print_plan

        print_plan(snakemake, logger, self.policy)
