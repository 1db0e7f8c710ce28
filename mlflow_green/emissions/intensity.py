"""Carbon intensity of a country's electricity, from the table that CodeCarbon installs.

The file is read, CodeCarbon is not imported: that would bring pandas into processes that must stay light.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from mlflow_green.errors import IntensityUnknown
from mlflow_green.records import Intensity

HOURLY_MARGIN_RATIO = 1.5
"""Upper intensity of a hold as a multiple of the yearly mean.

The table has yearly means; the hour in which a step runs can be dirtier. How much depends on the grid: grids
that are mostly coal, mostly nuclear or mostly hydro stay within some tens of percent of their mean, grids that
mix wind and sun with gas or coal go further. 1.5 is our assumption, not a quantile of hourly data: wide enough for
most hours of most grids, narrow enough that a carbon budget is not half empty because of the margin. It only widens
what is *held*; what is charged uses the mean.
"""

_TABLE = Path("data", "private_infra", "global_energy_mix.json")
_USUAL_NAMES = {
    "UK": "GBR",
    "ENGLAND": "GBR",
    "SCOTLAND": "GBR",
    "WALES": "GBR",
    "HOLLAND": "NLD",
}
"""What people write and no spelling comparison finds (UK is nearest to Ukraine's UKR)."""
_NEXT_STEP = "or set site.carbon_intensity (e.g. '56 g/kWh') with site.source; without it no grams are computed"


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
            f"no carbon intensity for country {code!r}{_suggestion(code)}; "
            f"set site.country to a three-letter ISO 3166 code, {_NEXT_STEP}"
        )
    g_per_kwh = row.get("carbon_intensity")
    if not isinstance(g_per_kwh, int | float) or g_per_kwh <= 0:
        raise IntensityUnknown(f"the table has no usable carbon intensity for {row['country_name']}; {_NEXT_STEP[3:]}")
    return Intensity(
        g_per_kwh=float(g_per_kwh),
        g_per_kwh_high=g_per_kwh * HOURLY_MARGIN_RATIO,
        source=f"Our World in Data (Ember; Energy Institute), {row['year']}, CC BY 4.0, "
        f"via CodeCarbon {importlib.metadata.version('codecarbon')} (MIT)",
    )


@lru_cache(maxsize=1)
def known_countries() -> Mapping[str, str]:
    """ISO 3166-1 alpha-3 code to English name of every country in the table, by code.

    Raises:
        IntensityUnknown: the table is not installed.
    """
    return MappingProxyType({code: str(row["country_name"]) for code, row in sorted(_table().items())})


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Mapping[str, object]]:
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        raise IntensityUnknown(
            f"CodeCarbon, which brings the intensity table, is not installed; install it, {_NEXT_STEP}"
        )
    path = Path(spec.origin).parent / _TABLE
    try:
        table: Mapping[str, Mapping[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntensityUnknown(
            f"cannot read the intensity table {path}: {error}; install codecarbon>=3.2,<4, {_NEXT_STEP}"
        ) from error
    return table


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
