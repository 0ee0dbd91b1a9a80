"""A head that is left out takes the config with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cocktail.errors import PlanError
from cocktail.plan.plan import build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, weights


@pytest.fixture
def models(save: Save) -> tuple[Path, Path]:
    """A reranker, and an encoder without its head."""
    state = {f"bert.{name}": tensor for name, tensor in weights(0).items()}
    state["classifier.weight"] = torch.ones(1, 4)
    reranker = save("reranker", state, architectures=["BertForSequenceClassification"])
    return reranker, save("encoder", weights(1))


@pytest.mark.parametrize("order", [1, -1])
def test_a_mix_without_the_head_is_what_the_model_without_it_is(
    models: tuple[Path, Path], order: int
) -> None:
    made = build_plan(make_recipe(models[::order], (0.5, 0.5), head="drop"))
    assert made.kind.name == "encoder"
    assert made.donor.folder == models[1]
    assert {tensor.name for tensor in made.tensors} == set(weights(0))


def test_a_reranker_needs_its_head(models: tuple[Path, Path]) -> None:
    with pytest.raises(PlanError, match="encoder is a BertModel - model_type 'reranker'"):
        build_plan(make_recipe(models, (0.5, 0.5), head="drop", model_type="reranker"))
