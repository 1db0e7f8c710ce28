"""``%%green`` in a real IPython shell."""

from __future__ import annotations

import importlib.util

import pytest

from mlflow_green.records import Outcome
from tests.testkit.services import lacks

START = (
    "from IPython.core.interactiveshell import InteractiveShell\n"
    "shell = InteractiveShell.instance()\n"
    "shell.run_line_magic('load_ext', 'mlflow_green')\n"
)


@pytest.fixture(autouse=True)
def _ipython(folder, monkeypatch) -> None:
    if importlib.util.find_spec("IPython") is None:
        lacks("IPython is not installed")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))


def test_a_cell_keeps_its_value_and_its_names_and_shows_what_it_used(program, posted):
    done = program(
        START + "result = shell.run_cell('%%green train <a>\\nx = sum(range(3_000_000))\\n%time\\nx - x + 42')\n"
        "assert result.result == 42, result\n"
        "assert shell.user_ns['x'] > 0\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Out" in done.stdout
    assert "train <a> succeeded" in done.stdout
    assert [(entry.step, entry.outcome) for entry in posted()] == [("train <a>", Outcome.SUCCEEDED)]


def test_an_error_of_the_cell_is_shown_once_and_is_the_cells_own(program, posted):
    done = program(
        START + "result = shell.run_cell('%%green\\n1 / 0')\n"
        "assert isinstance(result.error_in_exec, ZeroDivisionError), result\n"
        "result = shell.run_cell('%%green\\nx = = 1')\n"
        "assert isinstance(result.error_in_exec or result.error_before_exec, SyntaxError), result\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ZeroDivisionError") == 2  # the head and the last line of one traceback
    assert done.stdout.count("cell failed") == 2
    assert [entry.outcome for entry in posted()] == [Outcome.FAILED] * 2


def test_the_html_of_a_cell_is_one_line_with_its_domains_and_escapes_names(program):
    done = program(
        "import mlflow_green\nfrom mlflow_green.notebook import html\n"
        "with mlflow_green.meter('<b>') as m: sum(range(3_000_000))\n"
        "print(html(m.record))\n"
    )
    assert done.returncode == 0, done.stderr
    assert "&lt;b&gt;" in done.stdout
    assert "<td>cpu</td>" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_cell_that_a_budget_refuses_is_not_run(program, folder, posted, hard_budget):
    hard_budget("1 J")
    with (folder / "green.yaml").open("a") as policy:
        policy.write("steps: {cell: {energy: 5 Wh}}\n")
    done = program(START + "shell.run_cell('%%green\\nprint(\"ran\")')\n")
    assert done.returncode == 0, done.stderr
    assert "BudgetExceeded" in done.stdout
    assert "ran\n" not in done.stdout
    assert [entry.outcome for entry in posted()] == [Outcome.REFUSED]
