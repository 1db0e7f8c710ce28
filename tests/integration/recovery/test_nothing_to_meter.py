"""A hard budget on a machine where nothing can be metered or estimated."""

from __future__ import annotations

import pytest

from mlflow_green import bootstrap
from mlflow_green.clock import SystemClock
from mlflow_green.errors import UnsupportedHost
from mlflow_green.metering.sampler import Sampler
from mlflow_green.policy.document import parse_policy
from mlflow_green.settings import load_settings

BUDGETS = "budgets: [{{name: b, limit: 1 Wh, period: total, mode: {mode}}}]"


def blind_sampler(tmp_path) -> Sampler:
    return Sampler((), clock=SystemClock(), host="h", boot_id="b", lock_path=tmp_path / "run" / "lock")


def open_meter(tmp_path, monkeypatch, mode: str, blind: Sampler):
    monkeypatch.setattr(bootstrap, "open_sampler", lambda *_, **__: blind)
    policy = parse_policy(f"version: 1\nproject: p\n{BUDGETS.format(mode=mode)}\n".encode())
    return bootstrap.open_meter(load_settings(tmp_path, {}), policy, SystemClock(), "p")


def test_it_does_not_start_because_it_could_not_be_kept(tmp_path, monkeypatch):
    blind = blind_sampler(tmp_path)
    with pytest.raises(UnsupportedHost, match="nothing can be metered"):
        open_meter(tmp_path, monkeypatch, "hard", blind)
    another = blind_sampler(tmp_path)
    assert another.sampler_id != blind.sampler_id, "it follows what was not started"
    another.close()


def test_in_observe_the_steps_run_without_a_figure(tmp_path, monkeypatch):
    blind = blind_sampler(tmp_path)
    assert open_meter(tmp_path, monkeypatch, "observe", blind).book.power_watts_max == 0
    blind.close()
