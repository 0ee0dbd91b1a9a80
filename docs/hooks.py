"""What mkdocs does for the reference: lists the flags of training, and reads Sphinx's roles.

The flags are read from the source, since importing it would load torch.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "reranker_ft" / "train" / "config.py"
MARK = "<!-- training flags -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table for every group of flags in the place of ``MARK``."""
    return markdown.replace(MARK, _tables()) if MARK in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Show ``:func:`name``` in a docstring as the name alone."""
    return re.sub(r":(?:func|class|mod|attr|meth):(?=<code>)", "", html)


def _tables() -> str:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    tables = (_table(node) for node in tree.body if isinstance(node, ast.ClassDef))
    return "\n\n".join(filter(None, tables))


def _table(node: ast.ClassDef) -> str:
    rows = []
    for field in node.body:
        match field:
            case ast.AnnAssign(
                target=ast.Name(id=name),
                value=ast.Call(func=ast.Name(id="_flag"), args=[ast.Constant(value=text), *rest]),
            ):
                rows.append(f"| `--{name}` | {text.replace('|', '&#124;')} | {_default(rest)} |")
    if not rows:
        return ""
    head = [f"**{ast.get_docstring(node)}**", "", "| flag | | default |", "|---|---|---|"]
    return "\n".join(head + rows)


def _default(rest: list[ast.expr]) -> str:
    match rest:
        case []:
            return ""
        case [ast.Name(id="MISSING")]:
            return "required"
        case [ast.Constant(value=str(text))]:
            return f"`{text}`"
    return f"`{ast.unparse(rest[0])}`"
