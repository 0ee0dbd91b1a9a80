"""The bagged best: what is certain stands alone, what is alike is averaged."""

from __future__ import annotations

import numpy as np

from cocktail.search.direction import bagged_best


def test_the_certain_best_stands_alone() -> None:
    losses = np.random.default_rng(0).normal([1, 0, 1], 0.1, (20, 3))
    np.testing.assert_allclose(bagged_best(losses, np.eye(3), seed=0), [0, 1, 0])


def test_what_is_alike_is_averaged() -> None:
    half = np.tile([[0.0, 1.0, 9.0], [1.0, 0.0, 9.0]], (10, 1))
    found = bagged_best(half, np.eye(3), seed=0)
    np.testing.assert_allclose(found, [0.5, 0.5, 0], atol=0.12)  # equal means go to the first


def test_mixes_count_by_their_weights() -> None:
    losses = np.random.default_rng(0).normal([1, 0], 0.1, (20, 2))
    weights = np.array([[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(bagged_best(losses, weights, seed=0), [0.5, 0.5])
