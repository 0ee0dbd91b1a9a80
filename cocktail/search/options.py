"""What a search can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cocktail.errors import RecipeError

Strategy = Literal["auto", "lm-cocktail", "ensemble", "gradient", "greedy", "sweep", "blackbox"]
RetainMeasure = Literal["loss", "metric"]
ComputeDtype = Literal["float32", "bfloat16"]
DEFAULT_BUDGET = 60.0


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
        for name in ("temperature", "batch_size", "budget"):
            value = getattr(self, name)
            if not value > 0:
                raise RecipeError(f"{name} is {value} - it is a number above 0 - give another")
        if not self.max_drop < float("inf"):
            raise RecipeError(f"max_drop is {self.max_drop} - it is a finite number - give another")
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


def base_index(base: str | int | None, models: tuple[str, ...]) -> int:
    """Find the base among the ingredients; the first by default.

    Raises:
        RecipeError: it is none of them.
    """
    if base is None:
        return 0
    if isinstance(base, int) and -len(models) <= base < len(models):
        return base % len(models)
    if base not in models:
        raise RecipeError(
            f"base is {base!r} - the base is one of the models that are mixed, and what --retain "
            "compares with - name it among them"
        )
    return models.index(str(base))
