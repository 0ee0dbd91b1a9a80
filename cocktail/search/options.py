"""What a search can be told."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeGuard, get_args

from cocktail.errors import RecipeError

Strategy = Literal["auto", "lm-cocktail", "ensemble", "gradient", "greedy", "sweep", "blackbox"]
RetainMeasure = Literal["loss", "metric"]
ComputeDtype = Literal["float32", "bfloat16"]
DEFAULT_BUDGET = 60.0
LOWEST_TEMPERATURE = 1e-9
"""Losses are means of fp32: their differences have fewer digits than that."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        strategy: see ``docs/search.md``.
        temperature: of the softmax rule.
        batch_size: consecutive examples that the softmax rule averages at a time, as LM_Cocktail
            does; nothing else depends on it, and forwards are cut by tokens.
        max_input_length: tokens, as far as the model has positions.
        neg_number: negatives to draw of each example, ``None`` for all.
        pooling: of an encoder; its own by default, ``cls`` where it has none.
        max_drop: how much worse than the base the mix may be on the retain examples.
        retain_by: what is compared there, the loss or the ranking metric.
        base: index of the base among the ingredients.
        budget: forward equivalents on the target's examples; the frontier comes on top.
        seed: of drawn negatives, folds and bootstrap.
        compute_dtype: of the model that the mixes are measured in.
    """

    strategy: Strategy = "auto"
    temperature: float = 5.0
    batch_size: int = 2
    max_input_length: int = 2048
    neg_number: int | None = None
    pooling: str | None = None
    max_drop: float = 0.0
    retain_by: RetainMeasure = "loss"
    base: int = 0
    budget: float = DEFAULT_BUDGET
    seed: int = 0
    compute_dtype: ComputeDtype = "float32"

    def check(self, count: int, *, retains: bool = False) -> None:
        """Refuse what has no meaning for ``count`` ingredients.

        Args:
            retains: there are retain examples.

        Raises:
            RecipeError: with the first thing that is wrong.
        """
        if self.strategy not in get_args(Strategy):
            raise RecipeError(
                f"strategy is {self.strategy!r} - it is one of {', '.join(get_args(Strategy))}"
            )
        if self.retain_by not in get_args(RetainMeasure):
            raise RecipeError(f"retain_by is {self.retain_by!r} - it is loss or metric")
        if self.compute_dtype not in get_args(ComputeDtype):
            known = " or ".join(get_args(ComputeDtype))
            raise RecipeError(f"compute_dtype is {self.compute_dtype!r} - it is {known}")
        for name, low in (("batch_size", 1), ("max_input_length", 1), ("seed", 0)):
            _check_whole(name, getattr(self, name), low)
        if self.neg_number is not None:
            _check_whole("neg_number", self.neg_number, 0)
        for name in ("temperature", "budget"):
            value = getattr(self, name)
            if not (_is_number(value) and value > 0):
                raise RecipeError(f"{name} is {value!r} - it is a number above 0 - give another")
        if self.temperature < LOWEST_TEMPERATURE:
            raise RecipeError(
                f"temperature is {self.temperature} - below {LOWEST_TEMPERATURE} digits of the "
                "losses decide that are noise - give a higher one"
            )
        if not (_is_number(self.max_drop) and math.isfinite(self.max_drop)):
            raise RecipeError(
                f"max_drop is {self.max_drop!r} - it is a finite number - give another"
            )
        if not retains and (self.max_drop != 0 or self.retain_by != "loss"):
            raise RecipeError(
                f"max_drop is {self.max_drop} by {self.retain_by} and there are no retain examples "
                "- they are what a drop is measured on - add them (--retain, retain_data=)"
            )
        if self.strategy == "sweep" and count != 2:
            raise RecipeError(
                f"{count} models given to sweep - it walks from one model to another - name two, "
                "or use another strategy"
            )


def base_index(base: str | Path | int | None, models: tuple[str, ...]) -> int:
    """Find the base among the ingredients; the first by default.

    Args:
        base: an index, a reference as it was given, or another path to the same folder.

    Raises:
        RecipeError: it is none of them.
    """
    if base is None:
        return 0
    if _is_number(base) and base in range(-len(models), len(models)):
        return range(len(models))[int(base)]
    if isinstance(base, str | Path):
        place = os.path.realpath(base)
        for number, model in enumerate(models):
            if str(base) == model or place == os.path.realpath(model):
                return number
    raise RecipeError(
        f"base is {str(base)!r} - the base is one of the models that are mixed, and what --retain "
        "compares with - name it among them"
    )


def _check_whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or index(value) < low:
        raise RecipeError(
            f"{name} is {value!r} - it is a whole number of {low} or more - give another"
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
