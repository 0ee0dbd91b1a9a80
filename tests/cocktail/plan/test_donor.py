"""Whose config and tokenizer a mix takes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import cocktail
from cocktail.errors import PlanError
from cocktail.plan.plan import build_plan
from cocktail.recipe.recipe import make_recipe
from tests.language_models import make_language_model

RERANKER, DOMAIN, BASE = "Qwen3-Reranker-0.6B", "domain", "base"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """A reranker and a language model, both tuned from a plain language model."""
    for seed, name in enumerate((RERANKER, DOMAIN, BASE)):
        make_language_model(tmp_path / name, "qwen3", seed=seed)
    return {name: str(tmp_path / name) for name in (RERANKER, DOMAIN, BASE)}


def test_a_reranker_is_grafted_on_a_plain_base(folders: dict[str, str], tmp_path: Path) -> None:
    models = [folders[RERANKER], folders[DOMAIN]]
    recipe = make_recipe(models, [1, 0.3], base_model=folders[BASE], merge_method="task_arithmetic")
    plan = build_plan(recipe)
    assert plan.donor.reference == folders[RERANKER] and plan.kind.name == "reranker"
    cocktail.mix_models(
        models,
        "reranker",
        [1, 0.3],
        tmp_path / "mixed",
        base_model=folders[BASE],
        merge_method="task_arithmetic",
    )
    found, reranker, domain, base = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (tmp_path / "mixed", *models, folders[BASE])
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = reranker[name] + 0.3 * (domain[name] - base[name])
    torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)


def test_the_first_model_on_a_plain_base_is_the_reranker(folders: dict[str, str]) -> None:
    models = [folders[DOMAIN], folders[RERANKER]]
    recipe = make_recipe(models, [1, 1], base_model=folders[BASE], merge_method="task_arithmetic")
    with pytest.raises(PlanError, match=f"name .*{RERANKER} first"):
        build_plan(recipe)


def test_a_reranker_as_the_base_keeps_its_config(folders: dict[str, str]) -> None:
    models = [folders[BASE], folders[DOMAIN]]
    recipe = make_recipe(
        models, [1, 1], base_model=folders[RERANKER], merge_method="task_arithmetic"
    )
    assert build_plan(recipe).donor.reference == folders[RERANKER]
