"""Check a recipe by itself, before any of its models is opened."""

from __future__ import annotations

import math
from typing import get_args

from cocktail.errors import RecipeError, counted
from cocktail.methods.method import Method
from cocktail.numbers import exact_sum
from cocktail.recipe.chat_templates import CHAT_TEMPLATES
from cocktail.recipe.recipe import HeadRule, PoolingMode, Recipe

WEIGHT_TOLERANCE = 1e-3


def recipe_problems(recipe: Recipe) -> list[str]:
    """What is wrong with the recipe by itself, one line each."""
    found = []
    for name, allowed in (("head", HeadRule), ("pooling", PoolingMode)):
        value = getattr(recipe, name)
        if value is not None and value not in get_args(allowed):
            found.append(f"{name} is {value!r} - it must be one of {', '.join(get_args(allowed))}")
    known = (None, "auto", *CHAT_TEMPLATES)
    if recipe.chat_template not in known and "{" not in str(recipe.chat_template):
        found.append(
            f"chat_template is {recipe.chat_template!r:.60} - it must be auto, "
            f"{' or '.join(CHAT_TEMPLATES)}, or the text of a Jinja template - paste the template, "
            "or leave it out"
        )
    try:
        found += _data_problems(recipe, recipe.method)
        found += [*_model_problems(recipe, recipe.method), *_weight_problems(recipe, recipe.method)]
        recipe.check_parameters()
    except RecipeError as error:
        found.append(str(error))
    return found


def _data_problems(recipe: Recipe, method: Method) -> list[str]:
    if method.statistic is None and recipe.data is not None:
        return [
            f"data is {recipe.data} - {method.name} uses no examples - leave it out, or "
            "merge by fisher or regmean"
        ]
    if method.statistic is not None and recipe.data is None:
        return [
            f"{method.name} has no examples - it weighs the models by measuring them on some - "
            "give a JSONL file (--data, data=)"
        ]
    return []


def _model_problems(recipe: Recipe, method: Method) -> list[str]:
    if len(recipe.ingredients) < 2:
        count = len(recipe.ingredients)
        return [f"{count} model given - a mix takes at least two - name another"]
    if recipe.base_model is None and method.base == "required":
        return [
            f"{method.name} has no base - it works on the changes that fine-tuning made - name "
            "the model that the others were fine-tuned from (--base, base_model)"
        ]
    needs_weight = method.weighted or method.statistic is not None
    is_foreign = recipe.base_model not in (None, *recipe.models)
    if method.base == "ingredient" and needs_weight and is_foreign:
        return [
            f"the base {recipe.base_model} is not among the models - {method.name} has no other "
            "use for it - name it among them"
        ]
    fewest, most = method.models
    count = len(recipe.merged)
    if fewest <= count <= (most or count):
        return []
    wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most else f"{fewest}+"
    beside = " besides the base" if recipe.base_model and method.base != "ingredient" else ""
    return [
        f"{counted(count, 'model')} given{beside} - {method.name} takes {wanted} - make the "
        "numbers agree"
    ]


def _weight_problems(recipe: Recipe, method: Method) -> list[str]:
    count = len(recipe.merged)
    if not recipe.weights:
        given = [recipe.parameters, *recipe.model_parameters]
        if not method.weighted or any("weight" in parameters for parameters in given):
            return []
        return [f"no weights for {counted(count, 'model')} - each takes one weight - give them"]
    if not method.takes_weights:
        return [f"weights given - {method.name} takes none - leave them out"]
    if not method.weighted:
        for weight in recipe.weights:
            method.option("weight").check(weight)
        if not any(recipe.weights):
            return [f"the weights are all 0 - {method.name} divides by their sum - give others"]
    broken = [weight for weight in recipe.weights if not math.isfinite(weight)]
    if broken:
        return [f"weights are {list(recipe.weights)} - they must be finite numbers - correct them"]
    if len(recipe.weights) != count:
        takes = "each model takes one weight, in the same order"
        if count < len(recipe.models):
            takes = f"the base {recipe.base_model} takes none, every other model one, in order"
        number = counted(len(recipe.weights), "weight")
        return [f"{number} for {counted(count, 'model')} - {takes} - make them agree"]
    total = exact_sum(recipe.weights)
    if recipe.is_weighted_sum and not abs(total - 1) <= WEIGHT_TOLERANCE:
        return [
            f"the weights sum to {total:.6g} - the sum must be 1 within {WEIGHT_TOLERANCE:g}, "
            "or the model's scale changes - correct them, or normalise (--normalize, "
            "normalize=True)"
        ]
    return []
