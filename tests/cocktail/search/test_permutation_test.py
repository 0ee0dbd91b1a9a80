"""The permutation test that tells examples from such as are labelled at random."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from cocktail.search.permutation_test import chance_probability, standing


def test_it_is_the_share_of_all_labellings_that_look_as_good() -> None:
    judges = [np.random.default_rng(seed).normal(size=(4, 3)) for seed in range(2)]
    centred = [judge - judge.mean(axis=1, keepdims=True) for judge in judges]

    def best(labels: tuple[int, ...]) -> float:
        return max(np.mean([judge[i, g] for i, g in enumerate(labels)]) for judge in centred)

    found = best((0, 0, 0, 0))
    exact = np.mean([best(labels) >= found - 1e-9 for labels in product(range(3), repeat=4)])
    assert 0 < exact < 1
    assert chance_probability(judges, seed=0) == pytest.approx(exact, abs=0.035)


def test_labels_at_random_look_good_as_rarely_as_it_says() -> None:
    """One time in ten for the limit of .1, however many judges there are and few examples."""
    random = np.random.default_rng(0)
    found = []
    for draw in range(300):
        shared = random.normal(size=(5, 6))  # judges agree, as fine-tunes of one base do
        scores = [torch.from_numpy(shared + random.normal(size=(5, 6))) for _ in range(4)]
        found.append(chance_probability([standing(each) for each in scores], seed=draw))
    assert 0.05 < np.mean(np.array(found) <= 0.1) < 0.15
    assert 0.4 < np.mean(found) < 0.6


def test_one_judge_that_knows_is_enough() -> None:
    random = np.random.default_rng(0)
    ignorant = [standing(torch.from_numpy(random.normal(size=(5, 6)))) for _ in range(4)]
    knowing = random.normal(size=(5, 6))
    knowing[:, 0] += 4
    judges = [*ignorant, standing(torch.from_numpy(knowing))]
    assert chance_probability(judges, seed=0) < 0.02


def test_a_judge_who_likes_everything_is_no_better_than_one_who_tells() -> None:
    """What a judge thinks of all labels alike says nothing about the one there is."""
    tells = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert chance_probability([tells, np.full((5, 2), 9.0)], seed=0) == pytest.approx(
        1 / 2**5, abs=0.015
    )
    assert chance_probability([np.zeros((5, 2))], seed=0) == 1


def test_groups_may_differ_in_size() -> None:
    worth = standing(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, float("-inf")]]))
    np.testing.assert_allclose(worth, [[1.5**0.5, 0, -(1.5**0.5)], [1, -1, np.nan]])
    assert chance_probability([worth], seed=0) == pytest.approx(1 / 6, abs=0.03)


def test_where_a_passage_stands_depends_on_no_scale() -> None:
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(standing(scores), standing(1e4 * scores - 7))


def test_scores_that_are_alike_to_rounding_stand_nowhere() -> None:
    scores = torch.tensor([[0.3, 0.3 + 3e-8, 0.3 - 3e-8], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(standing(scores), np.zeros((2, 3)))
