"""What another policy would have answered, in tables and words."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflow_green import units
from mlflow_green.recorder.replay import Replay, ReplayedAnswer
from mlflow_green.records import Action
from mlflow_green.reports.tables import ACTION_STYLES, Column, balance_table, table_of
from mlflow_green.reports.wording import MISSING

_STOPPED = (Action.REFUSE, Action.HALT, Action.DOWNGRADE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """All steps of a rule that one budget would have answered alike."""

    answers: tuple[ReplayedAnswer, ...]

    @property
    def first(self) -> ReplayedAnswer:
        return self.answers[0]


def print_replay(console: Console, replay: Replay) -> None:
    """What would have been otherwise, by rule and budget; the balances at the end; and a sentence of it all."""
    table = replay_table(replay.answers, width=console.width)
    if table.row_count:
        console.print(table)
        console.print()
    if replay.balances:
        console.print(balance_table(replay.balances, width=console.width))
        raised = f" Grants and overrides that raise them as they did: {replay.raised}." if replay.raised else ""
        console.print(f"Limits are those of this file, whatever was applied then.{raised}")
    if replay.unmetered:
        console.print(f"{_steps(replay.unmetered)} are left out: it is not known what they use.")
    watched = sum(a.decision.would is not a.decision.action and a.decision.admitted for a in replay.answers)
    if watched:
        console.print(f"{_steps(watched)} would not have been admitted as they were, if its budgets were hard.")
    console.print(Text(verdict(replay), "bold"))


def verdict(replay: Replay) -> str:
    """How many steps would have got which answer, and what that saves."""
    if not replay.answers:
        return f"No step of known energy ran from {replay.since:%Y-%m-%d} to {replay.until:%Y-%m-%d}."
    parts = []
    for action, word in ((Action.REFUSE, "refused"), (Action.HALT, "halted"), (Action.DOWNGRADE, "downgraded")):
        count = replay.count(action)
        if count:
            saved = units.format_energy(replay.saved_microjoules(action))
            tail = {Action.REFUSE: f", which saves {saved}", Action.DOWNGRADE: f", which saves about {saved}"}
            parts.append(f"{word} {_steps(count)}{tail.get(action, '')}")
    late = [answer.waited_seconds for answer in replay.answers if answer.waited_seconds and answer.decision.admitted]
    if late:
        parts.append(f"made {_steps(len(late))} wait, {units.format_hours(max(late) / units.SECONDS['h'])} at most")
    whole = f"of the {_steps(len(replay.answers))} from {replay.since:%Y-%m-%d} to {replay.until:%Y-%m-%d}"
    return (
        f"This policy would have {'; '.join(parts)}; {whole}." if parts else f"It would have admitted all {whole[7:]}."
    )


def replay_table(answers: tuple[ReplayedAnswer, ...], *, width: int = 120) -> Table:
    """One line for the steps of a rule that the same budget would have answered alike; admitted ones are left out."""
    columns: list[Column[_Line]] = [
        Column(title="Rule", cell=lambda line: line.first.entry.step),
        Column(title="Steps", cell=lambda line: str(len(line.answers)), right=True),
        Column(title="Answer", cell=lambda line: _answer(line.first)),
        Column(
            title="Used",
            cell=lambda line: units.format_energy(sum(a.used_microjoules for a in line.answers)),
            right=True,
        ),
        Column(title="Saved", cell=_saved, right=True),
        Column(title="Budget", cell=lambda line: line.first.decision.budget or MISSING, rank=1),
        Column(title="First", cell=lambda line: f"{line.first.entry.started_at:%m-%d %H:%M}", rank=2),
    ]
    alike: dict[object, list[ReplayedAnswer]] = {}
    for answer in answers:
        if answer.action in _STOPPED or answer.waited_seconds:
            key = (answer.entry.step, _answer(answer).plain, answer.decision.budget)
            alike.setdefault(key, []).append(answer)
    return table_of(columns, [_Line(answers=tuple(group)) for group in alike.values()], width=width)


def _answer(answer: ReplayedAnswer) -> Text:
    words = {Action.ADMIT: "admitted", Action.REFUSE: "refused", Action.HALT: "halted"}
    text = words.get(answer.action, f"downgraded to {answer.decision.tier}")
    if answer.waited_seconds:
        return Text(f"waits, then {text}", ACTION_STYLES[Action.WAIT])
    return Text(text, ACTION_STYLES.get(answer.action, ""))


def _saved(line: _Line) -> str:
    saved = sum(answer.saved_microjoules for answer in line.answers)
    about = "about " if saved and line.first.decision.admitted else ""
    return f"{about}{units.format_energy(saved)}" if saved else MISSING


def _steps(number: int) -> str:
    return units.format_number_of(number, "step")


def replay_to_json(replay: Replay) -> dict[str, object]:
    """All of a replay; energies are integers in microjoules."""
    return {
        "since": replay.since.isoformat(),
        "until": replay.until.isoformat(),
        "policy_sha256": replay.policy_sha256,
        "unmetered": replay.unmetered,
        "raised": replay.raised,
        "steps": [
            {
                "entry_id": answer.entry.entry_id,
                "step": answer.entry.step,
                "wildcards": answer.entry.wildcards,
                "started_at": answer.entry.started_at.isoformat(),
                "answer": answer.action.value,
                "would_answer": answer.decision.would.value,
                "tier": answer.decision.tier,
                "budget": answer.decision.budget,
                "reason": answer.halt_reason or answer.decision.reason,
                "waited_seconds": answer.waited_seconds,
                "used_microjoules": answer.used_microjoules,
                "saved_microjoules": answer.saved_microjoules,
                "is_estimated": answer.decision.admitted and answer.saved_microjoules > 0,
            }
            for answer in replay.answers
        ],
        "saved_refused_microjoules": replay.saved_microjoules(Action.REFUSE),
        "saved_downgraded_microjoules": replay.saved_microjoules(Action.DOWNGRADE),
    }
