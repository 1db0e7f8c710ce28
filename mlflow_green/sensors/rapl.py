"""Energy counters of CPU packages and their memory, or of the whole platform: RAPL through Linux powercap."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.sensors.proc_stat import PROC_ROOT
from mlflow_green.units import MICROWATTS_PER_WATT, microjoules

POWERCAP_ROOT = Path("/sys/class/powercap")

# Where a zone states no believable limit: above the largest server packages on sale in 2025 (500 W), above a fully
# populated socket's memory, and above a node of two such sockets.
POWER_WATTS_MAX = {Domain.CPU: 500.0, Domain.DRAM: 150.0, Domain.PLATFORM: 2_000.0}
# Firmware writes thousands of watts for "no limit".
POWER_WATTS_BELIEVED = 1_000.0
# Half-widths as a part of the reading. Khan et al. 2018, "RAPL in Action", and Desrochers et al. 2016, MEMSYS, compare
# Intel's counters with external meters. AMD's are a model that leaves out a part of what data and memory do (Schöne et
# al. 2021, arXiv:2108.00808). The widths for AMD and for psys, of which we know no validation, are our judgement.
ERROR_BANDS = {
    "package": (0.10, "±10 % for RAPL's package counter (Khan et al. 2018)"),
    "dram": (0.20, "±20 % for RAPL's DRAM counter (Desrochers et al. 2016)"),
    "psys": (0.20, "±20 %, a judgement: we know no validation of RAPL's platform counter"),
    "core": (1.00, "the cores' counter alone: up to the greatest power of the package"),
}
AMD_PACKAGE_BAND = (0.20, "±20 %, a judgement: AMD's package counter is a model (Schöne et al. 2021)")
# A counter moves on each millisecond, and nothing draws more than is believed: so far apart may be two reads of one
# counter, besides the time between them.
_UPDATE_SECONDS = 0.01
_CPUINFO_CHARACTERS = 8_192  # the first CPU's part; the whole file is long and slow on large hosts

_UDEV_RULE = """\
sudo groupadd --force --system rapl && sudo usermod --append --groups rapl "$USER"   # then log in again
sudo tee /etc/udev/rules.d/70-rapl.rules <<'END'
ACTION=="add", SUBSYSTEM=="powercap", KERNEL=="intel-rapl*:*", RUN+="/bin/chgrp rapl /sys%p/energy_uj"
ACTION=="add", SUBSYSTEM=="powercap", KERNEL=="intel-rapl*:*", RUN+="/bin/chmod g+r /sys%p/energy_uj"
END
sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=powercap --action=add"""
_CONTAINER = (
    "docker run -v /sys/devices/virtual/powercap/intel-rapl:/powercap:ro -e MLFLOW_GREEN_POWERCAP_ROOT=/powercap ..."
)


@dataclass(slots=True, eq=False)
class _Zone:
    """A zone whose energy belongs to ``device``, with the last look at it. ``twin`` shows the same counter."""

    folder: Path
    device: Device
    twin: _Zone | None = None
    energy_microjoules: int | None = None
    asked_seconds: float = 0.0
    answered_seconds: float = 0.0

    def look(self, monotonic: Callable[[], float]) -> None:
        self.asked_seconds = monotonic()
        self.energy_microjoules = _number(self.folder / "energy_uj")
        self.answered_seconds = monotonic()


class RaplSensor:
    """The zones under ``root`` that do not overlap, each a cumulative counter in microjoules that wraps.

    * ``package`` and ``dram`` are added; ``core`` and ``uncore`` are inside the package.
    * ``psys`` contains them, and on many boards much else. It is read alone, and only where there is no package, or
      where ``prefers_psys`` asks for it. Cores alone are read where there is neither: a lower bound.
    * ``intel-rapl-mmio`` shows a package a second time: it is read only for what ``intel-rapl`` does not show.
    * Dies of one socket may all show the socket's counter (AMD). Zones of one kind that show the same value when they
      are first seen are taken as one counter until they differ.

    A zone that vanishes is a gap, and is read again when it comes back, under whatever number. A zone that appears is
    a further device, unless it overlaps what is read.

    Raises:
        SensorUnavailable: there is no RAPL here, or its counters are closed to this user.
    """

    name = "rapl"

    def __init__(
        self,
        root: Path = POWERCAP_ROOT,
        *,
        proc_root: Path = PROC_ROOT,
        prefers_psys: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._monotonic = monotonic
        found = _found(root)
        self._domains = _domains({_kind(name) for name in found}, prefers_psys=prefers_psys)
        self._bands = {**ERROR_BANDS, "package": AMD_PACKAGE_BAND} if _is_amd(proc_root) else ERROR_BANDS
        self._zones: list[_Zone] = []
        self._listed = _listed(root)
        self._take_in(found)
        if not self._zones or _are_hidden(zone.folder for zone in self._zones):
            raise SensorUnavailable(_why_none(root, proc_root))
        for zone in self._zones:
            _check_open(root, zone.folder)
        self.notes = (*_left_out(found, self._domains, prefers_psys=prefers_psys), *self._mirrors())

    def devices(self) -> Sequence[Device]:
        return tuple(zone.device for zone in self._zones if zone.twin is None)

    def read(self) -> Sequence[Reading]:
        if any(zone.energy_microjoules is None for zone in self._zones) or _listed(self._root) != self._listed:
            self._listed = _listed(self._root)
            self._take_in(_found(self._root))
        for zone in self._zones:
            zone.look(self._monotonic)
            if zone.twin is not None and _differ(zone, zone.twin):
                zone.twin = None
        readings = [self._reading(zone) for zone in self._zones if zone.twin is None]
        if all(reading.energy_microjoules is None for reading in readings):
            raise SensorRetry("no RAPL counter could be read")
        return readings

    def close(self) -> None:
        pass

    def _take_in(self, found: Mapping[str, Sequence[Path]]) -> None:
        """Add the zones that are new, and follow those that have another number now."""
        known = {zone.device.name: zone for zone in self._zones}
        for name, folders in found.items():
            domain, zone = self._domains.get(_kind(name)), known.get(name)
            if domain is None:
                continue
            if zone is None:
                self._zones.append(self._opened(name, domain, folders[0]))
            else:  # through the interface that it had: the two may have begun to count at different times
                zone.folder = next(
                    (each for each in folders if _interface(each) == _interface(zone.folder)), zone.folder
                )

    def _opened(self, name: str, domain: Domain, folder: Path) -> _Zone:
        error_ratio, error_source = self._bands[_kind(name)]
        device = Device(
            name=name,
            domain=domain,
            method=Method.MEASURED,
            power_watts_max=_power_watts_max(folder) or POWER_WATTS_MAX[domain],
            error_ratio=error_ratio,
            error_source=error_source,
            counter_range_microjoules=_number(folder / "max_energy_range_uj"),
            counter_is_shared=True,
        )
        zone = _Zone(folder, device)
        zone.look(self._monotonic)
        zone.twin = next((each for each in self._zones if each.twin is None and _are_one(each, zone)), None)
        return zone

    def _reading(self, zone: _Zone) -> Reading:
        device, now_seconds = zone.device, zone.asked_seconds
        is_core = _kind(device.name) == "core"
        return Reading(
            device=device.name,
            monotonic_seconds=now_seconds,
            energy_microjoules=zone.energy_microjoules,
            energy_high_microjoules=microjoules(device.power_watts_max * now_seconds) if is_core else None,
        )

    def _mirrors(self) -> tuple[str, ...]:
        return tuple(
            f"{zone.device.name} shows the counter of {zone.twin.device.name}: counted once."
            for zone in self._zones
            if zone.twin is not None
        )


def rapl_access_help(root: Path = POWERCAP_ROOT, proc_root: Path = PROC_ROOT) -> tuple[str, ...]:
    """Ways to open the counters under ``root``: exact commands, one way an item; none where nothing is closed.

    A virtual machine without counters gets none, for there nothing helps. Reads files, changes nothing.
    """
    folders = sorted(root.glob("intel-rapl*:*"))
    if any(_is_closed(folder) for folder in folders):
        return (f"until the next boot, for every user: {_chmod(root)}", f"for good, for one group:\n{_UDEV_RULE}")
    in_container = f"in a container, started on the host by an administrator: {_CONTAINER}"
    if not folders and _has_counters(proc_root):
        return ("on the machine itself: sudo modprobe intel_rapl_msr", in_container)
    return (in_container,) if folders and _are_hidden(folders) else ()


def _chmod(root: Path) -> str:
    return f"sudo chmod a+r {root}/intel-rapl*:*/energy_uj"


def _why_none(root: Path, proc_root: Path) -> str:
    ways = rapl_access_help(root, proc_root)
    if not ways:
        return f"no RAPL energy counter under {root}, as on most virtual machines, containers and ARM hosts"
    return f"no RAPL energy counter can be read under {root}; {'; or '.join(ways)}"


def _check_open(root: Path, folder: Path) -> None:
    if _is_closed(folder):
        raise SensorUnavailable(
            f"RAPL counters are closed to this user ({folder / 'energy_uj'}); 'mlflow-green doctor' shows how to open "
            f"them for good, and until the next boot this opens them: {_chmod(root)}"
        )


def _is_closed(folder: Path) -> bool:
    try:
        (folder / "energy_uj").read_text()
    except PermissionError:
        return True
    except OSError:
        return False  # a zone that fails now may answer later: a gap
    return False


def _are_hidden(folders: Iterable[Path]) -> bool:
    """Whether a container shows the zones without their content: links that lead nowhere, or no numbers."""
    return all(not folder.exists() or _has_no_number(folder / "energy_uj") for folder in folders)


def _has_no_number(file: Path) -> bool:
    """Whether it can be read and shows no number; one that fails now may answer later."""
    try:
        text = file.read_text()
    except OSError:
        return False
    return not text.strip().isdecimal()


def _found(root: Path) -> dict[str, list[Path]]:
    """Every zone by name, ``package-0`` or ``package-0/dram``; where it can be read, the preferred place first."""
    found: dict[str, list[Path]] = {}
    for interface in ("intel-rapl", "intel-rapl-mmio"):
        for folder in sorted(root.glob(f"{interface}:*")):
            if folder.name.count(":") > 1:
                continue  # listed beside its package, too; it is found inside it
            name = _text(folder / "name")
            found.setdefault(name, []).append(folder)
            for child in sorted(folder.glob(f"{folder.name}:*")):
                found.setdefault(f"{name}/{_text(child / 'name')}", []).append(child)
    return found


def _listed(root: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(root))  # noqa: PTH208 - names only, at each read
    except OSError:
        return frozenset()


def _kind(name: str) -> str:
    last = name.rpartition("/")[2]
    return "package" if last.startswith("package") else last


def _interface(folder: Path) -> str:
    return folder.name.partition(":")[0]


def _domains(kinds: set[str], *, prefers_psys: bool) -> Mapping[str, Domain]:
    """Which kinds of zone are added up: no two of which one contains the other."""
    if "psys" in kinds and (prefers_psys or "package" not in kinds):
        return {"psys": Domain.PLATFORM}
    if "package" in kinds:
        return {"package": Domain.CPU, "dram": Domain.DRAM}
    return {"core": Domain.CPU}


def _left_out(
    found: Mapping[str, Sequence[Path]], domains: Mapping[str, Domain], *, prefers_psys: bool
) -> tuple[str, ...]:
    """What is here and not added, and what was asked for and is not here, in words."""
    twice = [name for name, folders in found.items() if len(folders) > 1 and _kind(name) in domains]
    notes = [f"{', '.join(twice)}: read from the CPU's registers, not a second time through MMIO."] if twice else []
    if "psys" in found and "psys" not in domains:
        notes.append("psys contains what is read here, so it is not added; MLFLOW_GREEN_RAPL=psys reads it instead.")
    if prefers_psys and "psys" not in found:
        notes.append("MLFLOW_GREEN_RAPL=psys asks for a counter that this machine does not have.")
    return tuple(notes)


def _are_one(one: _Zone, other: _Zone) -> bool:
    return (
        one.device.domain is other.device.domain
        and one.energy_microjoules is not None
        and other.energy_microjoules is not None
        and not _differ(one, other)
    )


def _differ(one: _Zone, other: _Zone) -> bool:
    """Whether two values cannot be one counter's, read one after the other."""
    if one.energy_microjoules is None or other.energy_microjoules is None:
        return False
    apart = abs(one.energy_microjoules - other.energy_microjoules)
    if one.device.counter_range_microjoules is not None:
        apart = min(apart, one.device.counter_range_microjoules + 1 - apart)
    seconds = max(one.answered_seconds, other.answered_seconds) - min(one.asked_seconds, other.asked_seconds)
    return apart > microjoules(POWER_WATTS_BELIEVED * (seconds + _UPDATE_SECONDS))


def _power_watts_max(folder: Path) -> float | None:
    """The highest believable limit that the zone states: long term, short term or peak."""
    files = [*folder.glob("constraint_*_power_limit_uw"), *folder.glob("constraint_*_max_power_uw")]
    watts = [(_number(file) or 0) / MICROWATTS_PER_WATT for file in files]
    return max((power for power in watts if 0 < power <= POWER_WATTS_BELIEVED), default=None)


def _is_amd(proc_root: Path) -> bool:
    return "AuthenticAMD" in _cpuinfo(proc_root)


def _has_counters(proc_root: Path) -> bool:
    """Whether this is an Intel or AMD CPU that no hypervisor hides."""
    words = _cpuinfo(proc_root).split()
    return ("GenuineIntel" in words or "AuthenticAMD" in words) and "hypervisor" not in words


def _cpuinfo(proc_root: Path) -> str:
    try:
        with (proc_root / "cpuinfo").open(errors="replace") as file:
            return file.read(_CPUINFO_CHARACTERS)
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
