"""The plan of a model that ingredients take turns in, without torch, so that it refuses at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cocktail.errors import PlanError
from cocktail.plan.plan import Plan, build_plan
from cocktail.recipe.recipe import make_recipe


def search_plan(
    models: Sequence[str | Path],
    model_type: str | None,
    *,
    head: str = "error",
    dtype: str = "float32",
) -> Plan:
    """The plan of the model in memory, which starts as the first ingredient.

    Raises:
        PlanError: the ingredients cannot be mixed; it gives every reason.
    """
    weights = [1.0, *[0.0] * (len(models) - 1)]
    recipe = make_recipe(models, weights, model_type=model_type, head=head, dtype=dtype)
    plan = build_plan(recipe)
    found = not_refillable(plan)
    if found is not None:
        raise PlanError(
            [
                f"{found} - a search refills one model with whole tensors of every ingredient - "
                "mix with fixed weights (cocktail mix)"
            ]
        )
    return plan


def not_refillable(plan: Plan) -> str | None:
    """The reason why the ingredients cannot take turns in one model, or ``None``."""
    pieced = [tensor.key for tensor in plan.tensors if tensor.pieces]
    if pieced:
        return f"the tokenizers differ ({pieced[0]} is aligned by token)"
    return "head is mix" if plan.recipe.head == "mix" else None
