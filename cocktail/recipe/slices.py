"""mergekit's ``slices``, where they only spell out what ``models`` says: every layer, in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocktail.errors import RecipeError


def whole_slices(path: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Read slices that cover all layers of the same models in order.

    Returns:
        ``models`` with their parameters, and ``layers``, which the plan checks against the models.
        A slice's parameters are added to the recipe's.

    Raises:
        RecipeError: layers are missing, repeated or from other models, or the form is wrong.
    """
    if recipe.get("models"):
        raise RecipeError(f"{path}: has models and slices - both name the models - leave one out")
    pieces = [_sources(path, piece) for piece in recipe["slices"]]
    first = 0
    for models, parameters, (start, stop) in pieces:
        if start != first or (models, parameters) != pieces[0][:2]:
            raise _stacked(path)
        first = stop
    if not pieces:
        raise _stacked(path)
    models, parameters, _ = pieces[0]
    merged = {**(recipe.get("parameters") or {}), **parameters}
    return {"models": models, "layers": first, **({"parameters": merged} if merged else {})}


def _sources(
    path: Path, piece: Any
) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[int, int]]:
    """The models, parameters and layer range of one slice."""
    sources = piece.get("sources") if isinstance(piece, Mapping) else None
    if not isinstance(sources, list) or not all(isinstance(s, Mapping) for s in sources):
        raise RecipeError(
            f"{path}: a slice is {piece!r:.60} - it must be a map of sources, each with model "
            "and layer_range - correct it"
        )
    ranges = [source.get("layer_range") for source in sources]
    models = [{k: v for k, v in source.items() if k != "layer_range"} for source in sources]
    whole = isinstance(ranges[0], list) and len(ranges[0]) == 2 if ranges else False
    if not whole or not all(type(bound) is int for bound in ranges[0]):
        raise RecipeError(
            f"{path}: a slice has the layer_range {ranges[:1]} - it must be a pair of whole "
            "numbers, such as [0, 32] - correct it"
        )
    if any(found != ranges[0] for found in ranges):
        raise _stacked(path)
    return models, dict(piece.get("parameters") or {}), (ranges[0][0], ranges[0][1])


def _stacked(path: Path) -> RecipeError:
    return RecipeError(
        f"{path}: slices (layers of different models stacked on each other) are not supported - "
        "whole models are merged tensor by tensor - let every slice name the same models, and the "
        "slices cover all layers in order, or use mergekit"
    )
