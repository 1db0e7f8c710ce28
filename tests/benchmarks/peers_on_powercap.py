"""What other tools say of the same counters, in real time, beside ours: prints a table for docs/reference/accuracy.md.

    python tests/benchmarks/peers_on_powercap.py --peers-python PATH [--seconds 18] [--peer NAME] [--case NAME]

PATH is a Python of a virtual environment of its own, with any of codecarbon, carbontracker, perun and zeus; those that
it lacks are named and left out. Each tool meters the conformance kit's tree for the same case, one after the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.peer_meters import PEERS
from tests.conformance.meters import CommandMeter, Meter, SamplerMeter
from tests.conformance.play import Played, play
from tests.conformance.scenarios import SCENARIOS, Scenario, case

METERS = Path(__file__).with_name("peer_meters.py")
CASES = (
    ("plain", "package and dram"),
    ("plain", "beside psys"),
    ("plain", "shown by MMIO, too"),
    ("one wrap", "package and dram"),
    ("a reset", "package and dram"),
    ("unreadable in the middle", "package and dram"),
    ("a socket vanishes", "package and dram"),
)
OTHERS = ("two dies that show one counter", "psys alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=18.0)
    parser.add_argument("--peer", choices=PEERS, action="append", help="only this one; may be repeated")
    parser.add_argument("--case", default="", help="only those with this in their name")
    asked = parser.parse_args()
    versions = json.loads(subprocess.check_output([asked.peers_python, METERS, "versions", "-"], text=True))
    wanted = asked.peer or PEERS
    for name in (name for name in wanted if name not in versions):
        print(f"{name} is not installed there: left out", file=sys.stderr)
    peers = [name for name in wanted if name in versions]
    scenarios = [case(name, layout, asked.seconds) for name, layout in CASES]
    scenarios += [replace(each, seconds=asked.seconds) for each in SCENARIOS if each.name in OTHERS]
    scenarios = [each for each in scenarios if asked.case in each.name]

    print(f"Joules in {asked.seconds:g} s. Load average {os.getloadavg()[0]:.1f}.\n")
    print("| case | drawn | mlflow-green |", *(f"{name} {versions[name]} |" for name in peers))
    print("|---|---|---|" + "---|" * len(peers))
    for scenario in scenarios:
        meters: list[Meter] = [SamplerMeter()]
        meters += [CommandMeter(name, [asked.peers_python, METERS, name]) for name in peers]
        print(
            f"| {scenario.name} | {drawn(scenario)} |", *(f"{said(scenario, meter)} |" for meter in meters), flush=True
        )


def drawn(scenario: Scenario) -> str:
    domains = max(scenario.alternatives, key=len)
    return ", ".join(f"{domain} {scenario.truth_joules(domain):.0f}" for domain in sorted(domains))


def said(scenario: Scenario, meter: Meter) -> str:
    """The energies by domain in joules, each with its interval and how far it is off."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            played = play(scenario, meter, Path(folder), in_real_time=True)
        except RuntimeError as error:
            return str(error)
    return ", ".join(_part(scenario, played, domain) for domain in sorted(played.measured)) or "nothing"


def _part(scenario: Scenario, played: Played, domain: str) -> str:
    measured, text = played.measured[domain], f"{domain} {played.measured[domain].joules:.0f}"
    if measured.low_joules is not None and measured.high_joules is not None:
        text += f" [{measured.low_joules:.0f}, {measured.high_joules:.0f}]"
    if not any(domain in each for each in scenario.alternatives):
        return text
    return f"{text} ({measured.joules / scenario.truth_joules(domain, played.seconds) - 1:+.1%})"


if __name__ == "__main__":
    main()
