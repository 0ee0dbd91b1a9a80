"""The recipe: everything that a mix depends on, as a dataclass and as YAML."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from cocktail.dtypes import parse_dtype, torch_name
from cocktail.errors import RecipeError

RECIPE_FILE = "cocktail.yaml"
WEIGHT_TOLERANCE = 1e-3
HeadRule = Literal["error", "copy", "drop"]
PoolingMode = Literal["cls", "mean", "max", "lasttoken"]


@dataclass(frozen=True)
class Recipe:
    """What goes in and how it is mixed.

    Attributes:
        models: K references, each a local folder or a Hub id ``org/name[@revision]``; config and
            tokenizer come from the first.
        weights: K mixing weights that sum to 1.
        model_type: ``reranker``, ``encoder``, ``decoder``, ``encoder-decoder``, or ``None`` to
            read it from the config.
        dtype: safetensors code of the output, or ``None`` to keep the ingredients' own.
        head: what to do with a head that only one ingredient has: refuse, take it whole from that
            one, or leave it out.
        pooling: make the modules of a sentence-transformers model with this pooling where the
            first ingredient has none.
    """

    models: tuple[str, ...]
    weights: tuple[float, ...]
    model_type: str | None = None
    dtype: str | None = None
    head: HeadRule = "error"
    pooling: PoolingMode | None = None

    def normalized(self) -> Recipe:
        """The same recipe with the weights divided by their sum.

        Raises:
            RecipeError: the sum is zero or not finite.
        """
        total = math.fsum(self.weights)
        if not math.isfinite(total) or total == 0:
            raise RecipeError(
                f"the weights sum to {total:g} - a sum that is finite and not zero can be "
                "normalised - give other weights"
            )
        return replace(self, weights=tuple(weight / total for weight in self.weights))

    def problems(self) -> list[str]:
        """What is wrong with the recipe by itself, one line each."""
        found = []
        if len(self.models) < 2:
            found.append(
                f"{len(self.models)} model given - a mix takes at least two - name another"
            )
        if len(self.weights) != len(self.models):
            found.append(
                f"{len(self.weights)} weights for {len(self.models)} models - each model takes one "
                "weight, in the same order - make the numbers agree"
            )
        broken = [weight for weight in self.weights if not math.isfinite(weight)]
        total = math.fsum(self.weights) if not broken else math.nan
        if broken:
            found.append(f"weights are {list(self.weights)} - they must be finite numbers")
        elif abs(total - 1) > WEIGHT_TOLERANCE and len(self.weights) == len(self.models):
            found.append(
                f"the weights sum to {total:.6g} - the sum must be 1 within {WEIGHT_TOLERANCE:g}, "
                "else the model's scale changes - correct them, or normalise (--normalize, "
                "normalize=True)"
            )
        for name, allowed in (("head", HeadRule), ("pooling", PoolingMode)):
            value = getattr(self, name)
            if value is not None and value not in get_args(allowed):
                found.append(f"{name} is {value!r} - it is one of {', '.join(get_args(allowed))}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what was left at its default; ``recipe_fields`` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self)}
        values = {key: value for key, value in values.items() if value != defaults[key]}
        values |= {"models": list(self.models), "weights": list(self.weights)}
        if self.dtype is not None:
            values["dtype"] = torch_name(self.dtype)
        return values


_KINDS_OF_VALUE: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "models": (list, "a list of folders or Hub ids"),
    "weights": (list, "a list of numbers"),
    "model_type": (str, "a name"),
    "output": (str, "a path"),
    "dtype": (str, "a name such as bfloat16"),
    "head": (str, "error, copy or drop"),
    "pooling": (str, "cls, mean, max or lasttoken"),
    "normalize": (bool, "true or false"),
    "max_shard_size": ((str, int), "a size such as 5GB"),
}


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file into plain values, checked for type; every key may be missing.

    Returns:
        ``models``, ``weights``, ``model_type``, ``output``, ``dtype``, ``head``, ``pooling``,
        ``normalize``, ``max_shard_size``, as far as the file has them. Relative paths stay
        relative to the current folder.

    Raises:
        RecipeError: the file cannot be read, is no YAML map, or has an unknown or misused key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path}: is not valid YAML ({reason})") from None
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}: is not a map - a recipe has keys such as models and weights - see docs/mix.md"
        )
    for key, value in values.items():
        if key not in _KINDS_OF_VALUE:
            near = difflib.get_close_matches(str(key), _KINDS_OF_VALUE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KINDS_OF_VALUE)}"
            raise RecipeError(f"{path}: unknown key {key!r} - {hint}")
        kind, meaning = _KINDS_OF_VALUE[key]
        if not isinstance(value, kind):
            raise RecipeError(f"{path}: {key} is {value!r} - it must be {meaning}")
    if "weights" in values:
        values["weights"] = [_number(path, weight) for weight in values["weights"]]
    if "models" in values:
        values["models"] = [str(model) for model in values["models"]]
    return values


def _number(path: Path, value: object) -> float:
    # YAML 1.1 reads 1e-3 as text.
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)
    except ValueError:
        raise RecipeError(f"{path}: weights holds {value!r} - every weight is a number") from None


def make_recipe(
    models: Sequence[str | Path],
    weights: Sequence[float],
    *,
    model_type: str | None = None,
    dtype: Any = None,
    head: str = "error",
    pooling: str | None = None,
    normalize: bool = False,
) -> Recipe:
    """Build a recipe from what a user passed.

    Raises:
        RecipeError: a weight is no number, the dtype is unknown, or the sum cannot be normalised.
    """
    try:
        numbers = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        raise RecipeError(f"weights are {weights!r} - they must be numbers") from None
    recipe = Recipe(
        tuple(str(model) for model in models),
        numbers,
        model_type,
        parse_dtype(dtype),
        head,  # type: ignore[arg-type]  # checked by problems(), with all others
        pooling,  # type: ignore[arg-type]
    )
    return recipe.normalized() if normalize else recipe
