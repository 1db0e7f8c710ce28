"""One value of ``green.yaml`` set in its text; everything else, comments included, stays as it is."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from mlflow_green.errors import PolicyError
from mlflow_green.policy.document import parse_policy
from mlflow_green.policy.source import decoded, read_bytes

_KEY = "node_overhead"


def set_node_overhead(path: Path, node_overhead: float, comment: str) -> None:
    """Set ``site.node_overhead`` in the policy file to this factor (no unit, 1 to 10, two decimals), in one step.

    ``comment`` stands beside it where it gets a line of its own.

    Raises:
        PolicyError: the file is no policy, or would not be one afterwards; then nothing is written.
        OSError: it cannot be written.
    """
    raw = read_bytes(path)
    parse_policy(raw, name=str(path))
    text = with_node_overhead(decoded(raw, str(path)), node_overhead, comment)
    policy = parse_policy(text.encode(), name=str(path))
    if policy.site.node_overhead != round(node_overhead, 2):
        raise PolicyError((f"{path}: error: site.{_KEY} could not be set; write it by hand: {node_overhead:.2f}",))
    target = path.resolve()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123 - a file descriptor
            file.write(text)
        shutil.copymode(target, temporary)
        Path(temporary).replace(target)
    except OSError:
        Path(temporary).unlink()
        raise


def with_node_overhead(text: str, node_overhead: float, comment: str) -> str:
    """The text of a valid policy with the factor in it."""
    root = YAML(typ="safe", pure=True).compose(text)
    assert isinstance(root, MappingNode)
    item = f"{_KEY}: {node_overhead:.2f}"
    line_end = "\r\n" if "\r\n" in text else "\n"
    site = _value(root, "site")
    if not isinstance(site, MappingNode):
        if root.flow_style:
            return _into_braces(text, root, f"site: {{{item}}}")
        return f"{text.rstrip()}{line_end}site: {{{item}}}   # {comment}{line_end}"
    old = _value(site, _KEY)
    if old is not None:
        return text[: old.start_mark.index] + f"{node_overhead:.2f}" + text[old.end_mark.index :]
    if site.flow_style:
        return _into_braces(text, site, item)
    first_key, last_value = site.value[0][0], site.value[-1][1]
    at = text.find("\n", last_value.end_mark.index)
    at = len(text.rstrip()) if at < 0 else at - (len(line_end) - 1)
    return f"{text[:at]}{line_end}{' ' * first_key.start_mark.column}{item}   # {comment}{text[at:]}"


def _value(mapping: MappingNode, key: str) -> Node | None:
    return next((value for each, value in mapping.value if each.value == key), None)


def _into_braces(text: str, mapping: MappingNode, item: str) -> str:
    if not mapping.value:
        at = mapping.start_mark.index + 1
        return f"{text[:at]}{item}{text[at:]}"
    at = mapping.value[-1][1].end_mark.index
    return f"{text[:at]}, {item}{text[at:]}"
