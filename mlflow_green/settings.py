"""Where things are: command line > ``MLFLOW_GREEN_*`` environment > ``green.yaml`` > defaults."""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlflow_green.errors import SettingsError

POLICY_NAME = "green.yaml"
STATE_NAME = ".green"
MEMORY_WATTS_PER_GIB_MAX = 10.0  # 2 W was a DDR2 module's; more is a slip of the unit


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcSettings:
    """Where the node's management controller (BMC) is; without ``address`` it is asked from inside, by IPMI.

    ``password`` says where the password is kept: ``env:NAME``, or ``file:PATH`` of a file that only its owner may read.
    """

    address: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    certificate: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """The mail server of the alerts; ``host`` is ``None`` where none is set.

    ``tls``: ``always`` encrypted, ``starttls`` from the greeting on, or ``none``. ``password`` says where the password
    is kept, as for the BMC.
    """

    host: str | None = None
    port: int = 587
    tls: Literal["always", "starttls", "none"] = "starttls"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sender: str = "mlflow-green@localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the composition root needs to know before it opens anything.

    ``policy_path`` is ``None`` when there is no ``green.yaml``: everything is observed. ``state_dir`` lies
    beside the policy file, else in the working directory. ``memory_watts_per_gib`` is what the user knows of this
    machine's memory: ``None`` for the published constant, 0 to leave memory out. ``sampler_process``: a process of its
    own goes on metering for steps whose program dies.
    """

    disabled: bool
    policy_path: Path | None
    state_dir: Path
    ledger_url: str = field(repr=False)  # it may hold a password
    powercap_root: Path = Path("/sys/class/powercap")
    mountinfo_path: Path = Path("/proc/self/mountinfo")
    bmc: BmcSettings = field(default_factory=BmcSettings)
    smtp: SmtpSettings = field(default_factory=SmtpSettings)
    rapl_prefers_psys: bool = False
    memory_watts_per_gib: float | None = None
    sampler_process: bool = True

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"

    @property
    def has_own_ledger(self) -> bool:
        """Whether the ledger is where nobody said otherwise: beside the policy file, whose own it is."""
        return self.ledger_url == _own_ledger(self.state_dir)


def load_settings(
    cwd: Path,
    environ: Mapping[str, str],
    *,
    policy_path: Path | None = None,
    ledger_url: str | None = None,
) -> Settings:
    """Settings for a command started in ``cwd``; the keyword arguments are the command line's.

    Raises:
        SettingsError: a named policy file does not exist, or a setting has no meaning.
    """
    named = policy_path or _path(environ, "MLFLOW_GREEN_POLICY")
    if named is not None and not named.is_file():
        raise SettingsError(
            f"there is no policy file {named}; correct --policy or MLFLOW_GREEN_POLICY, or run 'mlflow-green init'"
        )
    policy = named.resolve() if named else find_upward(cwd, POLICY_NAME)
    state_dir = (policy.parent if policy else cwd) / STATE_NAME
    url = ledger_url or environ.get("MLFLOW_GREEN_LEDGER") or _own_ledger(state_dir)
    return Settings(
        disabled=is_disabled(environ),
        policy_path=policy,
        state_dir=state_dir,
        ledger_url=url,
        powercap_root=_path(environ, "MLFLOW_GREEN_POWERCAP_ROOT") or Path("/sys/class/powercap"),
        mountinfo_path=_path(environ, "MLFLOW_GREEN_MOUNTINFO") or Path("/proc/self/mountinfo"),
        bmc=BmcSettings(
            address=environ.get("MLFLOW_GREEN_BMC") or None,
            user=environ.get("MLFLOW_GREEN_BMC_USER") or None,
            password=environ.get("MLFLOW_GREEN_BMC_PASSWORD") or None,
            certificate=_path(environ, "MLFLOW_GREEN_BMC_CERTIFICATE"),
        ),
        smtp=_smtp(environ),
        rapl_prefers_psys=_rapl_zone(environ) == "psys",
        memory_watts_per_gib=_memory_watts_per_gib(environ),
        sampler_process=environ.get("MLFLOW_GREEN_SAMPLER_PROCESS", "").lower() not in {"0", "false", "no"},
    )


def _own_ledger(state_dir: Path) -> str:
    return f"sqlite:///{state_dir / 'ledger.db'}"


def secret(setting: str, kept_in: str, environ: Mapping[str, str]) -> str:
    """What ``kept_in`` (``env:NAME``, or ``file:PATH`` of mode 600) holds; its value is in no message.

    Raises:
        SettingsError: there is no such variable or file, or others may read the file.
    """
    if kept_in.startswith("env:"):
        name = kept_in.removeprefix("env:")
        if not environ.get(name):
            raise SettingsError(f"{setting} says env:{name}, and there is no variable {name}; export it")
        return environ[name]
    if not kept_in.startswith("file:"):  # it may be the password itself, so it is not repeated
        raise SettingsError(f"{setting} must say where the password is kept: env:NAME, or file:PATH of mode 600")
    file = Path(kept_in.removeprefix("file:")).expanduser()
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{setting}: {file} cannot be read: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"{setting}: others may read {file}; close it: chmod 600 {file}")
    return text.strip()


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


def _smtp(environ: Mapping[str, str]) -> SmtpSettings:
    """``MLFLOW_GREEN_SMTP``: ``smtp://HOST:PORT``, ``smtps://HOST:PORT``, or ``smtp://HOST:PORT?tls=none``."""
    text = environ.get("MLFLOW_GREEN_SMTP")
    if not text:
        return SmtpSettings()
    problem = SettingsError(  # what is wrong may be a password, so it is not repeated
        "MLFLOW_GREEN_SMTP is not a mail server; write smtp://mail.example:587 or smtps://mail.example, and the"
        " password as MLFLOW_GREEN_SMTP_PASSWORD=env:NAME"
    )
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise problem from None
    has_form = url.scheme in {"smtp", "smtps"} and url.hostname and url.query in {"", "tls=none"}
    if not has_form or "@" in url.netloc:
        raise problem
    tls: Literal["always", "starttls", "none"] = "starttls"
    if url.scheme == "smtps":
        tls = "always"
    elif url.query or url.hostname in {"localhost", "127.0.0.1", "::1"}:
        tls = "none"
    return SmtpSettings(
        host=url.hostname,
        port=port or (465 if tls == "always" else 587),
        tls=tls,
        user=environ.get("MLFLOW_GREEN_SMTP_USER") or None,
        password=environ.get("MLFLOW_GREEN_SMTP_PASSWORD") or None,
        sender=environ.get("MLFLOW_GREEN_SMTP_FROM") or f"mlflow-green@{url.hostname}",
    )


def _rapl_zone(environ: Mapping[str, str]) -> str:
    zone = environ.get("MLFLOW_GREEN_RAPL") or "package"
    if zone not in {"package", "psys"}:
        raise SettingsError(f"MLFLOW_GREEN_RAPL={zone} names no RAPL zone; say package (the default) or psys")
    return zone


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    value = environ.get(name)
    return Path(value) if value else None


def _memory_watts_per_gib(environ: Mapping[str, str]) -> float | None:
    """``MLFLOW_GREEN_MEMORY_WATTS_PER_GIB``: W for each GiB, or ``none``. A machine's own, so not in ``green.yaml``."""
    value = environ.get("MLFLOW_GREEN_MEMORY_WATTS_PER_GIB", "").strip().lower()
    if not value:
        return None
    try:
        power_watts = 0.0 if value == "none" else float(value)
    except ValueError:
        power_watts = math.nan
    if not 0 <= power_watts <= MEMORY_WATTS_PER_GIB_MAX:
        raise SettingsError(
            f"MLFLOW_GREEN_MEMORY_WATTS_PER_GIB is {value!r}; write the memory's power for each GiB in watts, from 0 "
            f"to {MEMORY_WATTS_PER_GIB_MAX:g}, or 'none' to leave it out"
        )
    return power_watts
