"""The merge methods in words, for people choosing one."""

from __future__ import annotations

import textwrap
from typing import Any

from cocktail.methods.method import LINES, WEIGHT, Method, Option
from cocktail.methods.registry import METHODS, method_named

_BASE = {
    "required": "needs a base",
    "optional": "takes a base",
    "ingredient": "has no base",
}


def described(name: str | None = None) -> dict[str, Any]:
    """Every method, or one of them, as plain values for JSON.

    Raises:
        RecipeError: there is no method of this name.
    """
    chosen = METHODS.values() if name is None else [method_named(name)]
    return {method.name: _values(method) for method in chosen}


def table(found: dict[str, Any], name: str | None) -> str:
    """What ``described`` returned, as text: one line per method, or one method in full."""
    if name is None:
        rows = [
            f"{key:<17} {_BASE[value['base']]:<13} {value['summary']}"
            for key, value in found.items()
        ]
        return "\n".join([*rows, "", "`cocktail methods NAME` explains one."])
    value = found[name]
    rows = [f"  {option['name']:<18} {_option_text(option)}" for option in value["parameters"]]
    return "\n".join(
        [f"{name}: {value['title']}, {value['paper']}", "", value["explanation"], "",
         f"{_BASE[value['base']]}; {_count(value['models'])}. Parameters:", *(rows or ["  none"])]
    )  # fmt: skip


def _values(method: Method) -> dict[str, Any]:
    scaled = any(option.name == "lambda" for option in method.options)
    options = (*((WEIGHT,) if method.weighted else ()), *method.options, *(LINES if scaled else ()))
    return {
        "title": method.title,
        "summary": method.summary,
        "explanation": _explanation(method),
        "paper": method.paper,
        "base": method.base,
        "models": method.models,
        "parameters": [_option(option) for option in options],
    }


def _explanation(method: Method) -> str:
    """The docstring without its part for programmers."""
    text = method.documentation
    for heading in ("\nArgs:", "\nReturns:", "\nRaises:"):
        text = text.partition(heading)[0]
    return text.strip()


def _option(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "default": option.default,
        "range": option.range_text().strip(),
        "per_model": option.per_model,
        "help": option.help,
    }


def _option_text(option: dict[str, Any]) -> str:
    facts = [option["range"], "one per model" if option["per_model"] else ""]
    default = "must be given" if option["default"] is None else f"{option['default']} if left out"
    text = f"{option['help']} ({', '.join(filter(None, [*facts, default]))})"
    return textwrap.fill(text, 78, subsequent_indent=" " * 21)


def _count(models: tuple[int, int | None]) -> str:
    fewest, most = models
    if most is None:
        return f"{fewest} or more models" if fewest > 1 else "any number of models"
    return f"{fewest} model{'s' * (fewest > 1)}" if fewest == most else f"{fewest} to {most} models"
