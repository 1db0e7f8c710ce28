"""A fake /sys/class/powercap (Linux RAPL) in an ordinary folder, with a clock that the test turns by hand.

    tree = FakePowercap(folder, layout="intel", sockets=2, power_watts={"package": 80, "dram": 6})
    tree.advance(10)            # every counter moves on by its power x 10 s, wrapping around
    tree.zone("package-0").power_watts = 120

Like sysfs, files are rewritten in place: a meter that keeps energy_uj open and reads it again from offset 0 sees the
new value.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What a zone of each layout has: children of the package, and zones beside it.
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "intel": (("core", "uncore", "dram"), ("psys",)),
    "server": (("dram",), ()),
    "amd": (("core",), ()),
    # The same package again through MMIO: adding both up counts it twice.
    "mmio": (("core", "uncore"), ("psys", "mmio")),
}
POWER_WATTS = {"package": 50.0, "core": 30.0, "uncore": 3.0, "dram": 5.0, "psys": 75.0}
RANGE_MICROJOULES = 262_143_328_850  # a usual max_energy_range_uj: 262 kJ, 73 min at 60 W


@dataclass
class Zone:
    """One power zone: a folder with name, energy_uj and max_energy_range_uj."""

    path: Path
    name: str
    power_watts: float
    range_microjoules: int = RANGE_MICROJOULES
    energy_microjoules: float = 0.0
    frozen: bool = False
    _fd: int = field(default=-1, repr=False)

    def create(self, mode: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "name").write_text(f"{self.name}\n")
        (self.path / "enabled").write_text("1\n")
        (self.path / "max_energy_range_uj").write_text(f"{self.range_microjoules}\n")
        (self.path / "constraint_0_name").write_text("long_term\n")
        (self.path / "constraint_0_power_limit_uw").write_text("125000000\n")
        counter = self.path / "energy_uj"
        counter.touch()
        self._fd = os.open(counter, os.O_RDWR)
        counter.chmod(mode)
        self.write()

    def advance(self, seconds: float) -> None:
        if not self.frozen:
            self.energy_microjoules = (self.energy_microjoules + self.power_watts * seconds * 1e6) % (
                self.range_microjoules + 1
            )
            self.write()

    def write(self) -> None:
        text = f"{int(self.energy_microjoules)}\n".encode()
        # One write that also blanks the digits of a longer old value, then cut:
        # a concurrent reader sees the old or the new number, never a mixture.
        size = os.fstat(self._fd).st_size
        os.pwrite(self._fd, text.ljust(size, b"\n"), 0)
        os.ftruncate(self._fd, len(text))

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
    """The tree; zones are flat under the root and nested, as in sysfs."""

    def __init__(
        self,
        root: Path,
        layout: str = "intel",
        sockets: int = 1,
        power_watts: dict[str, float] | None = None,
        range_microjoules: int = RANGE_MICROJOULES,
        start_microjoules: int = 0,
        mode: int = 0o444,
    ) -> None:
        self.root = root
        self.zones: list[Zone] = []
        power_watts = {**POWER_WATTS, **(power_watts or {})}
        children, beside = LAYOUTS[layout]
        devices = root.parent / f".{root.name}.devices"  # plays /sys/devices/virtual/powercap
        root.mkdir(parents=True, exist_ok=True)

        def add(folder: Path, name: str, kind: str) -> Path:
            zone = Zone(folder, name, power_watts[kind], range_microjoules, start_microjoules)
            zone.create(mode)
            self.zones.append(zone)
            link = root / folder.name
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(folder, root))
            return folder

        base = devices / "intel-rapl"
        base.mkdir(parents=True, exist_ok=True)
        if not (root / "intel-rapl").is_symlink():
            (root / "intel-rapl").symlink_to(os.path.relpath(base, root))
        for socket in range(sockets):
            package = add(base / f"intel-rapl:{socket}", f"package-{socket}", "package")
            for index, child in enumerate(children):
                add(package / f"intel-rapl:{socket}:{index}", child, child)
        if "psys" in beside:
            add(base / f"intel-rapl:{sockets}", "psys", "psys")
        if "mmio" in beside:
            add(devices / "intel-rapl-mmio" / "intel-rapl-mmio:0", "package-0", "package")

    def zone(self, name: str) -> Zone:
        return next(zone for zone in self.zones if zone.name == name)

    def advance(self, seconds: float) -> None:
        for zone in self.zones:
            zone.advance(seconds)

    def close(self) -> None:
        for zone in self.zones:
            zone.close()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Run a block without root's rights, so that mode 0400 denies it the counter.

    Root ignores permission bits; a test that runs as root needs this.  Does
    nothing for an ordinary user.
    """
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
