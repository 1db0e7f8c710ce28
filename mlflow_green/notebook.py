"""``%%green [NAME]``: a notebook cell as a metered block, and what it used below it."""

from __future__ import annotations

import ast
from html import escape
from typing import Any

from mlflow_green.blocks import BlockRecord, meter
from mlflow_green.units import format_carbon, micrograms


def load(shell: Any) -> None:
    """Register the magic with an IPython shell."""

    def green(line: str, cell: str) -> Any:
        """``%%green [NAME]``: run the cell as a metered step, and show what it used below it."""
        block = meter(line.strip() or "cell")
        try:
            with block:
                return _run(shell, cell)
        finally:
            if block.record.outcome is not None:  # else a budget has refused it, and the error says so
                _show(block.record)

    shell.register_magic_function(green, "cell", "green")


def _run(shell: Any, cell: str) -> Any:
    """What the cell's last expression gives, as for any cell. Raises whatever the cell does."""
    source = shell.transform_cell(cell)
    tree = shell.transform_ast(shell.compile.ast_parse(source))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    file = shell.compile.cache(source)
    exec(compile(tree, file, "exec"), shell.user_ns)  # noqa: S102 - the user's own cell
    return eval(compile(ast.Expression(last.value), file, "eval"), shell.user_ns) if last else None  # noqa: S307


def _show(record: BlockRecord) -> None:
    from IPython.display import display

    display({"text/plain": str(record), "text/html": html(record)}, raw=True)


def html(record: BlockRecord) -> str:
    """One line, and the domains on demand."""
    facts = [
        f"<b>{escape(record.name)}</b>",
        str(record.total or "energy not metered"),
        f"{record.duration_seconds:.1f} s",
    ]
    if record.operational_g_co2e is not None:
        facts.append(format_carbon(micrograms(record.operational_g_co2e)))
    rows = "".join(f"<tr><td>{domain}</td><td>{energy}</td></tr>" for domain, energy in record.energy.items())
    return f"<details><summary>{' · '.join(facts)}</summary><table>{rows}</table></details>"
