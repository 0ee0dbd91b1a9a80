"""docs/python.md names every public call, and calls them as they can be called."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import cocktail
import reranker_ft

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
CALLS = [
    (package, call)
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for package in ([reranker_ft] if "from reranker_ft" in block else [cocktail])
    for call in ast.walk(ast.parse(block))
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
]


@pytest.mark.parametrize("package", [cocktail, reranker_ft])
def test_every_public_name_is_there(package: Any) -> None:
    for name in set(package.__all__) - {"__version__", "SearchResult"}:
        assert f"`{name}`" in PAGE, name


@pytest.mark.parametrize(("package", "call"), CALLS)
def test_the_calls_have_these_arguments(package: Any, call: ast.Call) -> None:
    function = getattr(package, call.func.id)  # type: ignore[attr-defined]
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    inspect.signature(function).bind(*call.args, **keywords)


def test_every_command_has_a_call() -> None:
    from cocktail.cli.main import main as mixing
    from reranker_ft.cli.main import main as ranking

    commands = [f"reranker-ft {name}" for name in ranking.commands]
    commands += [f"cocktail {name}" for name in mixing.commands if name != "methods"]
    for command in commands:
        assert f"| `{command}` |" in PAGE
