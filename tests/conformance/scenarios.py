"""What a machine draws, what happens to its counters, and what a meter should say of it: data, and arithmetic on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.testkit.fakepowercap import FakePowercap

POWER_WATTS: Mapping[str, tuple[float, ...]] = {"package": (100.0, 80.0), "dram": (20.0, 15.0), "psys": (260.0,)}
# The energies that a meter may report, and the zones whose sum each one is.
DOMAINS = {"cpu": "package", "dram": "dram", "platform": "psys"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens to the counters of a socket, of all zones where none is named; at 0: before the start.

    ``what`` is ``hide``, ``show``, ``reset``, ``remove`` (of ``FakePowercap``'s zones) or ``appear``.
    """

    at_seconds: float
    what: str
    socket: int | None = None

    def happen(self, tree: FakePowercap) -> None:
        if self.what == "appear":
            assert self.socket is not None
            tree.add_socket(self.socket)
            return
        for zone in tree.zones if self.socket is None else tree.zones_of(self.socket):
            getattr(zone, self.what)()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Counters of constant power for some seconds of the tree's clock.

    ``alternatives`` are the sets of domains that do not overlap: a meter reports one of them. ``wraps`` makes every
    counter wrap in the middle. ``tolerance_ratio`` is how far the point may be off; ``None`` where only the interval
    can hold the truth, for then a part of it was never shown. ``is_covered`` says that no reading fails or is lost.
    """

    name: str
    layout: str
    alternatives: tuple[frozenset[str], ...]
    power_watts: Mapping[str, tuple[float, ...]]
    seconds: float = 60.0
    sockets: int = 2
    events: tuple[Event, ...] = ()
    wraps: bool = False
    tolerance_ratio: float | None = 0.005
    is_covered: bool = True

    def tree(self, root: Path) -> FakePowercap:
        tree = FakePowercap(root, self.layout, self.sockets, self.power_watts)
        for zone in tree.zones if self.wraps else ():
            zone.energy_microjoules = zone.range_microjoules - int(zone.power_watts * self.seconds / 2 * 1e6)
            zone.write()
        return tree

    def truth_joules(self, domain: str, seconds: float | None = None) -> float:
        """What the zones of this domain drew in so many seconds, whether a counter showed it or not."""
        seconds = self.seconds if seconds is None else seconds
        appeared = {event.socket: event.at_seconds for event in self.events if event.what == "appear"}
        powers = self.power_watts[DOMAINS[domain]]
        return sum(power * (seconds - appeared.get(socket, 0.0)) for socket, power in enumerate(powers))


PARTS = {
    "package": ("package", frozenset({"cpu"})),
    "package and dram": ("server", frozenset({"cpu", "dram"})),
    "beside psys": ("intel", frozenset({"cpu", "dram"})),
    "shown by MMIO, too": ("server-mmio", frozenset({"cpu", "dram"})),
}
UNREADABLE_SECONDS = 1.4


def _unreadable(plain: Scenario, from_seconds: float) -> Scenario:
    hidden = Event(at_seconds=from_seconds, what="hide")
    shown = Event(at_seconds=from_seconds + UNREADABLE_SECONDS, what="show")
    return replace(plain, events=(hidden, shown), is_covered=False)


def _in_the_middle(plain: Scenario) -> float:
    """A moment that is no sample's."""
    return plain.seconds / 2 + 0.3


def _reset(plain: Scenario) -> Scenario:
    return replace(plain, events=(Event(at_seconds=_in_the_middle(plain), what="reset"),), is_covered=False)


def _vanishing(plain: Scenario) -> Scenario:
    vanishes = Event(at_seconds=_in_the_middle(plain), what="remove", socket=1)
    return replace(plain, events=(vanishes,), tolerance_ratio=None, is_covered=False)


CASES: Mapping[str, Callable[[Scenario], Scenario]] = {
    "plain": lambda plain: plain,
    "one wrap": lambda plain: replace(plain, wraps=True),
    "a reset": _reset,
    "unreadable at the start": lambda plain: _unreadable(plain, 0.0),
    "unreadable in the middle": lambda plain: _unreadable(plain, _in_the_middle(plain)),
    "a wrap while unreadable": lambda plain: replace(_unreadable(plain, plain.seconds / 2 - 0.4), wraps=True),
    "unreadable at the end": lambda plain: _unreadable(plain, plain.seconds - UNREADABLE_SECONDS),
    "a socket vanishes": _vanishing,
}


def case(name: str, layout: str, seconds: float = 60.0) -> Scenario:
    """One of CASES on one of PARTS."""
    kind, domains = PARTS[layout]
    alternatives = (domains, frozenset({"platform"})) if kind == "intel" else (domains,)
    return CASES[name](
        Scenario(
            name=f"{name}, {layout}", layout=kind, alternatives=alternatives, power_watts=POWER_WATTS, seconds=seconds
        )
    )


SCENARIOS = (
    *(case(name, layout) for layout in PARTS for name in CASES),
    Scenario(
        name="psys alone",
        layout="psys",
        alternatives=(frozenset({"platform"}),),
        power_watts={"psys": (260.0,)},
    ),
    Scenario(
        name="two dies that show one counter",
        layout="dies",
        alternatives=(frozenset({"cpu"}),),
        power_watts={"package": (68.0,)},
        sockets=1,
    ),
    Scenario(
        name="a socket appears",
        layout="server",
        alternatives=(frozenset({"cpu", "dram"}),),
        power_watts=POWER_WATTS,
        sockets=1,
        events=(Event(at_seconds=19.8, what="appear", socket=1),),
    ),
)
