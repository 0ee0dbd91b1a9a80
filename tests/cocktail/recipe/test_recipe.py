"""What callers give: numbers of any library, and one line for what is no recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocktail import CocktailError, mix_models
from cocktail.methods.registry import METHODS
from cocktail.numbers import cancel, shares
from cocktail.plan.plan import build_plan
from cocktail.recipe.check import recipe_problems
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, weights


@pytest.mark.parametrize(
    "given",
    [np.array([0.25, 0.75]), torch.tensor([0.25, 0.75]), (np.float32(0.25), torch.tensor(0.75))],
)
def test_weights_of_any_library(given: Any) -> None:
    assert make_recipe(["a", "b"], given).weights == (0.25, 0.75)


def test_numbers_of_any_library_are_written_as_plain_ones(tmp_path: Path) -> None:
    parameters = {"density": np.float64(0.5), "lambda": torch.tensor(0.25), "int8_mask": np.True_}
    recipe = make_recipe(
        ["a", "b"], np.ones(2), merge_method="ties", base_model="c", parameters=parameters,
        seed=np.int64(3),  # type: ignore[arg-type]
    )  # fmt: skip
    assert not recipe_problems(recipe)
    expected = {"density": 0.5, "lambda": 0.25, "int8_mask": True}
    assert recipe.to_dict()["parameters"] == expected
    assert "seed: 3" in recipe.to_yaml()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_names_or_paths": "m/one"}, "models are 'm/one' - they must be a list"),
        ({"model_type": ["decoder"]}, "model_type is .* - it must be text"),
        ({"merge_method": ["ties"]}, "merge_method is .* - it must be text"),
        ({"parameters": [1]}, "parameters are .* - they must be a map"),
        ({"parameters": "density=1"}, "parameters are .* - they must be a map"),
        ({"parameters": {1: 2}}, "linear has no parameter 1"),
        ({"parameters": {None: 2}}, "linear has no parameter None"),
        ({"seed": 1.5}, "seed is 1.5 - it must be a whole number"),
        ({"weights": [10**400, 1]}, "they must be finite"),
        ({"weights": "55"}, "weights are '55' - they must be numbers"),
        ({"weights": [0.5, None]}, "they must be numbers"),
        ({"weights": [1e308, 1e308], "normalize": True}, "can be normalised"),
        ({"weights": [float("inf"), -float("inf")], "normalize": True}, "can be normalised"),
        ({"weights": [0.3, -0.1, -0.2], "normalize": True}, "can be normalised"),
        ({"threads": -1}, "threads are -1"),
        ({"threads": 1.5}, "threads are 1.5"),
        ({"output_path": 5}, "'5' is not a path"),
    ],
)
def test_what_is_no_recipe_is_one_line(options: dict[str, Any], message: str) -> None:
    given = {"model_names_or_paths": ["a", "b"], "model_type": "decoder", "weights": [0.5, 0.5]}
    with pytest.raises(CocktailError, match=message):
        mix_models(**{**given, **options})


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("karcher", "max_iter", float("inf")),
        ("karcher", "tol", float("inf")),
        ("ties", "lambda", float("inf")),
        ("ties", "lambda", float("nan")),
        ("slerp", "t", 10**400),
        ("karcher", "max_iter", 10**400),
        ("consensus", "k", "many"),
    ],
)
def test_options_are_finite_numbers(method: str, option: str, value: Any) -> None:
    with pytest.raises(CocktailError, match=f"^{option} is .{{1,60}} - it must be a .*number"):
        METHODS[method].option(option).check(value)


def test_weights_that_cancel_share_nothing() -> None:
    assert shares([1, 3]) == [0.25, 0.75]
    assert shares([0, 0]) == [0.5, 0.5]
    assert shares([1e-12, 3e-12]) == pytest.approx([0.25, 0.75])
    assert cancel([0.3, -0.1, -0.2])
    assert not cancel([0.3, -0.1, -0.1])
    with pytest.raises(CocktailError, match=r"0\.3, -0\.1, -0\.2 sum to -2\.78e-17"):
        shares([0.3, -0.1, -0.2])


def test_a_head_of_models_whose_weights_cancel_is_refused(save: Save) -> None:
    models = [
        save(f"m{i}", weights(i) | {"classifier.weight": torch.ones(1, 4)} if i else weights(0))
        for i in range(4)
    ]
    with pytest.raises(CocktailError, match="in the proportions of their weights"):
        build_plan(make_recipe(models, [1, 0.3, -0.1, -0.2], head="mix"))
