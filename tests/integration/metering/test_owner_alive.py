"""Whether a process that answers for holds still runs, and what cannot be known of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_green.metering.supervise import owner_alive, this_process

HERE = "here"


@pytest.mark.parametrize(
    ("why", "changes", "alive"),
    [
        ("it is this process", {}, True),
        ("its pid is another process's by now", {"started_ticks": 1}, False),
        ("no process has its pid", {"pid": 2**30}, False),
        ("this machine was started again since", {"boot_id": "an earlier boot"}, False),
        ("another container of this kernel: its pids are not ours", {"host": "other", "pid": 2**30}, True),
        ("another machine: nothing here proves its death", {"host": "other", "boot_id": "theirs", "pid": 2**30}, True),
    ],
)
def test_an_owner_is_dead_only_where_that_can_be_seen(why, changes, alive) -> None:
    assert owner_alive(replace(this_process(HERE), **changes), HERE) is alive, why


def test_an_owner_says_where_its_readings_are(tmp_path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert this_process(HERE, tmp_path / "link" / "spool").spool_dir == str(tmp_path.resolve() / "spool")
    assert this_process(HERE).spool_dir is None
