"""What a search can be told."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cocktail.errors import RecipeError
from cocktail.measure.options import MeasureOptions, check_whole, is_number, option

Strategy = Literal["auto", "lm-cocktail", "ensemble", "gradient"]
RetainMeasure = Literal["loss", "metric"]
DEFAULT_BUDGET = 60.0
LOWEST_TEMPERATURE = 1e-9
"""Losses are means of fp32: their differences have fewer digits than that."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(MeasureOptions):
    """How to search, and how to measure.

    Attributes:
        strategy: see ``docs/search.md``.
        temperature: of the softmax rule.
        batch_size: consecutive examples that the softmax rule averages at a time, as LM_Cocktail
            does; nothing else depends on it, and forwards are cut by tokens.
        max_drop: how much worse than the base the mix may be on the retain examples.
        retain_by: what is compared there, the loss or the ranking metric.
        base: index of the base among the ingredients.
        budget: forward equivalents (passes over the target's examples; a backward is two); the
            frontier comes on top.
    """

    strategy: Strategy = option(
        "auto", "How weights are proposed; auto also decides whether to keep the prior."
    )
    temperature: float = option(5.0, "Of LM-Cocktail's rule softmax(-loss / T).")
    batch_size: int = option(2, "Examples that this rule averages at a time.")
    max_drop: float = option(
        0.0, "How much worse than the base the mix may be on the retain examples."
    )
    retain_by: RetainMeasure = option("loss", "What --max-drop counts: the loss, or NDCG@10.")
    base: int = 0
    budget: float = option(DEFAULT_BUDGET, "Passes over the examples; a backward counts as two.")

    def check(self, *, retains: bool = False) -> None:
        """Refuse what has no meaning.

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
        self.check_measuring()
        check_whole("batch_size", self.batch_size, 1)
        for name in ("temperature", "budget"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise RecipeError(f"{name} is {value!r} - it is a number above 0 - give another")
        if self.temperature < LOWEST_TEMPERATURE:
            raise RecipeError(
                f"temperature is {self.temperature} - below {LOWEST_TEMPERATURE} digits of the "
                "losses decide that are noise - give a higher one"
            )
        if not (is_number(self.max_drop) and math.isfinite(self.max_drop)):
            raise RecipeError(
                f"max_drop is {self.max_drop!r} - it is a finite number - give another"
            )
        if not retains and (self.max_drop != 0 or self.retain_by != "loss"):
            raise RecipeError(
                f"max_drop is {self.max_drop} by {self.retain_by} and there are no retain examples "
                "- they are what a drop is measured on - add them (--retain, retain_data=)"
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
    if is_number(base) and base in range(-len(models), len(models)):
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
