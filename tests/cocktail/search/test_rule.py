"""The rule on made-up curves whose best point is known."""

from __future__ import annotations

import numpy as np
import pytest

from cocktail.search.rule import allowed_points, choose_point, held_out_values, keeps

SHARES = np.linspace(0, 1, 11)


def curve(slope: float, bend: float = 0.0, *, noise: float = 0.02, count: int = 20, seed: int = 0):
    """(N, 11) losses of examples that differ in difficulty."""
    generator = np.random.default_rng(seed)
    means = slope * SHARES + bend * SHARES**2
    return generator.normal(1, 0.5, (count, 1)) + means + generator.normal(0, noise, (count, 11))


def test_the_fine_tune_is_taken_where_it_is_best() -> None:
    choice = choose_point(SHARES, curve(-0.6), None, max_drop=0.01)
    assert choice.place >= 9


def test_the_base_is_kept_where_nothing_is_gained() -> None:
    for seed in range(5):
        choice = choose_point(SHARES, curve(0.6, seed=seed), None, max_drop=0.01)
        assert (choice.place, choice.outcome) == (0, "base")


def test_the_middle_is_taken_where_it_is_best() -> None:
    choice = choose_point(SHARES, curve(-1.0, 1.0), None, max_drop=0.01)
    assert choice.outcome == "mix"
    assert 4 <= choice.place <= 6


def test_the_limit_holds_back() -> None:
    general = curve(0.0, 0.1, noise=0.001, count=40)
    choice = choose_point(SHARES, curve(-0.6), general, max_drop=0.01)
    assert choice.outcome == "limited"
    assert 2 <= choice.place <= 4
    assert choice.wanted == 10


def test_a_rise_within_its_error_is_allowed() -> None:
    """A mean of .0001 says nothing where its own error is a hundred times as large."""
    generator = np.random.default_rng(0)
    rise = generator.normal(0, 0.05, 30)
    rise += 0.0001 - rise.mean()
    general = np.stack([np.zeros(30), rise], axis=1)
    assert allowed_points(general, 0.0, 2).tolist() == [True, True]
    assert allowed_points(general + np.array([0, 0.1]), 0.0, 2).tolist() == [True, False]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_chosen_is_never_significantly_worse_than_an_end(seed: int) -> None:
    generator = np.random.default_rng(seed)
    target = curve(*generator.normal(0, 0.4, 2), noise=0.3, seed=seed)
    place = choose_point(SHARES, target, None, max_drop=0.01).place
    for end in (0, 10):
        worse = target[:, place] - target[:, end]
        assert worse.mean() <= 2.1 * worse.std(ddof=1) / np.sqrt(len(worse))


def test_held_out_values_are_those_of_what_the_others_choose() -> None:
    target = curve(-0.6)
    found = held_out_values(SHARES, target, None, max_drop=0.01, seed=0)
    for example, value in enumerate(found):
        assert value in target[example, 8:]


def test_a_mix_beside_the_curve_is_judged_by_itself() -> None:
    base = np.zeros(40)
    worse = np.linspace(0.0, 0.1, 40)  # 0.05 worse, give or take 0.005
    assert keeps(base, base, 0.01)
    assert not keeps(base, worse, 0.04)
    assert keeps(base, worse, 0.05)
