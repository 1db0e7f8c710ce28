"""Energy counters of virtual nodes: one number each, told to Slurm as Cray's pm_counters and to our meter as RAPL."""

import subprocess
import threading
import time
from pathlib import Path

from tests.testkit.fakepowercap import FakePowercap

SHIM_SOURCE = Path(__file__).with_name("pmcounters_shim.c")
_TICK_SECONDS = 0.05
_RANGE_MICROJOULES = 10**15  # no test lives to see these counters wrap


def build_shim(folder: Path) -> Path:
    """The library to preload into slurmd, with its node's ``pm_counters`` named by ``FAKE_PM_COUNTERS``."""
    library = folder / "libpmcounters_shim.so"
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared"]
    subprocess.run(["cc", *flags, "-o", library, SHIM_SOURCE, "-ldl"], check=True)
    return library


class NodeCounters:
    """The counters of one node, at a constant power in watts; not thread-safe."""

    def __init__(self, folder: Path, power_watts: float) -> None:
        self.powercap_root = folder / "powercap"
        self.pm_counters = folder / "pm_counters"
        self.pm_counters.mkdir(parents=True)
        self._tree = FakePowercap(self.powercap_root, layout="amd", range_microjoules=_RANGE_MICROJOULES)
        self.set_power(power_watts)
        self.advance(0)

    @property
    def microjoules(self) -> int:
        return int(self._tree.zone("package-0").energy_microjoules)

    def set_power(self, power_watts: float) -> None:
        for zone in self._tree.zones:
            zone.power_watts = power_watts

    def advance(self, seconds: float) -> None:
        self._tree.advance(seconds)
        self._tell_slurm("energy", f"{self.microjoules // 1_000_000} J\n")
        self._tell_slurm("power", f"{self._tree.zone('package-0').power_watts:.0f} W\n")

    def close(self) -> None:
        self._tree.close()

    def _tell_slurm(self, name: str, text: str) -> None:
        """Replaced in one step, so that no reader sees half a number."""
        fresh = self.pm_counters / f"{name}.new"
        fresh.write_text(text)
        fresh.replace(self.pm_counters / name)


class EnergyThread:
    """Moves the counters of all nodes on in real time. Files are up to 50 ms old; thread-safe."""

    def __init__(self, nodes: dict[str, NodeCounters]) -> None:
        self._nodes = nodes
        self._lock = threading.Lock()
        self._advanced_at = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-energy", daemon=True)
        self._thread.start()

    def microjoules(self, node: str) -> int:
        with self._lock:
            self._advance()
            return self._nodes[node].microjoules

    def set_power(self, node: str, power_watts: float) -> None:
        with self._lock:
            self._advance()
            self._nodes[node].set_power(power_watts)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        for counters in self._nodes.values():
            counters.close()

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            with self._lock:
                self._advance()

    def _advance(self) -> None:
        now = time.monotonic()
        for counters in self._nodes.values():
            counters.advance(now - self._advanced_at)
        self._advanced_at = now
