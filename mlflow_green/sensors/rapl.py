"""Energy counters of the CPU package and its memory: RAPL through Linux powercap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.errors import SensorRetry, SensorUnavailable
from mlflow_green.records import Device, Domain, Method, Reading
from mlflow_green.units import MICROWATTS_PER_WATT

POWERCAP_ROOT = Path("/sys/class/powercap")

# Where a zone states no believable limit: above the largest server packages on sale in 2025 (500 W), and above a
# fully populated socket's memory.
POWER_WATTS_MAX = {Domain.CPU: 500.0, Domain.DRAM: 150.0}
# Firmware writes thousands of watts for "no limit".
POWER_WATTS_BELIEVED = 1_000.0
# Starting bands: Khan et al. 2018, "RAPL in Action" (package follows plug power closely); Desrochers et al. 2016,
# MEMSYS (DRAM follows the trend with a constant offset).
ERROR_BANDS = {
    Domain.CPU: (0.10, "±10 % for RAPL's package counter (Khan et al. 2018)"),
    Domain.DRAM: (0.20, "±20 % for RAPL's DRAM counter (Desrochers et al. 2016)"),
}


@dataclass(frozen=True, slots=True)
class _Zone:
    folder: Path
    device: Device


class RaplSensor:
    """Package and DRAM zones under ``root``, each a cumulative counter in microjoules.

    Package and DRAM do not overlap and are both read. ``core`` and ``uncore`` are inside the package and ``psys``
    contains it, so they are not. ``intel-rapl-mmio`` is the package a second time: read only where it is alone.

    Raises:
        SensorUnavailable: there is no RAPL here, or its counters are closed to this user.
    """

    name = "rapl"

    def __init__(self, root: Path = POWERCAP_ROOT, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._zones = tuple(_zones(root))
        if not any(zone.device.domain is Domain.CPU for zone in self._zones):
            raise SensorUnavailable(
                f"no RAPL energy counter under {root}: virtual machines, containers and ARM hosts usually have none"
            )
        for zone in self._zones:
            _check_readable(root, zone)

    def devices(self) -> Sequence[Device]:
        return tuple(zone.device for zone in self._zones)

    def read(self) -> Sequence[Reading]:
        readings = [
            Reading(
                device=zone.device.name,
                monotonic_seconds=self._monotonic(),
                energy_microjoules=_number(zone.folder / "energy_uj"),
            )
            for zone in self._zones
        ]
        if all(reading.energy_microjoules is None for reading in readings):
            raise SensorRetry("no RAPL counter could be read")
        return readings

    def close(self) -> None:
        pass


def _check_readable(root: Path, zone: _Zone) -> None:
    try:
        (zone.folder / "energy_uj").read_text()
    except PermissionError as error:
        raise SensorUnavailable(
            f"RAPL counters are closed to this user ({zone.folder / 'energy_uj'}); "
            f"until the next boot this opens them: sudo chmod a+r {root}/intel-rapl*:*/energy_uj"
        ) from error
    except OSError:
        return  # a zone that fails now may answer later: a gap


def _zones(root: Path) -> Iterator[_Zone]:
    folders = sorted(root.glob("intel-rapl:*")) or sorted(root.glob("intel-rapl-mmio:*"))
    for folder in folders:
        kind = _text(folder / "name")
        if kind.startswith("package"):
            yield _Zone(folder, _device(folder, kind, Domain.CPU))
        elif kind == "dram":
            package = _text(folder.with_name(folder.name.rpartition(":")[0]) / "name")
            yield _Zone(folder, _device(folder, f"{package}/dram", Domain.DRAM))


def _device(folder: Path, name: str, domain: Domain) -> Device:
    error_ratio, error_source = ERROR_BANDS[domain]
    return Device(
        name=name,
        domain=domain,
        method=Method.MEASURED,
        power_watts_max=_power_watts_max(folder) or POWER_WATTS_MAX[domain],
        error_ratio=error_ratio,
        error_source=error_source,
        counter_range_microjoules=_number(folder / "max_energy_range_uj"),
        counter_is_shared=True,
    )


def _power_watts_max(folder: Path) -> float | None:
    """The highest believable limit that the zone states: long term, short term or peak."""
    files = [*folder.glob("constraint_*_power_limit_uw"), *folder.glob("constraint_*_max_power_uw")]
    watts = [(_number(file) or 0) / MICROWATTS_PER_WATT for file in files]
    return max((power for power in watts if 0 < power <= POWER_WATTS_BELIEVED), default=None)


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
