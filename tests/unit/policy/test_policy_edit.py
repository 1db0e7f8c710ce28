from __future__ import annotations

import stat

import pytest

from mlflow_green.cli.policy import policy_text
from mlflow_green.errors import PolicyError
from mlflow_green.policy.document import load_policy
from mlflow_green.policy.edit import set_node_overhead

HEAD = "version: 1   # the only one\nproject: p\n"
BLOCK = HEAD + "site:   # where\n  country: FRA\n  # the building\n  pue: 1.2   # told by the operator\n\nsteps: {}\n"


def edited(path, text, value=1.234):
    path.write_bytes(text.encode())
    set_node_overhead(path, value, "measured")
    return path.read_bytes().decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HEAD, HEAD + "site: {node_overhead: 1.23}   # measured\n"),
        (HEAD.rstrip(), HEAD + "site: {node_overhead: 1.23}   # measured\n"),
        (HEAD + "site: {}  # none\n", HEAD + "site: {node_overhead: 1.23}  # none\n"),
        (HEAD + "site: {pue: 1.2 }  # dc\n", HEAD + "site: {pue: 1.2, node_overhead: 1.23 }  # dc\n"),
        (HEAD + 'site: {"pue": 1.2,\n  country: FRA}\n', HEAD + 'site: {"pue": 1.2,\n  country: FRA, node_overhead: 1.23}\n'),
        (HEAD + "site: {node_overhead: 2, pue: 1.5}\n", HEAD + "site: {node_overhead: 1.23, pue: 1.5}\n"),
        (
            BLOCK,
            BLOCK.replace("by the operator\n", "by the operator\n  node_overhead: 1.23   # measured\n"),
        ),
        (HEAD + "site:\n    pue: 1.5", HEAD + "site:\n    pue: 1.5\n    node_overhead: 1.23   # measured"),
        ("{version: 1, project: p}\n", "{version: 1, project: p, site: {node_overhead: 1.23}}\n"),
        (BLOCK.replace("\n", "\r\n"), BLOCK.replace("operator\n", "operator\n  node_overhead: 1.23   # measured\n").replace("\n", "\r\n")),
    ],
)  # fmt: skip
def test_the_factor_is_set_and_nothing_else_changes(tmp_path, before, after):
    path = tmp_path / "green.yaml"
    assert edited(path, before) == after
    assert load_policy(path).site.node_overhead == 1.23
    assert edited(path, after, 1.5).count("node_overhead") == 1
    assert load_policy(path).site.node_overhead == 1.5


@pytest.mark.parametrize("country", [None, "FRA"])
def test_the_file_that_init_writes_keeps_its_lines(tmp_path, country):
    path = tmp_path / "green.yaml"
    before = policy_text("p", country=country)
    after = edited(path, before)
    assert len(set(after.splitlines()) ^ set(before.splitlines())) <= 2


def test_a_wrong_file_or_factor_is_left_alone(tmp_path):
    path = tmp_path / "green.yaml"
    path.write_text(HEAD)
    with pytest.raises(PolicyError, match="node_overhead"):
        set_node_overhead(path, 0.8, "measured")
    assert path.read_text() == HEAD
    path.write_text("version: 7\n")
    with pytest.raises(PolicyError):
        set_node_overhead(path, 1.2, "measured")
    assert [each.name for each in tmp_path.iterdir()] == ["green.yaml"]


def test_the_file_keeps_its_mode(tmp_path):
    path = tmp_path / "green.yaml"
    path.write_text(HEAD)
    path.chmod(0o640)
    set_node_overhead(path, 1.2, "measured")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
