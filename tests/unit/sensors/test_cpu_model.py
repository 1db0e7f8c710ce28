from __future__ import annotations

import pytest

from mlflow_green.sensors.load_model import CpuModel, cpu_model, normalised


def model(name: str | None, **changes: object) -> CpuModel:
    return cpu_model(
        **{"name": name, "threads": 8, "sockets": 1, "virtual": False, "rated_power_watts": 280.0, **changes}
    )


def test_a_known_cpu_has_its_rated_power_for_each_socket_within_forty_percent():
    cpu = model("AMD EPYC 7763 64-Core Processor", sockets=2)
    assert (cpu.power_watts_max_low, cpu.power_watts_max, cpu.power_watts_max_high) == pytest.approx((336, 560, 784))
    assert "280 W" in cpu.source


@pytest.mark.parametrize("name", ["AMD EPYC 776", None])
def test_a_cpu_of_unknown_power_is_a_guess_with_a_wide_interval(name):
    cpu = model(name, rated_power_watts=None)
    assert (cpu.power_watts_max_low, cpu.power_watts_max, cpu.power_watts_max_high) == pytest.approx((32 / 3, 32, 96))
    assert "guess" in cpu.source
    assert cpu.error_ratio == pytest.approx(2.0)


def test_a_virtual_machine_on_a_known_cpu_is_a_guess():
    assert "share of the host CPU is unknown" in model("AMD EPYC 7763 64-Core Processor", virtual=True).source


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", "intel core i7-8700k"),
        ("12th Gen Intel(R) Core(TM) i7-1260P", "intel core i7-1260p"),
        ("AMD Ryzen 7 5800X 8-Core Processor", "amd ryzen 7 5800x"),
        ("AMD Ryzen 7 PRO 4750U with Radeon Graphics", "amd ryzen 7 pro 4750u"),
    ],
)
def test_names_are_compared_without_marks_frequency_and_cores(said, meant):
    assert normalised(said) == meant
