"""The table of methods is the code's; ``python -m tests.cocktail.methods.test_docs`` prints it."""

from __future__ import annotations

from pathlib import Path

from cocktail.methods.method import Method, Option
from cocktail.methods.registry import METHODS

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"
_START, _END = "<!-- methods -->\n", "<!-- end of methods -->\n"
_BASE = {"required": "yes", "optional": "may have", "ingredient": "no"}


def _option(option: Option) -> str:
    default = "needed" if option.default is None else str(option.default).lower()
    each = ", each model" if option.per_model else ""
    return f"`{option.name}` {default}{option.range_text()}{each}"


def _row(method: Method) -> str:
    weight = ["`weight` needed, each model"] if method.weighted else []
    shown = [*weight, *map(_option, method.options)]
    fewest, most = method.models
    count = f"{fewest}" if fewest == most else f"{fewest} or more"
    cells = [
        f"`{method.name}`", method.summary, _BASE[method.base], count, "; ".join(shown),
        f"[{method.paper.removeprefix('https://').split('/')[0]}]({method.paper})",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    head = "| Method | What it does | Base | Models | Parameters: default, range | Source |\n"
    return head + "|---" * 6 + "|\n" + "".join(map(_row, METHODS.values()))


def with_table(text: str) -> str:
    before, rest = text.split(_START)
    return before + _START + table() + _END + rest.split(_END)[1]


def test_the_table_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text, "run python -m tests.cocktail.methods.test_docs"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
