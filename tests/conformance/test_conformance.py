"""Our meter against every scenario, and meters with known faults, which the kit must find."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.conformance.meters import CommandMeter, Measured, SamplerMeter
from tests.conformance.play import Played, judge, play
from tests.conformance.scenarios import SCENARIOS, case


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_our_meter_says_what_was_drawn(scenario, tmp_path):
    assert judge(scenario, play(scenario, SamplerMeter(), tmp_path)) == []


def test_the_truth_of_the_plain_case_is_a_product_of_power_and_time():
    plain = case("plain", "beside psys")
    assert {domain: plain.truth_joules(domain) for domain in ("cpu", "dram", "platform")} == {
        "cpu": 10_800,
        "dram": 2_100,
        "platform": 15_600,
    }


class NaiveMeter:
    """Adds up every zone that it finds and takes a failed read as 0 and a step back as nothing."""

    name = "naive"

    def start(self, root, seconds):
        self._root, self._joules, self._last = root, 0.0, self._read(root)

    def sample(self):
        now = self._read(self._root)
        self._joules += max(0.0, now - self._last)
        self._last = now

    def stop(self):
        return {"cpu": Measured(joules=self._joules)}

    def _read(self, root) -> float:
        counters = [folder / "energy_uj" for folder in root.glob("intel-rapl*:*")]
        return sum(int(counter.read_text()) for counter in counters if counter.exists()) / 1e6


@pytest.mark.parametrize("name", ["a reset", "unreadable in the middle", "one wrap", "unreadable at the start"])
def test_a_meter_that_takes_a_failed_read_as_zero_is_found_out(name, tmp_path):
    scenario = case(name, "package")
    assert any(" J reported" in each for each in judge(scenario, play(scenario, NaiveMeter(), tmp_path)))


def test_the_naive_meter_is_right_where_nothing_happens(tmp_path):
    scenario = case("plain", "package")
    assert judge(scenario, play(scenario, NaiveMeter(), tmp_path)) == ["cpu: no interval is given"]


@pytest.mark.parametrize(
    ("measured", "complaint"),
    [
        ({}, "it reports nothing instead of cpu + dram or platform"),
        ({"cpu": 10_800, "dram": 2_100, "platform": 15_600}, "it reports cpu + dram + platform instead of"),
        ({"cpu": 12_900}, "it reports cpu instead of"),
        ({"platform": 10_800}, "platform: 10800 J reported, 15600 J were drawn"),
    ],
)
def test_overlapping_and_missing_energies_are_found_out(measured, complaint):
    answer = {domain: Measured(joules=joules) for domain, joules in measured.items()}
    found = judge(case("plain", "beside psys"), Played(seconds=60, measured=answer))
    assert any(each.startswith(complaint) for each in found)


@pytest.mark.parametrize(
    ("low", "high", "coverage", "complaint"),
    [
        (10_900, 12_000, 1.0, "does not hold the truth"),
        (5_000, 20_000, 1.0, "is wide, though nothing was missed"),
        (10_000, 11_000, 0.9, "coverage is 0.900, nothing was missed"),
    ],
)
def test_an_interval_that_misses_the_truth_or_is_wider_than_needed_is_found_out(low, high, coverage, complaint):
    measured = Measured(joules=10_800, low_joules=low, high_joules=high, coverage_ratio=coverage)
    assert complaint in " ".join(judge(case("plain", "package"), Played(seconds=60, measured={"cpu": measured})))


READER = """
import json, pathlib, sys
counters = [pathlib.Path(sys.argv[1], f"intel-rapl:{socket}", "energy_uj") for socket in (0, 1)]
read = lambda: sum(int(counter.read_text()) for counter in counters) / 1e6
first = read()
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps({"cpu": {"joules": read() - first}}))
"""


def test_a_command_is_metered_in_real_time(tmp_path):
    scenario = replace(case("plain", "package", seconds=1.0), tolerance_ratio=None)  # a busy host delays the answer
    meter = CommandMeter("reader", [sys.executable, "-S", "-c", READER])
    played = play(scenario, meter, tmp_path, in_real_time=True)
    assert played.measured["cpu"].joules > 0
    assert judge(scenario, played) == ["cpu: no interval is given"]


def test_a_command_that_ends_too_early_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="absent ended with status 3 before it was ready"):
        play(case("plain", "package"), CommandMeter("absent", ["sh", "-c", "exit 3"]), tmp_path)
