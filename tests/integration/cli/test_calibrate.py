"""``doctor calibrate``, end to end: fake RAPL counters, a fake BMC whose power follows them, and a clock turned by hand."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from mlflow_green.bootstrap import compare_with_node
from mlflow_green.cli.doors import Doors, Place
from mlflow_green.cli.main import cli
from mlflow_green.metering.comparison import busy_cores
from mlflow_green.policy.document import load_policy
from mlflow_green.sensors.cpu_model import CpuModel
from mlflow_green.sensors.load_model import LoadModelSensor
from mlflow_green.sensors.proc_stat import read_host_cpu
from mlflow_green.sensors.rapl import RaplSensor
from tests.testkit.fakepowercap import FakePowercap
from tests.testkit.fakeredfish import PASSWORD, USER, FakeRedfish
from tests.testkit.metering_fakes import START, HandClock, write_proc_stat
from tests.testkit.waiting import comes_true

REST_WATTS, LOAD_WATTS, DRAM_WATTS = 40.0, 150.0, 10.0
OFFSET_WATTS, SCALE, LAG_SECONDS = 60.0, 1.15, 4


class Lab(Doors):
    """A machine whose second is as long as a test takes to turn it."""

    def __init__(self, folder):
        self.clock = HandClock()
        self.tree = FakePowercap(folder / "powercap", "server", power_watts={"package": REST_WATTS, "dram": DRAM_WATTS})
        self.node_watts = lambda components_watts: OFFSET_WATTS + SCALE * components_watts
        self.history = [self.components_watts()]
        self.loads = []
        self.sensor = RaplSensor(folder / "powercap", monotonic=self.clock.monotonic_seconds)

    def components_watts(self):
        return sum(zone.power_watts for zone in self.tree.zones)

    def shown_watts(self):
        """What the BMC shows: the truth of some seconds ago."""
        return self.node_watts(self.history[max(0, len(self.history) - 1 - LAG_SECONDS)])

    def pause(self, seconds):
        self.tree.advance(seconds)
        self.clock.seconds += seconds
        self.history.append(self.components_watts())

    def start_load(self, seconds):
        self.loads.append(seconds)
        self.tree.zone("package-0").power_watts = LOAD_WATTS
        return self.end_load

    def end_load(self):
        self.tree.zone("package-0").power_watts = REST_WATTS

    def compare(self, settings, meter, *, seconds, with_load, say):
        return compare_with_node(
            settings,
            meter,
            seconds=seconds,
            start_load=self.start_load if with_load else None,
            say=say,
            sensors=[self.sensor],
            clock=self.clock,
            pause=self.pause,
        )


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.tree.close()


@pytest.fixture
def bmc(lab):
    with FakeRedfish(lab.shown_watts) as bmc:
        yield bmc


@pytest.fixture
def place(tmp_path, lab):
    return Place(cwd=tmp_path, environ={}, doors=lab)


@pytest.fixture
def calibrate(place):
    def invoke(*arguments):
        command = ["doctor", "calibrate", *arguments]
        return CliRunner().invoke(cli, command, obj=place, catch_exceptions=False)

    return invoke


@pytest.fixture
def with_bmc(place, bmc):
    place.environ = {
        "MLFLOW_GREEN_BMC": bmc.address,
        "MLFLOW_GREEN_BMC_USER": USER,
        "MLFLOW_GREEN_BMC_PASSWORD": "env:BMC_PASSWORD",
        "BMC_PASSWORD": PASSWORD,
    }
    return bmc


def test_the_node_is_found_as_it_was_made(calibrate, with_bmc, lab):
    done = calibrate("--load", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert lab.loads == [75, 75]
    assert told["findings"] == []
    assert told["scale"]["point"] == pytest.approx(SCALE, rel=0.01)
    assert told["offset_watts"]["point"] == pytest.approx(OFFSET_WATTS, rel=0.03)
    assert told["lag_seconds"] == pytest.approx(LAG_SECONDS, abs=1)
    truth = OFFSET_WATTS / told["component_watts_mean"] + SCALE
    assert told["node_overhead"]["low"] < truth < told["node_overhead"]["high"]
    assert told["node_overhead"]["point"] == pytest.approx(truth, rel=0.01)
    assert told["gap_ratio"]["point"] == pytest.approx(1 - 1 / truth, rel=0.01)
    assert (told["component_watts_min"], told["component_watts_max"]) == pytest.approx((50, 160), rel=0.02)
    assert (told["method"], told["written"]) == ("measured", None)


def test_people_are_told_what_it_means_and_over_which_load(calibrate, with_bmc):
    shown = " ".join(calibrate("--load").stdout.split())
    for words in ("50.0 to 160.0 W", "scale 1.15 [", "offset 60", "gap ", "node_overhead 1.", "With --write it sets"):
        assert words in shown


def test_write_sets_the_factor_and_keeps_the_comments(calibrate, with_bmc, place):
    policy = place.cwd / "green.yaml"
    text = "version: 1   # first\nproject: p\nsite: {country: FRA, pue: 1.2}   # ours\n"
    policy.write_text(text)
    done = calibrate("--load", "--write", "--json")
    assert json.loads(done.stdout)["written"] == str(policy)
    factor = load_policy(policy).site.node_overhead
    assert factor == round(json.loads(done.stdout)["node_overhead"]["point"], 2) > 1
    assert policy.read_text() == text.replace("1.2}", f"1.2, node_overhead: {factor}}}")


def test_without_a_good_policy_to_write_to_nothing_is_measured(calibrate, with_bmc, lab, place):
    done = calibrate("--write")
    assert done.exit_code == 2
    assert "mlflow-green init" in done.stderr
    (place.cwd / "green.yaml").write_text("version: 1\n")
    assert calibrate("--write").exit_code == 1
    assert lab.clock.seconds == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "too little variation"), (["--load", "--minutes", "0.5"], "too short")],
)
def test_what_proves_nothing_is_not_written(calibrate, with_bmc, place, arguments, words):
    policy = place.cwd / "green.yaml"
    policy.write_text("version: 1\nproject: p\n")
    done = calibrate(*arguments, "--write")
    assert done.exit_code == 1
    shown = " ".join(done.stdout.split())
    assert words in shown
    assert "Nothing was written" in shown
    assert "node_overhead" not in policy.read_text()


def test_a_node_below_its_components_is_a_finding(calibrate, with_bmc, lab):
    lab.node_watts = lambda components_watts: 0.5 * components_watts
    done = calibrate("--load")
    assert done.exit_code == 1
    assert "impossible: the components show" in " ".join(done.stdout.split())


def test_a_bmc_that_fails_now_and_then_costs_only_those_readings(calibrate, with_bmc, lab):
    def flaky():
        return None if lab.clock.seconds % 10 < 3 and lab.clock.seconds else lab.shown_watts()

    with_bmc.power_watts = flaky
    told = json.loads(calibrate("--load", "--json").stdout)
    assert told["findings"] == []
    assert told["scale"]["point"] == pytest.approx(SCALE, rel=0.03)


def test_a_bmc_that_is_set_and_cannot_be_read_says_why(calibrate, with_bmc, place):
    place.environ = {**place.environ, "BMC_PASSWORD": "wrong"}
    done = calibrate()
    assert done.exit_code == 3
    assert "MLFLOW_GREEN_BMC_PASSWORD" in done.stderr
    assert "wrong" not in done.stderr


@pytest.mark.parametrize("column", ["watts", "kwh"])
def test_the_file_of_a_wall_meter_with_a_wrong_clock_serves_as_well(calibrate, lab, place, column, monkeypatch):
    file = place.cwd / "wall.csv"
    file.write_text("time\n")
    compare = lab.compare
    skew = timedelta(seconds=-31)

    def compare_and_export(*arguments, **options):
        compared = compare(*arguments, **options)
        rows, kwh = [f"time,{column}"], 7.0
        for second, watts in enumerate(map(lab.node_watts, lab.history)):
            kwh += watts / 3_600_000
            rows.append(
                f"{(START + skew + timedelta(seconds=second)).isoformat()},{watts if column == 'watts' else kwh}"
            )
        file.write_text("\n".join(rows) + "\n")
        return compared

    monkeypatch.setattr(lab, "compare", compare_and_export)
    done = calibrate("--meter", str(file), "--load", "--json")
    told = json.loads(done.stdout)
    assert told["findings"] == []
    assert told["lag_seconds"] == pytest.approx(skew.total_seconds(), abs=1)
    assert told["scale"]["point"] == pytest.approx(SCALE, rel=0.02)


def test_a_file_of_another_day_has_no_readings_of_this_time(calibrate, place):
    file = place.cwd / "wall.csv"
    file.write_text("time,watts\n2020-01-01T00:00:00Z,100\n2020-01-01T00:01:00Z,100\n")
    done = calibrate("--meter", str(file), "--minutes", "1")
    assert done.exit_code == 2
    assert "zone in its file" in done.stderr
    assert calibrate("--meter", "no-such-file.csv").exit_code == 2


def test_a_load_model_can_be_compared_too_and_is_called_estimated(calibrate, with_bmc, lab, tmp_path):
    write_proc_stat(tmp_path, busy_seconds=0)
    line = (12.0, 20.8, 56.0, 100.0)  # watts at rest, at 10 %, 50 % and full load
    cpu = CpuModel(name="x", threads=2, low_watts=line, watts=line, high_watts=line, source="a test")
    lab.sensor = LoadModelSensor(cpu, tmp_path, monotonic=lab.clock.monotonic_seconds)
    pause, busy = lab.pause, [0.0]

    def pause_and_work(seconds):
        pause(seconds)
        busy[0] += 2 * seconds * (lab.tree.zone("package-0").power_watts == LOAD_WATTS)
        write_proc_stat(tmp_path, busy_seconds=busy[0])

    lab.pause = pause_and_work
    told = json.loads(calibrate("--load", "--json").stdout)
    assert (told["method"], told["findings"]) == ("estimated", [])
    assert (told["component_watts_min"], told["component_watts_max"]) == pytest.approx((12, 100), rel=0.02)


def test_the_built_in_load_keeps_a_core_busy_and_ends_when_told():
    before = read_host_cpu().busy_seconds
    end = busy_cores(1, 20)
    try:
        assert comes_true(lambda: read_host_cpu().busy_seconds > before + 0.3, limit_seconds=15)
    finally:
        end()
