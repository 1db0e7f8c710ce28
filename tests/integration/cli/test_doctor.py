"""``doctor`` on machines with counters, without, with closed ones, and with a BMC."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_green.cli.doors import Doors, Place
from mlflow_green.cli.main import cli
from mlflow_green.records import CpuClockName
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.fakeredfish import PASSWORD, USER, FakeRedfish
from tests.testkit.nobody import as_nobody


@pytest.fixture
def folder():
    """A folder that everybody may enter, as a home is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def doctor(folder):
    def invoke(*arguments, environ=None, doors=None):
        root = {"MLFLOW_GREEN_POWERCAP_ROOT": str(folder / "powercap")}
        place = Place(cwd=folder, environ={**root, **(environ or {})}, doors=doors or Doors())
        return CliRunner().invoke(cli, ["doctor", *arguments], obj=place, catch_exceptions=False, env={"COLUMNS": "80"})

    return invoke


def rows(shown):
    """The lines under each label, joined."""
    found: dict[str, str] = {}
    label = ""
    for line in shown.splitlines():
        label = line[:12].strip() or label
        found[label] = f"{found.get(label, '')} {line[12:].strip()}".strip()
    return found


def bmc_of(bmc, **changes):
    account = {"MLFLOW_GREEN_BMC": bmc.address, "MLFLOW_GREEN_BMC_USER": USER}
    return {**account, "MLFLOW_GREEN_BMC_PASSWORD": "env:P", "P": PASSWORD, **changes}


@pytest.mark.parametrize(("sockets", "lines_max"), [(2, 24), (0, 26)])
def test_everything_fits_on_one_screen(doctor, folder, sockets, lines_max):
    if sockets:
        FakePowercap(folder / "powercap", "server", sockets=sockets).close()
    done = doctor()
    lines = done.stdout.splitlines()
    assert done.exit_code == 0, done.output
    assert len(lines) <= lines_max
    assert [line for line in lines if len(line) > 80 and str(folder) not in line] == []
    told = rows(done.stdout)
    labels = ["Machine", "Measured", "Estimated", "Missing", "Idle energy", "Node meter", "CPU time"]
    assert list(told) == [*labels, "Policy", "Site", "Programs", "Ledger", "Problems"]


def test_alike_counters_are_one_line_with_their_band(doctor, folder):
    FakePowercap(folder / "powercap", "server", sockets=2).close()
    told = rows(doctor().stdout)
    assert re.search("cpu: package-0, package-1, ±[12]0%, at most 250 W", told["Measured"])  # AMD's are ±20%
    assert "dram: package-0/dram, package-1/dram, ±20%, at most 250 W" in told["Measured"]
    assert told["Estimated"] == "nothing"
    assert "RAPL" not in told["Missing"]
    assert told["Idle energy"].startswith("learnt while a meter runs, from 20 windows")
    assert json.loads(doctor("--json").stdout)["idle"] == "learned"


def test_an_estimate_says_where_it_comes_from(doctor):
    told = rows(doctor().stdout)
    assert "cpu:" not in told["Measured"]
    assert "load model" in told["Idle energy"]
    machine = json.loads(doctor("--json").stdout)
    (cpu,) = [device for device in machine["devices"] if device["domain"] == "cpu"]
    assert cpu["method"] == "estimated"
    assert " ".join(cpu["error_source"].split()) in told["Estimated"]
    assert machine["idle"] == "stated"


def test_closed_counters_are_a_problem_with_the_command_that_opens_them(doctor, folder):
    FakePowercap(folder / "powercap", "server", mode=0).close()
    doctor()  # loads what it needs while it may
    with as_nobody():
        done = doctor("--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    (problem,) = [each for each in told["problems"] if "RAPL" in each]
    assert f"sudo chmod a+r {folder}/powercap/intel-rapl" in problem
    with as_nobody():
        shown = rows(doctor().stdout)
    assert "chmod a+r" in shown["Problems"]
    assert "RAPL" not in shown["Missing"]


def test_the_clock_of_a_job_is_tried(doctor):
    clock = json.loads(doctor("--json").stdout)["cpu_clock"]
    assert clock in {"cgroup", "perf", "wait4"}

    class Polled(Doors):
        def cpu_clock(self):
            return CpuClockName.WAIT4

    assert "perf_event_paranoid" in rows(doctor(doors=Polled()).stdout)["CPU time"]


def test_a_bmc_that_is_set_is_asked_once_and_shown(doctor):
    with FakeRedfish(231) as bmc:
        done = doctor("--json", environ=bmc_of(bmc))
        assert json.loads(done.stdout)["node_meter"] == {"name": "redfish", "power_watts": 231}
        assert done.exit_code == 0
        assert rows(doctor(environ=bmc_of(bmc)).stdout)["Node meter"].startswith("redfish: 231 W")


def test_a_bmc_that_is_set_and_refuses_is_a_problem(doctor):
    with FakeRedfish() as bmc:
        done = doctor("--json", environ=bmc_of(bmc, P="hunter2"))
        assert done.exit_code == 1
        told = json.loads(done.stdout)
        assert told["node_meter"] == {"name": None, "power_watts": None}
        assert "MLFLOW_GREEN_BMC_PASSWORD" in told["problems"][0]
        assert "hunter2" not in done.stdout


def test_the_site_says_what_turns_joules_into_carbon_and_money(doctor, folder):
    assert "no carbon" in rows(doctor().stdout)["Site"]
    site = "{country: FRA, pue: 1.2, node_overhead: 1.35, price: 0.21 EUR/kWh}"
    (folder / "green.yaml").write_text(f"version: 1\nproject: p\nsite: {site}\n")
    told = rows(doctor().stdout)
    policy = json.loads(doctor("--json").stdout)["policy"]
    assert f"{policy['carbon_intensity_g_per_kwh']:.0f} g/kWh (FRA); 0.21 EUR/kWh; PUE 1.2" in told["Site"]
    assert "CC BY 4.0" in policy["intensity_source"]
    assert "node overhead 1.35" in told["Site"]
    assert (policy["node_overhead"], policy["price_per_kwh"], policy["currency"]) == (1.35, 0.21, "EUR")


def test_a_problem_of_several_lines_keeps_its_caret(doctor, folder):
    (folder / "green.yaml").write_text("version: 1\nproject: p\nbudgets: 3\n")
    lines = doctor().stdout.splitlines()
    source = next(index for index, line in enumerate(lines) if line.endswith("budgets: 3"))
    assert lines[source + 1].index("^") == lines[source].index("3")
