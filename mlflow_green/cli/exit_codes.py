"""What the exit status of ``mlflow-green`` means; documented in ``docs/reference/cli.md``.

``run`` exits with the status of the command that it ran; 76 and 77 are ours there too. Of a plan or a replay, 2 says
that some steps are downgraded or wait, 3 that some are refused or halted.
"""

from __future__ import annotations

from mlflow_green.errors import (
    AllowanceRefused,
    BudgetExceeded,
    DryRunFailed,
    GreenError,
    PolicyError,
    QuantityError,
    SettingsError,
    StepHalted,
)

OK = 0
FOUND = 1
USAGE = 2
ENVIRONMENT = 3
SOME_LESS = 2
SOME_REFUSED = 3
HALTED = 76
REFUSED = 77

_BY_ERROR: tuple[tuple[type[GreenError], int], ...] = (
    (PolicyError, FOUND),
    (SettingsError, USAGE),
    (QuantityError, USAGE),
    (StepHalted, HALTED),
    (BudgetExceeded, REFUSED),
    (AllowanceRefused, REFUSED),
)


def exit_code(error: GreenError) -> int:
    """The exit status for an error: 1 a wrong policy, 2 a wrong argument, 76, 77, Snakemake's own, else 3."""
    if isinstance(error, DryRunFailed):
        return error.status
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ENVIRONMENT)
