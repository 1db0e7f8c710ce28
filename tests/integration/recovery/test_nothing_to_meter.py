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


def open_meter(tmp_path, monkeypatch, mode: str):
    blind = Sampler((), clock=SystemClock(), host="h", boot_id="b", lock_path=None)
    monkeypatch.setattr(bootstrap, "open_sampler", lambda _settings, _spool_dir, _clock: blind)
    policy = parse_policy(f"version: 1\nproject: p\n{BUDGETS.format(mode=mode)}\n".encode())
    return bootstrap.open_meter(load_settings(tmp_path, {}), policy, SystemClock(), "p")


def test_it_does_not_start_because_it_could_not_be_kept(tmp_path, monkeypatch):
    with pytest.raises(UnsupportedHost, match="nothing can be metered"):
        open_meter(tmp_path, monkeypatch, "hard")


def test_in_observe_the_steps_run_without_a_figure(tmp_path, monkeypatch):
    assert open_meter(tmp_path, monkeypatch, "observe").book.power_watts_max == 0
