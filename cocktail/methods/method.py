"""What a merge method is: a function of a tensor's ingredients, and a record of what it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from inspect import cleandoc
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, Literal

from cocktail.errors import RecipeError, listed
from cocktail.methods.random_words import RandomWords
from cocktail.numbers import plain_number

if TYPE_CHECKING:
    import torch

MergeFunction = Callable[..., "torch.Tensor"]
"""``fn(tensors, base, weights, *, generator, **options) -> tensor``.

``tensors`` are the K models other than the base, in recipe order; ``base`` is the base or ``None``.
All are fp32 (or fp64), of one shape, contiguous and on the CPU; an elementwise method gets flat
blocks of them. They belong to the function and may be overwritten. ``weights`` are K numbers.
``generator`` yields random words, seeded from the recipe's seed and the tensor's name, and knows
where in the tensor a block lies. A per-model option is a tuple of K values. A method with a
statistic also takes ``statistics``, one for each model or none at all: tensors if it is
elementwise, otherwise matrices that it reads some rows at a time.
"""


@dataclass(frozen=True)
class Option:
    """A parameter of a method, as mergekit names it.

    Attributes:
        default: its type, bool, int, float or str, is the option's type; ``None`` for a number that
            must be given.
        low: the least that a number may be; ``high``, the most.
        per_model: whether there is one value for each model other than the base.
        choices: the texts that are allowed.
    """

    name: str
    default: bool | int | float | str | None
    help: str
    low: float = -math.inf
    high: float = math.inf
    per_model: bool = False
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """Return the value in the option's type.

        Raises:
            RecipeError: it has the wrong type, or is out of range.
        """
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise RecipeError(
                    f"{self.name} is {value!r} - it must be true or false - correct it"
                )
            return value
        if isinstance(self.default, str):
            if value not in self.choices:
                raise RecipeError(
                    f"{self.name} is {value!r} - it must be one of {listed(self.choices)} - "
                    "correct it"
                )
            return value
        number = plain_number(value)
        whole = not isinstance(self.default, int) or number.is_integer()
        if not (whole and math.isfinite(number) and self.low <= number <= self.high):
            kind = "whole " if isinstance(self.default, int) else "finite " * math.isinf(number)
            raise RecipeError(
                f"{self.name} is {value!r:.60} - it must be a {kind}number{self.range_text()} - "
                "correct it"
            )
        return int(number) if isinstance(self.default, int) else number

    def range_text(self) -> str:
        """`` from 0 to 1``; empty if every number will do."""
        low = "" if self.low == -math.inf else f" from {self.low:g}"
        return low + ("" if self.high == math.inf else f" to {self.high:g}")


@dataclass(frozen=True)
class Method:
    """A way to combine the tensors of several models into one.

    Attributes:
        title: its usual name.
        paper: the URL of its source.
        module: the module of this package with the function, which has the method's name. It is
            imported only when needed, as all of them import torch, and a plan does without.
            ``linear`` has none: the engine adds up weighted models by itself.
        base: ``required``; ``optional`` (the method works on differences from it if there is one);
            or ``ingredient`` (a base is one of the models like any other).
        weighted: whether it needs a weight for each model; an optional weight is an option.
        elementwise: whether each element of the result depends only on the same element of the
            ingredients, so that the method can run block by block.
        singular: whether it works on the singular vectors of matrices.
        models: the fewest and most models other than the base; ``None`` for no limit.
        statistic: what is measured of each model on examples before tensors are combined: the
            Fisher information of every element, or the Gram matrix of every linear layer's inputs.
        explanation: what the method does; by default, the function's docstring.
    """

    name: str
    title: str
    paper: str
    module: str
    base: Literal["required", "optional", "ingredient"] = "required"
    weighted: bool = True
    elementwise: bool = False
    singular: bool = False
    models: tuple[int, int | None] = (1, None)
    options: tuple[Option, ...] = ()
    statistic: Literal["fisher", "gram"] | None = None
    explanation: str = ""

    @cached_property
    def function(self) -> MergeFunction:
        found: MergeFunction = getattr(import_module(f"{__package__}.{self.module}"), self.name)
        return found

    @property
    def takes_weights(self) -> bool:
        return self.weighted or any(option.name == "weight" for option in self.options)

    @property
    def documentation(self) -> str:
        """What the method does: its explanation, or the function's docstring."""
        return cleandoc(self.explanation or self.function.__doc__ or "")

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.documentation.split("\n")[0]

    def option(self, name: str) -> Option:
        """The option of this name; raises KeyError if there is none."""
        for option in self.options:
            if option.name == name:
                return option
        raise KeyError(name)

    def merge(
        self,
        tensors: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        weights: Sequence[float],
        *,
        generator: RandomWords | None = None,
        options: Mapping[str, Any] | None = None,
        statistics: Sequence[Any] = (),
    ) -> torch.Tensor:
        """Run the function with the defaults of all options that are not given."""
        filled: dict[str, Any] = {
            option.name: (option.default,) * len(tensors) if option.per_model else option.default
            for option in self.options
        }
        filled |= options or {}
        # `lambda` is a Python keyword: functions take it as lambda_.
        named = {f"{name}_" if iskeyword(name) else name: filled[name] for name in filled}
        if self.statistic is not None:
            named["statistics"] = list(statistics)
        own = [tensor.contiguous() for tensor in tensors]
        base = None if base is None else base.contiguous()
        return self.function(own, base, list(weights), generator=generator, **named)


WEIGHT = Option("weight", None, "How much of each model.", per_model=True)


# LiNeS scales what a fine-tune changed by the layer's depth; every method with a lambda can.
LINES = (
    Option("lines_alpha", 1.0, "LiNeS: lambda is multiplied by this at the first layer."),
    Option("lines_beta", 0.0, "LiNeS: added to that factor at the last layer."),
)
