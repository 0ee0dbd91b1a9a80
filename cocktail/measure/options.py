"""What measuring a model on examples can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from operator import index
from typing import Any, Literal, SupportsIndex, TypeGuard, get_args

from cocktail.errors import RecipeError
from cocktail.recipe.recipe import PoolingMode

ComputeDtype = Literal["float32", "bfloat16"]


def option(default: Any, explanation: str) -> Any:
    """A field with its default and the line that ``--help`` shows for it."""
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How models are measured on examples.

    Attributes:
        max_input_length: tokens, as far as the model has positions.
        neg_number: negatives to draw of each example, ``None`` for all.
        pooling: of an encoder; its own by default, ``cls`` where it has none.
        seed: of drawn negatives, folds and bootstrap.
        compute_dtype: of the model that is measured.
    """

    max_input_length: int = option(2048, "Tokens, as far as the model goes.")
    neg_number: int | None = option(None, "Negatives to draw of each example.  [all]")
    pooling: PoolingMode | None = option(None, "Of an encoder.  [its own, cls where it has none]")
    seed: int = option(0, "Of drawn negatives, folds and bootstrap.")
    compute_dtype: ComputeDtype = option("float32", "Of the one model in memory.")

    def check_measuring(self) -> None:
        """Refuse what has no meaning.

        Raises:
            RecipeError: with the first thing that is wrong.
        """
        if self.compute_dtype not in get_args(ComputeDtype):
            known = " or ".join(get_args(ComputeDtype))
            raise RecipeError(f"compute_dtype is {self.compute_dtype!r} - it must be {known}")
        for name, low in (("max_input_length", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), low)
        if self.neg_number is not None:
            check_whole("neg_number", self.neg_number, 0)


def check_whole(name: str, value: Any, low: int) -> None:
    """Refuse what is not a whole number of ``low`` or more.

    Raises:
        RecipeError: it is not; names the option.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or index(value) < low:
        raise RecipeError(
            f"{name} is {value!r} - it must be a whole number of {low} or more - give another"
        )


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)
