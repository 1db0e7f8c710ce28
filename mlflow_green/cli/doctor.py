"""``mlflow-green doctor``: what is measured here, what is estimated, what is missing, and how to get it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_green import __version__
from mlflow_green.cli import exit_codes
from mlflow_green.cli.calibrate import calibrate
from mlflow_green.cli.doors import Place
from mlflow_green.cli.output import console, json_option, opened, print_json
from mlflow_green.errors import GreenError
from mlflow_green.records import Device
from mlflow_green.settings import Settings
from mlflow_green.units import gibibytes, megabytes

if TYPE_CHECKING:
    from mlflow_green.ledger.whereabouts import Whereabouts
    from mlflow_green.policy.document import Policy

HOSTS = ("mlflow", "snakemake")
CPUINFO = Path("/proc/cpuinfo")
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
    _hosts(findings)
    _policy(place, settings, findings)
    _ledger(place, settings, findings)
    if as_json:
        print_json({**findings.data, "problems": findings.problems})
    else:
        _print(findings)
    sys.exit(exit_codes.FOUND if findings.problems else exit_codes.OK)


doctor.add_command(calibrate)


def _print(findings: Findings) -> None:
    from rich.padding import Padding
    from rich.text import Text

    out = console()
    problems = findings.problems or ["none"]
    for title, lines in {**findings.sections, "Problems": problems}.items():
        out.print(Text(title, "bold red" if title == "Problems" and findings.problems else "bold"))
        for line in lines:
            out.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def _machine(findings: Findings) -> None:
    import psutil

    cores_physical, cores_logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    memory_gib = round(gibibytes(psutil.virtual_memory().total), 1)
    name = cpu_name(CPUINFO.read_text(encoding="utf-8", errors="replace")) if CPUINFO.is_file() else None
    cores = f"{cores_physical or 'unknown'} physical, {cores_logical or 'unknown'} logical"
    findings.sections["Machine"] = [name or "the CPU does not say its name", f"cores: {cores}", f"{memory_gib:g} GiB"]
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
    try:
        devices = [device for sensor in detection.sensors for device in sensor.devices()]
    finally:
        for sensor in detection.sensors:
            sensor.close()
    findings.sections["Energy"] = [*map(_device_line, devices), *detection.notes]
    findings.data["devices"] = [_device_json(device) for device in devices]
    findings.data["notes"] = list(detection.notes)
    if not devices:
        findings.problems.append("no energy sensor and no load model works here, so nothing can be metered")


def _device_line(device: Device) -> str:
    return (
        f"{device.name} ({device.domain}): {device.method}, +/- {device.error_ratio:.0%}, "
        f"at most {device.power_watts_max:g} W"
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


def _hosts(findings: Findings) -> None:
    lines = findings.sections["Programs"] = [f"mlflow-green {__version__}"]
    findings.data["programs"] = {}
    for name in HOSTS:
        version, wanted, fits = host_version(name)
        findings.data["programs"][name] = {"version": version, "range": wanted, "in_range": fits}
        lines.append(f"{name} {version or 'is not installed'} (range {wanted})")
        if not fits:
            findings.problems.append(f"{name} {version or 'is missing'}; install {name}{wanted}")


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
    lines = findings.sections["Policy"] = [
        str(settings.policy_path) if settings.policy_path else "no green.yaml: everything is observed, nothing limited"
    ]
    findings.data["policy"] = {"path": str(settings.policy_path) if settings.policy_path else None}
    try:
        policy = place.doors.load_policy(settings)
    except GreenError as error:
        findings.problems.append(str(error))
        return
    budgets = ", ".join(f"{budget.name} ({budget.mode.value})" for budget in policy.budgets) or "no budgets"
    lines.append(f"project {policy.project}, {budgets}")
    lines.append(f"carbon: {_place_of(policy)}")
    findings.data["policy"] |= {
        "project": policy.project,
        "budgets": [{"name": budget.name, "mode": budget.mode.value} for budget in policy.budgets],
        "country": policy.site.country,
        "carbon_intensity_g_per_kwh": policy.site.carbon_intensity_g_per_kwh,
        "pue": policy.site.pue,
    }


def _place_of(policy: Policy) -> str:
    site = policy.site
    if site.carbon_intensity_g_per_kwh is not None:
        return f"{site.carbon_intensity_g_per_kwh:g} g/kWh, PUE {site.pue:g}"
    if site.country is not None:
        return f"grid of {site.country}, PUE {site.pue:g}"
    return "not known; set site.country in green.yaml ('mlflow-green init --country FRA' writes one)"


def _ledger(place: Place, settings: Settings, findings: Findings) -> None:
    folder = _existing(settings.state_dir)
    writable, free_bytes = os.access(folder, os.W_OK), shutil.disk_usage(folder).free
    lines = findings.sections["Ledger"] = [settings.ledger_url, f"meters write to {settings.spool_dir}"]
    told = findings.data["ledger"] = {
        "url": settings.ledger_url,
        "spool": str(settings.spool_dir),
        "writable": writable,
        "free_bytes": free_bytes,
        "waiting_for_mlflow": None,
        "journal": None,
        "cache": None,
        "held_by": None,
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
            waiting = books.count("mlflow") if books else None
    except GreenError as error:
        findings.problems.append(str(error))
        return
    told["waiting_for_mlflow"] = waiting
    lines.append("nothing was metered here yet" if waiting is None else f"{waiting} rows wait to be written to MLflow")


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
