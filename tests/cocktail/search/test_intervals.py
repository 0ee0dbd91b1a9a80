"""Intervals over examples cover what they should."""

from __future__ import annotations

import numpy as np
import pytest

from cocktail.search.intervals import bootstrap_interval, standard_error


@pytest.mark.parametrize("count", [5, 20])
def test_the_interval_covers_the_truth_nineteen_times_in_twenty(count: int) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        found = bootstrap_interval(generator.normal(0, 1, count), seed=seed)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def test_a_single_example_says_nothing() -> None:
    found = bootstrap_interval(np.array([1.0]), seed=0)
    assert (found.mean, found.low, found.high) == (1, -np.inf, np.inf)
    assert found.to_dict() == {"mean": 1.0, "low": None, "high": None}
    assert standard_error(np.array([1.0])) == np.inf


def test_the_standard_error_is_that_of_a_mean() -> None:
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
