"""What runs at ``import mlflow`` never gets in the way."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from mlflow_green.tracking import hooks


class HostModel:
    """Has the one method of MLflow's class that is wrapped."""

    @classmethod
    def log(cls, name, **kwargs):
        return SimpleNamespace(run_id="r", model_id="m", name=name, model=kwargs.get("sk_model"))


@pytest.fixture
def host():
    return SimpleNamespace(Model=type("Model", (HostModel,), {"log": HostModel.__dict__["log"]}))


def test_the_provider_gives_no_tags_for_mlflows_own_variable_carries_them(monkeypatch):
    monkeypatch.setenv("MLFLOW_GREEN_DISABLE", "1")
    assert hooks.GreenRunContext().in_context() is False
    assert hooks.GreenRunContext().tags() == {}


def test_an_mlflow_without_import_hooks_can_still_be_imported(monkeypatch):
    monkeypatch.delenv("MLFLOW_GREEN_DISABLE", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow.utils.import_hooks", None)
    hooks.GreenRunContext()


def test_an_mlflow_that_looks_different_gets_a_warning_and_no_exception(caplog):
    hooks._wrap_model_log(SimpleNamespace())
    assert "does not know this MLflow" in caplog.text


def test_the_wrapped_method_returns_what_the_original_returned(host):
    hooks._wrap_model_log(host)
    assert host.Model.log("model", pd_model=1).name == "model"


def test_it_is_wrapped_once(host):
    hooks._wrap_model_log(host)
    first = host.Model.__dict__["log"]
    hooks._wrap_model_log(host)
    assert host.Model.__dict__["log"] is first


def test_a_model_that_cannot_be_counted_costs_one_log_line(monkeypatch, caplog, host):
    monkeypatch.delenv("MLFLOW_GREEN_DISABLE", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # nothing of MLflow can be reached
    hooks._wrap_model_log(host)
    with caplog.at_level(logging.WARNING):
        assert host.Model.log("model", sk_model="fitted").model == "fitted"
    assert "could not log the model's complexity" in caplog.text
