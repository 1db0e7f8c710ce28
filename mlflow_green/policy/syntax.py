"""YAML that cannot be read, shown where the mistake was made: a parser notices it later, often in another line."""

from __future__ import annotations

from collections.abc import Sequence

from ruamel.yaml.error import MarkedYAMLError

from mlflow_green.policy.problem import Mark, Problem

_CLOSING = {"[": "]", "{": "}"}
_PLAIN = {
    "'\\t'": "a tab cannot indent YAML; use spaces",
    "single document": "more than one YAML document; a policy is one, without '---' in between",
}


def syntax_problem(error: MarkedYAMLError, lines: Sequence[str]) -> Problem:
    """One syntax error; its place is always inside the text."""
    noticed = _mark(error.problem_mark or error.context_mark, lines)
    began = _mark(error.context_mark, lines) if error.context_mark else noticed
    problem, context = str(error.problem or error.context or "cannot be read"), str(error.context)
    for notice, message in _PLAIN.items():
        if notice in f"{context} {problem}":
            return Problem(message=message, mark=noticed)
    if "could not find expected ':'" in problem:
        return Problem(message="not valid YAML: there is no ':' after this key; write 'KEY: VALUE'", mark=began)
    if "expected <block end>" in problem or "mapping values are not allowed" in problem:
        return _misplaced(noticed, lines)
    opened = began if "quoted scalar" in context else _bracket(noticed, began, lines) if "flow" in context else None
    if opened is None:
        return Problem(message=f"not valid YAML: {problem}", mark=noticed)
    mark = lines[opened.line - 1][opened.column - 1]
    end = _CLOSING.get(mark, mark)
    return Problem(message=f"not valid YAML: this {mark} is never closed; write {end} where it ends", mark=opened)


def _bracket(noticed: Mark, began: Mark, lines: Sequence[str]) -> Mark | None:
    """The bracket that is open where the parser stumbled; ``None`` where it is closed later in its line."""
    bracket = lines[began.line - 1][began.column - 1 : began.column]
    if bracket not in _CLOSING:  # it stumbled over the end of the text: the last bracket is the open one
        rest = [(number, max(line.rfind(each) for each in _CLOSING)) for number, line in enumerate(lines, 1)]
        return max((Mark(line=n, column=at + 1) for n, at in rest if at >= 0), key=lambda mark: mark.line, default=None)
    same_line = noticed.line == began.line
    return None if same_line and _CLOSING[bracket] in lines[began.line - 1][noticed.column - 1 :] else began


def _misplaced(noticed: Mark, lines: Sequence[str]) -> Problem:
    """A line that does not stand under its neighbour, or a second ':'."""
    line = lines[noticed.line - 1]
    before = next((each for each in reversed(lines[: noticed.line - 1]) if each.split("#")[0].strip()), None)
    own, other = _indentation(line), _indentation(before or line)
    is_inside = before is not None and before.split("#")[0].rstrip().endswith(":")
    if own != other and not is_inside and line.count(": ") + line.rstrip().endswith(":") <= 1:
        spaces = "1 space" if own == 1 else f"{own} spaces"
        message = f"wrong indentation: this text begins after {spaces}, that of the line before after {other}"
        return Problem(message=message, mark=Mark(line=noticed.line, column=own + 1))
    message = "not valid YAML: a second ':' in one line; put text that holds ': ' in quotes, or check the indentation"
    return Problem(message=message, mark=noticed)


def _indentation(line: str) -> int:
    """How many characters stand before the first word; the dash of a list counts as a space."""
    return len(line) - len(line.lstrip(" -"))


def _mark(place: object, lines: Sequence[str]) -> Mark:
    """Where the parser points, but not past the last line that says something."""
    line, column = getattr(place, "line", 0) + 1, getattr(place, "column", 0) + 1
    last = max((number for number, text in enumerate(lines, 1) if text.strip()), default=1)
    if line <= last:
        return Mark(line=line, column=column)
    return Mark(line=last, column=max(1, len(lines[last - 1].rstrip()))) if lines else Mark(line=1, column=1)
