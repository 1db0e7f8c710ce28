from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_green.errors import SettingsError
from mlflow_green.settings import load_settings


def test_without_a_policy_the_state_is_in_the_working_directory(tmp_path) -> None:
    settings = load_settings(tmp_path, {})
    assert settings.policy_path is None
    assert settings.spool_dir == tmp_path / ".green/spool"
    assert settings.ledger_url == f"sqlite:///{tmp_path}/.green/ledger.db"


def test_the_policy_is_searched_upward_and_the_state_lies_beside_it(tmp_path) -> None:
    (tmp_path / "green.yaml").touch()
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    settings = load_settings(below, {})
    assert settings.policy_path == tmp_path / "green.yaml"
    assert settings.state_dir == tmp_path / ".green"


def test_the_command_line_wins_over_the_environment(tmp_path) -> None:
    for name in ("mine.yaml", "theirs.yaml"):
        (tmp_path / name).touch()
    environ = {"MLFLOW_GREEN_POLICY": str(tmp_path / "theirs.yaml"), "MLFLOW_GREEN_LEDGER": "sqlite:////theirs.db"}
    assert load_settings(tmp_path, environ).policy_path == tmp_path / "theirs.yaml"
    assert load_settings(tmp_path, environ).ledger_url == "sqlite:////theirs.db"
    named = load_settings(tmp_path, environ, policy_path=tmp_path / "mine.yaml", ledger_url="sqlite:////mine.db")
    assert (named.policy_path, named.ledger_url) == (tmp_path / "mine.yaml", "sqlite:////mine.db")


def test_a_named_policy_that_is_not_there_is_said_with_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"no policy file nowhere.yaml; correct --policy"):
        load_settings(Path("/"), {}, policy_path=Path("nowhere.yaml"))


@pytest.mark.parametrize(("text", "disabled"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_one_variable_switches_everything_off(text, disabled) -> None:
    assert load_settings(Path("/"), {"MLFLOW_GREEN_DISABLE": text}).disabled is disabled


@pytest.mark.parametrize(("text", "runs"), [("", True), ("1", True), ("0", False), ("No", False), ("false", False)])
def test_one_variable_switches_the_sampler_process_off(text, runs) -> None:
    assert load_settings(Path("/"), {"MLFLOW_GREEN_SAMPLER_PROCESS": text}).sampler_process is runs
