"""``mlflow-green doctor``: what is measured here, what is estimated, what is missing, and how to get it."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_green import __version__
from mlflow_green.attribution.idle import BASELINE_WINDOWS_MIN, QUIET_BUSY_RATIO
from mlflow_green.cli import exit_codes
from mlflow_green.cli.calibrate import calibrate
from mlflow_green.cli.doors import Place
from mlflow_green.cli.output import console, json_option, opened, print_json
from mlflow_green.errors import GreenError, SensorError
from mlflow_green.records import CpuClockName, Device, Domain, Intensity, Method
from mlflow_green.settings import Settings
from mlflow_green.units import gibibytes, megabytes

if TYPE_CHECKING:
    from mlflow_green.ledger.whereabouts import Whereabouts
    from mlflow_green.policy.document import SiteDocument

HOSTS = ("mlflow", "snakemake")
CPUINFO = Path("/proc/cpuinfo")
IPMI_DEVICE = Path("/dev/ipmi0")
LABEL_WIDTH = 12
CLOCKS = {
    CpuClockName.CGROUP: "the account of the Slurm step's cgroup: exact for all that runs in it",
    CpuClockName.PERF: "the kernel's task clock (perf): exact for the whole process tree",
    CpuClockName.WAIT4: "wait4 and polling, a lower bound: short orphans are missed; 'sudo sysctl"
    " kernel.perf_event_paranoid=2' gives perf",
    CpuClockName.POLLING: "polling, a lower bound",
}
FREE_BYTES_MIN = 20_000_000  # for some 10,000 steps: without budgets a ledger of 200 steps grew by 1.4 kB each


@dataclass(slots=True)
class Findings:
    """Sections of lines for people, the same as data, and what is wrong."""

    sections: dict[str, list[str]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show what is measured, estimated and missing here; exit status 1 if something needs repair."""
    if context.invoked_subcommand is not None:
        return
    place: Place = context.obj
    settings = place.settings()
    findings = Findings(data={"version": __version__, "disabled": settings.disabled})
    if settings.disabled:
        findings.problems.append("MLFLOW_GREEN_DISABLE switches everything off; unset it to meter")
    _machine(findings)
    _energy(place, settings, findings)
    _node_meter(place, settings, findings)
    _cpu_clock(place, findings)
    _policy(place, settings, findings)
    _hosts(findings)
    _ledger(place, settings, findings)
    if as_json:
        print_json({**findings.data, "problems": findings.problems})
    else:
        _print(findings)
    sys.exit(exit_codes.FOUND if findings.problems else exit_codes.OK)


doctor.add_command(calibrate)


def _print(findings: Findings) -> None:
    from rich.text import Text

    out = console()
    for title, lines in {**findings.sections, "Problems": findings.problems or ["none"]}.items():
        is_bad = title == "Problems" and bool(findings.problems)
        label = title
        for line in lines:
            said, _, commands = line.partition("\n")
            for part in _wrapped(said, max(20, out.width - LABEL_WIDTH)):
                text = Text.assemble((label.ljust(LABEL_WIDTH), "bold red" if is_bad else "bold"), part)
                out.print(text, soft_wrap=True)
                label = ""
            if commands:
                out.print(Text(commands), soft_wrap=True)  # to be copied as they are


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns; its own line ends stay, and a path is never cut."""
    lines = [textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines()]
    return [part for line in lines for part in line]


def _machine(findings: Findings) -> None:
    import psutil

    cores_physical, cores_logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    memory_gib = round(gibibytes(psutil.virtual_memory().total), 1)
    name = cpu_name(CPUINFO.read_text(encoding="utf-8", errors="replace")) if CPUINFO.is_file() else None
    cores = f"{cores_physical or 'unknown'} physical, {cores_logical or 'unknown'} logical"
    findings.sections["Machine"] = [f"{name or 'the CPU does not say its name'}; {cores} cores; {memory_gib:g} GiB"]
    findings.data["machine"] = {
        "cpu_name": name,
        "cores_physical": cores_physical,
        "cores_logical": cores_logical,
        "memory_gib": memory_gib,
    }


def cpu_name(cpuinfo: str) -> str | None:
    """What the CPU calls itself in the text of ``/proc/cpuinfo``; ``None`` where it says nothing (many ARM CPUs)."""
    fields = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in fields if key.strip() == "model name"), None)


def _energy(place: Place, settings: Settings, findings: Findings) -> None:
    detection = place.doors.detect(settings)
    devices: list[Device] = []
    idle_is_stated = False
    try:
        for sensor in detection.sensors:
            devices += sensor.devices()
            try:
                idle_is_stated |= any(reading.idle_microjoules is not None for reading in sensor.read())
            except SensorError as error:
                findings.problems.append(f"{sensor.name} could not be read just now: {error}")
    finally:
        for sensor in detection.sensors:
            sensor.close()
    for method in Method.MEASURED, Method.ESTIMATED:
        of_method = [device for device in devices if device.method is method]
        findings.sections[method.value.capitalize()] = _device_lines(of_method) or ["nothing"]
    # A note that repeats a device's source is told with the device.
    missing = [note for note in detection.notes if not any(device.error_source in note for device in devices)]
    closed = [note for note in missing if "RAPL" in note] if _closed_counters(settings.powercap_root) else []
    findings.problems += closed
    findings.sections["Missing"] = [note for note in missing if note not in closed] or ["nothing"]
    ways = findings.data["rapl_access"] = list(place.doors.rapl_access_help(settings))
    if ways:
        findings.sections["Open RAPL"] = ways
    findings.sections["Idle energy"] = [_idle_line(idle_is_stated, devices)]
    findings.data["devices"] = [_device_json(device) for device in devices]
    findings.data["notes"] = list(detection.notes)
    findings.data["idle"] = None if not devices else "stated" if idle_is_stated else "learned"
    if not devices:
        findings.problems.append("no energy sensor and no load model works here, so nothing can be metered")


def _device_lines(devices: list[Device]) -> list[str]:
    """One line for devices that are alike, and the source of an estimate."""
    alike: dict[tuple[Domain, float, str], list[Device]] = {}
    for device in devices:
        alike.setdefault((device.domain, device.error_ratio, device.error_source), []).append(device)
    lines = []
    for (domain, error_ratio, error_source), group in alike.items():
        names = f"{len(group)} devices" if len(group) > 2 else ", ".join(device.name for device in group)  # noqa: PLR2004
        band = f"±{error_ratio:.0%}" if error_ratio < 1 else f"up to {1 + error_ratio:.2g} times the value"
        power_watts = sum(device.power_watts_max for device in group)
        most = "at most" if group[0].method is Method.MEASURED else "about"
        lines.append(f"{domain}: {names}, {band}, {most} {power_watts:.3g} W")
        if group[0].method is Method.ESTIMATED:
            lines.append(error_source)
    return lines


def _closed_counters(powercap_root: Path) -> bool:
    counters = powercap_root.glob("intel-rapl*:*/energy_uj")
    return any(not os.access(counter, os.R_OK, effective_ids=True) for counter in counters)


def _idle_line(is_stated: bool, devices: list[Device]) -> str:
    if not devices:
        return "not known"
    if is_stated:
        return "stated by the load model, so an estimate"
    return (
        f"learnt while a meter runs, from {BASELINE_WINDOWS_MIN} windows in which at most {QUIET_BUSY_RATIO:.0%} of the"
        " CPU is busy; until then all is shared by use"
    )


def _device_json(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "domain": device.domain.value,
        "method": device.method.value,
        "power_watts_max": device.power_watts_max,
        "error_ratio": device.error_ratio,
        "error_source": device.error_source,
    }


def _node_meter(place: Place, settings: Settings, findings: Findings) -> None:
    """The BMC if one is set, or if the machine's own may be asked; nobody else is."""
    told = findings.data["node_meter"] = {"name": None, "power_watts": None}
    is_set = settings.bmc.address is not None
    if not is_set and not os.access(IPMI_DEVICE, os.R_OK | os.W_OK, effective_ids=True):
        own = f"{IPMI_DEVICE} is closed to this user" if IPMI_DEVICE.exists() else "no BMC is seen"
        findings.sections["Node meter"] = [f"none: {own}; MLFLOW_GREEN_BMC sets one"]
        return
    try:
        meter = place.doors.node_meter(settings, None, place.environ)
        try:
            power_watts = meter.read().power_watts
        finally:
            meter.close()
    except GreenError as error:
        findings.sections["Node meter"] = ["see Problems"] if is_set else [f"none: {error}"]
        findings.problems += [str(error)] if is_set else []
        return
    told |= {"name": meter.name, "power_watts": power_watts}
    shown = "no power just now" if power_watts is None else f"{power_watts:.0f} W"
    findings.sections["Node meter"] = [f"{meter.name}: {shown}; only to compare with, it charges no job"]


def _cpu_clock(place: Place, findings: Findings) -> None:
    clock = place.doors.cpu_clock()
    findings.data["cpu_clock"] = clock.value
    findings.sections["CPU time"] = [CLOCKS[clock]]


def _hosts(findings: Findings) -> None:
    programs = [f"mlflow-green {__version__}"]
    findings.data["programs"] = {}
    for name in HOSTS:
        version, wanted, fits = host_version(name)
        findings.data["programs"][name] = {"version": version, "range": wanted, "in_range": fits}
        programs.append(f"{name} {version or 'is not installed'}")
        if not fits:
            findings.problems.append(f"{name} {version or 'is missing'}; install '{name}{wanted}'")
    findings.sections["Programs"] = [", ".join(programs)]


def host_version(name: str) -> tuple[str | None, str, bool]:
    """The installed version of a host program, the range that this distribution asks for, and whether it fits."""
    from packaging.requirements import Requirement

    wanted = next(
        (parsed for text in metadata.requires("mlflow-green") or () if (parsed := Requirement(text)).name == name),
        Requirement(name),
    ).specifier
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None, str(wanted), False
    return version, str(wanted), wanted.contains(version, prereleases=True)


def _policy(place: Place, settings: Settings, findings: Findings) -> None:
    path = settings.policy_path
    lines = findings.sections["Policy"] = [str(path or "no green.yaml: all is observed")]
    findings.data["policy"] = {"path": str(path) if path else None}
    try:
        policy = place.doors.load_policy(settings)
        intensity = place.doors.site(settings, policy).intensity
    except GreenError as error:
        findings.problems.append(str(error))
        return
    budgets = ", ".join(f"{budget.name} ({budget.mode.value})" for budget in policy.budgets) or "no budgets"
    lines[0] += f"; project {policy.project}, {budgets}"
    site = policy.site
    price = f"{site.price.per_kwh:g} {site.price.currency}/kWh" if site.price else "no price"
    findings.sections["Site"] = [f"{_carbon_of(site, intensity)}; {price}; PUE {site.pue:g}", _overhead_of(site)]
    findings.data["policy"] |= {
        "project": policy.project,
        "budgets": [{"name": budget.name, "mode": budget.mode.value} for budget in policy.budgets],
        "country": site.country,
        "cloud": site.cloud,
        "intensity_series": site.intensity_series,
        "carbon_intensity_g_per_kwh": intensity.g_per_kwh if intensity else None,
        "intensity_source": intensity.source if intensity else None,
        "pue": site.pue,
        "node_overhead": site.node_overhead,
        "price_per_kwh": site.price.per_kwh if site.price else None,
        "currency": site.price.currency if site.price else None,
    }


def _carbon_of(site: SiteDocument, intensity: Intensity | None) -> str:
    if intensity is None:
        return "no carbon ('mlflow-green init --country FRA')"
    place = site.intensity_series or site.country or site.cloud
    return f"{intensity.g_per_kwh:.0f} g/kWh" + (f" ({place})" if place else "")


def _overhead_of(site: SiteDocument) -> str:
    if site.node_overhead == 1:
        return "node overhead 1 ('mlflow-green doctor calibrate' measures it)"
    return f"node overhead {site.node_overhead:g} on carbon and money"


def _ledger(place: Place, settings: Settings, findings: Findings) -> None:
    folder = _existing(settings.state_dir)
    writable, free_bytes = os.access(folder, os.W_OK), shutil.disk_usage(folder).free
    from mlflow_green.ledger.address import shown

    url = shown(settings.ledger_url)
    lines = findings.sections["Ledger"] = [url]
    told = findings.data["ledger"] = {
        "url": url,
        "spool": str(settings.spool_dir),
        "writable": writable,
        "free_bytes": free_bytes,
        "waiting_for_mlflow": None,
        "journal": None,
        "cache": None,
        "held_by": None,
        "unguarded": "",
    }
    if not writable:
        findings.problems.append(f"{folder} is not writable, so nothing can be recorded; make it writable")
        return
    if free_bytes < FREE_BYTES_MIN:
        findings.problems.append(
            f"the disk of {folder} has {megabytes(free_bytes):.1f} MB left, and readings that find no room are lost;"
            f" free at least {megabytes(FREE_BYTES_MIN):.0f} MB"
        )
    try:
        found = place.doors.whereabouts(settings)
        if found.journal is not None:
            lines[:1] = _journal_lines(found)
            told |= _journal_json(found)
        if found.elsewhere is not None:  # to open a lapsed one would take it away
            return
        with opened(place, settings) as books:
            waiting, unguarded = (books.count("mlflow"), books.unguarded()) if books else (None, "")
    except GreenError as error:
        findings.problems.append(str(error))
        return
    told["waiting_for_mlflow"] = waiting
    told["unguarded"] = unguarded
    lines.append("nothing was metered here yet" if waiting is None else _rows_text(waiting))
    lines += [unguarded] if unguarded else []


def _journal_lines(found: Whereabouts) -> list[str]:
    place = f"on a network file system ({found.file_system})" if found.file_system else "on a local disk"
    lines = [
        f"the journal {found.journal}, {place}, for one host at a time",
        f"its cache on this host is {found.cache}, made anew when it is lost",
    ]
    return [*lines, found.elsewhere.text] if found.elsewhere else lines


def _journal_json(found: Whereabouts) -> dict[str, Any]:
    other = found.elsewhere
    held_by = other and {
        "host": other.holder.host,
        "since": other.holder.since,
        "last_sign_of_life_seconds": round(other.silent_seconds),
    }
    return {"journal": str(found.journal), "cache": str(found.cache), "held_by": held_by}


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _rows_text(waiting: int) -> str:
    if waiting == 0:
        return "0 rows wait to be written to MLflow"
    rows = "1 row waits" if waiting == 1 else f"{waiting} rows wait"
    return f"{rows} to be written to MLflow: mlflow-green sync"
