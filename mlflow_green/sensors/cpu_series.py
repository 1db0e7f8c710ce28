"""Server CPUs by what they say of themselves: rated power and hardware threads, for shares of a CPU.

All of it are facts that the makers publish on their product pages (Intel ARK, AMD's EPYC series tables, Ampere's
data sheets), read up to 2025. A CPU that a cloud had made for itself is on no page: its rated power is that of
CodeCarbon's table (MIT), its threads are half of the largest instance's vCPUs, as Teads noted them for two-socket AWS
hosts (B. Davy 2021, in Cloud Carbon Footprint's ``aws-instances-cpus.csv``, Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mlflow_green.sensors.cpu_info import ARM_VENDOR, CpuInfo

_INTEL, _AMD = "GenuineIntel", "AuthenticAMD"
_ANY_STEPPING = range(100)


class Rated(NamedTuple):
    """A CPU on sale: its rated power in watts and its hardware threads."""

    name: str
    power_watts: float
    threads: int

    @property
    def power_watts_per_thread(self) -> float:
        return self.power_watts / self.threads


@dataclass(frozen=True, slots=True)
class Series:
    """CPUs that share one family and model: those of many cores, which clouds buy, by rated power for each thread."""

    name: str
    vendor: str
    family: int
    model: int
    leanest: Rated
    typical: Rated
    hungriest: Rated
    steppings: range = _ANY_STEPPING


SERIES = (
    Series("Haswell-EP", _INTEL, 6, 63, Rated("Xeon E5-2699 v3", 145, 36), Rated("Xeon E5-2698 v3", 135, 32),
           Rated("Xeon E5-2690 v3", 135, 24)),
    Series("Broadwell-EP", _INTEL, 6, 79, Rated("Xeon E5-2699 v4", 145, 44), Rated("Xeon E5-2697 v4", 145, 36),
           Rated("Xeon E5-2690 v4", 135, 28)),
    Series("Skylake-SP", _INTEL, 6, 85, Rated("Xeon Platinum 8176", 165, 56), Rated("Xeon Platinum 8168", 205, 48),
           Rated("Xeon Platinum 8124M", 240, 36), range(5)),
    Series("Cascade Lake-SP", _INTEL, 6, 85, Rated("Xeon Gold 6230", 125, 40), Rated("Xeon Platinum 8268", 205, 48),
           Rated("Xeon Platinum 8275CL", 240, 48), range(5, 8)),
    Series("Ice Lake-SP", _INTEL, 6, 106, Rated("Xeon Gold 6338", 205, 64), Rated("Xeon Platinum 8358", 250, 64),
           Rated("Xeon Platinum 8375C", 300, 64)),
    Series("Sapphire Rapids", _INTEL, 6, 143, Rated("Xeon Platinum 8490H", 350, 120),
           Rated("Xeon Platinum 8468", 350, 96), Rated("Xeon Platinum 8462Y+", 300, 64)),
    Series("Emerald Rapids", _INTEL, 6, 207, Rated("Xeon Platinum 8592+", 350, 128),
           Rated("Xeon Platinum 8580", 350, 120), Rated("Xeon Platinum 8562Y+", 300, 64)),
    Series("Granite Rapids", _INTEL, 6, 173, Rated("Xeon 6980P", 500, 256), Rated("Xeon 6972P", 500, 192),
           Rated("Xeon 6767P", 350, 128)),
    Series("Sierra Forest", _INTEL, 6, 175, Rated("Xeon 6766E", 250, 144), Rated("Xeon 6780E", 330, 144),
           Rated("Xeon 6740E", 250, 96)),
    Series("Naples", _AMD, 23, 1, Rated("EPYC 7551", 180, 64), Rated("EPYC 7601", 180, 64),
           Rated("EPYC 7401", 170, 48)),
    Series("Rome", _AMD, 23, 49, Rated("EPYC 7702", 200, 128), Rated("EPYC 7742", 225, 128),
           Rated("EPYC 7542", 225, 64)),
    Series("Milan", _AMD, 25, 1, Rated("EPYC 7713", 225, 128), Rated("EPYC 7763", 280, 128),
           Rated("EPYC 7543", 225, 64)),
    Series("Genoa", _AMD, 25, 17, Rated("EPYC 9634", 290, 168), Rated("EPYC 9654", 360, 192),
           Rated("EPYC 9454", 290, 96)),
    Series("Bergamo", _AMD, 25, 160, Rated("EPYC 9754", 360, 256), Rated("EPYC 9754", 360, 256),
           Rated("EPYC 9734", 340, 224)),
    Series("Turin", _AMD, 26, 2, Rated("EPYC 9755", 500, 256), Rated("EPYC 9655", 400, 192),
           Rated("EPYC 9555", 360, 128)),
    Series("Turin Dense", _AMD, 26, 17, Rated("EPYC 9845", 390, 320), Rated("EPYC 9965", 500, 384),
           Rated("EPYC 9825", 390, 288)),
    # Neoverse N1: Graviton2 and Ampere Altra. Amazon states no power; Altra is the only one with a data sheet.
    Series("Neoverse N1", ARM_VENDOR, 0, 0xD0C, Rated("Ampere Altra Max M128-30", 250, 128),
           Rated("Ampere Altra Q80-30", 210, 80), Rated("Ampere Altra Q80-33", 250, 80)),
)  # fmt: skip

# Names without a number of cores that virtual machines of AWS, Azure and Google Cloud show, as ``normalised`` writes
# them.
CLOUD_CPUS = {
    "intel xeon e5-2686 v4": Rated("Xeon E5-2686 v4", 145, 36),
    "intel xeon e5-2673 v3": Rated("Xeon E5-2673 v3", 110, 24),
    "intel xeon e5-2673 v4": Rated("Xeon E5-2673 v4", 135, 40),
    "intel xeon platinum 8124m": Rated("Xeon Platinum 8124M", 240, 36),
    "intel xeon platinum 8171m": Rated("Xeon Platinum 8171M", 165, 52),
    "intel xeon platinum 8175m": Rated("Xeon Platinum 8175M", 240, 48),
    "intel xeon platinum 8259cl": Rated("Xeon Platinum 8259CL", 210, 48),
    "intel xeon platinum 8272cl": Rated("Xeon Platinum 8272CL", 195, 52),
    "intel xeon platinum 8275cl": Rated("Xeon Platinum 8275CL", 240, 48),
    "intel xeon platinum 8375c": Rated("Xeon Platinum 8375C", 300, 64),
    "amd epyc 7b12": Rated("EPYC 7B12", 240, 128),
    "amd epyc 7r13": Rated("EPYC 7R13", 225, 96),
}


def series_of(info: CpuInfo) -> Series | None:
    """The series that vendor, family, model and stepping name; ``None`` for all others, never the nearest."""
    return next(
        (
            each
            for each in SERIES
            if (each.vendor, each.family, each.model) == (info.vendor, info.family, info.model)
            and info.stepping in each.steppings
        ),
        None,
    )
