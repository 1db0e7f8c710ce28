"""What the exit status of ``mlflow-green`` means; documented in ``docs/reference/cli.md``.

``run`` exits with the status of the command that it ran; 76 and 77 are ours there too.
"""

from __future__ import annotations

from mlflow_green.errors import (
    AllowanceRefused,
    BudgetExceeded,
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
    """The exit status for an error: 1 a wrong policy, 2 a wrong argument, 76, 77, else 3."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ENVIRONMENT)
