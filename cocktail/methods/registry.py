"""All merge methods by name."""

from __future__ import annotations

from difflib import get_close_matches

from cocktail.errors import RecipeError
from cocktail.methods.interpolation import slerp
from cocktail.methods.linear import linear
from cocktail.methods.method import Method, Option
from cocktail.methods.task_arithmetic import task_arithmetic, ties

_LAMBDA = Option("lambda", 1.0, "Scales what is added to the base.")
_DENSITY = Option("density", 1.0, "Share of the differences to keep.", 0, 1, per_model=True)


def _normalize(default: bool) -> Option:
    return Option("normalize", default, "Divide by the sum of the weights that take part.")


_ALL = (
    Method(
        "linear",
        "Linear",
        "https://arxiv.org/abs/2203.05482",
        linear,
        base="ingredient",
        elementwise=True,
        linear=True,
        options=(_normalize(True),),
    ),
    Method(
        "slerp",
        "SLERP",
        "https://en.wikipedia.org/wiki/Slerp",
        slerp,
        weighted=False,
        models=(1, 1),
        options=(Option("t", None, "How far along the arc: 0 gives the base.", 0, 1),),
    ),
    Method(
        "task_arithmetic",
        "Task Arithmetic",
        "https://arxiv.org/abs/2212.04089",
        task_arithmetic,
        elementwise=True,
        linear=True,
        options=(_normalize(False), _LAMBDA),
    ),
    Method(
        "ties",
        "TIES",
        "https://arxiv.org/abs/2306.01708",
        ties,
        options=(_DENSITY, _normalize(True), _LAMBDA),
    ),
)

METHODS = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        RecipeError: there is none of this name; names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(str(name), METHODS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
    raise RecipeError(f"{name!r} is no merge method - {hint} - see `cocktail methods`")
