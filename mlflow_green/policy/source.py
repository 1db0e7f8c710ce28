"""A YAML text with the place of every key and value, and problems shown as compilers show them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mlflow_green.errors import PolicyError
from mlflow_green.policy.problem import KeyPath, Mark, Problem
from mlflow_green.policy.syntax import syntax_problem

SIZE_BYTES_MAX = 1_000_000
NODES_MAX = 20_000
DEPTH_MAX = 20
CUTOFF = 0.6
SHOWN_MAX = 70  # with the indent and what stands for the rest, a line of a terminal of 80 columns

SECRETS = ("webhook", "secret", "apprise")
"""The keys of a channel whose value opens it to whoever reads it."""

_ADDRESS = re.compile(r"://[^\s'\",;]+")
_MAYBE_SECRET = re.compile(
    r"(?i)(?:(?:webhook|secret|apprise|password|token)[\"']?\s*:\s*(?![\[\s\"']*env:)(?=\S)|://)"
)

_TAG = "tag:yaml.org,2002:"
_TAGS = {_TAG + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")}
_BOOLEANS = {"true": True, "false": False}


def close_name(word: object, known: Iterable[str]) -> str | None:
    """The known name that ``word`` was probably meant to be; upper and lower case do not count."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=CUTOFF)
    return by_lower[found[0]] if found else None


def is_secret(path: KeyPath) -> bool:
    """Whether what is wrong at this path may be a secret, which is never shown."""
    return path[:1] == ("channels",) and any(key in SECRETS for key in path[2:3])


class Source:
    """A YAML file as plain data: ``data`` is what it says, ``problems`` is what is wrong with the YAML itself."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines = text.splitlines()
        self.problems: list[Problem] = []
        self.data: object = None
        self._keys: dict[KeyPath, Mark] = {}
        self._values: dict[KeyPath, Mark] = {}
        self._nodes = 0
        root = self._compose(text)
        if root is not None:
            self.data = self._plain(root, ())

    def error(self, problems: Iterable[Problem]) -> PolicyError:
        """All problems in the order of the text, each with its line and a caret.

        Where the YAML itself is wrong, what the schema misses in that place is only a consequence.
        """
        marked = {self._place(problem) for problem in self.problems}
        placed = sorted(
            (place, index, problem)
            for index, problem in enumerate(problems)
            if (place := self._place(problem)) not in marked or problem.mark
        )
        return PolicyError(tuple(self._text(Mark(line=at[0], column=at[1]), problem) for at, _, problem in placed))

    def _compose(self, text: str) -> Node | None:
        try:
            root: Node | None = YAML(typ="safe", pure=True).compose(text)
        except MarkedYAMLError as error:
            self.problems.append(syntax_problem(error, self.lines))
        except RecursionError:
            self.problems.append(Problem(message="nested too deeply", mark=Mark(line=1, column=1)))
        except YAMLError as error:
            self.problems.append(Problem(message=str(error).splitlines()[0], mark=Mark(line=1, column=1)))
        else:
            if root is None:
                message = "the file is empty; 'mlflow-green init' writes one to start from"
                self.problems.append(Problem(message=message, mark=Mark(line=1, column=1)))
            return root
        return None

    def _plain(self, node: Node, path: KeyPath) -> object:
        self._values.setdefault(path, _mark(node))
        self._nodes += 1
        if len(path) > DEPTH_MAX or self._nodes > NODES_MAX:
            if not any("too large" in problem.message for problem in self.problems):
                message = f"too large: at most {NODES_MAX} values, {DEPTH_MAX} levels deep"
                self.problems.append(Problem(message=message, mark=_mark(node)))
            return None
        if str(node.tag) not in _TAGS:
            self.problems.append(Problem(message=f"tag {str(node.tag)!r} is not allowed", mark=_mark(node)))
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._plain(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or str(key_node.tag) == _TAG + "merge":
                message = "a key must be a plain word; lists, mappings and '<<' cannot be keys here"
                self.problems.append(Problem(message=message, mark=_mark(key_node)))
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in data:
                first = self._keys[inner].line
                message = f"key {key!r} is here twice; the first is in line {first}; remove one of them"
                self.problems.append(Problem(message=message, path=inner, mark=_mark(key_node)))
                continue
            self._keys[inner] = _mark(key_node)
            if isinstance(value_node, ScalarNode) and not value_node.value and not value_node.style:
                self._values[inner] = self._keys[inner]  # no value at all: its key is the place to look at
            data[key] = self._plain(value_node, inner)
        return data

    def _place(self, problem: Problem) -> tuple[int, int]:
        mark = problem.mark or self._mark_of(problem.path, on_key=problem.on_key)
        return mark.line, mark.column

    def _mark_of(self, path: KeyPath, *, on_key: bool) -> Mark:
        if on_key and path in self._keys:
            return self._keys[path]
        while path and path not in self._values:
            path = path[:-1]
        if on_key and path in self._keys:
            return self._keys[path]
        return self._values.get(path, Mark(line=1, column=1))

    def _text(self, mark: Mark, problem: Problem) -> str:
        path = ".".join(str(part) for part in problem.path)
        head = f"{self.name}:{mark.line}:{mark.column}: error: {path + ': ' if path else ''}{problem.message}"
        if problem.suggestion:
            head += f"; did you mean {problem.suggestion!r}?"
        head = _ADDRESS.sub("://***", head)
        if mark.line > len(self.lines):
            return head
        line = self.lines[mark.line - 1].replace("\t", " ")
        end = mark.column - 1 if is_secret(problem.path) and not problem.on_key else len(line)
        found = _MAYBE_SECRET.search(line)
        end = min(end, found.end()) if found else end
        shown = line if end == len(line) else f"{line[:end]}***"
        caret = min(mark.column - 1, end)
        return "\n    ".join((head, *_window(shown, caret)))


def read_bytes(path: Path) -> bytes:
    """The bytes of a policy file.

    Raises:
        PolicyError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyError((f"{path}: error: cannot be read: {error.strerror}",)) from error


def decoded(raw: bytes, name: str) -> str:
    """The bytes as text.

    Raises:
        PolicyError: they are not UTF-8 text, or too many.
    """
    if len(raw) > SIZE_BYTES_MAX:
        raise PolicyError((f"{name}:1:1: error: larger than {SIZE_BYTES_MAX} bytes; this is not a policy file",))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(name, raw, error.start) from error
    if "\0" in text:
        raise _not_text(name, raw, raw.index(b"\0"))
    return text


def _not_text(name: str, raw: bytes, offset: int) -> PolicyError:
    line = raw.count(b"\n", 0, offset) + 1
    column = offset - raw.rfind(b"\n", 0, offset)
    return PolicyError((f"{name}:{line}:{column}: error: not UTF-8 text (byte {raw[offset]:#04x}); save it as UTF-8",))


def _window(line: str, caret: int) -> tuple[str, str]:
    """The part of a line around its caret that fits into a terminal, and the line with the caret."""
    start = max(0, min(caret - SHOWN_MAX // 2, len(line) - SHOWN_MAX))
    text, left, right = line[start : start + SHOWN_MAX], "…" * (start > 0), "…" * (start + SHOWN_MAX < len(line))
    return f"{left}{text}{right}", f"{' ' * (caret - start + len(left))}^"


def _mark(node: Node) -> Mark:
    return Mark(line=node.start_mark.line + 1, column=node.start_mark.column + 1)


def _scalar(node: Node) -> object:
    text, kind = str(node.value), str(node.tag).removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return _BOOLEANS.get(text.lower(), text)
    if kind in {"int", "float"}:
        return _number(text)
    return text


def _number(text: str) -> object:
    plain = text.replace("_", "")
    for convert in (lambda word: int(word, 0), int, float):
        try:
            return convert(plain)
        except ValueError:
            continue
    return text
