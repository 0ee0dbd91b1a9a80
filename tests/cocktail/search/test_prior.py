"""What is likely of the weights before any are fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cocktail import search_weights
from cocktail.measure.bench import prepare, search_plan
from cocktail.measure.tasks.task import softmax_slopes
from cocktail.search.objective import EnsembleObjective
from cocktail.search.options import SearchOptions
from cocktail.search.prior import TEMPERATURE, Landmarks, Prior
from cocktail.search.strategies import softmax_of_losses, uniform

EXAMPLES = range(40)


class LossTask:
    """Rows are the losses of the examples."""

    scale_free = False

    def scores(self, rows: Tensor, examples, among=None) -> Tensor:
        return rows[list(examples)]

    def losses(self, scores: Tensor, scale: Tensor) -> Tensor:
        return scores

    def groups(self, rows: Tensor, examples) -> Tensor:
        return torch.empty(len(examples), 0)


def losses(means: list[float], noise: float = 0.5) -> Tensor:
    """(K, N) losses with these means exactly."""
    drawn = np.random.default_rng(0).normal(0, noise, (len(means), len(EXAMPLES)))
    drawn -= drawn.mean(axis=1, keepdims=True)
    return torch.from_numpy(drawn + np.array(means)[:, None])


def prior_of(means: list[float], sag: float, examples=EXAMPLES) -> Prior:
    """Of ingredients whose half-and-half mixes are ``sag`` better than the mean of their ends."""
    ends = losses(means)

    def run(weights: np.ndarray) -> Tensor:
        mixed = 1 - (weights**2).sum()  # 0 for an ingredient, 1/2 for half and half
        return torch.from_numpy(weights) @ ends - 2 * sag * mixed

    return Prior(LossTask(), Landmarks.with_mixes(len(means), run), examples)


def test_ingredients_alone_make_it_lm_cocktails_rule() -> None:
    means = [1.0, 1.1, 1.4]
    found = Prior(LossTask(), Landmarks.ingredients(losses(means)), EXAMPLES)
    np.testing.assert_allclose(
        found.weights, softmax_of_losses(means, TEMPERATURE * found.error), atol=1e-12
    )


def test_the_error_is_that_of_a_difference_of_two_means() -> None:
    found = Prior(LossTask(), Landmarks.ingredients(losses([1.0] * 8)), EXAMPLES)
    assert found.error == pytest.approx(0.5 * np.sqrt(2 / len(EXAMPLES)), rel=0.1)


def test_ingredients_that_are_alike_get_equal_weights() -> None:
    np.testing.assert_allclose(prior_of([1.0, 1.0, 1.0], sag=0.0).weights, uniform(3), atol=1e-12)


def test_a_mix_that_is_better_than_both_its_ends_is_found() -> None:
    """The worse of the two would get next to nothing by its own loss."""
    alone = Prior(LossTask(), Landmarks.ingredients(losses([1.0, 1.3])), EXAMPLES)
    assert alone.weights[1] < 0.01
    assert 0.35 < prior_of([1.0, 1.3], sag=0.6).weights[1] < 0.5


def test_only_the_pair_that_mixes_well_is_mixed() -> None:
    ends = losses([1.0, 1.3, 1.0])

    def run(weights: np.ndarray) -> Tensor:
        return torch.from_numpy(weights) @ ends - 2.4 * weights[0] * weights[1]

    found = Prior(LossTask(), Landmarks.with_mixes(3, run), EXAMPLES).weights
    assert found[2] < 0.01 and 0.35 < found[1] < 0.5


def test_an_ingredient_that_is_better_than_any_mix_is_not_diluted() -> None:
    assert prior_of([1.0, 1.6], sag=0.0).weights[0] > 0.98


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0]])
def test_the_order_of_the_ingredients_does_not_matter(order: list[int]) -> None:
    ends = losses([1.0, 1.1, 1.05])

    def weights_of(ends: Tensor) -> np.ndarray:
        def run(weights: np.ndarray) -> Tensor:
            return torch.from_numpy(weights) @ ends

        return Prior(LossTask(), Landmarks.with_mixes(3, run), EXAMPLES).weights

    np.testing.assert_allclose(weights_of(ends[order]), weights_of(ends)[order], atol=1e-12)


def test_two_examples_leave_all_weights_equal() -> None:
    np.testing.assert_allclose(prior_of([1.0, 5.0], sag=0.0, examples=[0, 1]).weights, [0.5, 0.5])


def test_a_search_that_ran_mixes_knows_them(kitchen: dict[str, str], rows: list[dict]) -> None:
    models = [kitchen["base"], kitchen["tuned"]]
    quiet = {"progress": False, "device": "cpu"}
    prior = search_weights(models, "reranker", rows, strategy="gradient", **quiet).candidate(
        "prior"
    )
    unaware = search_weights(models, "reranker", rows, strategy="lm-cocktail", **quiet)

    made = prepare(search_plan(models, "reranker"), rows, None, SearchOptions(), device="cpu")
    points = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    kept = torch.stack([made.mixture.rows(made.task, point).double() for point in points])
    everything = range(len(rows))
    bent = EnsembleObjective(made.task, kept, everything, [(0, 1)])
    expected = Prior(made.task, Landmarks.with_mixes(2, bent.rows), everything).weights
    np.testing.assert_allclose(prior.weights, expected, atol=1e-6)
    expected = Prior(made.task, Landmarks.ingredients(kept[:2]), everything).weights
    np.testing.assert_allclose(unaware.candidate("prior").weights, expected, atol=1e-6)
    assert abs(prior.weights[0] - expected[0]) > 1e-3


class RankingTask(LossTask):
    """Rows are the losses at the best scale; a guess is one among six."""

    scale_free = True

    def losses(self, scores: Tensor, scale: Tensor) -> Tensor:
        return torch.full_like(scores, np.log(6)) if scale == 0 else scores

    def scale_slopes(self, scores: Tensor, scale: float) -> tuple[float, float]:
        return 0.0, 0.0


def test_a_few_positives_that_are_ranked_last_do_not_decide() -> None:
    """Of two models, one is better on 36 examples and hopeless on four."""
    good, fair = losses([0.5, 1.0], noise=0.2)
    good[-4:] = 6.0
    landmarks = Landmarks.ingredients([good, fair])
    assert Prior(RankingTask(), landmarks, EXAMPLES).weights[0] > 0.95
    assert Prior(RankingTask(), landmarks, EXAMPLES, robust=False).weights[0] < 0.5
    assert Prior(LossTask(), landmarks, EXAMPLES).weights[0] < 0.5  # no guess without candidates


class LogitTask(LossTask):
    """Rows are logits (N, C); the first candidate is the positive."""

    scale_free = True

    def losses(self, scores: Tensor, scale: Tensor) -> Tensor:
        return -(scores * scale).log_softmax(dim=1)[:, 0]

    def scale_slopes(self, scores: Tensor, scale: float) -> tuple[float, float]:
        nobody = torch.zeros(scores.shape, dtype=torch.bool)
        return softmax_slopes(scores, nobody, torch.zeros(len(scores), dtype=torch.long), scale)


def test_a_few_confident_mistakes_do_not_set_the_scale() -> None:
    """Of two models, one is right and sure but for four examples, the other is often wrong."""
    noise = np.random.default_rng(0).normal(0, 1, (len(EXAMPLES), 6))
    fair = torch.from_numpy(noise)
    fair[:, 0] += 1.5
    good = fair.clone()
    good[:, 0] = good[:, 1:].max(dim=1).values + 3
    good[-4:, 0] -= 20
    landmarks = Landmarks.ingredients([good, fair])
    assert Prior(LogitTask(), landmarks, EXAMPLES).weights[0] > 0.95
    assert Prior(LogitTask(), landmarks, EXAMPLES, robust=False).weights[0] < 0.5


def test_a_factor_on_all_scores_changes_nothing() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (2, len(EXAMPLES), 6))
    rows = torch.from_numpy(noise)
    rows[:, :, 0] += torch.tensor([[1.0], [1.5]])
    found = [
        Prior(LogitTask(), Landmarks.ingredients(list(rows * scale)), EXAMPLES).weights
        for scale in (1.0, 1.7)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=0.02)


def test_the_scale_of_an_ingredient_that_ranks_nothing_moves_no_other() -> None:
    """Its best scale may be anything; those that rank are weighed as before."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (3, 12, 6)))
    rows[:, :, 0] += torch.tensor([[1.5], [2.0], [0.3]])
    found = []
    for factor in (0.1, 0.01):
        ends = [*rows[:2] * 8, rows[2] * factor]
        found.append(Prior(LogitTask(), Landmarks.ingredients(ends), range(12)).weights)
    assert 0.1 < found[0][0] < 0.9 and found[0][2] < 1e-3
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
