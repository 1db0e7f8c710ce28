"""Other tools as commands of the conformance kit: ``PYTHON peer_meters.py NAME ROOT``, run by a Python that has them.

Each is used as its quick start says, at one reading a second, and pointed at ROOT by replacing the path that it has in
its code. Nothing of ours is imported here.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from importlib import metadata

JOULES_PER_KWH = 3_600_000


def codecarbon(root: str) -> dict[str, float]:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.core import cpu
    from codecarbon.external.hardware import CPU

    folder = f"{root}/intel-rapl"
    cpu._get_candidate_bases = lambda _: [folder, root]
    *others, _, mode, dram, psys = CPU.__init__.__defaults__
    assert (mode, dram, psys) == ("machine", False, False), "codecarbon's CPU has other arguments now"
    CPU.__init__.__defaults__ = (*others, folder, mode, dram, psys)
    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA",
        measure_power_secs=1,
        save_to_file=False,
        log_level="error",
        allow_multiple_runs=True,
        rapl_include_dram=True,
    )
    tracker.start()
    wait_for_stop()
    tracker.stop()
    return {"cpu": tracker.final_emissions_data.cpu_energy * JOULES_PER_KWH}  # its RAM energy is a model's


def carbontracker(root: str) -> dict[str, float]:
    from carbontracker.components.cpu import intel
    from carbontracker.tracker import CarbonTracker

    intel.RAPL_DIR = f"{root}/"
    tracker = CarbonTracker(epochs=1, monitor_epochs=1, update_interval=1, components="cpu", verbose=0)
    thread = tracker.tracker
    tracker.epoch_start()
    wait_for_stop()
    tracker.epoch_end()
    # Before its PUE; packages and memory are one figure.
    return {"cpu": sum(each.energy_usage(thread.epoch_times)[0] for each in thread.components) * JOULES_PER_KWH}


def zeus(root: str) -> dict[str, float]:
    from zeus.device.cpu import rapl
    from zeus.monitor import ZeusMonitor

    rapl.RAPL_DIR = f"{root}/intel-rapl"
    monitor = ZeusMonitor(gpu_indices=[])
    monitor.begin_window("window")
    wait_for_stop()
    window = monitor.end_window("window")
    energies = {"cpu": window.cpu_energy, "dram": window.dram_energy}
    return {domain: sum(each.values()) for domain, each in energies.items() if each is not None}


def perun(root: str) -> dict[str, float]:
    import perun as package
    from perun.backend import powercap_rapl

    powercap_rapl.RAPL_PATH = root
    found: dict[str, float] = {}

    def keep(node) -> None:
        energies = {metric.name: metric_value.value for metric, metric_value in node.metrics.items()}
        found.update({domain: float(energies[name]) for domain, name in names.items() if name in energies})

    def metered() -> None:
        package.register_callback(keep)
        wait_for_stop()

    names = {"cpu": "CPU_ENERGY", "dram": "DRAM_ENERGY"}

    with tempfile.TemporaryDirectory() as folder:
        package.perun(sampling_period=1, data_out=folder, format="text")(metered)()
    return found


def wait_for_stop() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


PEERS = {"codecarbon": codecarbon, "carbontracker": carbontracker, "perun": perun, "zeus": zeus}


def main() -> None:
    name, root = sys.argv[1:]
    if name == "versions":
        print(json.dumps({each.metadata["Name"].lower(): each.version for each in metadata.distributions()}))
        return
    os.chdir(tempfile.mkdtemp())
    answer = {domain: {"joules": joules} for domain, joules in PEERS[name](root).items()}
    print(json.dumps(answer), flush=True)
    for child in multiprocessing.active_children():
        child.terminate()


if __name__ == "__main__":
    main()
