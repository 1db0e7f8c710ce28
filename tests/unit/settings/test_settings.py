from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_green.errors import SettingsError
from mlflow_green.settings import load_settings, secret


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


@pytest.mark.parametrize(("text", "stated"), [("", None), ("0.2", 0.2), ("0", 0.0), ("none", 0.0), (" None ", 0.0)])
def test_the_power_of_memory_can_be_stated_or_left_out(text, stated) -> None:
    settings = load_settings(Path("/"), {"MLFLOW_GREEN_MEMORY_WATTS_PER_GIB": text})
    assert settings.memory_watts_per_gib == stated


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", "372.5"])
def test_a_power_of_memory_without_a_meaning_is_said_with_what_to_write(text) -> None:
    with pytest.raises(SettingsError, match="for each GiB in watts, from 0 to 10, or 'none'"):
        load_settings(Path("/"), {"MLFLOW_GREEN_MEMORY_WATTS_PER_GIB": text})


@pytest.mark.parametrize(("text", "disabled"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_one_variable_switches_everything_off(text, disabled) -> None:
    assert load_settings(Path("/"), {"MLFLOW_GREEN_DISABLE": text}).disabled is disabled


# --- credentials --------------------------------------------------------------------------------------


def test_a_password_is_kept_elsewhere_and_shown_nowhere(tmp_path):
    environ = {
        "MLFLOW_GREEN_BMC": "https://bmc7",
        "MLFLOW_GREEN_BMC_USER": "ana",
        "MLFLOW_GREEN_BMC_PASSWORD": "s3cret-by-mistake",
    }
    settings = load_settings(tmp_path, environ)
    assert (settings.bmc.address, settings.bmc.user) == ("https://bmc7", "ana")
    assert "s3cret" not in repr(settings)
    with pytest.raises(SettingsError, match="env:NAME") as raised:
        secret("MLFLOW_GREEN_BMC_PASSWORD", settings.bmc.password, environ)
    assert "s3cret" not in str(raised.value)


def test_a_password_may_be_kept_in_a_variable():
    assert secret("X", "env:BMC", {"BMC": " spaced "}) == " spaced "
    with pytest.raises(SettingsError, match="export it"):
        secret("X", "env:BMC", {})


def test_a_password_may_be_kept_in_a_file_that_nobody_else_may_read(tmp_path):
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    assert secret("X", f"file:{file}", {}) == "s3cret"
    file.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        secret("X", f"file:{file}", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        secret("X", f"file:{tmp_path}/missing", {})


def test_the_platforms_counter_is_read_where_it_is_asked_for_and_a_misspelt_zone_is_said() -> None:
    asked = [
        load_settings(Path("/"), {"MLFLOW_GREEN_RAPL": zone}).rapl_prefers_psys for zone in ("psys", "package", "")
    ]
    assert asked == [True, False, False]
    with pytest.raises(SettingsError, match="MLFLOW_GREEN_RAPL=dram names no RAPL zone; say package"):
        load_settings(Path("/"), {"MLFLOW_GREEN_RAPL": "dram"})


@pytest.mark.parametrize(("text", "runs"), [("", True), ("1", True), ("0", False), ("No", False), ("false", False)])
def test_one_variable_switches_the_sampler_process_off(text, runs) -> None:
    assert load_settings(Path("/"), {"MLFLOW_GREEN_SAMPLER_PROCESS": text}).sampler_process is runs
