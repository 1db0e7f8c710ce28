"""Where things are: command line > ``MLFLOW_GREEN_*`` environment > ``green.yaml`` > defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SettingsError

POLICY_NAME = "green.yaml"
STATE_NAME = ".green"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the composition root needs to know before it opens anything.

    ``policy_path`` is ``None`` when there is no ``green.yaml``: everything is observed. ``state_dir`` lies
    beside the policy file, else in the working directory. ``sampler_process``: a process of its own goes on metering
    for steps whose program dies.
    """

    disabled: bool
    policy_path: Path | None
    state_dir: Path
    ledger_url: str
    powercap_root: Path = Path("/sys/class/powercap")
    mountinfo_path: Path = Path("/proc/self/mountinfo")
    sampler_process: bool = True

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"


def load_settings(
    cwd: Path,
    environ: Mapping[str, str],
    *,
    policy_path: Path | None = None,
    ledger_url: str | None = None,
) -> Settings:
    """Settings for a command started in ``cwd``; the keyword arguments are the command line's.

    Raises:
        SettingsError: a named policy file does not exist.
    """
    named = policy_path or _path(environ, "MLFLOW_GREEN_POLICY")
    if named is not None and not named.is_file():
        raise SettingsError(
            f"there is no policy file {named}; correct --policy or MLFLOW_GREEN_POLICY, or run 'mlflow-green init'"
        )
    policy = named.resolve() if named else find_upward(cwd, POLICY_NAME)
    state_dir = (policy.parent if policy else cwd) / STATE_NAME
    url = ledger_url or environ.get("MLFLOW_GREEN_LEDGER") or f"sqlite:///{state_dir / 'ledger.db'}"
    return Settings(
        disabled=is_disabled(environ),
        policy_path=policy,
        state_dir=state_dir,
        ledger_url=url,
        powercap_root=_path(environ, "MLFLOW_GREEN_POWERCAP_ROOT") or Path("/sys/class/powercap"),
        mountinfo_path=_path(environ, "MLFLOW_GREEN_MOUNTINFO") or Path("/proc/self/mountinfo"),
        sampler_process=environ.get("MLFLOW_GREEN_SAMPLER_PROCESS", "").lower() not in {"0", "false", "no"},
    )


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Whether ``MLFLOW_GREEN_DISABLE`` switches everything off: 1, true or yes, in any case."""
    return environ.get("MLFLOW_GREEN_DISABLE", "").lower() in {"1", "true", "yes"}


def find_upward(start: Path, name: str) -> Path | None:
    """The nearest file ``name`` in ``start`` or a folder above it."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / name).is_file():
            return folder / name
    return None


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    value = environ.get(name)
    return Path(value) if value else None
