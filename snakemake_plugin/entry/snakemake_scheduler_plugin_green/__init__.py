"""``snakemake --scheduler green``: re-exports only, for Snakemake imports this at every start."""

from snakemake_plugin.scheduler import Scheduler
from snakemake_plugin.settings import SchedulerSettings

__all__ = ["Scheduler", "SchedulerSettings"]
