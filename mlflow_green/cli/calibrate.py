"""``mlflow-green doctor calibrate``: how much more than its metered components this node uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_green.cli import exit_codes
from mlflow_green.cli.doors import Place
from mlflow_green.cli.output import console, json_option, print_json
from mlflow_green.errors import SettingsError
from mlflow_green.units import SECONDS, three_digits

if TYPE_CHECKING:
    from datetime import datetime

    from mlflow_green.metering.alignment import NodeSample
    from mlflow_green.metering.calibration import Calibration, Comparison, Interval
    from mlflow_green.settings import Settings

BMC_KINDS = ("redfish", "ipmi")


@click.command()
@click.option(
    "--meter", metavar="METER", help="redfish, ipmi, or a wall meter's CSV file; by default the BMC that is set."
)
@click.option("--minutes", type=click.FloatRange(0, 24 * 60, min_open=True), default=5, show_default=True)
@click.option("--load", "with_load", is_flag=True, help="Keep every core busy for half of the time, in two turns.")
@click.option("--lag", type=float, metavar="SECONDS", help="How late the meter shows a change; found out by default.")
@click.option(
    "--meter-error",
    type=click.FloatRange(0, 50),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="How far the meter may be off, by its data sheet.",
)
@click.option("--write", is_flag=True, help="Set site.node_overhead in green.yaml, unless something speaks against it.")
@json_option
@click.pass_obj
def calibrate(
    place: Place,
    meter: str | None,
    minutes: float,
    with_load: bool,
    lag: float | None,
    meter_error: float,
    write: bool,
    as_json: bool,
) -> None:
    """Compare the sum of the components with the node's own meter, at rest and under load.

    Exit status 1 if the result should not be relied upon; then nothing is written.
    """
    from mlflow_green.metering.calibration import BMC_LAG_SECONDS, WALL_METER_LAG_SECONDS
    from mlflow_green.metering.calibration import calibrate as fit

    settings = place.settings()
    if write and settings.policy_path is None:
        raise SettingsError("there is no green.yaml to write to; 'mlflow-green init' makes one")
    place.doors.load_policy(settings)  # a wrong one is better known now than after the comparison
    file = None if meter is None or meter in BMC_KINDS else Path(meter)
    comparison = _compared(place, settings, meter, file, seconds=minutes * SECONDS["min"], with_load=with_load)
    found = fit(
        comparison,
        lag_seconds=lag,
        lag_range_seconds=WALL_METER_LAG_SECONDS if file else BMC_LAG_SECONDS,
        meter_error_ratio=meter_error / 100,
    )
    if found is None:
        raise SettingsError("the meter has no readings of this time; is its clock, or the zone in its file, wrong?")
    if not as_json:
        _print(found, comparison, meter_error)
    written = None
    if write and not found.findings and settings.policy_path is not None:
        written = settings.policy_path
        _write(written, found, comparison)
    if as_json:
        told = {**asdict(found), "method": comparison.method, "meter_error_ratio": meter_error / 100}
        print_json({**told, "written": str(written) if written else None})
    else:
        click.echo(_outcome(found, written, wanted=write))
    sys.exit(exit_codes.FOUND if found.findings else exit_codes.OK)


def _say(text: str) -> None:
    click.echo(f"mlflow-green: {text}", err=True)


def _compared(
    place: Place, settings: Settings, kind: str | None, file: Path | None, *, seconds: float, with_load: bool
) -> Comparison:
    if file is not None and not file.exists() and not sys.stdin.isatty():
        raise SettingsError(f"--meter is redfish, ipmi or a CSV file, and there is no file {file}")
    meter = None if file else place.doors.node_meter(settings, kind, place.environ)
    try:
        _say(f"comparing the components with {meter.name if meter else file} for {seconds / SECONDS['min']:g} min")
        if not with_load:
            _say("let the machine rest for a part of it and work for another; --load does that")
        compared = place.doors.compare(settings, meter, seconds=seconds, with_load=with_load, say=_say)
    finally:
        if meter is not None:
            meter.close()
    return replace(compared, node=_wall_meter(file, compared.started_at)) if file else compared


def _wall_meter(file: Path, started_at: datetime) -> tuple[NodeSample, ...]:
    """The file's readings; a person may export it now, and correct it."""
    from mlflow_green.metering.wall_meter import read_wall_meter

    while True:
        if sys.stdin.isatty():
            click.prompt(
                f"Save the meter's readings to {file}, then press Enter", default="", show_default=False, err=True
            )
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                return read_wall_meter(lines, str(file), started_at)
        except (SettingsError, OSError, UnicodeDecodeError) as error:
            if not sys.stdin.isatty():
                raise
            _say(str(error))


def _write(path: Path, found: Calibration, comparison: Comparison) -> None:
    from mlflow_green.policy.edit import set_node_overhead

    load = f"{three_digits(found.component_watts_min)} to {three_digits(found.component_watts_max)} W"
    comment = f"compared {comparison.started_at:%Y-%m-%d} on one node over {load} of {comparison.method} components"
    set_node_overhead(path, found.node_overhead.point, comment)


def _print(found: Calibration, comparison: Comparison, meter_error: float) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value, meaning in _rows(found, comparison, meter_error):
        table.add_row(Text(name, "bold"), value, meaning)
    out = console()
    out.print(table)
    for finding in found.findings:
        out.print(Text(f"Not to be relied upon: {finding}{'' if finding.endswith('?') else '.'}", "bold red"))


def _outcome(found: Calibration, written: Path | None, *, wanted: bool) -> str:
    factor = f"site.node_overhead: {found.node_overhead.point:.2f}"
    if written:
        return f"Set {factor} in {written}. Carbon and money count it from now on."
    if wanted or found.findings:
        return "Nothing was written."
    return f"With --write it sets {factor} in green.yaml."


def _rows(found: Calibration, comparison: Comparison, meter_error: float) -> Iterator[tuple[str, str, str]]:
    least_watts, most_watts = found.component_watts_min, found.component_watts_max
    load = f"{least_watts:.1f} to {most_watts:.1f} W over {found.seconds:.0f} s: for this load all of it holds"
    yield "components", f"{found.component_watts_mean:.1f} W", f"{comparison.method}, {load}"
    yield "node", f"{found.node_watts_mean:.1f} W", f"by its meter, taken to be right within {meter_error:g} %"
    if found.scale is not None and found.offset_watts is not None:
        yield "scale", _shown(found.scale), "watts at the node for one more watt of the components"
        yield "offset", _shown(found.offset_watts, " W"), "what the node draws beside them: boards, disks, fans"
    yield "gap", _shown(found.gap_ratio, " %", 100), "of the node's energy is in no component"
    at_least, at_most = found.overhead_at(least_watts), found.overhead_at(most_watts)
    by_load = f"; {at_least:.2f} at {least_watts:.1f} W, {at_most:.2f} at {most_watts:.1f} W" if at_most else ""
    yield "node_overhead", _shown(found.node_overhead), f"node / components{by_load}"
    if found.residual_watts is not None:
        fit = f"correlation {found.correlation or 0:.2f}, the meter lags {found.lag_seconds or 0:g} s"
        yield "fit", f"{found.windows} windows", f"half of them within {found.residual_watts:.1f} W; {fit}"


def _shown(value: Interval, unit: str = "", factor: float = 1) -> str:
    point, low, high = (three_digits(each * factor) for each in (value.point, value.low, value.high))
    return f"{point}{unit} [{low}, {high}]"
