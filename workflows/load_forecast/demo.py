"""The demonstration behind ``make demo``: the load-forecast pipeline, three times against one ledger.

1. ``observe``: everything runs and is metered; the ledger learns what each step needs.
2. A hard budget, too small for everything: steps are admitted, downgraded, made to wait, refused and halted.
3. A larger budget: the halted training goes on from its checkpoint.

Exits 1 with a message if anything else happens. Usage: ``python demo.py [FOLDER]``, by default ``.demo``.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

SNAKEFILE = Path(__file__).resolve().parent / "Snakefile"
MLFLOW_GREEN = Path(sys.executable).with_name("mlflow-green")
MARKER = ".mlflow-green-demo"  # a folder without it was not made by this script, and is never deleted
CORES = 2
ABOUT_THE_MACHINE = tuple(
    f"MLFLOW_GREEN_{name}" for name in ("RUNTIME_DIR", "MOUNTINFO", "POWERCAP_ROOT", "MEMORY_WATTS_PER_GIB")
)

MODELS = ("persistence", "ridge", "gbm", "mlp")
SWEEP = "results/sweep.json"
MLP_LONG = "metrics/mlp_long.json"
CHECKPOINT = "checkpoints/mlp_long.joblib"
# Two steps come only with the second run, as if somebody had added them meanwhile. The longer MLP has nothing but its
# author's optimistic guess to go by, so it overruns. Of the leaderboard nothing is known, so it holds all that is
# left, and the longer MLP waits until it settles.
FIRST_TARGETS = (*(f"metrics/{model}.json" for model in MODELS), SWEEP)

# The second budget, in parts of what the first run spent on the four models (without the sweep). With the MLP at half
# size these need about 0.9 and the leaderboard 0.1, which must fit; the longer MLP needs 0.4 more, which must not.
LIMIT_RATIO = 1.25
# Between what the MLP would commit in full and at half size: it is downgraded whichever training is asked first.
DOWNGRADE_AT_PERCENT = 30
# What the third run's budget is raised by, in the same parts: the longer MLP, at 1.5 times what it used when halted.
RAISE_RATIO = 1.25
# Longer than any step here runs: what waits is answered in the same run.
MAX_WAIT = "10 min"
GRACE = "10 s"

EXPECTED_ENDINGS = {("sweep", "refused"), ("train_long", "halted")}
ANSWERS = ("admit", "downgrade", "wait", "refuse", "halt")

MICROJOULES_PER_MILLIWATT_HOUR = 3_600_000
JOB_HEADER = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):$")
ERROR_HEADER = re.compile(r"^Error in rule (\w+):$")
DETAIL = re.compile(r"^    (jobid|wildcards|message): (.*)$")
FINISHED = re.compile(r"^Finished jobid: (\d+)")
DONE = re.compile(r"^(\d+) of (\d+) steps")
SPOKEN = re.compile(r"resumed from epoch \d+|stopped after epoch \d+ of \d+")

COLUMNS = {
    "tier": "tier",
    "mape_percent": "MAPE %",
    "mase": "MASE",
    "development_mwh": "train mWh",
    "inference_mwh": "predict mWh",
    "pareto": "on the Pareto front of",
}

Entries = Sequence[Mapping[str, Any]]
console = Console()


class Unexpected(Exception):
    """The demonstration did not go as it must; the message says what happened instead."""


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".demo").resolve()
    try:
        make_anew(folder)
        demonstrate(folder)
    except Unexpected as problem:
        console.print(f"[bold red]The demo did not go as expected:[/] {problem}")
        console.print(f"What Snakemake said is in {folder}/run*.log")
        return 1
    return 0


def demonstrate(folder: Path) -> None:
    say("1  Observe", "Nothing is limited: the ledger learns what each step needs.")
    write_policy(folder, limit_microjoules=None)
    run_pipeline(folder, "run1", *FIRST_TARGETS)
    first = ledger_export(folder)
    needed = spent_microjoules(entry for entry in first if entry["step"] != "sweep")
    report_spent(first)

    limit = round(LIMIT_RATIO * needed)
    say(
        "2  A hard budget",
        f"{milliwatt_hours(limit)} for the project; a leaderboard and a longer MLP are new: too little for all.",
    )
    write_policy(folder, limit_microjoules=limit)
    run_pipeline(folder, "run2", "all", "--forceall", "--keep-going", must_succeed=False)
    second = entries_since(first, ledger_export(folder))
    check_second_run(folder, second)
    report_spent(second)

    after = budget_spent(folder)

    raised = limit + round(RAISE_RATIO * needed)
    say("3  The budget is raised", f"to {milliwatt_hours(raised)}: the halted training goes on from its checkpoint.")
    write_policy(folder, limit_microjoules=raised)
    green(folder, "policy", "apply", "--reason", "the leaderboard was new")
    log = run_pipeline(folder, "run3", MLP_LONG)
    if "resumed from epoch" not in log:
        raise Unexpected(f"the longer MLP started afresh instead of resuming from {folder / CHECKPOINT}")

    say("The books", "Nothing is held any more, and every joule is posted once.")
    green(folder, "ledger", "verify", shown=True)
    show_leaderboard(folder)
    show_answers(folder, second)
    report = folder / "report.html"
    green(folder, "report", "--html", str(report))
    say("Every job of the second run", "under its hard budget; run 1 and run 3 are in the HTML report too.")
    green(
        folder,
        "report",
        "--html",
        str(folder / "report-run2.html"),
        "--workflow-run",
        second[0]["workflow_run"],
        shown=True,
    )
    say(
        "The budget",
        f"before the second run 0 mWh spent of {milliwatt_hours(limit)}; after it {after}; "
        f"raised to {milliwatt_hours(raised)}; after the third run {budget_spent(folder)}.",
    )
    closing_lines(folder, report)


# --- the folder ---------------------------------------------------------------------------------


def make_anew(folder: Path) -> None:
    """An empty folder; an older demo in it is deleted, anything else is not."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise Unexpected(f"{folder} holds files that are not from a demo; name an empty or a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def write_policy(folder: Path, *, limit_microjoules: int | None) -> None:
    """green.yaml: without a limit everything is observed, with one it is enforced."""
    lines = ["version: 1", "project: load-forecast", "site: {country: GBR}"]
    if limit_microjoules is not None:
        lines += [
            "budgets:",
            "  - name: project",
            "    scope: {project: load-forecast}",
            f"    limit: {milliwatt_hours(limit_microjoules)}",
            "    period: total",
            "    mode: hard",
            "    enforce: point  # the demo may run on an estimate; its low end would come too late to be seen",
            f"    max_wait: {MAX_WAIT}",
            "    rules:",
            f"      - {{at: {DOWNGRADE_AT_PERCENT}%, of: committed, do: downgrade}}",
            f"      - {{at: 100%, of: committed, do: wait, for: {MAX_WAIT}, then: refuse}}",
            f"      - {{at: 105%, of: spent, do: halt, grace: {GRACE}}}",
        ]
    (folder / "green.yaml").write_text("\n".join(lines) + "\n")


def environment(folder: Path) -> dict[str, str]:
    """The user's environment without their own MLflow and mlflow-green settings, but for those about the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GREEN_"))}
    machine = {name: os.environ[name] for name in ABOUT_THE_MACHINE if name in os.environ}
    return {**kept, **machine, "MLFLOW_TRACKING_URI": store(folder), "MLFLOW_EXPERIMENT_NAME": "load-forecast"}


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


# --- running Snakemake --------------------------------------------------------------------------


def run_pipeline(folder: Path, name: str, *arguments: str, must_succeed: bool = True) -> str:
    """Run the workflow, show a line a job, and return all that Snakemake said."""
    command = [sys.executable, "-m", "snakemake", "--scheduler", "green", "--cores", str(CORES), "--nocolor"]
    command += ["--snakefile", str(SNAKEFILE), "--directory", str(folder), *arguments]
    log = folder / f"{name}.log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as snakemake,
        progress_bar() as bar,
    ):
        jobs = JobLines(bar)
        for line in snakemake.stdout or ():
            file.write(line)
            jobs.read(line.rstrip("\n"))
    if must_succeed and snakemake.returncode:
        raise Unexpected(f"{name} ended with exit code {snakemake.returncode}; see {log}")
    if not must_succeed and snakemake.returncode != 1:
        raise Unexpected(f"{name} ended with exit code {snakemake.returncode}, and 1 was expected; see {log}")
    return log.read_text()


def progress_bar() -> Progress:
    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


class JobLines:
    """Turns Snakemake's log into one line for each job that ended."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("running", total=None)
        self._labels: dict[str, str] = {}
        self._rule = ""
        self._jobid = ""
        self._failing = False

    def read(self, line: str) -> None:
        if match := JOB_HEADER.match(line) or ERROR_HEADER.match(line):
            self._rule, self._jobid = match[1], ""
            self._failing = match.re is ERROR_HEADER
        elif match := DETAIL.match(line):
            self._detail(match[1], match[2])
        elif match := FINISHED.match(line):
            self._print("[green]done   [/]", self._labels.get(match[1], f"job {match[1]}"))
        elif match := DONE.match(line):
            self._bar.update(self._task, completed=int(match[1]), total=int(match[2]))
        elif match := SPOKEN.search(line):
            self._print("[cyan]told   [/]", match[0])

    def _detail(self, key: str, value: str) -> None:
        if key == "jobid":
            self._jobid = value
            self._labels.setdefault(value, self._rule)
        elif key == "wildcards":
            self._labels[self._jobid] = f"{self._rule} {value}"
        elif self._failing:
            said = "" if value == "None" else value.removesuffix("(command exited with non-zero exit code)")
            self._print("[yellow]stopped[/]", f"{self._rule}  {said}")

    def _print(self, mark: str, text: str) -> None:
        self._bar.console.print(f"  {mark} ", end="")
        self._bar.console.print(text, markup=False, highlight=False)


# --- the ledger ---------------------------------------------------------------------------------


def green(folder: Path, *arguments: str, shown: bool = False) -> str:
    """Run ``mlflow-green`` in the folder; with ``shown`` its output goes to the terminal."""
    done = subprocess.run(
        [MLFLOW_GREEN, *arguments],
        cwd=folder,
        env=environment(folder),
        stdout=None if shown else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unexpected(f"'mlflow-green {' '.join(arguments)}' ended with exit code {done.returncode}")
    return done.stdout or ""


def ledger_export(folder: Path) -> Entries:
    return [json.loads(line) for line in green(folder, "ledger", "export").splitlines()]


def entries_since(earlier: Entries, entries: Entries) -> Entries:
    known = {entry["entry_id"] for entry in earlier}
    return [entry for entry in entries if entry["entry_id"] not in known]


def spent_microjoules(entries: Iterator[Mapping[str, Any]]) -> int:
    """The energy of these entries; raises ``Unexpected`` if there is none to set a budget by."""
    total: int = sum(entry["energy_charged_microjoules"] for entry in entries)
    if not total:
        raise Unexpected("the first run left no energy in the ledger; 'mlflow-green doctor' says what is missing")
    return total


def answers_given(folder: Path, entries: Entries) -> dict[str, str]:
    """The answers that the policy gave about these entries, each with the last reason for it."""
    runs = {entry["workflow_run"] for entry in entries}
    decisions = json.loads(green(folder, "explain", "--json"))["decisions"]
    given = {decision["decision"]: decision["reason"] for decision in decisions if decision["workflow_run"] in runs}
    halted = [entry["reason"] for entry in entries if entry["outcome"] == "halted"]
    return {**given, "halt": halted[-1]} if halted else given


def check_second_run(folder: Path, entries: Entries) -> None:
    """Exactly the sweep is refused and exactly the longer MLP is halted; nothing else fails; all five answers occur."""
    endings = {(entry["step"], entry["outcome"]) for entry in entries if entry["outcome"] != "succeeded"}
    if endings != EXPECTED_ENDINGS:
        raise Unexpected(f"these steps should have been stopped: {listed(EXPECTED_ENDINGS)}; it was: {listed(endings)}")
    given = answers_given(folder, entries)
    if missing := [answer for answer in ANSWERS if answer not in given]:
        raise Unexpected(f"the policy never answered: {', '.join(missing)}")
    for path in ("results/leaderboard.csv", CHECKPOINT):
        if not (folder / path).exists():
            raise Unexpected(f"{path} is missing after the second run")


def listed(endings: set[tuple[str, str]]) -> str:
    return ", ".join(f"{step} {outcome}" for step, outcome in sorted(endings)) or "none"


# --- what is said -------------------------------------------------------------------------------


def say(title: str, text: str) -> None:
    console.print(f"\n[bold]{title}[/]  {text}")


def milliwatt_hours(microjoules: int) -> str:
    return f"{microjoules / MICROJOULES_PER_MILLIWATT_HOUR:.2f} mWh"


def report_spent(entries: Entries) -> None:
    spent = sum(entry["energy_charged_microjoules"] for entry in entries)
    console.print(f"  spent {milliwatt_hours(spent)} in {len(entries)} steps", highlight=False)


def show_answers(folder: Path, entries: Entries) -> None:
    say("The five answers", "of the second run, an example of each with its reason.")
    table = Table(box=None, show_header=False, padding=(0, 1))
    given = answers_given(folder, entries)
    for answer in ANSWERS:
        table.add_row(f"  {answer}", escape(given[answer]))
    console.print(table, highlight=False)


def show_leaderboard(folder: Path) -> None:
    say("The leaderboard", f"of the second run, in {folder / 'results/leaderboard.md'}")
    with (folder / "results/leaderboard.csv").open() as file:
        header, *rows = csv.reader(file)
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for name in header:
        table.add_column(COLUMNS.get(name, f"  {name}"), no_wrap=True)
    for first, *rest in rows:
        table.add_row(f"  {first}", *rest)
    console.print(table, highlight=False)


def budget_spent(folder: Path) -> str:
    """What the project's energy budget has spent and holds, in words."""
    balance = json.loads(green(folder, "balance", "--json"))["balances"][0]
    return f"{milliwatt_hours(balance['spent'])} spent, {milliwatt_hours(balance['held'])} held"


def closing_lines(folder: Path, report: Path) -> None:
    console.print(f"\nThe report of all three runs: {report}", soft_wrap=True)
    ui = f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {store(folder)}"
    console.print(f"The runs in the MLflow UI: {ui}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
