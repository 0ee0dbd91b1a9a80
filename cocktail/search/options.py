"""The options of a search."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cocktail.errors import RecipeError
from cocktail.measure.options import MeasureOptions, check_whole, is_number, option

Strategy = Literal["auto", "lm-cocktail", "gradient"]
RetainMeasure = Literal["loss", "metric"]
DEFAULT_DROP = 0.01
LOWEST_TEMPERATURE = 1e-9
"""Losses are means in fp32, whose differences are not precise enough for less."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(MeasureOptions):
    """How to search, and how to measure.

    Attributes:
        strategy: ``auto`` takes a point of the curve; the others are used as given.
        temperature: the temperature of the softmax rule.
        batch_size: consecutive examples that the softmax rule averages at a time, as LM_Cocktail
            does; nothing else depends on it: forward batches are sized by tokens.
        max_drop: how much worse than the base the mix may be on the retain examples, beyond one
            standard error of the difference.
        retain_by: how labelled retain examples are compared, by the ranking metric or the loss; by
            default the metric if there is one.
        base: index of the base among the ingredients.
    """

    strategy: Strategy = option(
        "auto", "auto takes a point of the curve; the others are used as given."
    )
    temperature: float = option(5.0, "Temperature of LM-Cocktail's rule softmax(-loss / T).")
    batch_size: int = option(2, "Examples that this rule averages at a time.")
    max_drop: float = option(
        DEFAULT_DROP,
        "How much worse than the base the mix may be on retain examples, beyond a standard error.",
    )
    retain_by: RetainMeasure | None = option(
        None, "What --max-drop compares on labels.  [NDCG@10 for rankings, else the loss]"
    )
    base: int = 0

    def check(self, *, labelled: bool = False, unlabelled: bool = False) -> None:
        """Refuse meaningless options.

        Args:
            labelled: whether there are retain examples.
            unlabelled: whether there is text to retain.

        Raises:
            RecipeError: naming the first that is wrong.
        """
        if self.strategy not in get_args(Strategy):
            raise RecipeError(
                f"strategy is {self.strategy!r} - it must be one of {', '.join(get_args(Strategy))}"
            )
        if self.retain_by not in (None, *get_args(RetainMeasure)):
            raise RecipeError(f"retain_by is {self.retain_by!r} - it must be loss or metric")
        self.check_measuring()
        check_whole("batch_size", self.batch_size, 1)
        if not (is_number(self.temperature) and self.temperature > 0):
            raise RecipeError(
                f"temperature is {self.temperature!r} - it must be a number above 0 - give another"
            )
        if self.temperature < LOWEST_TEMPERATURE:
            raise RecipeError(
                f"temperature is {self.temperature} - below {LOWEST_TEMPERATURE}, rounding noise "
                "in the losses decides - give a higher one"
            )
        if not (is_number(self.max_drop) and 0 <= self.max_drop < math.inf):
            raise RecipeError(
                f"max_drop is {self.max_drop!r} - it must be a finite number of 0 or more - give "
                "another"
            )
        if self.retain_by is not None and not labelled:
            raise RecipeError(
                f"retain_by is {self.retain_by}, but there are no labelled retain examples - it "
                "chooses between their measures - add some (--retain, retain_data=)"
            )
        if self.max_drop != DEFAULT_DROP and not (labelled or unlabelled):
            raise RecipeError(
                f"max_drop is {self.max_drop}, but nothing is retained - a drop is measured on "
                "general examples - add some (--retain, retain_data=), or text without labels "
                "(--retain-text, retain_text=)"
            )


def base_index(base: str | Path | int | None, models: tuple[str, ...]) -> int:
    """Find the base among the ingredients; the first by default.

    Args:
        base: an index, a reference as it was given, or another path to the same folder.

    Raises:
        RecipeError: it is not one of the ingredients.
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
        f"base is {str(base)!r} - the base must be one of the mixed models, as --retain compares "
        "with it - name it among them"
    )
