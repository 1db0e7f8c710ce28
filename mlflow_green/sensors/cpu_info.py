"""What ``/proc/cpuinfo`` says of the CPUs: names on x86, numbers on ARM, and whether a hypervisor is between."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.sensors.proc_stat import PROC_ROOT

ARM_VENDOR = "ARM"  # implementer 0x41 of the register MIDR_EL1, which is all that an ARM host says of itself

_NOISE = re.compile(
    r"\((?:r|tm|c)\)|@.*$|\bwith .*$|\b(?:cpu|processor|\d+-core|(?:two|three|four|six|eight|twelve|sixteen)-core"
    r"|\d+(?:st|nd|rd|th) gen)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The CPUs as the kernel sees them; ``None`` and 0 where it says nothing.

    ``threads`` are hardware threads of the host, or vCPUs of the virtual machine. ``family``, ``model`` and
    ``stepping`` are those of CPUID; on ARM ``model`` is the part number. ``virtual`` is whether a hypervisor is there
    or, on ARM, may be there.
    """

    name: str | None
    vendor: str
    family: int
    model: int
    stepping: int
    threads: int
    sockets: int
    virtual: bool


def read_cpu_info(proc_root: Path = PROC_ROOT) -> CpuInfo:
    """What can be known of this host's CPUs; of those of the first one, where they differ. Raises nothing."""
    try:
        text = (proc_root / "cpuinfo").read_text()
    except OSError:
        text = ""
    fields = [line.partition(":") for line in text.splitlines()]
    pairs = [(key.strip(), value.strip()) for key, _, value in fields]
    first = dict(reversed(pairs))
    is_arm = "CPU part" in first
    return CpuInfo(
        name=first.get("model name") or None,
        vendor=ARM_VENDOR if _number(first.get("CPU implementer")) == ord("A") else first.get("vendor_id", ""),
        family=_number(first.get("cpu family")),
        model=_number(first.get("CPU part", first.get("model"))),
        stepping=_number(first.get("stepping")),
        threads=max(1, sum(key == "processor" for key, _ in pairs)),
        sockets=max(1, len({value for key, value in pairs if key == "physical id"})),
        virtual=is_arm or "hypervisor" in first.get("flags", "").split(),
    )


def normalised(name: str) -> str:
    """A CPU's name without marks, frequency, core count and graphics, for exact comparison."""
    return " ".join(_NOISE.sub(" ", name).lower().split())


def _number(text: str | None) -> int:
    try:
        return int(text or "", 0)
    except ValueError:
        return 0
