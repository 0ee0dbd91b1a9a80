"""The options for measuring a model on examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from operator import index
from typing import Any, Literal, SupportsIndex, TypeGuard, get_args

from cocktail.errors import RecipeError
from cocktail.recipe.recipe import PoolingMode

ComputeDtype = Literal["auto", "float32", "bfloat16"]


def option(default: Any, explanation: str) -> Any:
    """A field with its default and its line in ``--help``."""
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How models are measured on examples.

    Attributes:
        max_input_length: the most tokens, within the model's positions.
        neg_number: negatives to draw from each example; ``None`` for all.
        pooling: an encoder's pooling; its own by default, or ``cls`` if it has none.
        seed: for drawn negatives, folds and the bootstrap.
        compute_dtype: the dtype of the model that is measured. ``auto`` holds it in fp32, and lets
            a reranker on a CPU that multiplies bf16 compute in it where the loss is the same to a
            tenth of its standard error.
    """

    max_input_length: int = option(2048, "Most tokens, within the model's limit.")
    neg_number: int | None = option(None, "Negatives to draw from each example.  [all]")
    pooling: PoolingMode | None = option(None, "An encoder's pooling.  [its own, or cls]")
    seed: int = option(0, "Seed of drawn negatives, folds and bootstrap.")
    compute_dtype: ComputeDtype = option("auto", "The dtype of the model in memory.  [float32]")

    @property
    def model_dtype(self) -> str:
        """The dtype that the model is held in."""
        return "float32" if self.compute_dtype == "auto" else self.compute_dtype

    def check_measuring(self) -> None:
        """Refuse meaningless options.

        Raises:
            RecipeError: naming the first that is wrong.
        """
        if self.compute_dtype not in get_args(ComputeDtype):
            known = ", ".join(get_args(ComputeDtype))
            raise RecipeError(
                f"compute_dtype is {self.compute_dtype!r} - it must be one of {known}"
            )
        for name, low in (("max_input_length", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), low)
        if self.neg_number is not None:
            check_whole("neg_number", self.neg_number, 0)


def check_whole(name: str, value: Any, low: int) -> None:
    """Refuse anything but a whole number of at least ``low``.

    Raises:
        RecipeError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or index(value) < low:
        raise RecipeError(
            f"{name} is {value!r} - it must be a whole number of {low} or more - give another"
        )


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number and not a Boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)
