"""Every error that mlflow-green raises; the message says what happened, where, and what to do.

* GreenError
    * QuantityError             a text is not a number with a known unit
    * PolicyError               green.yaml is wrong: all problems of the file in one error
    * SettingsError             a setting or environment variable is wrong
    * SensorError
        * SensorUnavailable     gone for good: do not ask this sensor again
        * SensorRetry           this read failed: a gap, ask again at the next sample
    * IntensityUnknown          no carbon intensity for this place
    * LedgerError
        * LedgerUnavailable     the ledger cannot be opened or written
        * HoldClosed            an idempotency key meets a hold that is already closed
        * AllowanceRefused      a limit may not be raised so, or not by this person
    * BudgetExceeded            a budget refused a step
    * StepHalted                a running step was ended because its grant was used up
    * ChannelFailed             a message could not be delivered
    * SignatureWrong            a webhook was not sent by who knows the secret, or not just now
    * UnsupportedHost           this Snakemake, executor or platform is outside the known range
        * BudgetUnkept          what a hard budget needs is missing, so nothing is started
    * DryRunFailed              Snakemake could not list the jobs of a workflow
"""

from __future__ import annotations


class GreenError(Exception):
    """Base of all errors of mlflow-green."""


class QuantityError(GreenError, ValueError):
    """A text such as ``"5 kWh"`` could not be read."""

    def __init__(self, message: str, *, unit: str = "", known_units: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.unit = unit
        self.known_units = known_units


class PolicyError(GreenError):
    """``green.yaml`` is wrong. ``problems`` holds one finished line for each problem."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SettingsError(GreenError):
    """A setting is wrong; the message names the setting and a value that works."""


class SensorError(GreenError):
    """A sensor could not be read."""


class SensorUnavailable(SensorError):
    """The sensor is gone for good; the caller drops it and says so once."""


class SensorRetry(SensorError):
    """This read failed; it is a gap, and the next counter value bridges it."""


class IntensityUnknown(GreenError):
    """No carbon intensity is known for the place. ``problem`` is the message without what to set in green.yaml."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem


class LedgerError(GreenError):
    """The ledger refused or failed."""


class LedgerUnavailable(LedgerError):
    """The ledger cannot be opened or written; the message says why and what to do."""


class HoldClosed(LedgerError):
    """The idempotency key belongs to a hold that was settled, voided or lost."""


class AllowanceRefused(LedgerError):
    """A limit may not be raised so; the message says who may, how far, and what to do."""


class BudgetExceeded(GreenError):
    """A budget refused a step; the message names budget, unit, needed and available."""


class StepHalted(GreenError):
    """A running step was ended; the message names what it used and what it had been granted."""


class ChannelFailed(GreenError):
    """A channel did not take a message; the text says why and holds no secret.

    ``retry_after_seconds``, >= 0, is how long the other side asks us to wait. ``is_final``: trying again is of no use.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None, is_final: bool = False) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.is_final = is_final


class SignatureWrong(GreenError):
    """A webhook's signature does not fit; the message says why, and the receiver must not act on it."""


class UnsupportedHost(GreenError):
    """The host program is outside the range that was tested; the message names the range."""


class BudgetUnkept(UnsupportedHost):
    """A hard budget counts here and cannot be kept; the message says what is missing."""


class DryRunFailed(GreenError):
    """Snakemake could not list the jobs of a workflow; ``status`` is its exit status, not 0."""

    def __init__(self, said: str, *, status: int) -> None:
        super().__init__(
            f"Snakemake could not list the jobs, so there is no plan; mend what it says here, or its options:\n{said}"
        )
        self.status = status
