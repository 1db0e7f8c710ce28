"""A corpus of broken policy files: every mistake is shown at its place, and what to write instead is said.

The head of each file says what is wrong with it: ``# at: LINE:COLUMN PART OF THE MESSAGE``, once for each of its
problems. ``# fix: OLD => NEW`` is what a reader of the message would do, and ``# help:`` the words of the message that
tell him (all of NEW where it is left out): a suggestion is useful if the message has them and the file loads once
they are followed.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mlflow_green.emissions.intensity import cloud_intensity
from mlflow_green.errors import PolicyError
from mlflow_green.policy.document import parse_policy

FILES = sorted((Path(__file__).parent / "broken").glob("*.yaml"))


@dataclass(frozen=True)
class Broken:
    name: str
    text: str
    problems: tuple[tuple[str, str], ...]
    fix: tuple[str, str] | None
    help: str

    @property
    def fixed(self) -> str:
        old, new = self.fix
        head = self.text.rindex("# ")
        body = self.text.index("\n", head) + 1
        assert self.text.count(old, body) == 1, f"{old!r} is not once in {self.name}"
        return self.text[:body] + self.text[body:].replace(old, new)


def read(path: Path) -> Broken:
    text = path.read_text(encoding="utf-8")
    head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    problems = tuple(tuple(line.removeprefix("at: ").split(" ", 1)) for line in head if line.startswith("at: "))
    fixes = [line.removeprefix("fix: ").replace("\\n", "\n").partition(" =>") for line in head if line[:4] == "fix:"]
    fix = (fixes[0][0], fixes[0][2].removeprefix(" ")) if fixes else None
    words = [line.removeprefix("help: ") for line in head if line.startswith("help: ")]
    return Broken(
        name=path.stem, text=text, problems=problems, fix=fix, help=words[0] if words else (fix or ("", ""))[1]
    )


def told(text: str) -> tuple[str, ...]:
    try:
        parse_policy(text.encode(), known_countries=("DEU", "FRA", "GBR", "USA"), look_up={"cloud": cloud_intensity})
    except PolicyError as error:
        return error.problems
    return ()


def is_placed(broken: Broken) -> bool:
    """All problems of the file are told, in one pass, each in its line and column, and nothing else is."""
    found = told(broken.text)
    return len(found) == len(broken.problems) and all(
        text.startswith(f"green.yaml:{place}: error: ") and message in text.splitlines()[0]
        for text, (place, message) in zip(found, broken.problems, strict=True)
    )


def is_helped(broken: Broken) -> bool:
    """Whether the message says what to write, and writing it mends the file."""
    if broken.fix is None:
        return False
    message, new = told(broken.text)[0].splitlines()[0], broken.fix[1]
    says = broken.help in message and broken.help in new if new else "remove" in message or "leave it out" in message
    return says and told(broken.fixed) == ()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_broken_file_is_told_all_its_problems_each_at_its_place(path):
    broken = read(path)
    assert is_placed(broken), told(broken.text)


@pytest.mark.parametrize("path", [path for path in FILES if read(path).fix], ids=lambda path: path.stem)
def test_doing_what_the_message_says_mends_the_file(path):
    broken = read(path)
    assert is_helped(broken), (told(broken.text), told(broken.fixed))


def test_nearly_all_files_have_the_right_place_and_most_a_useful_suggestion(capsys):
    corpus = [read(path) for path in FILES]
    placed, helped = sum(map(is_placed, corpus)), sum(map(is_helped, corpus))
    with capsys.disabled():
        print(f"\nbroken policies: right place in {placed} of {len(corpus)}, useful suggestion in {helped}")
    assert len(corpus) >= 60
    assert placed >= 0.95 * len(corpus)
    assert helped >= 0.80 * len(corpus)
