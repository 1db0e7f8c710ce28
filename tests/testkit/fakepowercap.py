"""A fake /sys/class/powercap (Linux RAPL) in an ordinary folder, with a clock that the test turns by hand.

    tree = FakePowercap(folder, layout="intel", sockets=2, power_watts={"package": (100, 80), "dram": 6})
    tree.advance(10)            # every counter moves on by its power x 10 s, wrapping around
    tree.zone("package-0").power_watts = 120
    tree.zone("package-0").hide()

Like sysfs, files are rewritten in place: a meter that keeps energy_uj open and reads it again from offset 0 sees the
new value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# What a zone of each layout has: children of the package, and zones beside it.
LAYOUTS: dict[str, tuple[tuple[str, ...] | None, tuple[str, ...]]] = {
    "intel": (("core", "uncore", "dram"), ("psys",)),
    "server": (("dram",), ()),
    "package": ((), ()),
    "amd": (("core",), ()),
    # The same packages again through MMIO: adding both up counts them twice.
    "mmio": (("core", "uncore"), ("psys", "mmio")),
    "server-mmio": (("dram",), ("mmio",)),
    # A socket of two dies, which both show the counter of the whole socket (AMD Zen 1 and 2).
    "dies": (("core",), ("mirror",)),
    "psys": (None, ("psys",)),
    "core": (None, ("core",)),
}
POWER_WATTS = {"package": 50.0, "core": 30.0, "uncore": 3.0, "dram": 5.0, "psys": 75.0}
RANGE_MICROJOULES = 262_143_328_850  # a usual max_energy_range_uj: 262 kJ, 73 min at 60 W
LIMIT_WATTS, PSYS_LIMIT_WATTS = 125.0, 400.0
# How far the counters of two sockets are apart: those of real ones never show the same.
SOCKET_MICROJOULES = 7_001_234_567


@dataclass
class Zone:
    """One power zone: a folder with name, energy_uj and max_energy_range_uj."""

    path: Path
    name: str
    power_watts: float
    range_microjoules: int = RANGE_MICROJOULES
    energy_microjoules: float = 0.0
    limit_watts: float = LIMIT_WATTS
    frozen: bool = False
    hidden: bool = False
    mirror_of: Zone | None = None
    _fd: int = field(default=-1, repr=False)

    def create(self, mode: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "name").write_text(f"{self.name}\n")
        (self.path / "enabled").write_text("1\n")
        (self.path / "max_energy_range_uj").write_text(f"{self.range_microjoules}\n")
        (self.path / "constraint_0_name").write_text("long_term\n")
        (self.path / "constraint_0_power_limit_uw").write_text(f"{self.limit_watts * 1e6:.0f}\n")
        counter = self.path / "energy_uj"
        counter.touch()
        self._fd = os.open(counter, os.O_RDWR)
        counter.chmod(mode)
        self.write()

    def advance(self, seconds: float) -> None:
        if self.mirror_of is not None:
            self.energy_microjoules = self.mirror_of.energy_microjoules
        elif not self.frozen:
            self.energy_microjoules = (self.energy_microjoules + self.power_watts * seconds * 1e6) % (
                self.range_microjoules + 1
            )
        self.write()

    def reset(self) -> None:
        """The counter begins again at 0."""
        self.energy_microjoules = 0.0
        self.write()

    def write(self) -> None:
        if self.hidden:
            return
        text = f"{int(self.energy_microjoules)}\n".encode()
        # One write that also blanks the digits of a longer old value, then cut:
        # a concurrent reader sees the old or the new number, never a mixture.
        size = os.fstat(self._fd).st_size
        os.pwrite(self._fd, text.ljust(size, b"\n"), 0)
        os.ftruncate(self._fd, len(text))

    def hide(self) -> None:
        """The counter cannot be read for a while, also by whoever has it open; what it counts goes on."""
        (self.path / "energy_uj").rename(self.path / ".energy_uj")
        os.ftruncate(self._fd, 0)
        self.hidden = True

    def show(self) -> None:
        self.hidden = False
        self.write()
        (self.path / ".energy_uj").rename(self.path / "energy_uj")

    def remove(self) -> None:
        """The zone goes away (driver unloaded): reading it fails from now on."""
        for file in self.path.iterdir():
            if file.is_file():
                file.unlink()
        self.frozen = True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FakePowercap:
    """The tree; zones are flat under the root and nested, as in sysfs. A power may be one for each socket."""

    def __init__(
        self,
        root: Path,
        layout: str = "intel",
        sockets: int = 1,
        power_watts: Mapping[str, float | Sequence[float]] | None = None,
        range_microjoules: int = RANGE_MICROJOULES,
        start_microjoules: int = 0,
        mode: int = 0o444,
    ) -> None:
        self.root = root
        self.zones: list[Zone] = []
        self._power_watts = {**POWER_WATTS, **(power_watts or {})}
        self._range_microjoules, self._start_microjoules, self._mode = range_microjoules, start_microjoules, mode
        self._children, beside = LAYOUTS[layout]
        self._devices = root.parent / f".{root.name}.devices"  # plays /sys/devices/virtual/powercap
        self._base = self._devices / "intel-rapl"
        mmio = self._devices / "intel-rapl-mmio"
        root.mkdir(parents=True, exist_ok=True)
        for interface in (self._base, mmio) if "mmio" in beside else (self._base,):
            interface.mkdir(parents=True, exist_ok=True)
            self._link(interface)
        sockets = 0 if self._children is None else sockets
        for socket in range(sockets):
            self.add_socket(socket, has_mirror="mirror" in beside)
            if "mmio" in beside:
                self._add(mmio / f"intel-rapl-mmio:{socket}", f"package-{socket}", "package", socket)
        for kind in {"psys", "core"}.intersection(beside):
            self._add(self._base / f"intel-rapl:{sockets}", kind, kind, 0)

    def add_socket(self, socket: int, *, has_mirror: bool = False) -> None:
        """A package with its children, also while a meter runs."""
        name = f"package-{socket}" + ("-die-0" if has_mirror else "")
        package = self._add(self._base / f"intel-rapl:{socket * (1 + has_mirror)}", name, "package", socket)
        for index, child in enumerate(self._children or ()):
            self._add(package.path / f"{package.path.name}:{index}", child, child, socket)
        if has_mirror:
            mirror = self._add(
                self._base / f"intel-rapl:{2 * socket + 1}", f"package-{socket}-die-1", "package", socket
            )
            mirror.mirror_of = package

    def _add(self, folder: Path, name: str, kind: str, socket: int) -> Zone:
        power_watts = self._power_watts[kind]
        zone = Zone(
            folder,
            name,
            power_watts[socket] if isinstance(power_watts, Sequence) else power_watts,
            self._range_microjoules,
            (self._start_microjoules + socket * SOCKET_MICROJOULES) % (self._range_microjoules + 1),
            PSYS_LIMIT_WATTS if kind == "psys" else LIMIT_WATTS,
        )
        zone.create(self._mode)
        self.zones.append(zone)
        self._link(folder)
        return zone

    def _link(self, folder: Path) -> None:
        link = self.root / folder.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(folder, self.root))

    def zone(self, name: str) -> Zone:
        return next(zone for zone in self.zones if zone.name == name)

    def zones_of(self, socket: int) -> list[Zone]:
        """The package's zone through the model-specific registers and those inside it."""
        return [zone for zone in self.zones if f"intel-rapl:{socket}" in zone.path.parts]

    def advance(self, seconds: float) -> None:
        for zone in self.zones:
            zone.advance(seconds)

    def close(self) -> None:
        for zone in self.zones:
            zone.close()
