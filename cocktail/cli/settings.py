"""What ``cocktail.yaml`` in the current folder supplies if the command line names no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cocktail.errors import RecipeError
from cocktail.recipe.yaml_file import RECIPE_FILE as RECIPE_FILE
from cocktail.recipe.yaml_file import read_recipe


def recipe_here(models: Sequence[str]) -> dict[str, Any]:
    """The recipe in ``cocktail.yaml``; empty if models are named or there is no such file.

    Raises:
        RecipeError: the file is not a recipe, or holds more than one.
    """
    path = Path(RECIPE_FILE)
    return read_recipe(path) if path.is_file() and not models else {}


def require_models(settings: Mapping[str, Any]) -> None:
    """Refuse settings for which neither the command line nor ``cocktail.yaml`` gave models.

    Raises:
        RecipeError: there are none.
    """
    if not settings.get("models"):
        raise RecipeError(
            f"no models given, and no {RECIPE_FILE} here supplies any - a mix needs two or more "
            "- name folders or Hub ids"
        )
