"""The gradient on the mixed model equals finite differences, whatever the kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5LayerNorm

from cocktail.measure.bench import prepare
from cocktail.measure.refillable import search_plan
from cocktail.search.gradient import descend, on_simplex
from cocktail.search.objective import MixObjective
from cocktail.search.options import SearchOptions
from tests.cocktail.tiny import FAMILIES, examples, ingredients

STEP = 1e-5


@pytest.fixture(autouse=True)
def nothing_rounds_to_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Difference quotients need more digits than the kinds and the norms keep in fp32."""

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    as_fp32, angles = torch.Tensor.float, LlamaRotaryEmbedding.forward

    def rotations(*arguments: Any, **others: Any) -> Any:
        # They do not depend on the weights, and some versions convert one factor another way.
        with monkeypatch.context() as inside:
            inside.setattr(torch.Tensor, "float", as_fp32)
            return angles(*arguments, **others)

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", rotations)
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(T5LayerNorm, "forward", norm)


def bench(family: str, folder: Path, **options):
    # fp64, so that finite differences mean something.
    plan = search_plan(ingredients(family, folder), FAMILIES[family][0], dtype="float64")
    return prepare(plan, examples(family), None, SearchOptions(**options), device="cpu")


def slope(objective, weights: np.ndarray, direction: np.ndarray) -> float:
    above = objective.value(weights + STEP * direction)
    below = objective.value(weights - STEP * direction)
    return (above - below) / (2 * STEP)


@pytest.mark.parametrize("family", FAMILIES)
def test_mix_gradient_equals_finite_differences(family: str, tmp_path: Path) -> None:
    made = bench(family, tmp_path)
    objective = MixObjective(made.mixture, made.task)
    weights = np.array([0.5, 0.3, 0.2])
    value, gradient = objective.value_and_gradient(weights)
    assert value == pytest.approx(objective.value(weights), abs=1e-12)
    for direction in (np.array([1.0, -1.0, 0]), np.array([0.5, 0.5, -1.0])):
        expected = slope(objective, weights, direction)
        assert abs(expected) > 1e-3
        assert gradient @ direction == pytest.approx(expected, rel=1e-5)


def test_gradient_of_some_examples_is_that_of_a_search_over_them(tmp_path: Path) -> None:
    made = bench("bert-reranker", tmp_path)
    weights = np.array([0.5, 0.3, 0.2])
    some = MixObjective(made.mixture, made.task, [0, 2])
    others = MixObjective(made.mixture, made.task, [1, 3, 4, 5])
    whole = MixObjective(made.mixture, made.task)
    for part in (some, others, whole):
        part.task.scale_free = False  # a common scale would tie the parts together
    (_, a), (_, b), (_, c) = (part.value_and_gradient(weights) for part in (some, others, whole))
    np.testing.assert_allclose((2 * a + 4 * b) / 6, c, rtol=1e-4)


class Bowl:
    """A convex function whose lowest point on the simplex is known."""

    size = 3
    lowest = np.array([0.2, 0.8, 0.0])

    def __init__(self) -> None:
        self.count = 0

    def value(self, weights: np.ndarray) -> float:
        return float(((weights - self.lowest) ** 2).sum())

    def value_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        self.count += 1
        return self.value(weights), 2 * (weights - self.lowest)


def test_the_lowest_point_is_found() -> None:
    np.testing.assert_allclose(descend(Bowl(), np.full(3, 1 / 3)), Bowl.lowest, atol=1e-3)


def test_evaluations_are_counted_and_the_best_is_kept() -> None:
    bowl = Bowl()
    start = np.full(3, 1 / 3)
    found = descend(bowl, start, evaluations=2)
    assert bowl.count == 2
    assert bowl.value(found) <= bowl.value(start)


def test_what_lies_a_hair_outside_is_put_on_the_simplex() -> None:
    found = on_simplex(np.array([-1e-9, 0.5, 0.6]))
    assert found.min() == 0
    assert found.sum() == pytest.approx(1)
