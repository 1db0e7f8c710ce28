"""Options of ``--scheduler green``. Snakemake reads real types here, so no postponed annotations."""

from dataclasses import dataclass, field
from typing import Optional

from snakemake_interface_scheduler_plugins.settings import SchedulerSettingsBase


@dataclass
class SchedulerSettings(SchedulerSettingsBase):
    policy: Optional[str] = field(  # noqa: UP045 - Snakemake does not understand "str | None"
        default=None,
        metadata={
            "help": "Policy file with the project's energy budgets. Default: the nearest green.yaml, "
            "searched upward from the working directory; without one, everything is observed.",
        },
    )
