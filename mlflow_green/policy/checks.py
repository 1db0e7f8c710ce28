"""Checks across the keys of a policy, on its plain data.

They run on the data and not on the typed document, so that a file with a misspelt word somewhere is still told
everything else that is wrong with it. Whatever has the wrong shape is passed over: the schema reports that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import chain

from mlflow_green.errors import QuantityError
from mlflow_green.policy.problem import KeyPath, Problem
from mlflow_green.policy.source import close_name
from mlflow_green.policy.values import TIER_NAME, percent
from mlflow_green.records import Unit
from mlflow_green.units import CARBON_MICROGRAMS, ENERGY_MICROJOULES, split_quantity

Data = Mapping[str, object]

_ONLY_WITH = {"to": ("notify",), "for": ("wait",), "then": ("wait",), "grace": ("halt",)}
_MODES = ("observe", "soft")
_WITHOUT_NEXT = ("workflow", "total")
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_KEPT_VARIABLES = ("PATH", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_CONTEXT")
_KEPT_PREFIXES = ("GREEN_", "MLFLOW_GREEN_")
PLACES = ("country", "cloud", "carbon_intensity", "intensity_series")
"""The keys of ``site`` that say how carbon-intensive its electricity is."""


def cross_checks(data: Data) -> Iterator[Problem]:
    """Everything that is wrong between keys, in no particular order."""
    site = _mapping(data.get("site"))
    channels = tuple(_mapping(data.get("channels")))
    yield from _site(site)
    yield from _duplicate_names(data)
    for path, budget in _items(data, ("budgets",)):
        yield from _limits(path, budget, site)
        for rule_path, rule in _items(budget, (*path, "rules")):
            yield from chain(_rule(rule_path, rule), _channels(rule_path, rule, channels))
        yield from _halts(path, budget)
        yield from _periods(path, budget)
    for name, tier in _mapping(data.get("tiers")).items():
        yield from _tier(("tiers", name), _mapping(tier))
    yield from _tier_names(data)
    for name, channel in _mapping(data.get("channels")).items():
        yield from _channel(("channels", name), channel)


def _site(site: Data) -> Iterator[Problem]:
    first, *others = [key for key in site if key in PLACES] or [""]
    for key in others:
        message = f"a site has one place, and {first!r} names it already; remove one of them"
        yield Problem(path=("site", key), on_key=True, message=message)
    for key in ("carbon_intensity", "intensity_series"):
        if key in site and "source" not in site:
            message = "say where the number comes from, e.g. 'source: my supplier, 2025'"
            yield Problem(path=("site", key), on_key=True, message=message)


def _duplicate_names(data: Data) -> Iterator[Problem]:
    seen: dict[object, int] = {}
    for path, budget in _items(data, ("budgets",)):
        name = budget.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            first = f"the first is budgets.{seen[name]}"
            message = f"budget {name!r} is here twice ({first}); names must differ, e.g. '{name}-2'"
            yield Problem(path=(*path, "name"), message=message)
        seen.setdefault(name, int(path[-1]))


# --- limits -------------------------------------------------------------------------------------


def _limits(path: KeyPath, budget: Data, site: Data) -> Iterator[Problem]:
    seen: set[Unit] = set()
    value = budget.get("limit")
    for index, text in enumerate(value if isinstance(value, list) else [value]):
        unit, currency = _unit(text)
        if unit is None:
            continue
        place = (*path, "limit", index)
        if unit in seen:
            yield Problem(path=place, message=f"a second {unit} limit; a budget has one limit for each unit")
        seen.add(unit)
        if unit is Unit.CARBON and not set(PLACES) & set(site):
            message = "a carbon limit needs the carbon intensity of the site; add e.g. 'site: {country: FRA}'"
            yield Problem(path=place, message=message)
        if unit is Unit.MONEY:
            yield from _money(place, currency, site)


def _unit(text: object) -> tuple[Unit | None, str]:
    try:
        name = split_quantity(text)[1] if isinstance(text, str) else ""
    except QuantityError:
        return None, ""
    if name in ENERGY_MICROJOULES:
        return Unit.ENERGY, ""
    if name in CARBON_MICROGRAMS:
        return Unit.CARBON, ""
    money = len(name) == 3 and name.isupper() and name not in {unit.upper() for unit in ENERGY_MICROJOULES}  # noqa: PLR2004
    return (Unit.MONEY, name) if money else (None, "")


def _money(place: KeyPath, currency: str, site: Data) -> Iterator[Problem]:
    price = site.get("price")
    if price is None:
        message = f"a money limit needs the price of electricity; add e.g. 'site: {{price: 0.21 {currency}/kWh}}'"
        yield Problem(path=place, message=message)
    elif isinstance(price, str) and "/" in price and not price.rpartition("/")[0].endswith(currency):
        yield Problem(path=place, message=f"the limit is in {currency}, but site.price is {price!r}")


# --- rules --------------------------------------------------------------------------------------


def _rule(path: KeyPath, rule: Data) -> Iterator[Problem]:
    do, of = rule.get("do"), rule.get("of")
    for key, verbs in _ONLY_WITH.items():
        if key in rule and isinstance(do, str) and do not in verbs:
            yield Problem(path=(*path, key), on_key=True, message=f"{key!r} belongs to 'do: {verbs[0]}', not to {do!r}")
    if do == "notify" and "to" not in rule:
        yield Problem(path=path, message="'to' is missing; name the channels to notify, e.g. 'to: [team]'")
    if of == "forecast" and do == "halt":
        message = "a forecast must not halt a running step; write 'of: spent'"
        yield Problem(path=(*path, "of"), message=message)
    elif of == "forecast" and do in {"downgrade", "wait", "refuse"}:
        yield Problem(path=(*path, "of"), message="a forecast may only notify; write 'of: committed'")
    elif do == "halt" and of == "committed":
        message = "a step halts for what is spent, not for what others hold; write 'of: spent'"
        yield Problem(path=(*path, "of"), message=message)


def _channels(path: KeyPath, rule: Data, channels: tuple[str, ...]) -> Iterator[Problem]:
    value = rule.get("to", [])
    for index, name in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(name, str) and name not in channels:
            none = f"there is no 'channels:' section; add e.g. 'channels: {{{name}: {{email: you@example.org}}}}'"
            known = f"known channels: {', '.join(channels)}" if channels else none
            message = f"unknown channel {name!r}; {known}"
            yield Problem(path=(*path, "to", index), message=message, suggestion=close_name(name, channels))


def _halts(path: KeyPath, budget: Data) -> Iterator[Problem]:
    rules = list(_items(budget, (*path, "rules")))
    stops = [
        (ratio, str(rule["do"]))
        for _, rule in rules
        if rule.get("do") in {"wait", "refuse"} and (ratio := _ratio(rule))
    ]
    stop, name = min([*stops, (Decimal(1), "the limit")])
    mode = budget.get("mode", "observe")
    for rule_path, rule in rules:
        if rule.get("do") != "halt":
            continue
        if mode in _MODES:
            message = f"'halt' can never fire: budget mode is {mode!r}, only 'hard' halts running steps"
            yield Problem(path=(*rule_path, "do"), message=message)
        ratio = _ratio(rule)
        if ratio and ratio < stop:
            message = f"halt at {ratio:%} comes before {name} at {stop:%}: steps would be admitted and then halted"
            yield Problem(path=(*rule_path, "at"), message=message)


def _ratio(rule: Data) -> Decimal | None:
    try:
        return percent(rule.get("at"))
    except ValueError:  # told where it stands
        return None


def _periods(path: KeyPath, budget: Data) -> Iterator[Problem]:
    period = budget.get("period")
    if "rollover" in budget and period in _WITHOUT_NEXT:
        message = f"nothing rolls over: no period follows {period!r}; write e.g. 'period: month'"
        yield Problem(path=(*path, "rollover"), on_key=True, message=message)
    answer = budget.get("ledger_down")
    if answer in {"wait", "refuse"} and budget.get("mode", "observe") == "observe":
        message = f"{answer!r} would change what runs, but mode 'observe' never does; write 'admit'"
        yield Problem(path=(*path, "ledger_down"), message=message)


# --- tiers ----------------------------------------------------------------------------------------


def _tier(path: KeyPath, tier: Data) -> Iterator[Problem]:
    name = str(path[-1])
    if not TIER_NAME.fullmatch(name):
        message = f"{name!r} cannot name a tier; use letters, digits, '.', '_' and '-'"
        yield Problem(path=path, on_key=True, message=message)
    for variable, value in _mapping(tier.get("env")).items():
        place = (*path, "env", variable)
        if not _VARIABLE.fullmatch(variable):
            message = f"{variable!r} cannot name an environment variable; write e.g. 'EPOCHS'"
            yield Problem(path=place, on_key=True, message=message)
        elif variable in _KEPT_VARIABLES or variable.startswith(_KEPT_PREFIXES):
            message = f"{variable} is not a tier's to set; remove it"
            if variable == "GREEN_POWER_CAP_WATTS":
                message = f"{variable} comes from the tier's 'power_cap'; write e.g. 'power_cap: 250 W'"
            yield Problem(path=place, on_key=True, message=message)
        elif isinstance(value, str) and "\0" in value:
            yield Problem(path=place, message="a zero byte cannot stand in an environment variable; remove it")


def _tier_names(data: Data) -> Iterator[Problem]:
    """A step's tier that is spelt a little differently under ``tiers`` would silently run without its environment."""
    tiers = _mapping(data.get("tiers"))
    meant = {_plain(name): name for name in tiers}
    for step, declared in _mapping(data.get("steps")).items():
        text = _mapping(declared).get("tiers")
        for part in text.split(",") if isinstance(text, str) else ():
            name = part.partition(":")[0].strip()
            known = meant.get(_plain(name))
            if name not in tiers and known is not None:
                message = f"tier {name!r} is spelt {known!r} under 'tiers'; write both alike"
                yield Problem(path=("steps", step, "tiers"), message=message, suggestion=known)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


# --- channels -------------------------------------------------------------------------------------


def _channel(path: KeyPath, value: object) -> Iterator[Problem]:
    channel = _mapping(value)
    if isinstance(value, Mapping) and not {"webhook", "email", "apprise"} & set(channel):
        yield Problem(
            path=path, on_key=True, message="leads nowhere; give it a webhook, an email or an apprise address"
        )
    if "secret" in channel and "webhook" not in channel:
        yield Problem(path=(*path, "secret"), on_key=True, message="'secret' signs a webhook, but there is none")


def _mapping(value: object) -> Data:
    return value if isinstance(value, Mapping) else {}


def _items(parent: Data, path: KeyPath) -> Iterator[tuple[KeyPath, Data]]:
    """The mappings in the list that the last part of ``path`` names, each with its own path."""
    value = parent.get(str(path[-1]))
    for index, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, Mapping):
            yield (*path, index), item
