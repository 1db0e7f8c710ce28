"""Carbon intensity of a country's or a cloud region's electricity, from the tables that CodeCarbon installs.

The files are read, CodeCarbon is not imported: that would bring pandas into processes that must stay light.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import io
import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from mlflow_green.emissions.regions import COUNTRIES_WITHOUT_ONE_GRID, REGIONS
from mlflow_green.errors import IntensityUnknown
from mlflow_green.records import Intensity
from mlflow_green.units import g_per_kwh as from_pounds_per_mwh

HOURLY_MARGIN_RATIO = 1.5
"""Upper intensity of a hold as a multiple of the yearly mean.

The table has yearly means; the hour in which a step runs can be dirtier. How much depends on the grid: grids
that are mostly coal, mostly nuclear or mostly hydro stay within some tens of percent of their mean, grids that
mix wind and sun with gas or coal go further. 1.5 is our assumption, not a quantile of hourly data: wide enough for
most hours of most grids, narrow enough that a carbon budget is not half empty because of the margin. It only widens
what is *held* and the interval of ``mlflow-green estimate``; what is charged uses the mean.
"""

_COUNTRIES = Path("data", "private_infra", "global_energy_mix.json")
_US_STATES = Path("data", "private_infra", "2023", "usa_emissions.json")
_GOOGLE_REGIONS = Path("data", "cloud", "impact.csv")
_GOOGLE_2023 = {"asia-south1": 648.0, "europe-west9": 34.0, "us-central1": 430.0}
"""What Google published for this year; the table itself does not say of which year it is."""
_GOOGLE_MISSPELT = {"me-cenrtal1": "me-central1"}
_USUAL_NAMES = {
    "UK": "GBR",
    "ENGLAND": "GBR",
    "SCOTLAND": "GBR",
    "WALES": "GBR",
    "HOLLAND": "NLD",
}
"""What people write and no spelling comparison finds (UK is nearest to Ukraine's UKR)."""
_NEXT_STEP = "set site.carbon_intensity (e.g. '56 g/kWh') with site.source; without it no grams are computed"


def country_intensity(code: str) -> Intensity:
    """Yearly mean carbon intensity of ``code`` (ISO 3166-1 alpha-3, any case), in g CO2e/kWh, life cycle.

    ``g_per_kwh_high`` is the mean x ``HOURLY_MARGIN_RATIO``. There is no default: a wrong country is an error.

    Raises:
        IntensityUnknown: the table has no such country, or no positive value for it (0 there means rounded away
            or not reported), or it is not installed.
    """
    table = _table()
    row = table.get(code.strip().upper())
    if row is None:
        raise IntensityUnknown(
            f"no carbon intensity for country {code!r}{_suggestion(code)}",
            f"set site.country to a three-letter ISO 3166 code, or {_NEXT_STEP}",
        )
    g_per_kwh = row.get("carbon_intensity")
    if not isinstance(g_per_kwh, int | float) or g_per_kwh <= 0:
        raise IntensityUnknown(f"the table has no usable carbon intensity for {row['country_name']}", _NEXT_STEP)
    source = f"Our World in Data (Ember; Energy Institute), {row['year']}, CC BY 4.0, {_by_codecarbon()}"
    return _yearly(float(g_per_kwh), source)


@lru_cache(maxsize=1)
def known_countries() -> Mapping[str, str]:
    """ISO 3166-1 alpha-3 code to English name of every country in the table, by code.

    Raises:
        IntensityUnknown: the table is not installed.
    """
    return MappingProxyType({code: str(row["country_name"]) for code, row in sorted(_table().items())})


def cloud_intensity(name: str) -> Intensity:
    """Yearly mean carbon intensity of the grid at a cloud region such as ``aws:eu-west-3``, in g CO2e/kWh.

    Of Google's regions what Google publishes (operational, not life cycle); of the others that of the country
    (life cycle), in the United States that of the state (operational). ``g_per_kwh_high`` is as for a country.

    Raises:
        IntensityUnknown: no such region is known, or it lies where one number for the country would mislead.
    """
    provider, _, region = name.strip().lower().partition(":")
    if provider == "gcp" and region in _google_regions():
        year = "2023" if _GOOGLE_2023.items() <= _google_regions().items() else "year not stated"
        source = f"Google Cloud region data, {year}, operational, {_by_codecarbon()}"
        return _yearly(_google_regions()[region], f"{provider}:{region}: {source}")
    place = REGIONS.get(provider, {}).get(region)
    if place is None:
        raise IntensityUnknown(
            f"no carbon intensity for cloud region {name!r}{_region_meant(provider, region)}",
            f"set site.cloud to a known region, or {_NEXT_STEP}",
        )
    country, _, state = place.partition("/")
    if state:
        return _us_state(state, f"{provider}:{region}: {state.title()}")
    if country in COUNTRIES_WITHOUT_ONE_GRID:
        raise IntensityUnknown(
            f"{provider}:{region} is in {known_countries()[country]}, where the grids of two provinces can differ"
            " a hundredfold, so that its mean says nothing",
            _NEXT_STEP,
        )
    of_country = country_intensity(country)
    return _yearly(of_country.g_per_kwh, f"{provider}:{region}: {known_countries()[country]}, {of_country.source}")


def known_regions() -> tuple[str, ...]:
    """Every cloud region that is known by name, such as ``gcp:europe-west9``."""
    own = [f"{provider}:{region}" for provider, regions in REGIONS.items() for region in regions]
    return tuple(sorted([*own, *(f"gcp:{region}" for region in _google_regions())]))


def _yearly(g_per_kwh: float, source: str) -> Intensity:
    return Intensity(g_per_kwh=g_per_kwh, g_per_kwh_high=g_per_kwh * HOURLY_MARGIN_RATIO, source=source)


def _region_meant(provider: str, region: str) -> str:
    known = known_regions()
    mine = [name for name in known if name.startswith(f"{provider}:")]
    near = get_close_matches(f"{provider}:{region}", mine or known, n=3, cutoff=0.7)
    near = near or [name for name in known if name.endswith(f":{provider}")]  # the provider was left out
    return (
        f"; did you mean {' or '.join(near)}?" if near else ", which is written PROVIDER:REGION, e.g. gcp:europe-west9"
    )


@lru_cache(maxsize=1)
def _google_regions() -> Mapping[str, float]:
    rows = csv.DictReader(io.StringIO(_text(_GOOGLE_REGIONS)))
    found = {row["region"]: float(row["impact"]) for row in rows if row["provider"] == "gcp"}
    return MappingProxyType({_GOOGLE_MISSPELT.get(region, region): value for region, value in found.items()})


def _us_state(state: str, name: str) -> Intensity:
    table = json.loads(_text(_US_STATES))
    try:
        unit, publication = table["_unit"]["emissions"], table["_source"]["name"]
        pounds_per_mwh = float(table[state]["emissions"])
    except (KeyError, TypeError, ValueError):
        unit = publication = ""
    if unit != "lbs/MWh":
        raise IntensityUnknown(f"CodeCarbon's table of the United States has no {state.title()} in lbs/MWh", _NEXT_STEP)
    source = f"{name}, {publication}, operational, public domain, {_by_codecarbon()}"
    return _yearly(from_pounds_per_mwh(pounds_per_mwh), source)


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Mapping[str, object]]:
    table: Mapping[str, Mapping[str, object]] = json.loads(_text(_COUNTRIES))
    return table


def _text(table: Path) -> str:
    """The text of a table that CodeCarbon installs."""
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        raise IntensityUnknown(
            f"CodeCarbon, which brings the intensity table, is not installed; install it, or {_NEXT_STEP}"
        )
    path = Path(spec.origin).parent / table
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise IntensityUnknown(
            f"cannot read the intensity table {path}: {error}; install codecarbon>=3.2,<4, or {_NEXT_STEP}"
        ) from error


def _by_codecarbon() -> str:
    return f"via CodeCarbon {importlib.metadata.version('codecarbon')} (MIT)"


def _suggestion(code: str) -> str:
    wanted = code.strip().upper()
    by_spelling = {name.upper(): known for known, name in known_countries().items()}
    by_spelling |= {known: known for known in known_countries()} | _USUAL_NAMES
    near = (
        [name for name in by_spelling if name == wanted]
        or [name for name in known_countries() if wanted and name.startswith(wanted)]
        or get_close_matches(wanted, by_spelling, n=3, cutoff=0.7)
    )
    codes = list(dict.fromkeys(by_spelling[name] for name in near))[:3]
    if not codes:
        return ""
    return "; did you mean " + " or ".join(f"{known} ({known_countries()[known]})" for known in codes) + "?"
